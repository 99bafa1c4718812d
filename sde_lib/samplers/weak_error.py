"""The weak error of a linear sampler on a mixture on the line: no samples, no Monte Carlo.

With an exact score a sampler's rows (`linear.py`) make a Markov chain in x and the last values M_1, M_2, .. of the
model, so that the expectation of a function of the result follows backwards, by quadrature over each row's noise and
polynomials between grid points. With D = D(p x + q_1 M_1 + .., t_i),

    v_N = phi(x),   v_i(x, M_1, M_2, ..) = E_z v_{i+1}(a x + b_0 D + b_1 M_1 + .. + c z, D, M_1, ..)

The grid of each M_j is about D(x, t_i), and as wide as it moves in j rows: under the reverse SDE D is a martingale,
whose increments have the variance E D(t_i)² - E D(t_{i-j})². A row adds the M with weights of the order of its step, so
cubics in all of them together are near.
"""

import itertools
import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sde_lib.conversions import denoiser
from sde_lib.samplers.linear import LinearSampler, Table, table_of
from sde_lib.sde import SDE
from sde_lib.typing import Scalar

_WIDTH = 7.0  # of the grid in x, in standard deviations
_PAST = 2.0 * np.cos(np.pi * (np.arange(4) + 0.5) / 4)  # the grid in each M, in standard deviations: Chebyshev's points
_STENCIL = np.arange(10)

# v(x, [M_1, M_2, ..]); without the M where they have no effect.
Value = Callable[[np.ndarray, list[np.ndarray]], np.ndarray]


def weak_error(
    sampler: LinearSampler,
    sde: SDE,
    weights: npt.ArrayLike,
    means: npt.ArrayLike,
    stds: npt.ArrayLike,
    function: Callable[[np.ndarray], np.ndarray],
    *,
    points: int = 80,
    nodes: int = 10,
) -> float:
    """The error in E[function(x)] of the sampler's result, for data from a mixture of normals on the line.

    The sampler starts from the exact p_T, and the exact mean of the data at t_min is subtracted.

    Args:
        sampler: one with rows in the denoiser. The time that this takes grows with 4^(K - 1).
        weights, means, stds: of the mixture, (k,) each.
        points, nodes: of the grid in x, and of the quadrature over a row's noise. Short steps need fewer nodes.

    Of the error that it gives for a function that is a polynomial of degree 3 at most, up to 1 % is its own: for K = 2
    and 3 at 40 to 160 steps over VP's range, for K = 4 at 40 to 640 steps over half of it. Of other smooth functions
    the share is larger: compare `points` and `nodes` doubled. Rows that look back three times in longer steps add the M
    with weights above 1, and there it is wrong.

    Raises ValueError for a sampler that goes by the noise.
    """
    table = table_of(sampler, sde)
    rows, depth = table.b.shape
    if sampler.model is not denoiser:
        raise ValueError(f"weak_error: {type(sampler).__name__} goes by the noise: give a sampler in the denoiser")
    weights, means, stds = (np.asarray(v, float) for v in (weights, means, stds))
    z, weight = _normal_quadrature(nodes)
    c = np.zeros(rows) if table.c is None else table.c
    cubic = _projector(depth - 1)
    said = [_mean_square(sde, t, weights, means, stds) for t in table.t]

    def final(x: np.ndarray, m: list[np.ndarray]) -> np.ndarray:
        return function(x)

    value: Value = final
    for i in reversed(range(rows)):
        grid = np.linspace(*_range(sde, table.t[0] if i == 0 else table.t_next[i - 1], means, stds), points)
        centre = _denoise(sde, table.t[i], grid, weights, means, stds)
        # x and the values of the model before, the latest first: an axis each.
        offsets = [
            math.sqrt(max(said[i] - said[max(i - j, 0)], (0.1 * stds.max()) ** 2)) * _PAST for j in range(1, depth)
        ]
        x, *apart = np.meshgrid(grid, *offsets, indexing="ij", sparse=True)
        known = [centre.reshape(x.shape) + offset for offset in apart]
        d = _denoise(sde, table.t[i], _called_at(table, i, x, known), weights, means, stds)
        after = np.broadcast_to(_without_noise(table, i, x, [d, *known]), (points, *[len(_PAST)] * (depth - 1)))
        values = value(after[..., None] + c[i] * z, [d, *known]) @ weight
        value = _interpolant(grid, centre, offsets, (values.reshape(points, -1) @ cubic).reshape(values.shape))
    # No row looks back beyond the first, so any M will do.
    start = _mixture_mean(sde, table.t[0], weights, means, stds, lambda x: value(x, []))
    return float(start - _mixture_mean(sde, sde.t_min, weights, means, stds, function))


def _called_at(table: Table, i: int, x: np.ndarray, known: list[np.ndarray]) -> np.ndarray:
    """The point at which row i has the model called: p x + q_1 M_1 + .., or x."""
    return (
        x
        if table.point is None
        else table.point.p[i] * x + sum(q * m for q, m in zip(table.point.q[i], known, strict=True))
    )


def _without_noise(table: Table, i: int, x: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
    """The part a x + b_0 D + b_1 M_1 + .. of row i."""
    return table.a[i] * x + sum(b * m for b, m in zip(table.b[i], values, strict=True))


@lru_cache(maxsize=16)
def _normal_quadrature(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    z, weight = np.polynomial.hermite_e.hermegauss(nodes)
    return z, weight / weight.sum()


def _range(sde: SDE, t: Scalar, means: np.ndarray, stds: np.ndarray) -> tuple[float, float]:
    alpha, scale = sde.alpha(t), np.sqrt((sde.alpha(t) * stds) ** 2 + sde.sigma(t) ** 2)
    return float((alpha * means - _WIDTH * scale).min()), float((alpha * means + _WIDTH * scale).max())


def _denoise(
    sde: SDE, t: Scalar, x: np.ndarray, weights: np.ndarray, means: np.ndarray, stds: np.ndarray
) -> np.ndarray:
    """The denoiser E[x_0 | x] of the mixture."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    variance = (alpha * stds) ** 2 + sigma**2
    apart = x[..., None] - alpha * means
    log_share = np.log(weights) - 0.5 * np.log(variance) - 0.5 * apart**2 / variance
    share = np.exp(log_share - log_share.max(-1, keepdims=True))
    return (share * (means + alpha * stds**2 / variance * apart)).sum(-1) / share.sum(-1)


def _interpolant(grid: np.ndarray, centre: np.ndarray, offsets: list[np.ndarray], values: np.ndarray) -> Value:
    """The function through values (points, 4, ..) at the grid in x and at centre + offsets in each M, centre (points,).

    It is in x the polynomial of degree 9 through the nearest points, in each M the cubic.

    Letters of the products in `value`, which depend on how far back the rows look: y is the grid in x; k, l, m, n are
    the grids of M_1, M_2, ..; a, b, c, d are the axes of the points asked for, a that of x and b, c, d those of the M
    that the row before knew. An M that does not vary along an axis has length 1 there and no letter.
    """
    looks_back = "klmn"[: values.ndim - 1]

    def value(x: np.ndarray, m: list[np.ndarray]) -> np.ndarray:
        """The value at x (*shape, nodes); each M is (*shape), or has ones in its place."""
        if m and looks_back:
            # Along the grid (y) for each x (a) and each M of the row before (b, c, ..).
            lines, axes = values, f"y{looks_back}"
            for k, points, latest in zip(looks_back, offsets, m, strict=False):
                of = "".join(axis for axis, n in zip("abcd", latest.shape, strict=False) if n > 1)
                weights = _lagrange(points, latest.squeeze()[..., None] - centre)
                result = "".join(sorted({*axes, *of} - {k}))
                lines, axes = np.einsum(f"{axes},{of}y{k}->{result}", lines, weights), result
            lines = np.moveaxis(lines, axes.index("y"), -1)
            lines = lines.reshape(
                *[n if axis in axes else 1 for axis, n in zip("abcd", x.shape[:-1], strict=False)], len(grid)
            )
        else:
            lines = values.reshape(len(grid), -1)[:, 0]
        first, of_x = _nearest(grid, x)
        near = np.take_along_axis(
            np.broadcast_to(lines, (*x.shape[:-1], len(grid))),
            (first[..., None] + _STENCIL).reshape(*x.shape[:-1], -1),
            axis=-1,
        )
        return (near.reshape(of_x.shape) * of_x).sum(-1)

    return value


def _projector(variables: int) -> np.ndarray:
    """The projection (4^n, 4^n) of values on the grid of n M onto polynomials of degree 3 in all of them together.

    Products of cubics in each one swing where the M are far from each other.
    """
    powers = [k for k in itertools.product(range(len(_PAST)), repeat=variables) if sum(k) < len(_PAST)]
    basis = np.array(
        [
            [math.prod(u**k for u, k in zip(m, ks, strict=True)) for ks in powers]
            for m in itertools.product(_PAST, repeat=variables)
        ]
    )
    return basis @ np.linalg.pinv(basis)


def _lagrange(points: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The weights (..., n) of the points (n,) in the polynomial through them, at each x."""
    return np.stack([math.prod((x - p) / (q - p) for p in points if p != q) for q in points], axis=-1)


def _nearest(points: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first of the ten evenly spaced points about each x, and their weights (..., 10)."""
    place = np.clip((x - points[0]) / (points[1] - points[0]), 0, len(points) - 1)
    first = np.clip(np.floor(place).astype(int) - 4, 0, len(points) - len(_STENCIL))
    apart = place - first
    weights = [math.prod((apart - j) / (k - j) for j in _STENCIL if j != k) for k in _STENCIL]
    return first, np.stack(weights, axis=-1)


def _mixture_mean(
    sde: SDE,
    t: Scalar,
    weights: np.ndarray,
    means: np.ndarray,
    stds: np.ndarray,
    function: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """The mean E[function(x_t)]."""
    z, weight = _normal_quadrature(100)
    alpha, scale = sde.alpha(t), np.sqrt((sde.alpha(t) * stds) ** 2 + sde.sigma(t) ** 2)
    return weights @ (function(alpha * means[:, None] + scale[:, None] * z) @ weight)


def _mean_square(sde: SDE, t: Scalar, weights: np.ndarray, means: np.ndarray, stds: np.ndarray) -> np.ndarray:
    """The mean square E[D(x_t, t)²]."""
    return _mixture_mean(sde, t, weights, means, stds, lambda x: _denoise(sde, t, x, weights, means, stds) ** 2)
