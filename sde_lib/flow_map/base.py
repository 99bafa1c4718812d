"""Flow maps: X(x; t -> s), where the probability flow that is at x at time t is at time s.

A map of every pair of times is a sampler of any number of calls, and its diagonal, the flow's velocity where it is, is
the score (Boffi, Albergo & Vanden-Eijnden 2025, arXiv:2505.18825; Kim et al. 2024, arXiv:2310.02279). Every SDE is the
rectified flow in its own coordinates,

    x~ = x/(alpha + sigma)        tau = sigma/(alpha + sigma)        x~ = (1 - tau) x_0 + tau eps

in which the flow's velocity is E[eps - x_0 | x], bounded at both ends of time, and a map is a mean velocity u:

    X(x; t -> s) = (alpha_s + sigma_s) [x~ + (tau_s - tau_t) u(x; t, s)]        u(x; t, t) = E[eps - x_0 | x]

The same map in x/sigma over alpha/sigma has the denoiser for its velocity: with D~ the mean of D along the way,
X = sigma_s/sigma_t x + (alpha_s - alpha_t sigma_s/sigma_t) D~, of which one DDIM step is the map with D~ = D.
"""

from typing import Protocol

import jax
import jax.numpy as jnp

from sde_lib.batch import per_row
from sde_lib.score import ScoreFn, TrainableScoreFn
from sde_lib.sde import SDE
from sde_lib.typing import PyTree, Scalar, ScalarT


class FlowMap(Protocol):
    """A flow map, as `FlowMapSampler` takes it."""

    @property
    def sde(self) -> SDE:
        """The forward process whose probability flow this is."""
        ...

    @property
    def score(self) -> ScoreFn:
        """The diagonal: the score whose flow this is, for every sampler and the likelihood."""
        ...

    def __call__(self, x: jax.Array, t: Scalar, s: Scalar, cond: PyTree = None) -> jax.Array:
        """Carry x (n, *shape) from time t to time s, each a scalar or (n,); the result is like x."""
        ...


class TrainableFlowMap(FlowMap, Protocol):
    """A flow map that gives its mean velocity, and takes a key for the network's dropout: what the losses take."""

    @property
    def score(self) -> TrainableScoreFn: ...

    def velocity(
        self, x: jax.Array, t: Scalar, s: Scalar, cond: PyTree = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """The mean velocity u(x; t, s) of x~ over tau, like x."""
        ...


def check_flow_map(flow_map: object, where: str) -> None:
    """Raise ValueError for what is no flow map, such as a score."""
    if isinstance(flow_map, type) or not (hasattr(flow_map, "sde") and hasattr(flow_map, "score")):
        name = flow_map.__name__ if isinstance(flow_map, type) else type(flow_map).__name__
        raise ValueError(
            f"{where}: {name} is no flow map, which carries its `sde` and its `score`: give "
            "ExactFlowMap(distribution, sde) or a NetworkFlowMap, or choose a sampler of scores"
        )


def flow_time(sde: SDE, t: ScalarT) -> ScalarT:
    """The rectified flow's own time tau = sigma/(alpha + sigma) of any SDE, from 0 to 1."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return sigma / (alpha + sigma)


def time_of_flow_time(sde: SDE, tau: ScalarT) -> ScalarT:
    """The time t at which `flow_time` is tau; beyond the SDE's range its nearest end."""
    xp = sde.namespace(tau)
    return sde.time_of_log_snr(2 * (xp.log1p(-tau) - xp.log(tau)))


def straight_velocity(sde: SDE, score: jax.Array, x: jax.Array, t: Scalar) -> jax.Array:
    """The flow's velocity in these coordinates, E[eps - x_0 | x] = -(x + sigma (alpha + sigma) s)/alpha."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return -(x + per_row(sigma * (alpha + sigma), x) * score) / per_row(alpha, x)


def jump(sde: SDE, velocity: jax.Array, x: jax.Array, t: Scalar, s: Scalar) -> jax.Array:
    """The x at time s after the mean velocity `velocity` from x at time t. With t = s it is x, bit for bit."""
    at_t, at_s = sde.alpha(t) + sde.sigma(t), sde.alpha(s) + sde.sigma(s)
    moved = at_s * (flow_time(sde, s) - flow_time(sde, t))
    return per_row(at_s / at_t, x) * x + per_row(moved, x) * velocity


def times_like(x: jax.Array, *times: Scalar) -> tuple[jax.Array, ...]:
    """The times in the dtype of x. Raises ValueError for another number of them than 1 or n."""
    found = tuple(jnp.asarray(t, x.dtype) for t in times)
    for t in found:
        per_row(t, x)
    return found
