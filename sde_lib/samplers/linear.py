"""Fixed-step samplers as tables of coefficients, and the one scan that runs them.

A sampler that is linear in x, in the denoiser's output D and in the noise z makes each step from times[i] to times[i+1] as

    x' = a_i x + b_i D(x, times[i]) + c_i z

Its coefficients are computed once, on the host in float64, from the SDE and the times. They are arguments of the compiled scan: other
coefficients never recompile it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.conversions import denoiser
from sde_lib.samplers.base import Samples, host_sde
from sde_lib.score import ScoreFn
from sde_lib.sde import SDE


class Coefficients(NamedTuple):
    """x' = a x + b D + c z for each of N steps, three arrays (N,)."""

    a: Any
    b: Any
    c: Any


Update = Callable[[SDE, Any], Coefficients]
Correct = Callable[[ScoreFn, jax.Array, jax.Array, Any, Any, Any], jax.Array]


def uniform_times(sde: SDE, steps: int) -> Any:
    """steps + 1 times from t_max down to t_min, evenly spaced."""
    return sde.namespace(sde.t_min).linspace(sde.t_max, sde.t_min, steps + 1)


def no_correction(score_fn: ScoreFn, x: jax.Array, keys: jax.Array, t: Any, settings: Any, cond: Any) -> jax.Array:
    """What corrects the prediction of a sampler without a corrector."""
    return x


@dataclass(frozen=True)
class _Step:
    """What the compiled scan depends on apart from shapes: one instance per kind of sampler."""

    correct: Correct
    frames: int
    denoise: bool


def run_linear(
    score_fn: ScoreFn,
    x: jax.Array,
    keys: jax.Array,
    cond: Any,
    frames: int,
    *,
    steps: int,
    update: Update,
    denoise: bool,
    correct: Correct = no_correction,
    correction: Callable[[SDE, Any], Any] = lambda sde, times: (),
) -> tuple[jax.Array, jax.Array | None, Any]:
    """Runs `steps` steps of `update` from t_max to t_min, each followed by `correct`; returns x, the path and its times.

    `correction(sde, times)` gives the corrector's settings, arrays with a row for each step. With `denoise` the last x is replaced by
    D(x, t_min), at the cost of one more score call.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    sde = host_sde(score_fn.sde)
    times = uniform_times(sde, steps)
    table = jax.tree.map(lambda v: jnp.asarray(v, x.dtype), (times, update(sde, times), correction(sde, times)))
    last = np.round(np.arange(frames) * steps / max(frames - 1, 1)).astype(int)  # the step after which each frame is kept
    slots = np.searchsorted(last, np.arange(1, steps + 1))
    x, path = _scan(score_fn, x, keys, cond, table, jnp.asarray(slots), _Step(correct, frames, denoise))
    return x, path, (table[0][last] if frames else None)


@partial(jax.jit, static_argnames="kind")
def _scan(
    score_fn: ScoreFn, x: jax.Array, keys: jax.Array, cond: Any, table: Any, slots: jax.Array, kind: _Step
) -> tuple[jax.Array, jax.Array | None]:
    times, coefficients, correction = table
    # Every step writes to the slot of the next frame to come, so the frame's own step writes last: no branch, and no stored path.
    path = jnp.zeros((kind.frames, *x.shape), x.dtype).at[0].set(x) if kind.frames else None

    def step(carry: tuple[jax.Array, Any], row: Any) -> tuple[tuple[jax.Array, Any], None]:
        x, path = carry
        i, t, t_next, (a, b, c), settings, slot = row
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        x = a * x + b * denoiser(score_fn, x, t, cond) + c * normal_like(step_keys, x)
        x = kind.correct(score_fn, x, step_keys, t_next, settings, cond)
        return (x, None if path is None else path.at[slot].set(x)), None

    rows = (jnp.arange(len(slots)), times[:-1], times[1:], coefficients, correction, slots)
    (x, path), _ = jax.lax.scan(step, (x, path), rows)
    if kind.denoise:
        x = denoiser(score_fn, x, times[-1], cond)
        path = None if path is None else path.at[-1].set(x)
    return x, path


def normal_like(keys: jax.Array, x: jax.Array) -> jax.Array:
    """Standard normal noise like x, row i from keys[i] alone."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


class LinearSampler:
    """A sampler that is its `update` alone; its subclasses are dataclasses with `steps` and `denoise`."""

    steps: int
    denoise: bool

    def update(self, sde: SDE, times: Any) -> Coefficients:
        """The coefficients of every step, from the SDE and steps + 1 times."""
        raise TypeError(f"{type(self).__name__} must define update(sde, times)")

    def run(self, score_fn: ScoreFn, x: jax.Array, keys: jax.Array, cond: Any, frames: int) -> Samples:
        """See `sde_lib.samplers.base.Sampler`."""
        x, path, times = run_linear(score_fn, x, keys, cond, frames, steps=self.steps, update=self.update, denoise=self.denoise)
        return Samples(x, self.steps + self.denoise, path, times)
