"""Fixed-step samplers as tables of coefficients, and the one scan that runs them.

A sampler that is linear in x, in what the network has said so far and in noise is a table with a row for each score
call:

    e_i = p_i x + sum_{j >= 1} q_ij M_{i-j}              where the score is called; x itself for most methods
    M_i = M(e_i, t_i)                                    the denoiser E[x_0 | x], or the noise E[eps | x]
    x  <- a_i x + sum_{j >= 0} b_ij M_{i-j} + c_i z      z standard normal

Exponential integrators, multistep methods, Runge-Kutta methods (a row for each stage) and predictor-correctors without
extra calls are all of this form. The table is computed once, on the host in float64, from the SDE and a time grid. It
is an argument of the compiled scan: other constants, grids and settings of a method never recompile it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sde_lib.batch import fold_in_each, normal_like, row_keys
from sde_lib.composed import jumps, network_calls
from sde_lib.conversions import denoiser
from sde_lib.samplers.base import Samples, watcher
from sde_lib.samplers.grids import Grid, Times, UniformT, around_jumps, check_grid
from sde_lib.score import ScoreFn
from sde_lib.sde import SDE, host_sde
from sde_lib.typing import Array, PyTree, Scalar

Prediction = Callable[[ScoreFn, jax.Array, Scalar, PyTree], jax.Array]
Correct = Callable[[ScoreFn, jax.Array, jax.Array, Scalar, PyTree, PyTree], jax.Array]


class Point(NamedTuple):
    """The point at which a row calls the score: e = p x + sum_j q_j M_{-j}, p (N,), q (N, K - 1)."""

    p: Array
    q: Array


class Table(NamedTuple):
    """A table of N rows, one for each score call; see the module's text.

    t (N,): the time of each call. t_next (N,): the time at which x is after the row.
    a (N,), b (N, K), c (N,): c is None for a method that draws no noise.
    point: None where every call is at x itself.
    """

    t: Array
    t_next: Array
    a: Array
    b: Array
    c: Array | None = None
    point: Point | None = None


def columns(*values: Array) -> Array:
    """Stack K arrays (N,) into (N, K)."""
    return (jnp if any(isinstance(v, jax.Array) for v in values) else np).stack(values, axis=1)


def no_correction(
    score_fn: ScoreFn, x: jax.Array, keys: jax.Array, t: Scalar, settings: PyTree, cond: PyTree
) -> jax.Array:
    """The corrector of a sampler without one: it leaves x as it is."""
    return x


@dataclass(frozen=True)
class LinearSampler:
    """A method that is a table: its subclasses define `update`, and if need be what follows.

    Each says how many steps are enough: with them the standard deviation of N(m, w² I) is within 1.5 % of that at
    t_min, for narrow and wide data alike, w from 0.01 to 2, on every SDE here and with the method's own grid. It is
    the exact law's, by `gaussian_law`. Data of about unit scale need far fewer.

    Args:
        steps: how many.
        grid: where they are, a value of `sde_lib.samplers.grids`.
        denoise: replace the last x by D(x, t_min), at one more score call.
    """

    steps: int = 500
    grid: Grid = UniformT()  # noqa: RUF009 - immutable
    denoise: bool = False

    model: ClassVar[Any] = staticmethod(denoiser)  # a Prediction: what the table's M is
    calls_per_step: ClassVar[int] = 1
    min_steps: ClassVar[int] = 1  # a multistep method with fewer never reaches its order
    convergence: ClassVar[int] = 1  # the order in theory, weak where noise is drawn

    def update(self, sde: SDE, times: Array) -> Table:
        """The table of the steps between these times, (steps + 1,), decreasing."""
        raise TypeError(f"{type(self).__name__} must define update(sde, times)")

    @property
    def nfe(self) -> int:
        """The score calls per sample."""
        return self.steps * self.calls_per_step + self.denoise

    def at_nfe(self, nfe: int) -> Self:
        """This sampler with as many steps as spend exactly `nfe` score calls. Raises ValueError where none do."""
        steps, left = divmod(nfe - self.denoise, self.calls_per_step)
        if left or steps < self.min_steps:
            odd = f" and {self.calls_per_step} a step" if self.calls_per_step > 1 else ""
            last = ", one of them for the final denoising" if self.denoise else ""
            raise ValueError(
                f"{type(self).__name__} cannot spend {nfe} score calls{last}: it takes at least {self.min_steps} "
                f"steps{odd}"
            )
        return replace(self, steps=steps)

    def run(self, score_fn: ScoreFn, x: jax.Array, keys: jax.Array, cond: PyTree, frames: int) -> Samples:
        """Run the table; see `sde_lib.samplers.base.Sampler`."""
        return run_linear(self, score_fn, x, keys, cond, frames)


@dataclass(frozen=True)
class ScanKind:
    """The static part of a compiled scan, beside the shapes: one instance per kind of sampler."""

    model: Prediction
    correct: Correct


def table_of(sampler: LinearSampler, sde: SDE, jumps: Sequence[Scalar] = ()) -> Table:
    """The sampler's table for the SDE. Raises ValueError for steps or a grid that it cannot take.

    jumps: the log SNR at which the score jumps. Of those that are numbers, the same for every sample, each lies in the
    middle of a step, unless the grid is the caller's own `Times`.
    """
    return _times_and_table(sampler, host_sde(sde), jumps)[1]


def _times_and_table(sampler: LinearSampler, sde: SDE, jumps: Sequence[Scalar]) -> tuple[Array, Table]:
    if sampler.steps < sampler.min_steps:
        raise ValueError(f"{type(sampler).__name__}: steps must be at least {sampler.min_steps}, not {sampler.steps}")
    if isinstance(sampler.grid, type):
        name = sampler.grid.__name__
        raise ValueError(f"{type(sampler).__name__}: grid must be an object: write {name}(), not {name}")
    times = sampler.grid(sde, sampler.steps)
    if isinstance(times, np.ndarray):  # traced times cannot be checked
        check_grid(sde, times)
        shared = [float(at) for at in jumps if not isinstance(at, jax.core.Tracer) and np.ndim(at) == 0]
        times = times if isinstance(sampler.grid, Times) else around_jumps(sde, times, shared)
    return times, sampler.update(sde, times)


def kept_rows(frames: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a path of `steps` steps is kept: evenly, at both ends too. With more frames than that, some repeat.

    Returns:
        kept: the counts of steps done, increasing, without repetition.
        frame: (frames,), which of them each frame is.
    """
    kept, frame = np.unique(np.round(np.arange(frames) * steps / max(frames - 1, 1)).astype(int), return_inverse=True)
    return kept, frame


def run_linear(
    sampler: LinearSampler,
    score_fn: ScoreFn,
    x: jax.Array,
    keys: jax.Array,
    cond: PyTree,
    frames: int,
    *,
    correct: Correct = no_correction,
    correction: Callable[[SDE, Table], PyTree] = lambda sde, table: (),
    corrections: int = 0,
) -> Samples:
    """Run the rows of the sampler's table, each followed by `correct`.

    `correction(sde, table)` gives the corrector's settings, arrays with an entry for each row; `corrections` is how
    often it calls the score in each.
    """
    sde = host_sde(score_fn.sde)
    times, table = _times_and_table(sampler, sde, jumps(score_fn))
    times, table, settings = jax.tree.map(partial(_as, x.dtype), (times, table, correction(sde, table)))
    kept, frame = kept_rows(frames, sampler.steps)
    last = kept * sampler.calls_per_step  # the row after which each frame is kept, as a count of rows done
    count = len(table.a)
    rows = (np.arange(count), table, settings, np.searchsorted(last, np.arange(1, count + 1)))
    kind = ScanKind(sampler.model, correct)
    carry = _start(x, table.b.shape[1] - 1, len(kept))
    tell = None if isinstance(x, jax.core.Tracer) else watcher()
    parts = 1 if tell is None else next(k for k in range(MOST_PARTS, 0, -1) if count % k == 0)
    for done in range(0, count, count // parts):
        part = slice(done, done + count // parts)
        if tell is not None and _on_one_device(score_fn, carry):
            carry = jax.device_put(carry, x.sharding)  # the same to jax for every part, so that one program is compiled
        carry = _scan(score_fn, carry, keys, cond, jax.tree.map(lambda v, part=part: v[part], rows), kind)
        if tell is not None:
            jax.block_until_ready(carry)
            tell(part.stop, count)
    x, _, path = _denoise(score_fn, carry, cond, table.t_next[-1]) if sampler.denoise else carry
    nfe = network_calls(score_fn, table.t)
    if corrections:
        nfe += corrections * network_calls(score_fn, table.t_next)
    if sampler.denoise:
        nfe += network_calls(score_fn, table.t_next[-1:])
    if path is None:
        return Samples(x, nfe)
    path = path if len(kept) == frames else path[frame]
    return Samples(x, nfe, path, jnp.concatenate([times[:1], table.t_next])[last][frame])


MOST_PARTS = 20  # that a scan is told in, where somebody watches; they are equal, so that one is compiled


def _on_one_device(*trees: PyTree) -> bool:
    arrays = [leaf for leaf in jax.tree.leaves(trees) if isinstance(leaf, jax.Array)]
    return len({device for array in arrays for device in array.devices()}) == 1


def _as(dtype: DTypeLike, values: Array) -> Array:
    """The values in this dtype, on the host if they are there."""
    if isinstance(values, jax.Array):
        return values.astype(dtype)
    with np.errstate(over="ignore"):  # what is beyond float32 is inf, as it is on a device
        return np.asarray(values, dtype)


# x, the last values of the model, and the path.
_Carry = tuple[jax.Array, tuple[jax.Array, ...], jax.Array | None]


@partial(jax.jit, static_argnums=(1, 2))
def _start(x: jax.Array, past: int, frames: int) -> _Carry:
    path = jnp.zeros((frames, *x.shape), x.dtype).at[0].set(x) if frames else None
    return x, tuple(jnp.zeros_like(x) for _ in range(past)), path


def scan_rows(
    score_fn: ScoreFn, x: jax.Array, keys: jax.Array, cond: PyTree, table: Table, kind: ScanKind
) -> jax.Array:
    """The rows of a table from x, inside a compiled function of a sampler made of others; keys (n,)."""
    count, depth = table.b.shape
    rows = (jnp.arange(count), table, (), jnp.zeros(count, int))
    return _scan(score_fn, (x, (jnp.zeros_like(x),) * (depth - 1), None), keys, cond, rows, kind)[0]


@partial(jax.jit, static_argnames="kind")
def _scan(
    score_fn: ScoreFn,
    carry: _Carry,
    keys: jax.Array,
    cond: PyTree,
    rows: tuple[jax.Array, Table, PyTree, jax.Array],
    kind: ScanKind,
) -> _Carry:
    # Every row writes to the slot of the next frame to come, so the frame's own row writes last: no branch, and no
    # stored path.
    def step(carry: _Carry, scanned: tuple[jax.Array, Table, PyTree, jax.Array]) -> tuple[_Carry, None]:
        x, past, path = carry
        i, row, row_settings, slot = scanned
        row_keys = fold_in_each(keys, i)
        e = x if row.point is None else _combine(row.point.p, x, row.point.q, past)
        known = (kind.model(score_fn, e, row.t, cond), *past)
        x = _combine(row.a, x, row.b, known)
        if row.c is not None:
            x = x + row.c * normal_like(row_keys, x)
        x = kind.correct(score_fn, x, row_keys, row.t_next, row_settings, cond)
        return (x, known[: len(past)], None if path is None else path.at[slot].set(x)), None

    return jax.lax.scan(step, carry, rows)[0]


def ends_of(
    table: Table, score_fn: ScoreFn, x: jax.Array, cond: PyTree = None, model: Prediction = denoiser
) -> jax.Array:
    """Carry x (n, *shape) through the rows of a table that draws no noise; differentiable in the table."""
    count = len(table.a)
    keys = row_keys(jax.random.key(0), jnp.arange(len(x)))  # of which nothing is drawn
    rows = (np.arange(count), table, (), np.zeros(count, int))
    return _scan(score_fn, _start(x, table.b.shape[1] - 1, 0), keys, cond, rows, ScanKind(model, no_correction))[0]


@jax.jit
def _denoise(score_fn: ScoreFn, carry: _Carry, cond: PyTree, t: Scalar) -> _Carry:
    x, past, path = carry
    x = denoiser(score_fn, x, t, cond)
    return x, past, None if path is None else path.at[-1].set(x)


def _combine(a: Array, x: jax.Array, b: Array, known: tuple[jax.Array, ...]) -> jax.Array:
    return sum((m * b[j] for j, m in enumerate(known)), start=x * a)
