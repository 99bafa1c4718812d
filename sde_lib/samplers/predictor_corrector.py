"""Predictor-corrector sampling: a step of the reverse SDE, then Langevin steps at the time it arrives at."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from sde_lib.batch import fold_in_each, normal_like, per_row, sum_of_entries
from sde_lib.samplers.base import Samples
from sde_lib.samplers.grids import Grid, UniformT
from sde_lib.samplers.linear import LinearSampler, Table, run_linear
from sde_lib.samplers.stochastic import EulerMaruyama
from sde_lib.score import ScoreFn
from sde_lib.sde import SDE
from sde_lib.typing import Array, PyTree, Scalar

# A sample's own score norm is taken as if this many more entries had the norm of pure noise. See `langevin_step_size`.
_PSEUDO_ENTRIES = 100.0


def langevin_step_size(score: jax.Array, sigma: Scalar, scale: float | jax.Array) -> jax.Array:
    """The corrector's step of each sample, (n,), from that sample's own score norm: with d entries and k = 100,

        eps = 2 scale (d + k)/(|s|² + k/sigma²),     scale = (alpha_i/alpha_{i+1})² snr²

    Song et al. 2021 (arXiv:2011.13456, algorithms 4 and 5) use 2 scale (|z|/|s|)² with norms averaged over the batch,
    which makes samples depend on each other. The plain norm of a sample alone, k = 0, fails in few dimensions: the step
    is infinite where the score vanishes, and Langevin dynamics with a step eps(x) settles in p(x)/eps(x), too wide by
    1 + 2/d in variance. With k pseudo-entries of pure noise, whose score has mean square 1/sigma², the step stays
    bounded and that bias below 2/(d + k); for images d rules. E|z|² = d replaces the drawn |z|², which would widen the
    noise by the same 1 + 2/d.
    """
    d = score[0].size
    norm2 = sum_of_entries(score**2)
    return 2 * scale * (d + _PSEUDO_ENTRIES) / (norm2 + _PSEUDO_ENTRIES / jnp.asarray(sigma, score.dtype) ** 2)


@dataclass(frozen=True)
class _LangevinCorrector:
    """The Langevin step x <- x + eps s + sqrt(2 eps) z, `steps` times."""

    steps: int

    def __call__(
        self, score_fn: ScoreFn, x: jax.Array, keys: jax.Array, t: Scalar, scale: jax.Array, cond: PyTree
    ) -> jax.Array:
        def correct(j: jax.Array, x: jax.Array) -> jax.Array:
            # fold_in(step key, 0) and so on are other streams than the predictor's, which draws from the step key
            # itself.
            noise = normal_like(fold_in_each(keys, j), x)
            score = score_fn(x, t, cond)
            size = per_row(langevin_step_size(score, score_fn.sde.sigma(t), scale), x)
            return x + size * score + jnp.sqrt(2 * size) * noise

        return jax.lax.fori_loop(0, self.steps, correct, x)


@dataclass(frozen=True)
class PredictorCorrector:
    """The predictor, then `corrector_steps` Langevin steps at the new time.

    Song et al. 2021, arXiv:2011.13456, algorithm 1.

    NFE = steps (1 + corrector_steps), and one more with `denoise`. The corrector works for every SDE. For VP the
    published optimum of `snr` is nearer 0.01 than the 0.16 of VE (same paper, table 5).

    Enough steps: 16,000, or 1,000 on `UniformLogSNR`.

    Args:
        steps: predictor steps.
        snr: signal-to-noise ratio of a Langevin step: it keeps sqrt(1 - O(snr²)) of x.
        corrector_steps: Langevin steps after each predictor step; 0 leaves the predictor alone.
        predictor: any sampler of `LinearSampler`'s kind that makes one call a step; its own steps, grid and denoise do
            not count.
        grid: where the steps are.
        denoise: replace the last x by D(x, t_min).
    """

    steps: int = 500
    snr: float = 0.16
    corrector_steps: int = 1
    predictor: LinearSampler = EulerMaruyama()  # noqa: RUF009 - immutable
    grid: Grid = UniformT()  # noqa: RUF009 - immutable
    denoise: bool = False

    def __post_init__(self) -> None:
        if self.corrector_steps < 0:
            raise ValueError(f"PredictorCorrector: corrector_steps must be 0 or more, not {self.corrector_steps}")
        if not 0 < self.snr < 1:
            raise ValueError(f"PredictorCorrector: snr must lie between 0 and 1, not {self.snr}")
        if self.predictor.calls_per_step != 1:
            raise ValueError(
                f"PredictorCorrector: the predictor must make one call a step, which {type(self.predictor).__name__} "
                "does not"
            )

    @property
    def nfe(self) -> int:
        """The score calls per sample."""
        return self.steps * (1 + self.corrector_steps) + self.denoise

    def at_nfe(self, nfe: int) -> "PredictorCorrector":
        """This sampler with as many steps as spend exactly `nfe` score calls. Raises ValueError where none do."""
        steps, left = divmod(nfe - self.denoise, 1 + self.corrector_steps)
        if left or steps < self.predictor.min_steps:
            raise ValueError(
                f"PredictorCorrector cannot spend {nfe} score calls: a step takes {1 + self.corrector_steps}"
            )
        return replace(self, steps=steps)

    def scale(self, sde: SDE, table: Table) -> Array:
        """The scale (alpha_i/alpha_{i+1})² snr² of each row: of VP, snr² times Song's 1 - beta_i."""
        return (sde.alpha(table.t) / sde.alpha(table.t_next) * self.snr) ** 2

    def run(self, score_fn: ScoreFn, x: jax.Array, keys: jax.Array, cond: PyTree, frames: int) -> Samples:
        """Run both; see `sde_lib.samplers.base.Sampler`."""
        sampler = replace(self.predictor, steps=self.steps, grid=self.grid, denoise=self.denoise)
        corrector = _LangevinCorrector(self.corrector_steps)
        return run_linear(
            sampler,
            score_fn,
            x,
            keys,
            cond,
            frames,
            correct=corrector,
            correction=self.scale,
            corrections=self.corrector_steps,
        )
