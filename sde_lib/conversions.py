"""Score, noise, denoiser and velocity are one quantity: the score is the pivot.

With x = alpha x_0 + sigma eps (Kingma et al. 2021, arXiv:2107.00630, appendix B; Lipman et al. 2023, arXiv:2210.02747):

    noise     E[eps | x] = -sigma s
    denoiser  E[x_0 | x] = (x + sigma² s)/alpha           (Tweedie)
    velocity  v = f x - ½ g² s = alpha' E[x_0 | x] + sigma' E[eps | x]

x is (n, *shape), t a scalar or (n,); every result is like x.
"""

import jax

from sde_lib.batch import per_row
from sde_lib.score import ScoreFn
from sde_lib.sde import SDE
from sde_lib.typing import PyTree, Scalar


def noise_from_score(sde: SDE, score: jax.Array, t: Scalar) -> jax.Array:
    """The noise E[eps | x] = -sigma s."""
    return -per_row(sde.sigma(t), score) * score


def score_from_noise(sde: SDE, noise: jax.Array, t: Scalar) -> jax.Array:
    """The score s = -E[eps | x]/sigma."""
    return -noise / per_row(sde.sigma(t), noise)


def denoiser_from_score(sde: SDE, score: jax.Array, x: jax.Array, t: Scalar) -> jax.Array:
    """The denoiser E[x_0 | x] = (x + sigma² s)/alpha."""
    return (x + per_row(sde.sigma(t), x) ** 2 * score) / per_row(sde.alpha(t), x)


def score_from_denoiser(sde: SDE, denoised: jax.Array, x: jax.Array, t: Scalar) -> jax.Array:
    """The score s = (alpha E[x_0 | x] - x)/sigma²."""
    return (per_row(sde.alpha(t), x) * denoised - x) / per_row(sde.sigma(t), x) ** 2


def velocity_from_score(sde: SDE, score: jax.Array, x: jax.Array, t: Scalar) -> jax.Array:
    """The velocity v = f x - ½ g² s, the drift of the probability-flow ODE."""
    return per_row(sde.f(t), x) * x - 0.5 * per_row(sde.g2(t), x) * score


def score_from_velocity(sde: SDE, velocity: jax.Array, x: jax.Array, t: Scalar) -> jax.Array:
    """The score s = 2 (f x - v)/g²."""
    return 2 * (per_row(sde.f(t), x) * x - velocity) / per_row(sde.g2(t), x)


def denoiser(score_fn: ScoreFn, x: jax.Array, t: Scalar, cond: PyTree = None) -> jax.Array:
    """The denoiser E[x_0 | x_t = x] of the score's distribution: one score call."""
    return denoiser_from_score(score_fn.sde, score_fn(x, t, cond), x, t)


def noise(score_fn: ScoreFn, x: jax.Array, t: Scalar, cond: PyTree = None) -> jax.Array:
    """The noise E[eps | x_t = x] of the score's distribution: one score call."""
    return noise_from_score(score_fn.sde, score_fn(x, t, cond), t)
