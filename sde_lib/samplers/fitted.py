"""Samplers fitted to one score: times and weights of a table for few calls that end where the ODE's fine solution does.

The result of a deterministic sampler x_N(z), from a latent z at t_max, is differentiable in the times t of its table
and in the weights b that it gives the calls. `fit_table` starts from the best of a few published methods, and solves

    min over t, b of   mean over z of |x_N(z; t, b) - x(t_min; z)|²,   x(t; z) the probability flow from z

by Levenberg-Marquardt: some ten numbers a row, and so many residuals as latents have entries. The score stays as it is,
and so does the cost of a call. Shaul et al. 2024, arXiv:2403.01329, fit such tables to networks by Adam; Sabour et al.
2024, arXiv:2404.14507, and Chen et al. 2024, arXiv:2405.11326, fit the times alone.
"""

import math
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
AT_ONCE = 1 + HISTORY  # derivatives: those of a row
FEW, RESIDUALS = 64, 20  # latents, and residuals for each number, at least, of the part that is fitted first
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
        *([DPMSolverPP2M()] if steps > 1 else []),
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

    A quarter of the latents is held out, to measure by. An update costs a forward derivative of about half of `steps`
    calls for each of about 5 `steps` numbers, and for each latent: those of a part at first. The fit ends
    by itself where updates no longer help.

    Args:
        score_fn: the score, which carries its SDE.
        key: of the latents: those that `sample` draws from it.
        steps: score calls of the sampler.
        shape: of x.
        latents: how many.
        cond: what the score is told, a row for each latent.
        fine: the sampler whose result stands for the flow's.
        iterations: updates of a part of the latents, and then of all, at most.
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
    few = seen.part(slice(_enough(steps, math.prod(shape))))
    candidates = starts(steps)
    squares = [few.mean_square(_padded(table_of(start, sde)), start.model) for start in candidates]
    if not np.isfinite(squares).all():
        raise ValueError("fit_table: the sampler's results are not finite: look at the score")
    start = candidates[int(np.argmin(squares))]
    method = _Method(replace(start, grid=UniformT()), score_fn.sde)  # another grid compiles nothing anew
    free = _free(start, sde)
    for part in (few, seen) if len(few.x) < len(seen.x) else (seen,):  # the way to a minimum need not be exact
        free = _least_squares(part, method, free, iterations)
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


def _places(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """What is fitted, by rows of the table: in column 0 where the row ends, then weights of calls that have been."""
    ends = np.arange(steps)[:, None] < steps - 1  # the last row ends at t_min
    row, column = np.nonzero(np.hstack([ends, np.tril(np.ones((steps, HISTORY), bool))]))
    return row, column


def _free(start: LinearSampler, sde: SDE) -> np.ndarray:
    """What is fitted (P,), as the start has it.

    A row's end is the logit of how much of the log SNR that is left it leaves to the rows after it, so that it moves no
    row before; a weight is its change, 0.
    """
    log_snr = np.asarray(sde.log_snr(np.asarray(start.grid(sde, start.steps))))
    left = log_snr[-1] - log_snr[:-1]
    free = np.zeros((start.steps, 1 + HISTORY))
    free[:-1, 0] = np.log(left[1:] / (left[:-1] - left[1:]))
    return free[_places(start.steps)]


def _enough(steps: int, entries: int) -> int:
    """How many latents tell which start is best, and where to go from it."""
    return max(FEW, math.ceil(RESIDUALS * len(_places(steps)[0]) / entries))


@partial(jax.jit, static_argnames="method")
def _table(free: jax.Array, method: LinearSampler, sde: SDE) -> Table:
    """The method's table on these steps, with these changes of its weights."""
    numbers = jnp.zeros((method.steps, 1 + HISTORY), free.dtype).at[_places(method.steps)].set(free)
    first, last = sde.log_snr(sde.t_max), sde.log_snr(sde.t_min)
    inner = last - (last - first) * jnp.exp(jnp.cumsum(jax.nn.log_sigmoid(numbers[:-1, 0])))
    start, end = (jnp.reshape(jnp.asarray(t, free.dtype), 1) for t in (sde.t_max, sde.t_min))
    table = _padded(method.update(sde, jnp.concatenate([start, sde.time_of_log_snr(inner), end])))
    return table._replace(b=table.b + numbers[:, 1:])


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


# x, the last values of the model, and the derivatives of both.
_Slopes = tuple[jax.Array, tuple[jax.Array, ...], jax.Array, tuple[jax.Array, ...]]


@partial(jax.jit, static_argnames="model")
def _slopes(
    score_fn: ScoreFn, table: Table, tangents: Table, x: jax.Array, cond: PyTree, model: Prediction
) -> tuple[jax.Array, jax.Array]:
    """The ends (n, *shape), and their derivatives (P, n, *shape) along each of P changes of the table, by rows.

    The changes of a row move the calls after it alone: each call's derivative is taken along those of rows before it,
    AT_ONCE at a time, which is half as dear as along all.
    """
    row, _ = _places(len(table.t))
    count = -len(row) % AT_ONCE + len(row)
    tangents = jax.tree.map(lambda v: jnp.moveaxis(_longer(v, count), -1, 1), tangents)
    parts = jnp.asarray(-(-np.searchsorted(row, np.arange(len(table.t))) // AT_ONCE))

    def step(carry: _Slopes, scanned: tuple[Table, Table, jax.Array]) -> tuple[_Slopes, None]:
        x, past, moved, past_moved = carry
        row, changes, parts = scanned
        call, along = jax.linearize(lambda x, t: model(score_fn, x, t, cond), x, row.t)

        def more(i: jax.Array, found: jax.Array) -> jax.Array:
            some = partial(jax.lax.dynamic_slice_in_dim, start_index=i * AT_ONCE, slice_size=AT_ONCE)
            return jax.lax.dynamic_update_slice_in_dim(
                found, jax.vmap(along)(some(moved), some(changes.t)), i * AT_ONCE, 0
            )

        known = (call, *past)
        known_moved = (jax.lax.fori_loop(0, parts, more, jnp.zeros_like(moved)), *past_moved)
        moved = moved * row.a + jnp.multiply.outer(changes.a, x)
        for j, (value, slope) in enumerate(zip(known, known_moved, strict=True)):
            moved = moved + slope * row.b[j] + jnp.multiply.outer(changes.b[:, j], value)
        x = sum((value * row.b[j] for j, value in enumerate(known)), start=x * row.a)
        return (x, known[:-1], moved, known_moved[:-1]), None

    still = jnp.zeros((count, *x.shape), x.dtype)
    start = (x, (jnp.zeros_like(x),) * (HISTORY - 1), still, (still,) * (HISTORY - 1))
    ends, _, moved, _ = jax.lax.scan(step, start, (table, tangents, parts))[0]
    return ends, moved[: len(row)]


def _longer(v: jax.Array, count: int) -> jax.Array:
    """With zeros at the end of the last axis."""
    return jnp.pad(v, [(0, 0)] * (v.ndim - 1) + [(0, count - v.shape[-1])])


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
            rows = np.asarray(slopes, float).reshape(count, -1)
            curvature += rows @ rows.T
            gradient += rows @ np.asarray(ends - target, float).ravel()
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
