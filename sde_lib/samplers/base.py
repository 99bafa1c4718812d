"""The parts that every sampler shares: `sample`, its result, and each sample's own randomness."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sde_lib.batch import check_rows, fold_in_each, row_keys, threefry
from sde_lib.composed import calls, jvps, take_rows
from sde_lib.distributions import Prior
from sde_lib.score import ScoreFn, check_score
from sde_lib.typing import PyTree

if TYPE_CHECKING:
    from sde_lib.flow_map.base import FlowMap  # whose room samples by this module

# All randomness of sample i comes from fold_in(key, i), split by purpose.
_PRIOR, _NOISE = 0, 1


Watcher = Callable[[int, int], None]
_WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextlib.contextmanager
def watched(tell: Watcher) -> Iterator[None]:
    """Inside, a sampler of fixed steps runs in equal parts, and calls tell(score calls done, of how many) after each.

    Its result is the same. A sampler that chooses its own steps tells nothing.
    """
    token = _WATCHER.set(tell)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def watcher() -> Watcher | None:
    """Who watches, if anybody does."""
    return _WATCHER.get()


class Samples(NamedTuple):
    """The result of a sampler: a pytree, so that `jax.block_until_ready(sample(...))` waits for it.

    x: (n, *shape).
    nfe: network calls per sample (for an adaptive solver, of the joint solve): score calls, each as many as it makes.
    path: (frames, n, *shape), from x at t_max to x, evenly over the steps; None unless frames were asked for.
    times: (frames,), the times of the frames; None without frames.
    jvps: derivative products of the network per sample, which some scores take beside their calls.
    log_evidence: (n,), of samplers that estimate it.
    ess: (steps + 1,), the effective sample size of weighted samples at each step; (steps + 1, n) where each sample has
        particles of its own. None of others.
    particles, log_weights: (n, particles, *shape) and (n, particles), each sample's own population at the end and the
        logarithms of its weights, which sum to 1; of `TwistedSMC(keep=True)`.
    """

    x: jax.Array
    nfe: int
    path: jax.Array | None = None
    times: jax.Array | None = None
    jvps: int = 0
    log_evidence: jax.Array | None = None
    ess: jax.Array | None = None
    particles: jax.Array | None = None
    log_weights: jax.Array | None = None


class Sampler(Protocol):
    """A frozen dataclass of its settings that turns x at t_max into a sample."""

    def run(self, score_fn: ScoreFn, x: jax.Array, keys: jax.Array, cond: PyTree, frames: int) -> Samples:
        """Carry x (n, *shape) from t_max to t_min; keys (n,), one for each sample's noise."""
        ...


class MapSampler(Protocol):
    """A sampler that takes a flow map in place of a score."""

    def run(self, score_fn: "FlowMap", x: jax.Array, keys: jax.Array, cond: PyTree, frames: int) -> Samples: ...


def sample(
    sampler: Sampler | MapSampler,
    score_fn: "ScoreFn | FlowMap",
    key: jax.Array,
    n: int,
    shape: tuple[int, ...],
    *,
    cond: PyTree = None,
    prior: Prior | None = None,
    frames: int = 0,
    first: int = 0,
    batch_size: int | None = None,
    fixed_batches: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Samples:
    """Draw n samples.

    Sample i depends on (key, first + i) alone, whatever the batch: drawing 0..63 and then 64..127 with first=64 gives
    what drawing 128 at once does. (The steps of a joint adaptive solve are shared by its batch, which moves a result
    within its tolerance.) XLA rounds sums and products otherwise for another number of rows, and steps that are not
    stable make much of the last bits; `fixed_batches` keeps every bit.

    Args:
        sampler: its settings, such as `EulerMaruyama(steps=500)`.
        score_fn: the score, which carries its SDE; for `FlowMapSampler` a flow map.
        key: a typed key, `jax.random.key(seed)`.
        n, shape: the result is (n, *shape).
        cond: conditioning with n rows, handed to the score.
        prior: distribution of x at t_max; default the SDE's prior. `data.at(sde, sde.t_max)` is the exact one.
        frames: how many frames of the path to keep; 0 keeps none.
        first: index of the first sample.
        batch_size: how many to draw at once, at most; default all.
        fixed_batches: draw batch_size at once, no fewer, sample i always at place i mod batch_size: it is then the same
            to the last bit however many are drawn. What is drawn beside those that were asked for is dropped.
        dtype: of the result. The steps accumulate in float32 at least, whatever it is.

    Raises:
        ValueError: for a bad argument.
        RuntimeError: an adaptive solver reached its max_steps.
    """
    if isinstance(sampler, type):
        raise ValueError(f"sample: the sampler must be an object: write {sampler.__name__}(), not {sampler.__name__}")
    getattr(sampler, "takes", check_score)(score_fn, "sample")  # some take no score
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"sample: dtype must be a float's, not {jnp.dtype(dtype).name}")
    if n < 1:
        raise ValueError(f"sample: n must be at least 1, not {n}")
    if frames < 0 or frames == 1:
        raise ValueError(f"sample: frames must be 0 (keep no path) or at least 2 (both ends), not {frames}")
    if fixed_batches and batch_size is None:
        raise ValueError("sample: fixed_batches needs a batch_size, such as 64: sample i has its place in one")
    batch_size = n if batch_size is None else batch_size if fixed_batches else min(batch_size, n)
    if batch_size < 1:
        raise ValueError(f"sample: batch_size must be at least 1, not {batch_size}")
    if (batch_size < n or fixed_batches) and getattr(sampler, "couples", False):
        name = type(sampler).__name__
        raise ValueError(f"sample: the samples of {name} are one population: leave out batch_size")
    check_rows(cond, n)
    prior = score_fn.sde.prior(shape) if prior is None else prior
    batches, particles = [], getattr(sampler, "particles", 1)
    before = first % batch_size if fixed_batches else 0  # samples of the first batch that are dropped
    for start in range(-before, n, batch_size):
        # Batches are filled up with samples that are dropped, so that the last one does not compile anew.
        index = np.arange(start, start + batch_size)
        rows = np.clip(index, 0, n - 1)
        batch_cond = cond if cond is None else jax.tree.map(lambda c, rows=rows: c[rows], cond)
        x, noise_keys = _starts(prior, key, first + index, tuple(shape), particles)
        x = x.astype(jnp.promote_types(dtype, jnp.float32))
        of_rows = take_rows(cast(Any, score_fn), rows)  # whichever the sampler takes
        done = sampler.run(of_rows, x, noise_keys, batch_cond, frames)
        path = done.path if done.path is None else done.path.astype(dtype)
        scored = sampler.asks(score_fn) if hasattr(sampler, "asks") else score_fn  # a part of it, of some samplers
        products = jvps(scored) * done.nfe // calls(scored)
        batches.append(done._replace(x=done.x.astype(dtype), path=path, jvps=products))
    if len(batches) == 1 and batch_size == n:
        return batches[0]
    asked = slice(before, before + n)
    paths = [b.path for b in batches if b.path is not None]
    path = jnp.concatenate(paths, axis=1)[:, asked] if paths else None
    x = jnp.concatenate([b.x for b in batches])[asked]
    log_evidence, population, log_weights = (
        jnp.concatenate(kept)[asked] if (kept := [v for b in batches if (v := getattr(b, name)) is not None]) else None
        for name in ("log_evidence", "particles", "log_weights")
    )
    sizes = [b.ess for b in batches if b.ess is not None]
    ess = jnp.concatenate(sizes, axis=1)[:, asked] if sizes else None
    nfe, products = max(b.nfe for b in batches), max(b.jvps for b in batches)
    return Samples(x, nfe, path, batches[0].times, products, log_evidence, ess, population, log_weights)


def _of_particles(keys: jax.Array, particles: int) -> jax.Array:
    """The keys of each sample's particles, (n * particles,)."""
    if particles == 1:
        return keys
    return jax.vmap(lambda key: jax.random.split(key, particles))(threefry(keys)).reshape(-1)


@partial(jax.jit, static_argnames=("shape", "particles"))
def _starts(
    prior: Prior, key: jax.Array, index: jax.Array, shape: tuple[int, ...], particles: int
) -> tuple[jax.Array, jax.Array]:
    """The x at t_max of each sample's particles, one after the other, and each sample's key of its noise, (n,)."""
    keys = row_keys(key, index)
    x = jax.vmap(lambda key: prior.sample(key, 1)[0])(fold_in_each(_of_particles(keys, particles), _PRIOR))
    return x.reshape(len(index) * particles, *shape), fold_in_each(keys, _NOISE)
