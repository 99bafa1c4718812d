"""In-painting by replacement, with inner loops."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.batch import fold_in_each, normal_like
from sde_lib.composed import network_calls
from sde_lib.conversions import denoiser
from sde_lib.inverse.observed import Observed
from sde_lib.inverse.operators import Mask
from sde_lib.samplers.base import Samples
from sde_lib.samplers.exact_law import affine_law, in_float64
from sde_lib.samplers.exponential import SDEDPMSolverPP1
from sde_lib.samplers.grids import Grid, UniformLogSNR
from sde_lib.samplers.linear import table_of
from sde_lib.score import ScoreFn
from sde_lib.sde import SDE, host_sde
from sde_lib.typing import Array, PyTree


@dataclass(frozen=True)
class RePaint:
    """The reverse chain with the seen entries replaced by y under fresh noise at each step, and each step done again.

    A loop goes from t to s by a draw of q(x_s | x_t, x_0 = D), sets what is seen to alpha_s y + sigma_s e, and, but for
    the last loop, goes back to t by the forward process (Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1). One loop
    is replacement alone: the unseen entries hear of the others too late, and have a wrong posterior with any number of
    steps. With many loops and many steps it tends to the exact one.

    The replaced entries have no noise of their own: takes an `Observed` with a `Mask` and a noise of 0, of which the
    method plays no part. What is returned is x at t_min, as by other samplers.

    Args:
        steps: how many.
        loops: how often each is done.
        grid: where the steps are.

    Raises ValueError for steps or loops below 1 and, when it runs, for a score that is not an `Observed`, another
    operator, a noise, and frames.
    """

    steps: int = 100
    loops: int = 10
    grid: Grid = field(default_factory=UniformLogSNR)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.loops < 1:
            raise ValueError(f"RePaint: steps and loops must be at least 1, not {self.steps} and {self.loops}")

    def asks(self, score_fn: Observed) -> ScoreFn:
        """The score that is called: the prior's."""
        return score_fn.score_fn

    def run(self, score_fn: ScoreFn, x: jax.Array, keys: jax.Array, cond: PyTree, frames: int) -> Samples:
        """Run the loops; see `sde_lib.samplers.base.Sampler`."""
        score_fn = self._checked(score_fn)
        if frames:
            raise ValueError("RePaint: the loops go back and forth: leave out frames")
        rows = jax.tree.map(lambda v: np.asarray(v, x.dtype), self._rows(host_sde(score_fn.sde)))
        x = _run(score_fn, x, keys, cond, rows, self.loops)
        return Samples(x, self.loops * network_calls(score_fn.score_fn, rows.t))

    def gaussian_law(
        self, score_fn: ScoreFn, mean: np.ndarray, covariance: np.ndarray, cond: PyTree
    ) -> tuple[np.ndarray, np.ndarray]:
        """The law of the result with a prior's score that is affine, as `sde_lib.samplers.gaussian_law` returns it."""
        score_fn, d, sde = self._checked(score_fn), len(mean), host_sde(score_fn.sde)
        alpha, sigma = sde.alpha(sde.t_max), sde.sigma(sde.t_max)
        mean, covariance = alpha * mean, alpha**2 * covariance + sigma**2 * np.eye(d)
        rows = self._rows(sde)
        for i in range(self.steps):
            row = jax.tree.map(lambda v, i=i: v[i], rows)
            moves = [_move(score_fn, d, cond, row, again) for again in (False, True)[: self.loops]]
            for loop in range(self.loops):
                gain, offset, spread = moves[loop > 0]
                mean, covariance = gain @ mean + offset, gain @ covariance @ gain.T + spread
        return mean, covariance

    def _checked(self, score_fn: ScoreFn) -> Observed:
        if not isinstance(score_fn, Observed):
            raise ValueError(f"RePaint: give an Observed score, not a {type(score_fn).__name__}")
        if not isinstance(score_fn.operator, Mask):
            name = type(score_fn.operator).__name__
            raise ValueError(f"RePaint: it replaces what a Mask shows, not a {name}: use MomentMatching or SplitGibbs")
        if not isinstance(score_fn.noise, jax.core.Tracer) and np.any(np.asarray(score_fn.noise)):
            raise ValueError(
                "RePaint: what is seen is set to y: give a noise of 0, or use MomentMatching or SplitGibbs"
            )
        return score_fn

    def _rows(self, sde: SDE) -> "_Row":
        table = table_of(SDEDPMSolverPP1(steps=self.steps, grid=self.grid), sde)
        alpha, sigma = (np.asarray(f(table.t_next), float) for f in (sde.alpha, sde.sigma))
        back = np.asarray(sde.alpha(table.t), float) / alpha
        # sigma_t² - back² sigma_s², by the ratio of the signal-to-noise ratios.
        fresh = -np.expm1(sde.log_snr(table.t) - sde.log_snr(table.t_next))
        spread = np.asarray(sde.sigma(table.t), float) * np.sqrt(fresh)
        return _Row(table.t, table.a, table.b[:, 0], np.asarray(table.c), alpha, sigma, back, spread)


class _Row(NamedTuple):
    """A step from t to s, (N,) each: x_s = a x + b D + c z, alpha and sigma at s, and x_t = back x_s + spread z."""

    t: Array
    a: Array
    b: Array
    c: Array
    alpha: Array
    sigma: Array
    back: Array
    spread: Array


def _loop(
    score_fn: Observed, x: jax.Array, noises: Sequence[jax.Array], cond: PyTree, row: _Row, again: jax.Array | bool
) -> jax.Array:
    """One loop, from x at t, or from x at s and back to t first if this is done again."""
    back, unseen, seen = noises
    x = jnp.where(again, row.back * x + row.spread * back, x)
    given, mask = score_fn.given(x, cond), cast(Mask, score_fn.operator).entries()
    denoised = denoiser(score_fn.score_fn, x, row.t, cond.get("cond"))
    return jnp.where(mask[None], row.alpha * given + row.sigma * seen, row.a * x + row.b * denoised + row.c * unseen)


@jax.jit
def _run(score_fn: Observed, x: jax.Array, keys: jax.Array, cond: PyTree, rows: _Row, loops: jax.Array) -> jax.Array:
    def step(x: jax.Array, scanned: tuple[jax.Array, _Row]) -> tuple[jax.Array, None]:
        i, row = scanned

        def loop(j: jax.Array, x: jax.Array) -> jax.Array:
            own = fold_in_each(fold_in_each(keys, i), j)
            back, unseen, seen = (normal_like(fold_in_each(own, k), x) for k in range(3))
            return _loop(score_fn, x, (back, unseen, seen), cond, row, j > 0)

        return jax.lax.fori_loop(0, loops, loop, x), None

    return jax.lax.scan(step, x, (jnp.arange(len(rows.t)), rows))[0]


@jax.jit
def _loop_of_basis(score_fn: Observed, unit: jax.Array, cond: PyTree, row: _Row, again: bool) -> jax.Array:
    d = unit.shape[1] // 4
    x, *noises = (unit[:, i * d : (i + 1) * d] for i in range(4))
    cond = jax.tree.map(lambda leaf: jnp.repeat(leaf, len(unit), axis=0), cond)
    return _loop(score_fn, x, noises, cond, row, again)


def _move(score_fn: Observed, d: int, cond: PyTree, row: _Row, again: bool) -> tuple[np.ndarray, ...]:
    """The gain, offset and covariance of a loop, read from it in float64."""
    with jax.enable_x64(True):
        wide, rows = jax.tree.map(in_float64, (score_fn, cond))
        unit = np.concatenate([np.eye(4 * d), np.zeros((1, 4 * d))])
        return affine_law(np.asarray(_loop_of_basis(wide, unit, rows, row, again)), d)
