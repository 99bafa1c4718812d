"""The Gaussian that tells the data best, for the parameterisation that starts from its score.

Its mean and covariance lie between those of the examples, which are noisy in many dimensions, and simpler ones that do
not know of places: of grids the same averaged over all shifts, as on a periodic grid, and of vectors the covariance's
diagonal. How far between is chosen by the log-density of examples that were left out.
"""

import math

import numpy as np

from experiment.data.scaling import Scaled

Array = np.ndarray

MOST = 1024  # entries of an example: the basis has so many squared, and its eigenvectors take seconds
MOST_NUMBERS = 30_000_000  # of the examples that are looked at, in memory of 16 bytes for each
LEFT_OUT = 0.1  # of the examples, to choose by
WEIGHTS = (0.0, 0.1, 0.3, 0.6, 1.0)  # of the simpler covariance
RIDGE = 1e-5  # of the data's variance: rounding must not make an eigenvalue negative


def fit_gaussian(z: Array | Scaled) -> dict[str, Array]:
    """Fit mean m (d,), basis U (d, d) and variances l (d,) to standardised examples z (n, *shape), d = prod(shape).

    The covariance is U diag(l) U^T. {} for more than MOST entries, and for fewer than 20 examples.
    """
    size, n = math.prod(z.shape[1:]), len(z)
    if size > MOST or n < 20:
        return {}
    z = z[:: -(-n * size // MOST_NUMBERS)]
    n = len(z)
    order = np.random.RandomState(0).permutation(n)
    some, others = (
        np.asarray(z[rows], np.float64) for rows in (order[round(LEFT_OUT * n) :], order[: round(LEFT_OUT * n)])
    )
    left_out = others.reshape(len(others), -1)
    ends = _moments(some), _simpler(some)
    weight = max(WEIGHTS, key=lambda w: float(np.mean(_log_density(left_out, *_between(ends, w)))))
    z = np.asarray(z, np.float64)
    mean, covariance = _between((_moments(z), _simpler(z)), weight)
    variances, basis = np.linalg.eigh(covariance)
    found = {"mean": mean, "basis": basis, "variances": variances}
    return {name: array.astype(np.float32) for name, array in found.items()}


def _moments(z: Array) -> tuple[Array, Array]:
    """The examples' own mean and covariance."""
    flat = z.reshape(len(z), -1)
    return flat.mean(axis=0), np.atleast_2d(np.cov(flat, rowvar=False, bias=True))


def _simpler(z: Array) -> tuple[Array, Array]:
    """The mean and covariance that do not know of places; of vectors, that hold nothing of pairs."""
    if z.ndim == 2:
        return z.mean(axis=0), np.diag(z.var(axis=0))
    *sides, channels = z.shape[1:]
    axes = tuple(range(1, z.ndim - 1))
    mean = z.mean(axis=(0, *axes))
    modes = np.fft.fftn(z - mean, axes=axes).reshape(len(z), -1, channels)
    power = np.einsum("nka,nkb->kab", modes, modes.conj()) / (len(z) * math.prod(sides))
    lagged = np.fft.ifftn(power.reshape(*sides, channels, channels), axes=tuple(range(len(sides)))).real
    places = np.stack(np.unravel_index(np.arange(math.prod(sides)), sides), axis=-1)
    lag = (places[:, None] - places[None]) % np.array(sides)
    covariance = lagged[tuple(np.moveaxis(lag, -1, 0))]  # (places, places, channels, channels)
    size = math.prod(sides) * channels
    return np.tile(mean, math.prod(sides)), covariance.transpose(0, 2, 1, 3).reshape(size, size)


def _between(ends: tuple[tuple[Array, Array], tuple[Array, Array]], weight: float) -> tuple[Array, Array]:
    """The mean and covariance at this weight of the simpler ones."""
    (mean, covariance), (simple_mean, simple) = ends
    between = (1 - weight) * covariance + weight * simple
    ridge = RIDGE * np.trace(between) / len(between)
    return (1 - weight) * mean + weight * simple_mean, (between + between.T) / 2 + ridge * np.eye(len(between))


def _log_density(flat: Array, mean: Array, covariance: Array) -> Array:
    """The log-density of N(mean, covariance), without its constant."""
    root = np.linalg.cholesky(covariance)
    z = np.linalg.solve(root, (flat - mean).T)
    return -0.5 * np.sum(z**2, axis=0) - np.log(np.diag(root)).sum()
