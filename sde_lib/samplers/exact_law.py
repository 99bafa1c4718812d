"""The exact distribution of a linear sampler's result on Gaussian data: no samples, no Monte Carlo.

On N(m, C) the denoiser is affine in x, so every sampler that is a table (`linear.py`) carries a Gaussian to a Gaussian:
its mean and covariance follow a recursion, here in float64.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sde_lib.conversions import denoiser
from sde_lib.samplers.linear import LinearSampler, table_of
from sde_lib.sde import SDE, host_sde

# At half log SNR lambda the scale and the bias that turn the exact noise e = -sigma s into scale e + bias, the same for
# each entry.
ScoreError = Callable[[float], tuple[float, float]]


def exact(half_log_snr: float) -> tuple[float, float]:
    """No error: the noise as it is."""
    return 1.0, 0.0


def pulse(low: float, high: float, bias: float) -> ScoreError:
    """An error of the noise by `bias` while low <= lambda <= high."""
    return lambda half_log_snr: (1.0, bias if low <= half_log_snr <= high else 0.0)


def gaussian_law(
    sampler: LinearSampler,
    sde: SDE,
    mean: npt.ArrayLike,
    covariance: npt.ArrayLike,
    *,
    prior: tuple[npt.ArrayLike, float] | None = None,
    error: ScoreError = exact,
) -> tuple[np.ndarray, np.ndarray]:
    """The mean and covariance of the sampler's result, on data N(mean, covariance).

    Args:
        prior: (mean, standard deviation of the isotropic) distribution of x at t_max; default the exact one of the
            diffused data, which leaves the error of the steps and of the score. (0, sde.sigma(sde.t_max)) is what
            `sample` starts from by default.
        error: of the score, by half log SNR; the bias is along every principal axis. Default: the exact score.

    Returns:
        mean: (d,).
        covariance: (d, d).
    """
    values, basis, mu = _principal(mean, covariance)
    centre, variance = _principal_law(sampler, sde, values, mu, prior, error)
    return basis @ centre, (basis * variance) @ basis.T


def gaussian_kl(
    sampler: LinearSampler,
    sde: SDE,
    mean: npt.ArrayLike,
    covariance: npt.ArrayLike,
    *,
    prior: tuple[npt.ArrayLike, float] | None = None,
    error: ScoreError = exact,
) -> float:
    """The divergence KL(result || data at t_min) in nats, on data N(mean, covariance); see `gaussian_law`.

    Without the final denoising: a denoised sample is no draw from the data at t_min.
    """
    sde = host_sde(sde)
    values, _, mu = _principal(mean, covariance)
    centre, variance = _principal_law(replace(sampler, denoise=False), sde, values, mu, prior, error)
    alpha, sigma = sde.alpha(sde.t_min), sde.sigma(sde.t_min)
    total = alpha**2 * values + sigma**2
    excess = variance / total - 1
    return float(0.5 * np.sum(excess - np.log1p(excess) + (centre - alpha * mu) ** 2 / total))


def _principal(mean: npt.ArrayLike, covariance: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The data along the principal axes of the covariance.

    Returns:
        variances: (d,), along the axes.
        axes: (d, d), as columns.
        mean: (d,), in the axes.
    """
    values, basis = np.linalg.eigh(np.asarray(covariance, float))
    return values, basis, basis.T @ np.asarray(mean, float)


def _principal_law(
    sampler: LinearSampler,
    sde: SDE,
    values: np.ndarray,
    mu: np.ndarray,
    prior: tuple[npt.ArrayLike, float] | None,
    error: ScoreError,
) -> tuple[np.ndarray, np.ndarray]:
    """The mean and variance of the result along each principal axis."""
    sde = host_sde(sde)
    table = table_of(sampler, sde)
    depth = table.b.shape[1]
    predicts_denoiser = sampler.model is denoiser
    # The state along an axis is (x, M_{-1}, .., M_{-(K-1)}), jointly Gaussian.
    centre, spread = np.zeros((len(values), depth)), np.zeros((len(values), depth, depth))
    alpha, sigma = sde.alpha(table.t[0]), sde.sigma(table.t[0])
    centre[:, 0] = alpha * mu if prior is None else prior[0]
    spread[:, 0, 0] = alpha**2 * values + sigma**2 if prior is None else prior[1] ** 2
    for i, t in enumerate(np.asarray(table.t)):
        gain, offset = _affine(sde, t, values, mu, predicts_denoiser, error)
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
        gain, offset = _affine(sde, np.asarray(table.t_next)[-1], values, mu, True, error)
        mean, variance = gain * mean + offset, gain**2 * variance
    return mean, variance


def _affine(
    sde: SDE, t: float, values: np.ndarray, mu: np.ndarray, denoised: bool, error: ScoreError
) -> tuple[np.ndarray, np.ndarray]:
    """The denoiser, or the noise, as an affine function along each axis.

        E[x_0 | x] = mu + alpha v (x - alpha mu)/(alpha² v + sigma²)

    Returns:
        gain, offset: (d,).
    """
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    total = alpha**2 * values + sigma**2
    scale, bias = error(float(np.log(alpha / sigma)))
    if denoised:  # (x - sigma e)/alpha
        gain = alpha * values / total
        return scale * gain + (1 - scale) / alpha, scale * (mu - gain * alpha * mu) - sigma / alpha * bias
    gain = sigma / total
    return scale * gain, bias - scale * gain * alpha * mu
