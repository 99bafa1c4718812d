"""The weak error of a linear sampler on a mixture on the line: no samples, no Monte Carlo.

With an exact score a sampler's rows (`linear.py`) make a Markov chain in x and the last values M_1, M_2, .. of the model, so that the
expectation of a function of the result follows backwards, by quadrature over each row's noise and polynomials between grid points:

    v_N = phi(x),   v_i(x, M_1, M_2, ..) = E_z v_{i+1}(a x + b_0 D + b_1 M_1 + .. + c z, D, M_1, ..),   D = D(p x + q_1 M_1 + .., t_i)
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from sde_lib.conversions import denoiser
from sde_lib.samplers.linear import LinearSampler, Table, table_of
from sde_lib.sde import SDE

_WIDTH = 9.0  # of the grid in x, in standard deviations
_MEMORY = 6.0  # of the grids in the model's values
_STENCIL = np.arange(6)

Value = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


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
        sampler: one with rows in the denoiser. The time that this takes grows with past^(K - 1); K = 4 is out of reach: `weak_difference`.
        weights, means, stds: of the mixture, (k,) each.
        points, past, nodes: of the grids in x and in each M, and of the quadrature over a row's noise.

    Raises ValueError for a sampler that goes by the noise.
    """
    table = table_of(sampler, sde)
    rows, depth = table.b.shape
    if sampler.model is not denoiser:
        raise ValueError(f"weak_error: {type(sampler).__name__} goes by the noise")
    weights, means, stds = (np.asarray(v, float) for v in (weights, means, stds))
    z, weight = _normal_quadrature(nodes)
    c = np.zeros(rows) if table.c is None else table.c
    memory = np.linspace(means.min() - _MEMORY * stds.max(), means.max() + _MEMORY * stds.max(), past)

    def final(x: np.ndarray, m: np.ndarray | None) -> np.ndarray:
        return function(x)

    value: Value = final
    for i in reversed(range(rows)):
        grid = np.linspace(*_range(sde, table.t[0] if i == 0 else table.t_next[i - 1], means, stds), points)
        # x and the values of the model before, the latest first.
        x, *known = np.meshgrid(grid, *[memory] * (depth - 1), indexing="ij", sparse=True)
        d = _denoise(sde, table.t[i], _called_at(table, i, x, known), weights, means, stds)
        after = _without_noise(table, i, x, [d, *known])
        value = _interpolant(grid, memory, value(after[..., None] + c[i] * z, d) @ weight)
    # No row looks back beyond the first, so any M will do.
    start = _mixture_mean(sde, table.t[0], weights, means, stds, lambda x: value(x, None))
    return float(start - _mixture_mean(sde, sde.t_min, weights, means, stds, function))


def weak_difference(
    sampler: LinearSampler,
    other: LinearSampler,
    sde: SDE,
    weights: Any,
    means: Any,
    stds: Any,
    function: Callable[[np.ndarray], np.ndarray],
    *,
    draws: int = 100_000,
    seed: int = 0,
) -> tuple[float, float]:
    """(E[function(x)] of the sampler's result less that of the other's, its standard error), from paths with the same x_T and noise.

    With the `weak_error` of the other it gives that of a sampler which looks back too far for the quadrature. The paths of two methods
    differ little, and so does what is averaged. Each draw counts with its mirror image: x_T about its component's mean, and -z.

    Args: as for `weak_error`; both samplers have the same number of steps and draw one noise in each.
    """
    weights, means, stds = (np.asarray(v, float) for v in (weights, means, stds))
    rng, t = np.random.default_rng(seed), sde.t_max
    scale = np.sqrt((sde.alpha(t) * stds) ** 2 + sde.sigma(t) ** 2)
    component = rng.choice(len(weights), size=draws, p=weights)
    centre, spread = sde.alpha(t) * means[component], scale[component] * rng.standard_normal(draws)
    tables = [table_of(s, sde) for s in (sampler, other)]
    paths = [_Path(table, np.concatenate([centre + spread, centre - spread])) for table in tables]
    for i in range(len(tables[0].b)):
        z = rng.standard_normal(draws)
        for path in paths:
            path.step(i, np.concatenate([z, -z]), lambda t, x: _denoise(sde, t, x, weights, means, stds))
    difference = (function(paths[0].x) - function(paths[1].x)).reshape(2, draws).mean(axis=0)
    return float(difference.mean()), float(difference.std() / math.sqrt(draws))


class _Path:
    """Draws (n,) that go by a table's rows in the denoiser."""

    def __init__(self, table: Table, x: np.ndarray):
        self.table, self.x = table, x
        self.known = [np.zeros_like(x)] * (table.b.shape[1] - 1)

    def step(self, i: int, z: np.ndarray, denoise: Callable[[Any, np.ndarray], np.ndarray]) -> None:
        table, x = self.table, self.x
        values = [denoise(table.t[i], _called_at(table, i, x, self.known)), *self.known]
        self.x = _without_noise(table, i, x, values) + (0 if table.c is None else table.c[i] * z)
        self.known = values[:-1]


def _called_at(table: Table, i: int, x: np.ndarray, known: list[np.ndarray]) -> np.ndarray:
    """Where row i has the model called: p x + q_1 M_1 + .., or x."""
    return x if table.point is None else table.point.p[i] * x + sum(q * m for q, m in zip(table.point.q[i], known, strict=True))


def _without_noise(table: Table, i: int, x: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
    """Row i's a x + b_0 D + b_1 M_1 + .."""
    return table.a[i] * x + sum(b * m for b, m in zip(table.b[i], values, strict=True))


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


def _interpolant(grid: np.ndarray, memory: np.ndarray, values: np.ndarray) -> Value:
    """Through the values (points, past, ..), by the polynomial of degree 5 of the nearest points; held constant beyond the grid."""

    def value(x: np.ndarray, m: np.ndarray | None) -> np.ndarray:
        """x (*shape, nodes), the latest value m of the model (*shape) or with ones in its place; None where it has no effect.

        The axes of shape are x, m and so on of the row before, so that all but the last of them are the earlier values' own.
        """
        if values.ndim == 1 or m is None:
            lines = values.reshape(len(grid), -1)[:, 0]
        else:
            j, of_m = _lagrange(memory, m)
            earlier = np.meshgrid(*[np.arange(len(memory))] * (m.ndim - 1), indexing="ij", sparse=True)[:-1]
            near_m: Any = (slice(None), j[..., None] + _STENCIL, *(k[None, ..., None] for k in earlier))
            lines = np.einsum("x...b,...b->...x", values[near_m], of_m)
        i, of_x = _lagrange(grid, x)
        near = np.take_along_axis(
            np.broadcast_to(lines, (*x.shape[:-1], len(grid))), (i[..., None] + _STENCIL).reshape(*x.shape[:-1], -1), axis=-1
        )
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
