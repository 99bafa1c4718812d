"""Averages of the weights over training whose length is chosen afterwards: power functions and their reconstruction.

Karras et al. 2024, arXiv:2312.02696, section 3 and appendix C. After t updates an average of relative width sigma_rel
weighs the params of time tau by its profile (eq. 121 and 123)

    p(tau) = (gamma + 1) tau^gamma/t^(gamma + 1) on [0, t]        sigma_rel² = (gamma + 1)/((gamma + 2)² (gamma + 3))

so that its length grows with t and it forgets the initial params. Snapshots of two such averages, saved now and then,
span nearly every other one: a weighted sum of them is the average at a sigma_rel that was never tracked.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.typing import Array, PyTree, Scalar

# sigma_rel at gamma = 0, the plain mean of all steps; wider profiles would weigh the first steps most.
_WIDEST = 12**-0.5


def gamma_of(sigma_rel: float) -> float:
    """The profile's exponent gamma for a relative width sigma_rel (eq. 126).

    It is the largest root of gamma³ + 7 gamma² + (16 - sigma_rel^-2) gamma + 12 - sigma_rel^-2.

    Raises ValueError outside 0 < sigma_rel < 12^(-1/2), where gamma would not be positive.
    """
    if not 0 < sigma_rel < _WIDEST:
        raise ValueError(
            f"sigma_rel must be above 0 and below {_WIDEST:.4f}, where an average is the plain mean, not {sigma_rel}"
        )
    s = float(sigma_rel) ** -2
    return float(np.roots([1, 7, 16 - s, 12 - s]).real.max())


def power_ema_decay(sigma_rel: float, step: Scalar) -> jax.Array:
    """The decay beta = (1 - 1/t)^(gamma + 1) of the update number t = 1, 2, ... (eq. 127).

    The update is ema <- beta ema + (1 - beta) params.

    The first update takes the params whole. After t of them the params of update s weigh
    (s^(gamma+1) - (s-1)^(gamma+1))/t^(gamma+1), the integral of the profile over [s - 1, s].
    """
    return jnp.exp((gamma_of(sigma_rel) + 1) * jnp.log1p(-1 / jnp.asarray(step, jnp.float32)))


def reconstruction_weights(profiles: Sequence[tuple[int, float]], step: int, sigma_rel: float) -> np.ndarray:
    """The weight of each profile (step, sigma_rel) in the sum nearest to the one asked for; they sum to 1.

    Nearest is in least squares: A w = b with the inner products A of the profiles and b of each with the target
    (appendix C, algorithm 3), in float64. The sum is much nearer where `step` is one of the profiles' own: only they
    end with it.

    Raises ValueError without profiles, or where `step` is not between the first and the last of them.
    """
    if not profiles:
        raise ValueError("reconstruct: there are no snapshots: save some averages while training")
    steps = np.array([at for at, _ in profiles], float)
    first, last = steps.min(), steps.max()
    if first < 1:
        raise ValueError(f"reconstruct: steps count from 1, and a snapshot's is {first:g}: leave it out")
    if not first <= step <= last:
        raise ValueError(
            f"reconstruct: step must be between the first and the last snapshot's, {first:g} and {last:g}, not {step}"
        )
    gammas = np.array([gamma_of(width) for _, width in profiles])
    products = _inner_product(steps[:, None], gammas[:, None], steps[None], gammas[None])
    wanted = _inner_product(steps, gammas, float(step), gamma_of(sigma_rel))
    norm = np.sqrt(np.diag(products))  # profiles of norm 1 are solved for with more digits
    weights = np.linalg.lstsq(products / np.outer(norm, norm), wanted / norm)[0] / norm
    return weights / weights.sum()


def reconstruct_ema(snapshots: Sequence[tuple[int, float, PyTree]], step: int, sigma_rel: float) -> PyTree:
    """The params' average at `step` of width sigma_rel, from snapshots (step, sigma_rel, params) of tracked averages.

    Summed in float64 on the host, since the weights have both signs; the result has the snapshots' structure and
    dtypes, in host memory.

    Raises ValueError: see `reconstruction_weights`.
    """
    weights = reconstruction_weights([(at, width) for at, width, _ in snapshots], step, sigma_rel)

    def combine(*leaves: Array) -> np.ndarray:
        total = sum(weight * np.asarray(leaf).astype(np.float64) for weight, leaf in zip(weights, leaves, strict=True))
        return np.asarray(total).astype(np.asarray(leaves[0]).dtype)

    return jax.tree.map(combine, *(params for _, _, params in snapshots))


def _inner_product(
    t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray | float, gamma_b: np.ndarray | float
) -> np.ndarray:
    """The inner product ∫ p_a p_b dtau over the shorter of [0, t_a] and [0, t_b] (eq. 151)."""
    first, last = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    gamma_last = np.where(t_a < t_b, gamma_b, gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) / last * (first / last) ** gamma_last
