"""The exact distribution of a linear sampler's result on Gaussian data: no samples, no Monte Carlo.

On N(m, C) the denoiser is affine in x, so every sampler that is a table (`linear.py`) carries a Gaussian to a Gaussian:
its mean and covariance follow a recursion, here in float64. So it is with every score that is affine in x, whatever it
is made of: guidance on Gaussians is.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from sde_lib.batch import check_rows
from sde_lib.composed import jumps
from sde_lib.conversions import denoiser
from sde_lib.samplers.linear import LinearSampler, table_of
from sde_lib.score import ScoreFn, check_score
from sde_lib.sde import SDE, host_sde
from sde_lib.typing import PyTree, Scalar

# The denoiser, or the noise where that is not asked for, as an affine function at each of N times, for g groups of k
# entries each: (times (N,), denoised) -> gains (N, g, k, k), offsets (N, g, k).
Maps = Callable[[np.ndarray, bool], tuple[np.ndarray, np.ndarray]]

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
    score_fn: SDE | ScoreFn,
    mean: npt.ArrayLike,
    covariance: npt.ArrayLike,
    *,
    prior: tuple[npt.ArrayLike, float] | None = None,
    error: ScoreError = exact,
    cond: PyTree = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The mean and covariance of the sampler's result, on data N(mean, covariance) or with any score affine in x.

    Args:
        sampler: one that is a table.
        score_fn: an SDE, for the exact score of that Gaussian; or a score of vectors x (n, d) that is affine in x, such
            as a guided one on Gaussians. Its matrix is read from itself, by one call of d + 1 rows at each time of the
            table, in float64 as far as it computes in that: what is under test runs.
        mean, covariance: (d,) and (d, d), of the data; with a score they only say where x starts at t_max.
        prior: (mean, standard deviation of the isotropic) distribution of x at t_max; default the exact one of the
            diffused data, which leaves the error of the steps and of the score. (0, sde.sigma(sde.t_max)) is what
            `sample` starts from by default.
        error: of the exact score, by half log SNR; the bias is along every principal axis. Default: none.
        cond: handed to the score, one row.

    Returns:
        mean: (d,).
        covariance: (d, d).

    Raises ValueError for a score that is not affine in x, and an SDE with a sampler that is no table.
    """
    if isinstance(score_fn, SDE):
        if hasattr(sampler, "gaussian_law"):  # of its own, of what it takes
            raise ValueError(
                f"gaussian_law: {type(sampler).__name__} is no table: give the map or score that it runs on"
            )
        values, basis, mu = _principal(mean, covariance)
        maps = _exact_maps(host_sde(score_fn), values, mu, error)
        centre, spread = _law(sampler, host_sde(score_fn), values[:, None, None], mu[:, None], prior, maps)
        return basis @ centre[:, 0], (basis * spread[:, 0, 0]) @ basis.T
    getattr(sampler, "takes", check_score)(score_fn, "gaussian_law")
    if hasattr(sampler, "gaussian_law"):
        return sampler.gaussian_law(score_fn, np.asarray(mean, float), np.asarray(covariance, float), cond)
    if error is not exact:
        raise ValueError(
            "gaussian_law: error is for the exact score: give an SDE, or a score that has the error itself"
        )
    mu, start = np.asarray(mean, float), np.asarray(covariance, float)
    maps = maps_of(score_fn, len(mu), cond)
    centre, spread = _law(sampler, host_sde(score_fn.sde), start[None], mu[None], prior, maps, jumps(score_fn))
    return centre[0], spread[0]


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
    plain = replace(sampler, denoise=False)
    moments = _law(plain, sde, values[:, None, None], mu[:, None], prior, _exact_maps(sde, values, mu, error))
    centre, variance = moments[0][:, 0], moments[1][:, 0, 0]
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


def _law(
    sampler: LinearSampler,
    sde: SDE,
    covariance: np.ndarray,
    mu: np.ndarray,
    prior: tuple[npt.ArrayLike, float] | None,
    maps: Maps,
    jumps: Sequence[Scalar] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """The mean (g, k) and covariance (g, k, k) of the result, for g groups of k entries that do not touch each other.

    covariance, mu: (g, k, k) and (g, k), of the data. jumps: of the score, as for `table_of`.
    """
    table = table_of(sampler, sde, jumps)
    (g, k), depth = mu.shape, table.b.shape[1]
    # The state of a group is (x, M_{-1}, .., M_{-(K-1)}), k entries each, jointly Gaussian.
    first, square = np.zeros((g, depth, k)), np.zeros((g, depth, k, depth, k))
    alpha, sigma, unit = sde.alpha(table.t[0]), sde.sigma(table.t[0]), np.eye(k)
    first[:, 0] = alpha * mu if prior is None else np.reshape(np.broadcast_to(prior[0], mu.size), mu.shape)
    square[:, 0, :, 0] = alpha**2 * covariance + sigma**2 * unit if prior is None else prior[1] ** 2 * unit
    centre, spread = first.reshape(g, -1), square.reshape(g, depth * k, depth * k)
    gains, offsets = maps(np.asarray(table.t), sampler.model is denoiser)
    for i in range(len(table.t)):
        point = np.eye(depth)[0] if table.point is None else np.concatenate([[table.point.p[i]], table.point.q[i]])
        model = gains[i][:, :, None, :] * point[:, None]  # M = model . state + offset
        step = np.zeros((g, depth, k, depth, k))
        step[:, 0] = table.b[i, 0] * model
        step[:, 0, :, 0] += table.a[i] * unit
        for j in range(1, depth):
            step[:, 0, :, j] += table.b[i, j] * unit
        shift = np.zeros((g, depth, k))
        shift[:, 0] = table.b[i, 0] * offsets[i]
        if depth > 1:
            step[:, 1], shift[:, 1] = model, offsets[i]
            for j in range(2, depth):
                step[:, j, :, j - 1] = unit
        flat = step.reshape(spread.shape)
        centre = (flat @ centre[..., None])[..., 0] + shift.reshape(g, -1)
        spread = flat @ spread @ flat.transpose(0, 2, 1)
        spread[:, range(k), range(k)] += 0.0 if table.c is None else table.c[i] ** 2
    mean, variance = centre[:, :k], spread[:, :k, :k]
    if sampler.denoise:
        (gain,), (offset,) = maps(np.asarray(table.t_next)[-1:], True)
        mean, variance = (gain @ mean[..., None])[..., 0] + offset, gain @ variance @ gain.transpose(0, 2, 1)
    return mean, variance


def law_from(
    sampler: LinearSampler, sde: SDE, mean: np.ndarray, covariance: np.ndarray, maps: Maps
) -> tuple[np.ndarray, np.ndarray]:
    """The law of the result from x at t_max of this mean and covariance, (d,) and (d, d)."""
    alpha, sigma = sde.alpha(sde.t_max), sde.sigma(sde.t_max)
    undiffused = (covariance - sigma**2 * np.eye(len(mean))) / alpha**2  # of which _law diffuses; no covariance itself
    centre, spread = _law(sampler, sde, undiffused[None], mean[None] / alpha, None, maps)
    return centre[0], spread[0]


def affine_law(found: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a step that is affine in x and in standard normal noise makes of x: the gain, offset and covariance.

    found: (d + noises + 1, d), its results for the basis of x, then of the noise, and for zero.
    """
    gain = (found[:-1] - found[-1]).T
    return gain[:, :d], found[-1], gain[:, d:] @ gain[:, d:].T


def maps_of(score_fn: ScoreFn, d: int, cond: PyTree) -> Maps:
    """The maps of a score that is affine in x, read from it in float64, once for the same times."""
    check_rows(cond, 1)
    known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
    # Zero, the basis, and another point, at which the map must hold.
    x = np.concatenate([np.zeros((1, d)), np.eye(d), np.linspace(-2, 3, d)[None]])

    def read(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with jax.enable_x64(True):
            wide, rows = jax.tree.map(in_float64, (score_fn, cond))
            rows = jax.tree.map(lambda leaf: jnp.repeat(leaf, len(x), axis=0), rows)
            scores = np.asarray(_scores(wide, jnp.asarray(x), jnp.asarray(times, float), rows), float)
        offsets = scores[:, 0]
        matrices = (scores[:, 1:-1] - offsets[:, None]).transpose(0, 2, 1)
        missed = np.abs(matrices @ x[-1] + offsets - scores[:, -1]).max(axis=1)
        if not (missed <= 1e-3 * np.abs(scores).max(axis=(1, 2))).all():
            raise ValueError(
                f"gaussian_law: {type(score_fn).__name__} is not affine in x, so that no Gaussian stays one: give a "
                "score on Gaussians, or draw samples"
            )
        return matrices, offsets

    def maps(times: np.ndarray, denoised: bool) -> tuple[np.ndarray, np.ndarray]:
        sde = host_sde(score_fn.sde)
        if times.tobytes() not in known:
            known[times.tobytes()] = read(times)
        matrices, offsets = known[times.tobytes()]
        alpha, sigma = (np.asarray(f(times), float)[:, None, None] for f in (sde.alpha, sde.sigma))
        if denoised:
            return ((np.eye(d) + sigma**2 * matrices) / alpha)[:, None], (sigma**2 / alpha * offsets[:, None])
        return (-sigma * matrices)[:, None], -sigma * offsets[:, None]

    return maps


def in_float64(leaf: PyTree) -> PyTree:
    return np.asarray(leaf, float) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf


@jax.jit
def _scores(score_fn: ScoreFn, x: jax.Array, times: jax.Array, cond: PyTree) -> jax.Array:
    return jax.lax.map(lambda t: score_fn(x, t, cond), times)


def _exact_maps(sde: SDE, values: np.ndarray, mu: np.ndarray, error: ScoreError) -> Maps:
    """The maps of the exact score of N(mu, diag(values)), a group for each axis.

    E[x_0 | x] = mu + alpha v (x - alpha mu)/(alpha² v + sigma²)
    """

    def maps(times: np.ndarray, denoised: bool) -> tuple[np.ndarray, np.ndarray]:
        alpha, sigma = (np.asarray(f(times), float)[:, None] for f in (sde.alpha, sde.sigma))
        total = alpha**2 * values + sigma**2
        scale, bias = np.array([error(half) for half in np.log(alpha / sigma)[:, 0]]).T[:, :, None]
        if denoised:  # (x - sigma e)/alpha
            exact_gain = alpha * values / total
            gain = scale * exact_gain + (1 - scale) / alpha
            offset = scale * (mu - exact_gain * alpha * mu) - sigma / alpha * bias
        else:
            gain = scale * sigma / total
            offset = bias - gain * alpha * mu
        return gain[..., None, None], offset[..., None]

    return maps
