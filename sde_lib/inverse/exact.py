"""The exact posterior of a Gaussian mixture seen through a linear operator and Gaussian noise."""

import numpy as np
import numpy.typing as npt

from sde_lib.inverse.operators import ObservationOperator, matrix_of


def observe_components(
    weights: npt.ArrayLike,
    means: npt.ArrayLike,
    covariances: npt.ArrayLike,
    operator: ObservationOperator,
    y: npt.ArrayLike,
    noise: npt.ArrayLike,
    shape: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Condition each component on y = A x + n: the update of the Kalman filter, in float64.

    With R the covariance of n, G = A S A' + R and K = S A' G^-1,

        m' = m + K (y - A m),    S' = (I - K A) S (I - K A)' + K R K',    w' ~ w N(y; A m, G)

    Returns:
        The weights w', the means m', the covariances S' and log p(y) in nats.

    Raises ValueError for an observation or a noise of a wrong shape, a negative noise, and an observation that the
    model without noise cannot give.
    """
    weights, means, covariances = (np.asarray(a, float) for a in (weights, means, covariances))
    matrix, seen = matrix_of(operator, shape)
    flat = np.asarray(y, float).ravel()
    if flat.size != len(matrix):
        raise ValueError(f"observe: y has {flat.size} entries, but the operator gives {len(matrix)}: give as many")
    covariance = _noise_covariance(np.asarray(noise, float), np.shape(y))[np.ix_(seen, seen)]
    matrix, flat = matrix[seen], flat[seen]
    log_weights, d = np.log(weights), means.shape[1]
    found_means, found_covariances = means.copy(), covariances.copy()
    for k, (mean, spread) in enumerate(zip(means, covariances, strict=True)):
        total = matrix @ spread @ matrix.T + covariance
        residual = flat - matrix @ mean
        try:
            root = np.linalg.cholesky(total)
        except np.linalg.LinAlgError:
            raise ValueError(
                "observe: without noise y has entries that follow from each other: give a noise above 0, or leave "
                "such entries out"
            ) from None
        gain = np.linalg.solve(total, matrix @ spread).T
        left = np.eye(d) - gain @ matrix
        found_means[k] = mean + gain @ residual
        found_covariances[k] = left @ spread @ left.T + gain @ covariance @ gain.T
        z = np.linalg.solve(root, residual)
        log_weights[k] -= 0.5 * z @ z + np.log(np.diag(root)).sum() + 0.5 * len(flat) * np.log(2 * np.pi)
    evidence = float(np.logaddexp.reduce(log_weights))
    found_weights = np.exp(log_weights - evidence)
    return found_weights / found_weights.sum(), found_means, found_covariances, evidence


def _noise_covariance(noise: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The covariance (m, m) of a noise that is a standard deviation, one for each entry of y, or a covariance."""
    m = int(np.prod(shape))
    if len(shape) == 1 and noise.shape == (m, m) and m > 0:
        return noise
    if noise.shape not in ((), shape):
        raise ValueError(f"observe: noise must be a number, one for each entry of y {shape}, or a covariance {(m, m)}")
    if (noise < 0).any():
        raise ValueError("observe: noise is a standard deviation: it must not be negative")
    return np.diag(np.broadcast_to(noise, shape).ravel() ** 2)
