"""Samplers fitted to one score: times and weights of a table for few calls that end where the ODE's fine solution does.

The result of a deterministic sampler x_N(z), from a latent z at t_max, is differentiable in the times t of its table
and in the weights b that it gives the calls. `fit_table` starts from the best of a few published methods, and solves

    min over t, b of   mean over z of |x_N(z; t, b) - x(t_min; z)|²,   x(t; z) the probability flow from z

by Levenberg-Marquardt: some ten numbers a row, and so many residuals as latents have entries. The score stays as it is,
and so does the cost of a call. Shaul et al. 2024, arXiv:2403.01329, fit such tables to networks by Adam; Sabour et al.
2024, arXiv:2404.14507, and Chen et al. 2024, arXiv:2405.11326, fit the times alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.composed import same_sde
from sde_lib.conversions import denoiser
from sde_lib.samplers.adams import DEIS, IPNDM
from sde_lib.samplers.base import sample
from sde_lib.samplers.exponential import DPMSolverPP2M
from sde_lib.samplers.grids import FlowTime, Quadratic, Times, UniformLogSNR, UniformT
from sde_lib.samplers.linear import LinearSampler, Prediction, Table, ends_of, table_of
from sde_lib.samplers.unipc import UniPC
from sde_lib.score import ScoreFn, check_score
from sde_lib.sde import SDE, host_sde
from sde_lib.typing import Array, PyTree

HISTORY = 4  # calls that a row gives a weight
HELD_OUT = 0.25  # of the latents
GRIDS = (Quadratic(), FlowTime(), UniformLogSNR())  # of the methods that a fit may start from
FINE = UniPC(steps=200, grid=FlowTime())  # of order 4
TRIES = 12  # dampings for each update
SMALL, MOST_SMALL = 0.01, 3  # so many updates in a row that lower the mean square by so small a share are the last


@dataclass(frozen=True, eq=False)
class FittedSampler(LinearSampler):
    """A table that was fitted to a score, for its number of steps and its SDE; `fit_table` makes it.

    It is a sampler like any other: deterministic, of one call a step, without a method's order. With another score of
    the SDE it runs, and nothing says how well. Raises ValueError for another number of steps, grid or SDE.

    Args:
        table, sde: what was fitted.
        start: what the fit began from.
        error: the root mean square distance from the fine solution, over latents that the fit has not seen, in x's
            units and over all entries of an example.
        start_error: that of the start.
        latents: how many were fitted to, without those that were held out.
    """

    table: Table = field(kw_only=True, repr=False)
    sde: SDE = field(kw_only=True, repr=False)
    start: str = field(kw_only=True)
    error: float = field(kw_only=True)
    start_error: float = field(kw_only=True)
    latents: int = field(kw_only=True)
    model: Prediction = field(default=staticmethod(denoiser), kw_only=True, repr=False)  # type: ignore[misc]

    def __post_init__(self) -> None:
        if self.steps != len(self.table.t):
            raise ValueError(
                f"FittedSampler: it was fitted for {len(self.table.t)} steps, not {self.steps}: call fit_table for them"
            )

    def update(self, sde: SDE, times: Array) -> Table:
        if not same_sde(self.sde, sde):
            raise ValueError(f"FittedSampler: it was fitted on {self.sde!r}, not on {sde!r}: call fit_table for that")
        if len(times) != self.steps + 1 or not np.allclose(times[:-1], self.table.t, rtol=1e-6, atol=0):
            raise ValueError("FittedSampler: its times are fitted too: leave its grid as it is")
        return self.table


def starts(steps: int) -> list[LinearSampler]:
    """The methods that a fit may start from, each on each of GRIDS: the best at few calls on exact mixtures."""
    order = min(3, steps)
    methods: list[LinearSampler] = [
        IPNDM(order=min(4, steps)),
        DEIS(order=order),
        DPMSolverPP2M(),
        *(UniPC(order=p) for p in range(2, order + 1)),
    ]
    return [replace(method, steps=steps, grid=grid) for method in methods for grid in GRIDS]


def fit_table(
    score_fn: ScoreFn,
    key: jax.Array,
    *,
    steps: int,
    shape: tuple[int, ...],
    latents: int = 2048,
    cond: PyTree = None,
    fine: LinearSampler = FINE,
    iterations: int = 60,
    batch_size: int | None = None,
) -> FittedSampler:
    """Fit a deterministic sampler of so many steps, and calls, to the probability flow of this score.

    A quarter of the latents is held out, to measure by. An update costs one forward derivative of `steps` calls for
    each of about 5 `steps` numbers, and for each latent; the fit ends by itself where updates no longer help.

    Args:
        score_fn: the score, which carries its SDE.
        key: of the latents: those that `sample` draws from it.
        steps: score calls of the sampler.
        shape: of x.
        latents: how many.
        cond: what the score is told, a row for each latent.
        fine: the sampler whose result stands for the flow's.
        iterations: updates, at most.
        batch_size: how many latents at once; default all.

    Raises ValueError for fewer than 1 step or 8 latents, a sampler `fine` that draws noise, and results that are not
    finite.
    """
    check_score(score_fn, "fit_table")
    for name, value, least in (("steps", steps, 1), ("latents", latents, 8), ("iterations", iterations, 1)):
        if value < least:
            raise ValueError(f"fit_table: {name} must be at least {least}, not {value}")
    if table_of(fine, score_fn.sde).c is not None:
        raise ValueError(f"fit_table: fine must be deterministic, and {type(fine).__name__} draws noise")
    sde = host_sde(score_fn.sde)
    drawn = sample(fine, score_fn, key, latents, shape, cond=cond, frames=2, batch_size=batch_size)
    assert drawn.path is not None
    first_held_out = latents - round(HELD_OUT * latents)
    whole = _Misses(score_fn, drawn.path[0], drawn.x, cond, batch_size or latents)
    seen, held_out = whole.part(slice(first_held_out)), whole.part(slice(first_held_out, None))
    candidates = starts(steps)
    squares = [seen.mean_square(_padded(table_of(start, sde)), start.model) for start in candidates]
    if not np.isfinite(squares).all():
        raise ValueError("fit_table: the sampler's results are not finite: look at the score")
    start = candidates[int(np.argmin(squares))]
    method = _Method(replace(start, grid=UniformT()), score_fn.sde)  # another grid compiles nothing anew
    free = _least_squares(seen, method, _free(start, sde), iterations)
    table = jax.tree.map(lambda v: np.asarray(v, float), method.table(free))
    return FittedSampler(
        steps=steps,
        grid=Times((float(sde.t_max), *map(float, table.t_next[:-1]), float(sde.t_min))),
        table=table,
        sde=sde,
        start=repr(start),
        error=held_out.mean_square(method.table(free), method.model) ** 0.5,
        start_error=held_out.mean_square(method.table(_free(start, sde)), method.model) ** 0.5,
        latents=first_held_out,
        model=method.model,
    )


def _free(start: LinearSampler, sde: SDE) -> np.ndarray:
    """What is fitted (P,), as the start has it: the logarithms of the steps in log SNR, and no change of any weight."""
    log_snr = np.asarray(sde.log_snr(np.asarray(start.grid(sde, start.steps))))
    return np.concatenate([np.log(np.diff(log_snr)), np.zeros(len(_weights(start.steps)[0]))])


def _weights(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The places in b (steps, HISTORY) of calls that have been."""
    row, call = np.nonzero(np.tril(np.ones((steps, HISTORY))))
    return row, call


@partial(jax.jit, static_argnames="method")
def _table(free: jax.Array, method: LinearSampler, sde: SDE) -> Table:
    """The method's table on these steps, with these changes of its weights."""
    first, last = sde.log_snr(sde.t_max), sde.log_snr(sde.t_min)
    inner = first + (last - first) * jnp.cumsum(jax.nn.softmax(free[: method.steps]))[:-1]
    start, end = (jnp.reshape(jnp.asarray(t, free.dtype), 1) for t in (sde.t_max, sde.t_min))
    table = _padded(method.update(sde, jnp.concatenate([start, sde.time_of_log_snr(inner), end])))
    return table._replace(b=jnp.asarray(table.b).at[_weights(method.steps)].add(free[method.steps :]))


_table_slopes = jax.jit(jax.jacfwd(_table), static_argnames="method")  # with a last axis of P


def _padded(table: Table) -> Table:
    """The table in float32, with weights 0 for those of HISTORY calls that the method does not look at."""
    more = ((0, 0), (0, HISTORY - table.b.shape[1]))
    return jax.tree.map(partial(jnp.asarray, dtype=jnp.float32), table._replace(b=jnp.pad(jnp.asarray(table.b), more)))


@dataclass(frozen=True)
class _Method:
    """The table as a function of what is free."""

    sampler: LinearSampler
    sde: SDE

    @property
    def model(self) -> Prediction:
        return self.sampler.model

    def table(self, free: np.ndarray) -> Table:
        return _table(jnp.asarray(free, jnp.float32), self.sampler, self.sde)

    def slopes(self, free: np.ndarray) -> Table:
        return _table_slopes(jnp.asarray(free, jnp.float32), self.sampler, self.sde)


@partial(jax.jit, static_argnames="model")
def _slopes(
    score_fn: ScoreFn, table: Table, tangents: Table, x: jax.Array, cond: PyTree, model: Prediction
) -> tuple[jax.Array, jax.Array]:
    """The ends (n, *shape), and their derivatives (n, *shape, P) along each of P changes of the table."""
    ends, along = jax.linearize(lambda table: ends_of(table, score_fn, x, cond, model), table)
    return ends, jax.vmap(along, in_axes=-1, out_axes=-1)(tangents)


@dataclass(frozen=True)
class _Misses:
    """How far a table's ends are from the targets of latents x (n, *shape)."""

    score_fn: ScoreFn
    x: jax.Array
    target: jax.Array
    cond: PyTree
    batch_size: int

    def part(self, rows: slice) -> "_Misses":
        """The same of some latents."""
        cond = jax.tree.map(lambda v: v[rows], self.cond)
        return replace(self, x=self.x[rows], target=self.target[rows], cond=cond)

    def _batches(self) -> Iterator[tuple[jax.Array, jax.Array, PyTree]]:
        for i in range(0, len(self.x), self.batch_size):
            some = self.part(slice(i, i + self.batch_size))
            yield some.x, some.target, some.cond

    def mean_square(self, table: Table, model: Prediction) -> float:
        """The mean over latents of |x_N - x|²."""
        ends = ((ends_of(table, self.score_fn, x, cond, model), target) for x, target, cond in self._batches())
        return sum(float(jnp.sum((end - target) ** 2)) for end, target in ends) / len(self.x)

    def normal_equations(self, table: Table, tangents: Table, model: Prediction) -> tuple[np.ndarray, np.ndarray]:
        """J^T J (P, P) and J^T r (P,) of the mean square, in float64."""
        count = tangents.t.shape[-1]
        curvature, gradient = np.zeros((count, count)), np.zeros(count)
        for x, target, cond in self._batches():
            ends, slopes = _slopes(self.score_fn, table, tangents, x, cond, model)
            rows = np.asarray(slopes, float).reshape(-1, count)
            curvature += rows.T @ rows
            gradient += rows.T @ np.asarray(ends - target, float).ravel()
        return curvature / len(self.x), gradient / len(self.x)


def _least_squares(misses: _Misses, method: _Method, free: np.ndarray, iterations: int) -> np.ndarray:
    """What has the least mean square, by Levenberg-Marquardt with Marquardt's scaling (1963, eq. 27 to 29).

    Libraries take the derivatives, which are all that is dear here, anew for each damping that is tried.
    """
    damping, small, square = 1e-2, 0, misses.mean_square(method.table(free), method.model)
    for _ in range(iterations):
        curvature, gradient = misses.normal_equations(method.table(free), method.slopes(free), method.model)
        scale = np.diag(np.diag(curvature) + 1e-12 * np.trace(curvature))
        for _ in range(TRIES):
            tried = free - np.linalg.solve(curvature + damping * scale, gradient)
            found = misses.mean_square(method.table(tried), method.model)
            if found < square:
                break
            damping *= 4
        else:
            return free
        small = small + 1 if found > (1 - SMALL) * square else 0
        free, square, damping = tried, found, max(damping / 3, 1e-7)
        if small == MOST_SMALL:
            return free
    return free
