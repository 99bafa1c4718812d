"""Vectors theta given conditions x, turned into residuals z by the affine regression that fits best.

    z = L^-1 (theta - A c - b),    c = (summary(x) - mean)/std

A and b are the least-squares fit of theta by c, or the one of greatest likelihood under Cauchy's distribution of what
is left where that is the likelier of the two: a fit that follows narrow peaks among wide tails, as least squares do
not. L is the Cholesky factor of the covariance that is left. N(0, I) is then a posterior to start from, the exact one
of a linear Gaussian simulator, and where x only moves theta, z does not depend on it. For a fixed x the map is
invertible: log p(theta | x) = log p(z | x) - log det L.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import multivariate_normal, multivariate_t

from experiment.common.errors import UserError

Array = np.ndarray

ROUNDS = 50  # of the weights of Cauchy's fit


def summary(x: Array, draws: int = 1) -> Array:
    """What of x (n, m) a fit is told: all, or of `draws` independent draws in each row their first two moments.

    Draws have no order, so that of k numbers each they tell means (k), logarithms of standard deviations (k) and
    correlations on the line (k (k - 1)/2).
    """
    x = np.asarray(x, np.float64)
    if draws == 1:
        return x
    each = x.reshape(len(x), draws, -1)
    mean = each.mean(axis=1)
    off = each - mean[:, None]
    std = np.sqrt((off**2).mean(axis=1)) + 1e-3
    first, second = np.tril_indices(mean.shape[1], -1)
    correlation = (off[..., first] * off[..., second]).mean(axis=1) / (std[:, first] * std[:, second])
    return np.concatenate([mean, np.log(std), np.arctanh(0.999 * np.clip(correlation, -1, 1))], axis=1)


@dataclass(frozen=True)
class Whitening:
    """The fitted map: theta (n, d) and x (n, m) to z (n, d), and back."""

    mean: Array
    std: Array
    slope: Array
    offset: Array
    root: Array
    draws: int

    def cond(self, x: Array) -> Array:
        """The c (n, k) of x, float32."""
        return ((summary(x, self.draws) - self.mean) / self.std).astype(np.float32)

    def to_residual(self, theta: Array, x: Array) -> Array:
        """The z, float32."""
        return np.linalg.solve(self.root, (theta - self._fitted(x)).T).T.astype(np.float32)

    def to_parameters(self, z: Array, x: Array) -> Array:
        """The theta of z (n, d)."""
        return self._fitted(x) + np.asarray(z, np.float64) @ self.root.T

    def _fitted(self, x: Array) -> Array:
        return np.asarray(self.cond(x), np.float64) @ self.slope + self.offset


def fit_whitening(theta: Array, x: Array, draws: int = 1) -> Whitening:
    """Fit the map to theta (n, d) and x (n, m), of `draws` independent draws each.

    Raises UserError for fewer examples than twice the numbers of the least-squares fit, or than 20.
    """
    features = summary(x, draws)
    least = max(20, 2 * (features.shape[1] + 1 + theta.shape[1]))
    if len(features) < least:
        raise UserError(f"the fit to {len(features)} simulations needs at least {least} simulations: draw more")
    mean, std = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-12)
    c = np.concatenate([(features - mean) / std, np.ones((len(features), 1))], axis=1)
    theta = np.asarray(theta, np.float64)
    solution = np.linalg.lstsq(c, theta, rcond=None)[0]
    left = theta - c @ solution
    normal = multivariate_normal(cov=left.T @ left / len(left)).logpdf(left)
    robust, cauchy = _cauchy_fit(theta, c, solution)
    if np.mean(cauchy) > np.mean(normal):
        solution, left = robust, theta - c @ robust
    root = np.linalg.cholesky(left.T @ left / (len(c) - c.shape[1]))
    return Whitening(mean, std, solution[:-1], solution[-1], root, draws)


def _cauchy_fit(theta: Array, c: Array, solution: Array) -> tuple[Array, Array]:
    """Fit theta (n, d) by c (n, k) as if Cauchy's distribution in d dimensions were left, beginning with `solution`.

    Each round weighs the examples by (1 + d)/(1 + m), m their squared Mahalanobis distance (Lange, Little & Taylor
    1989, doi:10.2307/2290063, with one degree of freedom).

    Returns:
        The coefficients (k, d), and the log-densities (n,) of what is left.
    """
    left = theta - c @ solution
    scale = left.T @ left / len(left)
    for _ in range(ROUNDS):
        m = np.sum(left * np.linalg.solve(scale, left.T).T, axis=1, keepdims=True)
        weight = (1 + theta.shape[1]) / (1 + m)
        solution = np.linalg.lstsq((weight * c).T @ c, (weight * c).T @ theta, rcond=None)[0]
        left = theta - c @ solution
        scale = (weight * left).T @ left / len(left)
    return solution, multivariate_t(shape=scale, df=1).logpdf(left)
