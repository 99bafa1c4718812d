"""The weak error of a linear sampler on a mixture on the line: no samples, no Monte Carlo.

With an exact score a sampler's rows (`linear.py`) make a Markov chain in x and the last value M of the model, so that the expectation of a
function of the result follows backwards, by quadrature over each row's noise and polynomials between the points of a grid:

    v_N(x, M) = phi(x),     v_i(x, M) = E_z v_{i+1}(a x + b_0 D + b_1 M + c z, D),  D = D(p x + q M, t_i)
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from sde_lib.conversions import denoiser
from sde_lib.samplers.linear import LinearSampler, table_of
from sde_lib.sde import SDE

_WIDTH = 9.0  # of every grid, in standard deviations
_STENCIL = np.arange(6)


def weak_error(
    sampler: LinearSampler,
    sde: SDE,
    weights: Any,
    means: Any,
    stds: Any,
    function: Callable[[np.ndarray], np.ndarray],
    *,
    points: int = 100,
    past: int = 40,
    nodes: int = 16,
) -> float:
    """E[function(x)] of the sampler's result less that of the data at t_min, for a mixture of normals on the line, from the exact p_T.

    Args:
        sampler: one with denoiser rows that look back once at most (K <= 2).
        weights, means, stds: of the mixture, (k,) each.
        points, past, nodes: of the grids in x and in M, and of the quadrature over a row's noise.

    Raises ValueError for a sampler that looks further back, or predicts the noise.
    """
    table = table_of(sampler, sde)
    rows, depth = table.b.shape
    if depth > 2 or sampler.model is not denoiser:
        raise ValueError(f"weak_error: {type(sampler).__name__} looks back more than once, or in the noise")
    weights, means, stds = (np.asarray(v, float) for v in (weights, means, stds))
    z, weight = _normal_quadrature(nodes)
    b1 = table.b[:, 1] if depth == 2 else np.zeros(rows)
    c = np.zeros(rows) if table.c is None else table.c
    lowest, highest = means.min() - _WIDTH * stds.max(), means.max() + _WIDTH * stds.max()
    memory = np.linspace(lowest, highest, past) if depth == 2 else np.zeros(1)

    value: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda x, m: function(x)  # noqa: E731
    for i in reversed(range(rows)):
        grid = np.linspace(*_range(sde, table.t[0] if i == 0 else table.t_next[i - 1], means, stds), points)
        x, m = np.meshgrid(grid, memory, indexing="ij")
        e = x if table.point is None else table.point.p[i] * x + (table.point.q[i, 0] * m if depth == 2 else 0.0)
        d = _denoise(sde, table.t[i], e, weights, means, stds)
        after = (table.a[i] * x + table.b[i, 0] * d + b1[i] * m)[..., None] + c[i] * z
        expected = value(after, d) @ weight
        value = _interpolant(grid, memory, expected)
    # No row looks back beyond the first, so any M will do.
    start = _mixture_mean(sde, table.t[0], weights, means, stds, lambda x: value(x, np.zeros(x.shape[:-1])))
    return float(start - _mixture_mean(sde, sde.t_min, weights, means, stds, function))


def _normal_quadrature(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    z, weight = np.polynomial.hermite_e.hermegauss(nodes)
    return z, weight / weight.sum()


def _range(sde: SDE, t: Any, means: np.ndarray, stds: np.ndarray) -> tuple[float, float]:
    alpha, scale = sde.alpha(t), np.sqrt((sde.alpha(t) * stds) ** 2 + sde.sigma(t) ** 2)
    return float((alpha * means - _WIDTH * scale).min()), float((alpha * means + _WIDTH * scale).max())


def _denoise(sde: SDE, t: Any, x: np.ndarray, weights: np.ndarray, means: np.ndarray, stds: np.ndarray) -> np.ndarray:
    """E[x_0 | x] of the mixture."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    variance = (alpha * stds) ** 2 + sigma**2
    apart = x[..., None] - alpha * means
    log_share = np.log(weights) - 0.5 * np.log(variance) - 0.5 * apart**2 / variance
    share = np.exp(log_share - log_share.max(-1, keepdims=True))
    return (share * (means + alpha * stds**2 / variance * apart)).sum(-1) / share.sum(-1)


def _interpolant(grid: np.ndarray, memory: np.ndarray, values: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Through the values, by the polynomial of degree 5 of the nearest points in each direction; held constant beyond the grid."""

    def value(x: np.ndarray, m: np.ndarray) -> np.ndarray:
        """x (..., nodes), m (...)."""
        if len(memory) == 1:
            lines = np.broadcast_to(values[:, 0], (*m.shape, len(grid)))
        else:
            j, of_m = _lagrange(memory, m)
            lines = np.einsum("x...b,...b->...x", values[:, j[..., None] + _STENCIL], of_m)
        i, of_x = _lagrange(grid, x)
        near = np.take_along_axis(lines, (i[..., None] + _STENCIL).reshape(*m.shape, -1), axis=-1)
        return (near.reshape(of_x.shape) * of_x).sum(-1)

    return value


def _lagrange(points: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first of the six evenly spaced points about each x, and their weights (..., 6)."""
    place = np.clip((x - points[0]) / (points[1] - points[0]), 0, len(points) - 1)
    first = np.clip(np.floor(place).astype(int) - 2, 0, len(points) - len(_STENCIL))
    apart = place - first
    weights = [math.prod((apart - j) / (k - j) for j in _STENCIL if j != k) for k in _STENCIL]
    return first, np.stack(weights, axis=-1)


def _mixture_mean(
    sde: SDE, t: Any, weights: np.ndarray, means: np.ndarray, stds: np.ndarray, function: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """E[function(x_t)]."""
    z, weight = _normal_quadrature(100)
    alpha, scale = sde.alpha(t), np.sqrt((sde.alpha(t) * stds) ** 2 + sde.sigma(t) ** 2)
    return weights @ (function(alpha * means[:, None] + scale[:, None] * z) @ weight)
