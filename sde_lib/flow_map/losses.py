"""The losses that train a flow map: one for its diagonal, the score, and one for its jumps.

In the coordinates of `sde_lib.flow_map.base`, with u the mean velocity of the jump from x at tau_t to tau_s, v the
velocity of the flow, sg what passes no gradient, and r = (tau_w - tau_t)/(tau_s - tau_t), the loss of a jump is, in the
mean over entries,

    lagrangian   |u + (tau_s - tau_t) du/dtau_s - sg v(X(x; t -> s), s)|²    it moves on as the flow does where it ends
    semigroup    |u - sg(r u(x; t, w) + (1 - r) u(X(x; t -> w); w, s))|²     it is two jumps
    eulerian     |u - sg(v(x, t) + (tau_s - tau_t) du/dtau_t)|²              its end stays as its start moves along

They are the Lagrangian, progressive and Eulerian self-distillation of Boffi et al. 2025, arXiv:2505.18825. du/dtau_t
is along the flow, (v, 1) in (x~, tau). The semigroup loss is the continuous form of shortcut models (Frans et al. 2024,
arXiv:2410.12557), the Eulerian one without a teacher MeanFlow's (Geng et al. 2025, arXiv:2505.13447, eq. 6 and 8),
there with eps - x_0 for v. The Lagrangian one differentiates in s alone.

v is the teacher's, a score of the same data; or that of the map's own diagonal, which then learns by denoising score
matching. Where a map has no error each of them is 0, and its diagonal is the teacher.

A consistency model is the map to one end alone, X(x; t -> t_min): `consistency_loss`.
"""

from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.batch import per_row, points
from sde_lib.composed import check_same_sde
from sde_lib.conversions import denoiser
from sde_lib.flow_map.base import TrainableFlowMap, flow_time, jump, straight_velocity, time_of_flow_time
from sde_lib.losses import Weighting, denoising_score_matching, sigma2_weighting
from sde_lib.samplers.grids import Grid, Karras
from sde_lib.score import ScoreFn, TrainableScoreFn
from sde_lib.sde import SDE, host_sde
from sde_lib.times import TimeDistribution, stratified_uniform, uniform_t
from sde_lib.typing import PyTree, Scalar


class Start(NamedTuple):
    """Where jumps start, and how far they go.

    x: (n, *shape). t, s: (n,), t > s. velocity: the flow's at x, like x: the teacher's, or eps - x_0 of the example,
    whose mean it is. cond: with n rows, or None.
    """

    x: jax.Array
    t: jax.Array
    s: jax.Array
    velocity: jax.Array
    cond: PyTree


class JumpLoss(Protocol):
    """A loss of jumps, (n,): the mean square error of each.

    teacher: the score whose flow is learned, or None for the map's own. keys: one for the network's dropout, which all
    calls share, and one for what the loss draws.
    """

    def __call__(
        self, flow_map: TrainableFlowMap, start: Start, teacher: ScoreFn | None, keys: jax.Array
    ) -> jax.Array: ...


class FlowMapLosses(NamedTuple):
    """The losses of each example, (n,): of the score at a random time, and of a random jump."""

    diagonal: jax.Array
    jump: jax.Array


def lagrangian(flow_map: TrainableFlowMap, start: Start, teacher: ScoreFn | None, keys: jax.Array) -> jax.Array:
    """The loss |dX~/dtau_s - v(X, s)|²: see the module's text. One derivative product, in the scalar s."""
    sde, x, t, s, cond = flow_map.sde, start.x, start.t, start.s, start.cond

    def velocity(s: jax.Array) -> jax.Array:
        return flow_map.velocity(x, t, s, cond, key=keys[0])

    u, slope = jax.jvp(velocity, (s,), (1 / _rate(sde, s),))
    reached = jax.lax.stop_gradient(jump(sde, u, x, t, s))
    arrived = u + per_row(flow_time(sde, s) - flow_time(sde, t), x) * slope
    return _mean_square(arrived - _velocity(flow_map, teacher, reached, s, cond, keys[0]))


def semigroup(flow_map: TrainableFlowMap, start: Start, teacher: ScoreFn | None, keys: jax.Array) -> jax.Array:
    """The loss |u(t, s) - the mean of u(t, w) and u(w, s)|², w between: see the module's text. Three calls."""
    sde, x, t, s, cond = flow_map.sde, start.x, start.t, start.s, start.cond
    share = jax.random.uniform(keys[1], t.shape, t.dtype)
    w = time_of_flow_time(sde, flow_time(sde, t) + share * (flow_time(sde, s) - flow_time(sde, t)))
    fixed = jax.lax.stop_gradient(flow_map)
    first = fixed.velocity(x, t, w, cond, key=keys[0])
    second = fixed.velocity(jump(sde, first, x, t, w), w, s, cond, key=keys[0])
    target = per_row(share, x) * first + per_row(1 - share, x) * second
    return _mean_square(flow_map.velocity(x, t, s, cond, key=keys[0]) - target)


def eulerian(flow_map: TrainableFlowMap, start: Start, teacher: ScoreFn | None, keys: jax.Array) -> jax.Array:
    """The loss |u - v(x, t) - (tau_s - tau_t) du/dtau_t|²: see the module's text. One derivative product, in x and t.

    It needs a noise label with a bounded derivative, `FlowTimeLabel`.
    """
    sde, s, cond, tau = flow_map.sde, start.s, start.cond, flow_time(flow_map.sde, start.t)
    scale = per_row(sde.alpha(start.t) + sde.sigma(start.t), start.x)

    def velocity(straight: jax.Array, t: jax.Array) -> jax.Array:
        x = per_row(sde.alpha(t) + sde.sigma(t), straight) * straight
        return flow_map.velocity(x, t, s, cond, key=keys[0])

    u, slope = jax.jvp(velocity, (start.x / scale, start.t), (start.velocity, 1 / _rate(sde, start.t)))
    target = start.velocity + per_row(flow_time(sde, s) - tau, start.x) * slope
    return _mean_square(u - jax.lax.stop_gradient(target))


def flow_map_loss(
    flow_map: TrainableFlowMap,
    x0: jax.Array,
    key: jax.Array,
    cond: PyTree = None,
    *,
    jump_loss: JumpLoss = lagrangian,
    teacher: ScoreFn | None = None,
    weighting: Weighting = sigma2_weighting,
    times: TimeDistribution = uniform_t,
    u: jax.Array | None = None,
) -> FlowMapLosses:
    """The losses of each example; their sum is what a flow map learns by.

    The diagonal's is `denoising_score_matching` with this weighting and these times, towards the teacher's noise in
    place of the drawn one where there is a teacher. Jumps start at examples with noise, their two times drawn uniformly
    in tau; their loss has no weight, for it is of one size at all times.

    u: (n,) in [0, 1), where the time distribution draws. Raises ValueError for a teacher on another SDE.
    """
    sde, x0 = flow_map.sde, points(x0)
    if teacher is not None:
        check_same_sde(flow_map_loss, flow_map.score, teacher)
    key_diagonal, key_time, key_noise, key_network, key_jump = jax.random.split(key, 5)
    diagonal = denoising_score_matching(
        flow_map.score, x0, key_diagonal, cond, weighting=weighting, times=times, u=u, teacher=teacher
    )
    t, s = _pairs(sde, key_time, len(x0), x0.dtype)
    noise = jax.random.normal(key_noise, x0.shape, x0.dtype)
    x = per_row(sde.alpha(t), x0) * x0 + per_row(sde.sigma(t), x0) * noise
    velocity = noise - x0 if teacher is None else _velocity(flow_map, teacher, x, t, cond, key_network)
    start = Start(x, t, s, velocity, cond)
    return FlowMapLosses(diagonal, jump_loss(flow_map, start, teacher, jnp.stack([key_network, key_jump])))


def consistency_loss(
    flow_map: TrainableFlowMap,
    x0: jax.Array,
    key: jax.Array,
    cond: PyTree = None,
    *,
    steps: int = 17,
    grid: Grid = Karras(),  # noqa: B008 - immutable
    teacher: ScoreFn | None = None,
    heun: bool = True,
) -> jax.Array:
    """The loss |f(x_t, t) - sg f(x_r, r)|² of f(x, t) = X(x; t -> t_min), mean over entries, (n,); for comparison.

    t and r are neighbours on the grid. Without a teacher x_t and x_r are of one example and one noise (consistency
    training); with one x_r is a step of its flow from x_t, by Heun's method or Euler's (distillation). Song et al.
    2023, arXiv:2303.01469, eq. 7 and 10. What it learns is as wrong as the steps:
    training as Euler's, whose variance is too small by a share of order 1/steps.
    """
    sde, x0 = flow_map.sde, points(x0)
    key_time, key_noise, key_network = jax.random.split(key, 3)
    levels = jnp.asarray(np.asarray(grid(host_sde(sde), steps)), x0.dtype)
    place = jnp.floor(stratified_uniform(key_time, len(x0)) * steps).astype(jnp.int32)
    t, r, last = levels[place], levels[place + 1], jnp.full(len(x0), levels[-1])
    noise = jax.random.normal(key_noise, x0.shape, x0.dtype)

    def noisy(t: Scalar) -> jax.Array:
        return per_row(sde.alpha(t), x0) * x0 + per_row(sde.sigma(t), x0) * noise

    x = noisy(t)
    near = noisy(r) if teacher is None else _solver_step(teacher, x, t, r, cond, heun)
    key_jump = {"key": key_network}
    target = jump(sde, flow_map.velocity(near, r, last, cond, **key_jump), near, r, last)
    found = jump(sde, flow_map.velocity(x, t, last, cond, **key_jump), x, t, last)
    return _mean_square(found - jax.lax.stop_gradient(target))


def _solver_step(score_fn: ScoreFn, x: jax.Array, t: jax.Array, r: jax.Array, cond: PyTree, heun: bool) -> jax.Array:
    """A step of the flow from t to r, in x/alpha over sigma/alpha as EDM has it, where D is straight."""
    sde = score_fn.sde
    before, after = sde.sigma(t) / sde.alpha(t), sde.sigma(r) / sde.alpha(r)
    y = x / per_row(sde.alpha(t), x)
    slope = (y - denoiser(score_fn, x, t, cond)) / per_row(before, x)
    length = per_row(after - before, x)
    euler = y + length * slope
    if not heun:
        return per_row(sde.alpha(r), x) * euler
    there = (euler - denoiser(score_fn, per_row(sde.alpha(r), x) * euler, r, cond)) / per_row(after, x)
    return per_row(sde.alpha(r), x) * (y + 0.5 * length * (slope + there))


def _velocity(
    flow_map: TrainableFlowMap, teacher: ScoreFn | None, x: jax.Array, t: jax.Array, cond: PyTree, key: jax.Array
) -> jax.Array:
    """The flow's velocity at x, without gradient: the teacher's, or that of the map's own diagonal."""
    own: TrainableScoreFn = flow_map.score
    score = own(x, t, cond, key=key) if teacher is None else teacher(x, t, cond)
    return jax.lax.stop_gradient(straight_velocity(flow_map.sde, score, x, t))


def _rate(sde: SDE, t: jax.Array) -> jax.Array:
    """The derivative dtau/dt."""
    return jax.jvp(partial(flow_time, sde), (t,), (jnp.ones_like(t),))[1]


def _pairs(sde: SDE, key: jax.Array, n: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Times t > s, (n,) each: two that are uniform in tau, put in order."""
    key_larger, key_smaller = jax.random.split(key)
    first, last = flow_time(sde, jnp.asarray(sde.t_min, dtype)), flow_time(sde, jnp.asarray(sde.t_max, dtype))
    larger = jnp.sqrt(stratified_uniform(key_larger, n).astype(dtype))  # the distribution of the larger of two
    smaller = larger * jax.random.uniform(key_smaller, (n,), dtype)
    t, s = (time_of_flow_time(sde, first + share * (last - first)) for share in (larger, smaller))
    return t, s


def _mean_square(error: jax.Array) -> jax.Array:
    return jnp.mean(error**2, axis=tuple(range(1, error.ndim)))
