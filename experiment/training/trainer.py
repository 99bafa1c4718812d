"""Training as a pure step on a plain state, and a loop that yields the state and the log's rows.

The state is the pytree {params, ema, power_ema, opt_state, learned, step}: power_ema and learned are {} unless the
config asks for averages of other lengths, or for an objective that learns. Batch k and noise k are functions of (seed,
k) alone, so a run that stops and goes on is the run that never stopped.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiment.build.conditions import condition_kind
from experiment.build.objective import Objective
from experiment.build.objects import (
    abstract_network,
    build_network,
    build_optimizer,
    build_parameterization,
    build_schedule,
    build_sde,
)
from experiment.common.errors import UserError
from experiment.data.augmentation import augment
from experiment.data.batches import batch_indices
from experiment.data.conditions import check_cond_units, condition_rows
from experiment.data.dataset import Split
from experiment.data.scaling import Scaled, Scaling, random_flip
from experiment.devices.sharding import OverBatch, Rows, make_mesh, over_batch, put_rows, replicated, weight_shardings
from experiment.training.clock import Clock
from models import Augmented, Vector
from sde_lib import NetworkScore, power_ema_decay

State = dict[str, Any]
Window = dict[str, jax.Array]
Seen = tuple[jax.Array, jax.Array, dict[str, jax.Array]]  # of each example: its loss, u, its losses by name

# Calls given to the device before the host waits for one: enough to keep it busy while the host reads the next batch,
# few enough to answer a signal.
IN_FLIGHT = 2

# What the key of a step's data is folded with: for the conditions that are dropped, and for augmentations.
_DROP, _AUGMENT = range(2)


def empty_window(named: Iterable[str] = ()) -> dict[str, float]:
    """The sums of the log before any step: losses, gradient norms, steps; and the first step not finite, or -1.

    named: the losses that the loss is the sum of, which are summed too.
    """
    parts = {f"loss_{name}": 0.0 for name in named}
    return {"loss": 0.0, **parts, "grad_norm": 0.0, "steps": 0, "bad_step": -1}


@dataclass(frozen=True)
class Progress:
    """The state after `step` updates, the log's row if one is due, the sums since the last row."""

    state: State
    step: int
    row: dict[str, float] | None
    window: dict[str, float]


class NotFinite(UserError):
    """The loss, the gradient or a weight was not finite."""


def check_finite(seen: dict[str, float], state: State, step: int) -> None:
    """Check the sums since the last row, and the weights now. Raises NotFinite where one of them is not finite."""
    if seen["bad_step"] >= 0:
        raise NotFinite(f"the loss or its gradient is not finite at step {seen['bad_step']:d}")
    if not _all_finite((state["params"], state["ema"])):
        raise NotFinite(f"a weight is not finite at step {step}")


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def ema_decay(ema: float, step: Any) -> Any:
    """The decay min(ema, (1 + k)/(10 + k)) at update k: short at first, so that the initial weights are soon gone."""
    return jnp.minimum(ema, (1.0 + step) / (10.0 + step))


def averaged(ema: Any, params: Any, decay: Any) -> Any:
    """Update the average: ema <- decay ema + (1 - decay) params.

    It is written as ema + (1 - decay) (params - ema), so that the average of a weight which never changes is that
    weight, to the last bit.
    """
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)


def width_name(sigma_rel: float) -> str:
    """The key of an average in the state's power_ema."""
    return f"{sigma_rel:g}"


def micro_batches(batch: Any, n: int) -> Any:
    """Reshape arrays (b, ...) to (n, b/n, ...), every n-th row together: each device keeps its share of each."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1), batch)


class Trainer:
    """The compiled functions that train a config on a dataset, on the mesh of `devices`, by default all there are.

    Raises UserError when the batch does not divide over accumulate x devices, or the config's objects cannot be built.
    """

    def __init__(
        self, config: Any, dataset: Any, devices: Sequence[Any] | None = None, gaussian: Mapping[str, Any] | None = None
    ):
        self.config, self.dataset = config, dataset
        self.mesh = make_mesh(config.train.fsdp, devices)
        self._check()
        # Never on CPU, where convolutions in a compiled loop are slow (jax issue 12868).
        self.steps_per_call = 1 if self.mesh.devices.flat[0].platform == "cpu" else config.train.steps_per_call
        self.scaling = Scaling(dataset.levels, config.data.centered, dataset.units)
        self.kind = condition_kind(config, dataset)
        self.told = None if self.kind is None else self.conditions(dataset.train)
        self.sde, self.parameterization = build_sde(config), build_parameterization(config, gaussian)
        self.objective = Objective.of(config)
        self.optimizer, self.schedule = build_optimizer(config), build_schedule(config)
        apply, weights = abstract_network(config, dataset)
        self.apply = OverBatch(apply, self.mesh)
        self.abstract_state = jax.eval_shape(self._initial, weights)
        self.shardings = weight_shardings(self.mesh, self.abstract_state)
        self._step, self._steps = self._compiled(self.step, axis=0), self._compiled(self.steps, axis=1)

    def _compiled(self, step: Callable[..., Any], axis: int) -> Any:
        """Compile `step` on the mesh, with its batch split at this axis and its state overwritten."""
        whole, rows = replicated(self.mesh), over_batch(self.mesh, axis)
        return jax.jit(
            step,
            in_shardings=(self.shardings, whole, rows, whole),
            out_shardings=(self.shardings, whole, whole),
            donate_argnums=(0, 1),
        )

    def _check(self) -> None:
        train, devices, units = self.config.train, self.mesh.size, self.dataset.units
        constant = [] if units is None else np.flatnonzero(units.std == 0).tolist()
        if units is not None and constant:
            what = "column" if len(self.dataset.shape) == 1 else "channel"
            more = f", and {len(constant) - 1} more" if len(constant) > 1 else ""
            raise UserError(
                f"{what} {constant[0]} of {self.dataset.name} is {units.mean[constant[0]]:g} in all training examples, "
                f"so it has no density: leave it out{more}"
            )
        check_cond_units(self.config, self.dataset)
        if self.config.data.flip and len(self.dataset.shape) != 3:
            raise UserError("config.data.flip mirrors images, and this data set holds none: set it to false")
        if self.config.data.augment and len(self.dataset.shape) != 3:
            raise UserError("config.data.augment transforms images, and this data set holds none: set it to 0")
        if train.batch_size % (train.accumulate * devices):
            raise UserError(
                f"config.train.batch_size is {train.batch_size}: it must be divisible by"
                f" config.train.accumulate x devices, {train.accumulate} x {devices}"
            )

    @property
    def examples(self) -> Rows:
        """The examples to train on: floats standardised on the host, in float64, as they are taken; levels as such."""
        x = self.dataset.train.x
        return x if self.scaling.units is None else Scaled(self.scaling, x)

    @property
    def weights(self) -> int:
        """The number of the network's weights."""
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.abstract_state["params"]))

    def _initial(self, params: Any) -> State:
        return {
            "params": params,
            "ema": jax.tree.map(jnp.copy, params),
            "power_ema": {width_name(width): jax.tree.map(jnp.copy, params) for width in self.config.train.power_ema},
            "opt_state": self.optimizer.init(params),
            "learned": self.objective.initial(params),
            "step": jnp.zeros((), jnp.int32),
        }

    @property
    def like(self) -> State:
        """The state as shapes, dtypes and shardings, which tell a checkpoint how to restore it."""

        def placed(x: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return jax.tree.map(placed, self.abstract_state, self.shardings)

    def initial_state(self, params: Any = None) -> State:
        """The state at step 0: of these weights, by default of those drawn from config.seed."""
        if params is None:
            _, params = build_network(self.config, self.dataset)
        return jax.jit(self._initial, out_shardings=self.shardings)(params)

    def compiled_step(self, state: State, window: dict[str, float], step: int) -> jax.stages.Compiled:
        """Compile the update of this state; `run` finds it compiled."""
        seed = jnp.uint32(self.config.seed)
        return self._step.lower(state, self._put_window(window), self.batch(step), seed).compile()

    def lowered(self) -> jax.stages.Lowered:
        """Lower the update by shapes alone, also for a mesh of devices that are not here."""
        size, rows, whole = self.config.train.batch_size, over_batch(self.mesh), replicated(self.mesh)

        def like(source: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((size, *source.shape[1:]), source.dtype, sharding=rows)

        batch = {"x": like(self.examples)}
        if self.told is not None:
            batch["cond"] = jax.tree.map(like, self.told)
        window = {name: jax.ShapeDtypeStruct((), dtype, sharding=whole) for name, dtype in self._window_types().items()}
        return self._step.lower(self.like, window, batch, jax.ShapeDtypeStruct((), jnp.uint32, sharding=whole))

    def batch(self, step: int, steps: int = 0) -> dict[str, jax.Array]:
        """Put batch `step` on the mesh: integer levels for images, floats standardised.

        With `steps` it is that many batches from this one on, (steps, b, ...).
        """
        data, size = self.dataset.train, self.config.train.batch_size
        found = [batch_indices(self.config.seed, k, size, len(data)) for k in range(step, step + max(steps, 1))]
        rows = np.stack(found) if steps else found[0]
        batch = {"x": put_rows(rows, self.examples, self.mesh)}
        if self.told is not None:
            batch["cond"] = jax.tree.map(lambda told: put_rows(rows, told, self.mesh), self.told)
        return batch

    def conditions(self, split: Split) -> Any:
        """What the network is told of a split's examples, a row for each; None where it is told nothing."""
        told, units = condition_rows(self.kind, split), self.dataset.cond_units
        return units.to_model(told) if isinstance(self.kind, Vector) and units is not None else told

    def drop(self, cond: Any, key: jax.Array) -> Any:
        """Replace the conditions (n, ..) by "nothing", each with probability config.train.cond_dropout."""
        share = self.config.train.cond_dropout
        if self.kind is None or not share:
            return cond
        dropped = jax.random.bernoulli(key, share, jax.tree.leaves(cond)[0].shape[:1])

        def rows(told: jax.Array, nothing: Any) -> jax.Array:
            return jnp.where(dropped.reshape(-1, *[1] * (told.ndim - 1)), jnp.asarray(nothing)[None], told)

        return jax.tree.map(rows, cond, self.kind.nothing())

    def prepare(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Turn the data into the model's input: flipped at random, dequantised, scaled."""
        key_flip, key_scale = jax.random.split(key)
        if self.config.data.flip:
            x = random_flip(x, key_flip)
        if self.scaling.levels is None:
            return x
        return self.scaling.to_model(x, key_scale if self.config.data.dequantize else None)

    def loss(self, params: Any, learned: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Seen]:
        """Compute the loss of a prepared batch.

        Returns:
            loss: the mean over the examples.
            seen: of each example its loss, the uniform number that its time was drawn by, and its losses by name.
        """
        score_fn = NetworkScore(self.apply, params, self.sde, self.parameterization)
        seen = self.objective.losses(learned, score_fn, batch["x"], key, batch.get("cond"))
        return jnp.mean(seen[0]), seen

    def loss_and_grad(self, params: Any, learned: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Seen, Any]:
        """Compute the loss and its gradient by micro-batches, the i-th with the key fold_in(key, i).

        Returns:
            loss: the mean over the batch.
            seen: of each example, as from `loss`.
            grad: the gradient of the mean loss.
        """
        n = self.config.train.accumulate
        value_and_grad = jax.value_and_grad(self.loss, has_aux=True)
        if n == 1:  # no loop: convolutions in a compiled loop are slow on CPU
            (loss, seen), grad = value_and_grad(params, learned, batch, jax.random.fold_in(key, 0))
            return loss, seen, grad

        def add(total: Any, micro: Any) -> tuple[Any, Any]:
            i, rows = micro
            (loss, seen), grad = value_and_grad(params, learned, rows, jax.random.fold_in(key, i))
            return jax.tree.map(jnp.add, total, (loss, grad)), seen

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        total, seen = jax.lax.scan(add, zero, (jnp.arange(n), micro_batches(batch, n)))
        loss, grad = jax.tree.map(lambda x: x / n, total)
        return loss, jax.tree.map(jnp.ravel, seen), grad

    def step(self, state: State, window: Window, batch: Any, seed: jax.Array) -> tuple[State, Window, jax.Array]:
        """Make one update. Pure: (state, sums, batch, seed) -> (state, sums, loss)."""
        k = state["step"]
        key_data, key_loss = jax.random.split(jax.random.fold_in(jax.random.key(seed), k))
        batch = {**batch, "x": self.prepare(batch["x"], key_data)}
        if "cond" in batch:
            batch["cond"] = self.drop(batch["cond"], jax.random.fold_in(key_data, _DROP))
        if probability := self.config.data.augment:
            batch["x"], labels = augment(batch["x"], jax.random.fold_in(key_data, _AUGMENT), probability)
            batch["cond"] = Augmented(batch.get("cond"), labels)
        loss, (losses, u, named), grad = self.loss_and_grad(state["params"], state["learned"], batch, key_loss)
        updates, opt_state = self.optimizer.update(grad, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        decay = ema_decay(self.config.train.ema, k)
        ema = averaged(state["ema"], params, decay)
        power_ema = {
            width_name(width): averaged(state["power_ema"][width_name(width)], params, power_ema_decay(width, k + 1))
            for width in self.config.train.power_ema
        }
        learned = self.objective.update(state["learned"], self.sde, named.get("diagonal", losses), u)
        grad_norm = optax.global_norm(grad)
        bad = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm)) & (window["bad_step"] < 0)
        window = {
            "loss": window["loss"] + loss,
            **{f"loss_{name}": window[f"loss_{name}"] + jnp.mean(named[name]) for name in self.objective.named},
            "grad_norm": window["grad_norm"] + grad_norm,
            "steps": window["steps"] + 1,
            "bad_step": jnp.where(bad, k + 1, window["bad_step"]),
        }
        state = {
            "params": params,
            "ema": ema,
            "power_ema": power_ema,
            "opt_state": opt_state,
            "learned": learned,
            "step": k + 1,
        }
        return state, window, loss

    def steps(self, state: State, window: Window, batches: Any, seed: jax.Array) -> tuple[State, Window, jax.Array]:
        """Make an update for each of the batches (k, b, ...) in one call of the device; the loss is the last one's."""

        def one(carry: tuple[State, Window], batch: Any) -> tuple[tuple[State, Window], jax.Array]:
            state, window, loss = self.step(*carry, batch, seed)
            return (state, window), loss

        (state, window), losses = jax.lax.scan(one, (state, window), batches)
        return state, window, losses[-1]

    def call(self, state: State, window: Window, step: int) -> tuple[State, Window, jax.Array, int]:
        """Call the device once: for steps_per_call updates, or for one where an event comes before.

        So calls have two lengths, each of which compiles once, and the log, checkpoints and snapshots keep their steps.

        Returns:
            state, sums, the last update's loss, and the step after it.
        """
        n, seed = self.steps_per_call, jnp.uint32(self.config.seed)
        if n == 1 or n > self._until_event(step):
            return *self._step(state, window, self.batch(step), seed), step + 1
        return *self._steps(state, window, self.batch(step, n), seed), step + n

    def _until_event(self, step: int) -> int:
        """The number of steps until the loop has to look at the state."""
        train = self.config.train
        every = [train.log_every, train.checkpoint_every, *([train.snapshot_every] if train.power_ema else [])]
        return min(train.steps - step, *(n - step % n for n in every))

    def run(
        self,
        state: State,
        window: dict[str, float] | None = None,
        stop: Callable[[], bool] = lambda: False,
        called: Callable[[int], None] = lambda step: None,
    ) -> Iterator[Progress]:
        """Train from `state` to config.train.steps. Yields at the log's and checkpoints' steps and when `stop`.

        `called` is called with the step after each call of the device.

        The yielded state must be used before the loop goes on: the next step overwrites it. Raises NotFinite, naming
        the step, before a state that is not finite is yielded.
        """
        train, step = self.config.train, int(state["step"])
        sums = self._put_window(window or self.empty_window())
        in_flight, clock = deque[jax.Array](), Clock(train.batch_size)
        while step < train.steps:
            before = step
            state, sums, loss, step = self.call(state, sums, before)
            in_flight.append(loss)
            if clock.cold(step - before) or len(in_flight) > IN_FLIGHT:
                in_flight.popleft().block_until_ready()
            clock.tick(step - before)
            called(step)
            logs = step % train.log_every == 0 or step == train.steps
            snapshot = train.power_ema and step % train.snapshot_every == 0
            if not (logs or snapshot or step % train.checkpoint_every == 0 or stop()):
                continue
            seen = {name: value.item() for name, value in jax.device_get(sums).items()}
            check_finite(seen, state, step)
            row = self._row(step, seen, clock) if logs else None
            yielded = time.perf_counter()
            yield Progress(state, step, row, self.empty_window() if logs else seen)
            clock.skip(time.perf_counter() - yielded)
            if logs:
                sums = self._put_window(self.empty_window())
                clock.restart()

    def empty_window(self) -> dict[str, float]:
        """The log's sums before any step."""
        return empty_window(self.objective.named)

    def _window_types(self) -> dict[str, Any]:
        return {name: jnp.int32 if type(zero) is int else jnp.float32 for name, zero in self.empty_window().items()}

    def _put_window(self, window: dict[str, float]) -> Window:
        types = self._window_types()
        return jax.device_put({k: np.asarray(window[k], t) for k, t in types.items()}, replicated(self.mesh))

    def _row(self, step: int, seen: dict[str, float], clock: Clock) -> dict[str, float]:
        return {
            "step": step,
            **{name: seen[name] / seen["steps"] for name in seen if name.startswith("loss")},
            "grad_norm": seen["grad_norm"] / seen["steps"],
            "lr": np.asarray(self.schedule(step - 1)).item(),
            "images_per_second": clock.rate(),
        }
