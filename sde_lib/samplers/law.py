"""The exact law of a linear sampler on Gaussian data: no samples, no Monte Carlo.

On N(m, C) the denoiser is affine in x, so every sampler that is a table (`linear.py`) carries a Gaussian to a Gaussian: its mean and
covariance follow a recursion, here in float64.
"""

from typing import Any

import numpy as np

from sde_lib.conversions import denoiser
from sde_lib.samplers.linear import LinearSampler, table_of
from sde_lib.sde import SDE


def gaussian_law(sampler: LinearSampler, sde: SDE, mean: Any, covariance: Any, *, prior: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """(mean (d,), covariance (d, d)) of the sampler's result with the exact score of data N(mean, covariance).

    prior: (mean, standard deviation of the isotropic) law of x at t_max; default the exact one of the diffused data, which leaves the
    error of the steps alone. (0, sde.sigma(sde.t_max)) is what `sample` starts from by default.
    """
    values, basis, mu = _principal(mean, covariance)
    centre, variance = _principal_law(sampler, sde, values, mu, prior)
    return basis @ centre, (basis * variance) @ basis.T


def gaussian_kl(sampler: LinearSampler, sde: SDE, mean: Any, covariance: Any, *, prior: Any = None) -> float:
    """KL(the sampler's law || the data at t_min) in nats, of data N(mean, covariance); see `gaussian_law`.

    Without the final denoising: a denoised sample is no draw from the data at t_min.
    """
    values, _, mu = _principal(mean, covariance)
    centre, variance = _principal_law(sampler, sde, values, mu, prior)
    alpha, sigma = sde.alpha(sde.t_min), sde.sigma(sde.t_min)
    exact = alpha**2 * values + sigma**2
    excess = variance / exact - 1
    return float(0.5 * np.sum(excess - np.log1p(excess) + (centre - alpha * mu) ** 2 / exact))


def _principal(mean: Any, covariance: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variances along the principal axes, the axes as columns, and the mean in them."""
    values, basis = np.linalg.eigh(np.asarray(covariance, float))
    return values, basis, basis.T @ np.asarray(mean, float)


def _principal_law(
    sampler: LinearSampler, sde: SDE, values: np.ndarray, mu: np.ndarray, prior: tuple[Any, float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the result along each principal axis."""
    table = table_of(sampler, sde)
    depth = table.b.shape[1]
    predicts_denoiser = sampler.model is denoiser
    # The state along an axis is (x, M_{-1}, .., M_{-(K-1)}), jointly Gaussian.
    centre, spread = np.zeros((len(values), depth)), np.zeros((len(values), depth, depth))
    alpha, sigma = sde.alpha(table.t[0]), sde.sigma(table.t[0])
    centre[:, 0] = alpha * mu if prior is None else prior[0]
    spread[:, 0, 0] = alpha**2 * values + sigma**2 if prior is None else prior[1] ** 2
    for i, t in enumerate(table.t):
        gain, offset = _affine(sde, t, values, mu, predicts_denoiser)
        point = np.eye(depth)[0] if table.point is None else np.concatenate([[table.point.p[i]], table.point.q[i]])
        model = gain[:, None] * point  # M = model . state + offset
        step = np.zeros((len(values), depth, depth))
        step[:, 0] = table.b[i, 0] * model
        step[:, 0, 0] += table.a[i]
        step[:, 0, 1:] += table.b[i, 1:]
        shift = np.zeros((len(values), depth))
        shift[:, 0] = table.b[i, 0] * offset
        if depth > 1:
            step[:, 1], shift[:, 1] = model, offset
            step[:, 2:, 1:-1] += np.eye(depth - 2)
        centre = (step @ centre[..., None])[..., 0] + shift
        spread = step @ spread @ step.transpose(0, 2, 1)
        spread[:, 0, 0] += 0.0 if table.c is None else table.c[i] ** 2
    mean, variance = centre[:, 0], spread[:, 0, 0]
    if sampler.denoise:
        gain, offset = _affine(sde, table.t_next[-1], values, mu, denoised=True)
        mean, variance = gain * mean + offset, gain**2 * variance
    return mean, variance


def _affine(sde: SDE, t: Any, values: np.ndarray, mu: np.ndarray, denoised: bool) -> tuple[np.ndarray, np.ndarray]:
    """Gain and offset of the denoiser, or of the noise, along each axis: E[x_0 | x] = mu + alpha v (x - alpha mu)/(alpha² v + sigma²)."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    total = alpha**2 * values + sigma**2
    gain = alpha * values / total if denoised else sigma / total
    return gain, (mu if denoised else 0.0) - gain * alpha * mu
