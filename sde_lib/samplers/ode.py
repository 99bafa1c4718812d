"""The probability-flow ODE dx/dt = f x - ½ g² s, solved by diffrax (Song et al. 2021, arXiv:2011.13456, eq. 13)."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.batch import check_rows, like, points
from sde_lib.composed import calls, jumps, network_calls, take_rows, whole
from sde_lib.conversions import denoiser, velocity_from_score
from sde_lib.samplers.base import Samples
from sde_lib.score import ScoreFn, check_score
from sde_lib.sde import SDE, host_sde
from sde_lib.typing import PyTree, Scalar

if TYPE_CHECKING:  # imported where it is used: it takes a second, and most samplers do without
    import diffrax

# dy/dt = drift(t, y, args), and the size of a step's error, shaped like y.
Drift = Callable[..., PyTree]
Norm = Callable[[PyTree], jax.Array]


class Solution(NamedTuple):
    """The solution y at each saved time, the steps tried, and diffrax's verdict."""

    y: PyTree
    steps: jax.Array
    result: "diffrax.RESULTS"


def max_over_samples(error: jax.Array) -> jax.Array:
    """The largest, over the samples, of the root mean square of each sample's error.

    diffrax's own norm, an average over the batch, would hide the hard samples and make a result depend on the batch's
    size.
    """
    return jnp.sqrt(jnp.max(jnp.mean(jnp.abs(error) ** 2, axis=tuple(range(1, error.ndim)))))


def _tsit5() -> "diffrax.AbstractSolver":
    import diffrax

    return diffrax.Tsit5()


@dataclass(frozen=True)
class ProbabilityFlow:
    """The adaptive, or fixed-step, solution of the probability-flow ODE.

    The default tolerances are enough, and so are 200 steps, as `LinearSampler` says it.

    Args:
        rtol, atol: tolerances of each step, relative and absolute.
        solver: a diffrax solver of explicit Runge-Kutta type.
        steps: this many equal steps in t instead of adaptive ones.
        max_steps: an adaptive solve that needs more raises RuntimeError.
        per_sample: each sample takes its own steps, and no longer depends on its batch; costs as many calls as the
            hardest one. A sample alone may seem solved by chance, where its estimated error passes through zero in a
            long step: steps in t also end at a few times even in log SNR.
        denoise: replace the last x by D(x, t_min), at one more score call.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    solver: "diffrax.AbstractSolver" = field(default_factory=_tsit5)
    steps: int | None = None
    max_steps: int = 4096
    per_sample: bool = False
    denoise: bool = False

    def __post_init__(self) -> None:
        if min(self.rtol, self.atol) < 0 or max(self.rtol, self.atol) <= 0:
            raise ValueError(f"ProbabilityFlow: rtol and atol must be positive, not {self.rtol} and {self.atol}")
        if isinstance(self.solver, type):
            name = self.solver.__name__
            raise ValueError(f"ProbabilityFlow: solver must be an object: write {name}(), not {name}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"ProbabilityFlow: steps must be at least 1, not {self.steps}")

    def at_nfe(self, nfe: int) -> "ProbabilityFlow":
        """This solver with as many fixed steps as spend exactly `nfe` score calls. Raises ValueError where none do."""
        once, per_step = evaluations(self, 0), evaluations(self, 1) - evaluations(self, 0)
        steps, left = divmod(nfe - self.denoise - once, per_step)
        if left or steps < 1:
            beside = f" and {once + self.denoise} beside" if once + self.denoise else ""
            raise ValueError(
                f"{type(self.solver).__name__} cannot spend {nfe} score calls: it makes {per_step} a step{beside}"
            )
        return replace(self, steps=steps)

    def run(self, score_fn: ScoreFn, x: jax.Array, keys: jax.Array, cond: PyTree, frames: int) -> Samples:
        """Solve the flow; see `sde_lib.samplers.base.Sampler`. It draws no noise."""
        sde = score_fn.sde
        times = jnp.linspace(sde.t_max, sde.t_min, max(frames, 2), dtype=x.dtype)
        path, nfe = solve_between_jumps(self, flow_drift, x, times, (score_fn, cond), stops=_stops(self, sde))
        x = _denoise(score_fn, path[-1], cond) if self.denoise else path[-1]
        nfe += self.denoise * network_calls(score_fn, times[-1:])
        return Samples(x, nfe, path.at[-1].set(x), times) if frames else Samples(x, nfe)


def flow_drift(t: Scalar, x: jax.Array, args: tuple[ScoreFn, PyTree]) -> jax.Array:
    """The drift f x - ½ g² s at time t; args are the score and its conditioning."""
    score_fn, cond = args
    return velocity_from_score(score_fn.sde, score_fn(x, t, cond), x, t)


# Between them signal over noise rises by some 20 on every SDE here: narrow data bend the flow within a tenfold of it.
_STOPS = 4


def _stops(flow: ProbabilityFlow, sde: SDE) -> jax.Array | None:
    """Where steps of a sample's own have to end, besides at both ends."""
    if not flow.per_sample or flow.steps is not None:
        return None
    log_snr = jnp.linspace(sde.log_snr(sde.t_max), sde.log_snr(sde.t_min), _STOPS + 2)[1:-1]
    return jax.lax.stop_gradient(jnp.asarray(sde.time_of_log_snr(log_snr)))


def encode(score_fn: ScoreFn, x: jax.Array, *, flow: ProbabilityFlow | None = None, cond: PyTree = None) -> Samples:
    """Carry data at t_min along the probability flow to its latent at t_max; `.x` is like x."""
    check_score(score_fn, "encode")
    return _carry(score_fn, x, flow, cond, score_fn.sde.t_min, score_fn.sde.t_max)


def decode(
    score_fn: ScoreFn, latent: jax.Array, *, flow: ProbabilityFlow | None = None, cond: PyTree = None
) -> Samples:
    """Carry latents at t_max back to t_min: the inverse of `encode`, within the solver's tolerance."""
    check_score(score_fn, "decode")
    return _carry(score_fn, latent, flow, cond, score_fn.sde.t_max, score_fn.sde.t_min)


def _carry(
    score_fn: ScoreFn, x: jax.Array, flow: ProbabilityFlow | None, cond: PyTree, start: Scalar, end: Scalar
) -> Samples:
    y = points(x)
    check_rows(cond, y.shape[0])
    times = jnp.stack([jnp.asarray(t, y.dtype) for t in (start, end)])
    flow = flow or ProbabilityFlow()
    stops = _stops(flow, score_fn.sde)
    path, nfe = solve_between_jumps(flow, flow_drift, y, times, (score_fn, cond), stops=stops)
    return Samples(like(path[-1], x), nfe)


def solve_between_jumps(
    flow: ProbabilityFlow,
    drift: Drift,
    y: PyTree,
    times: jax.Array,
    args: tuple[PyTree, ...],
    norm: Norm = max_over_samples,
    *,
    in_log_snr: bool = False,
    stops: jax.Array | None = None,
) -> tuple[PyTree, int]:
    """Solve as `solve` does, but from jump to jump of the score args[0]: no step goes over one.

    An adaptive step over a jump is taken back time and again. Between jumps each call makes as many network calls.
    Fixed steps are dealt out by the length of the parts.

    Args:
        in_log_snr: times are log SNR.
        stops: where else steps end, as in `solve`.

    Returns:
        y: at each time, along a new first axis.
        nfe: network calls.
    """
    score_fn, *rest = args
    cuts = _cuts(score_fn, times, in_log_snr)
    if not cuts.size:
        score_fn = whole(score_fn)
        path, spent = solve(flow, drift, y, times, (score_fn, *rest), norm, stops)
        return path, spent * calls(score_fn)
    asked = np.asarray(times)
    forward = 1 if asked[-1] > asked[0] else -1
    ends = np.concatenate([asked[:1], cuts, asked[-1:]])
    steps = [None] * (len(ends) - 1) if flow.steps is None else _dealt(flow.steps, np.abs(np.diff(ends)))
    kept, nfe = [], 0
    for start, end, count in zip(ends[:-1], ends[1:], steps, strict=True):
        middle = 0.5 * float(start + end)
        part = whole(score_fn, host_sde(score_fn.sde).time_of_log_snr(middle) if in_log_snr else middle)
        inner = asked[(forward * asked > forward * start) & (forward * asked < forward * end)]
        local = jnp.asarray(np.concatenate([[start], inner, [end]]), times.dtype)
        path, spent = solve(replace(flow, steps=count), drift, y, local, (part, *rest), norm, stops)
        nfe += spent * calls(part)
        rows = np.flatnonzero([start == asked[0], *[True] * len(inner), end in asked])
        kept.append(jax.tree.map(lambda leaf, rows=rows: leaf[rows], path))
        y = jax.tree.map(lambda leaf: leaf[-1], path)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *kept), nfe


def _cuts(score_fn: ScoreFn, times: jax.Array, in_log_snr: bool) -> np.ndarray:
    """Where the score jumps between times[0] and times[-1], in their order; none where that is not known."""
    known = [*jumps(score_fn), times, *jax.tree.leaves(score_fn.sde)]
    if len(known) == 1 or any(isinstance(v, jax.core.Tracer) for v in known):
        return np.zeros(0)
    at = np.concatenate([np.zeros(0), *[np.ravel(np.asarray(v, float)) for v in jumps(score_fn)]])
    at = at[np.isfinite(at)]
    ends = np.sort(np.asarray(times)[[0, -1]])
    sde = host_sde(score_fn.sde)
    cuts = np.unique((at if in_log_snr else sde.time_of_log_snr(at)).astype(ends.dtype))
    cuts = cuts[(cuts > ends[0]) & (cuts < ends[1])]
    return cuts if times[0] < times[-1] else cuts[::-1]


def _dealt(steps: int, lengths: np.ndarray) -> list[int]:
    """So many steps dealt out by the parts' lengths, at least one to each. Raises ValueError for fewer than parts."""
    if steps < len(lengths):
        raise ValueError(
            f"ProbabilityFlow: steps must be at least {len(lengths)}, one for each part that the interval of guidance "
            f"cuts the path into, not {steps}"
        )
    share = (steps - len(lengths)) * lengths / lengths.sum()
    dealt = np.floor(share).astype(int)
    dealt[np.argsort(dealt - share)[: steps - len(lengths) - dealt.sum()]] += 1
    return [int(count) + 1 for count in dealt]


def solve(
    flow: ProbabilityFlow,
    drift: Drift,
    y: PyTree,
    times: jax.Array,
    args: tuple[PyTree, ...],
    norm: Norm = max_over_samples,
    stops: jax.Array | None = None,
) -> tuple[PyTree, int]:
    """Solve dy/dt = drift(t, y, args) from times[0] through times[-1].

    `norm` turns a step's scaled error, shaped like y, into the number that must stay below 1; adaptive steps end at
    `stops` too. Every leaf of y, and of
    args after the score, has the samples as rows: with `per_sample` the solve is mapped over them.

    Returns:
        y: at each time, along a new first axis.
        nfe: evaluations of the drift.

    A row of y that is not finite comes out as nan, with a warning that names it, and does not disturb the others.

    Raises RuntimeError when the solve did not reach its end, and names the rows whose score is not finite.
    """
    import diffrax

    whole = _whole_rows(y)
    y = _where_rows(whole, y, 0.0)
    tolerances = (jnp.asarray(flow.rtol, times.dtype), jnp.asarray(flow.atol, times.dtype))
    # Steps grow tenfold at a time, so a first step on the scale of t_min costs one or two and suits either direction.
    # Of equal ones the last must not end a rounding before the end, which would take another step.
    first = (times[-1] - times[0]) * (1e-3 if flow.steps is None else (1 + 4 * jnp.finfo(times.dtype).eps) / flow.steps)
    most = flow.max_steps if flow.steps is None else max(flow.max_steps, flow.steps + 1)
    kind = _SolveKind(drift, norm, flow.steps is not None, most, flow.per_sample)
    try:
        solution = _solve(y, times, args, (first, tolerances, stops), flow.solver, kind)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        # Under jvp and for Hessians: slower, and takes more memory.
        kind = replace(kind, forward=True)
        solution = _solve(y, times, args, (first, tolerances, stops), flow.solver, kind)
    traced = isinstance(solution.steps, jax.core.Tracer)
    if not traced and not bool(jnp.all(solution.result == diffrax.RESULTS.successful)):
        wrong = ~_whole_rows(drift(times[0], y, args))
        if wrong.all():
            raise RuntimeError(
                "the score is not a finite number in any row: look at the network's weights, and at cond"
            )
        if wrong.any():
            where = rows_where(wrong)
            raise RuntimeError(f"the score is not a finite number in {where}: leave them out, or look at their cond")
        raise RuntimeError(
            f"the ODE solve did not reach its end in max_steps={flow.max_steps} steps at rtol={flow.rtol:g}, "
            f"atol={flow.atol:g}: "
            "raise max_steps or loosen the tolerances; if that does not help, look for non-finite scores"
        )
    if not isinstance(whole, jax.core.Tracer) and not bool(jnp.all(whole)):
        warnings.warn(
            f"{rows_where(~whole)} of x is not finite: the result there is nan, the others' is not touched by it",
            stacklevel=3,
        )
    steps = solution.steps if traced else int(jnp.max(solution.steps))
    return jax.vmap(lambda y: _where_rows(whole, y, jnp.nan))(solution.y), evaluations(flow, steps)


@jax.jit
def _whole_rows(y: PyTree) -> jax.Array:
    """Whether each row of y is finite throughout, (n,)."""
    rows = [jnp.all(jnp.isfinite(leaf).reshape(leaf.shape[0], -1), axis=1) for leaf in jax.tree.leaves(y)]
    return jnp.all(jnp.stack(rows), axis=0)


def _where_rows(keep: jax.Array, y: PyTree, other: float) -> PyTree:
    """The rows of y that are to be kept, and the number for the others."""
    return jax.tree.map(lambda leaf: jnp.where(keep.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, other), y)


def rows_where(wrong: jax.Array) -> str:
    """The rows that are wrong in words, the first ten of them; empty for none."""
    rows = np.flatnonzero(wrong)
    more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
    return f"row{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:10]))}{more}" if len(rows) else ""


def evaluations(flow: ProbabilityFlow, steps: int) -> int:
    """The calls of the drift in a solve of so many steps: diffrax counts steps, not calls.

    A step evaluates each stage; with first-same-as-last the first is the previous step's last, and is evaluated once at
    the start.
    """
    tableau = getattr(flow.solver, "tableau", None)  # diffrax's Euler has none
    stages, fsal = (tableau.num_stages, tableau.fsal) if tableau else (1, False)
    return steps * (stages - fsal) + fsal


@dataclass(frozen=True)
class _SolveKind:
    """The static part of a compiled solve, beside the shapes."""

    drift: Drift
    norm: Norm
    fixed: bool
    max_steps: int
    per_sample: bool
    forward: bool = False  # may be differentiated forwards too


@partial(jax.jit, static_argnames="kind")
def _solve(
    y: PyTree,
    times: jax.Array,
    args: tuple[PyTree, ...],
    steps: tuple[jax.Array, tuple[jax.Array, jax.Array], jax.Array | None],
    solver: "diffrax.AbstractSolver",
    kind: _SolveKind,
) -> Solution:
    if not kind.per_sample:
        return _solve_jointly(y, times, args, steps, solver, kind)
    score_fn, *rows = args

    def alone(y: PyTree, rows: list[PyTree], i: jax.Array) -> Solution:
        y, rows = jax.tree.map(lambda leaf: leaf[None], (y, rows))
        solution = _solve_jointly(y, times, (take_rows(score_fn, i[None]), *rows), steps, solver, kind)
        return solution._replace(y=jax.tree.map(lambda leaf: leaf[:, 0], solution.y))

    solution = jax.vmap(alone)(y, rows, jnp.arange(len(jax.tree.leaves(y)[0])))
    return solution._replace(y=jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), solution.y))


def _solve_jointly(
    y: PyTree,
    times: jax.Array,
    args: tuple[PyTree, ...],
    steps: tuple[jax.Array, tuple[jax.Array, jax.Array], jax.Array | None],
    solver: "diffrax.AbstractSolver",
    kind: _SolveKind,
) -> Solution:
    import diffrax

    first, (rtol, atol), stops = steps
    controller: diffrax.AbstractStepSizeController = diffrax.ConstantStepSize()
    if not kind.fixed:
        controller = diffrax.PIDController(rtol=rtol, atol=atol, norm=kind.norm)
        controller = controller if stops is None else diffrax.ClipStepSizeController(controller, step_ts=stops)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(kind.drift),
        solver,
        t0=times[0],
        t1=times[-1],
        dt0=first,
        y0=y,
        args=args,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=controller,
        max_steps=kind.max_steps,
        adjoint=diffrax.DirectAdjoint() if kind.forward else diffrax.RecursiveCheckpointAdjoint(),
        throw=False,
    )
    return Solution(solution.ys, solution.stats["num_steps"], solution.result)


@jax.jit
def _denoise(score_fn: ScoreFn, x: jax.Array, cond: PyTree) -> jax.Array:
    return denoiser(score_fn, x, score_fn.sde.t_min, cond)
