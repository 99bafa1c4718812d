"""A flow map from a network that is told two times."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax

from sde_lib.batch import like, points
from sde_lib.flow_map.base import flow_time, jump, straight_velocity, times_like
from sde_lib.labels import FlowTimeLabel
from sde_lib.pytree import register_dataclass
from sde_lib.score import NetworkScore, Parameterization, VelocityPrediction
from sde_lib.sde import SDE
from sde_lib.typing import PyTree, Scalar


@partial(register_dataclass, static=("apply",))
@dataclass(frozen=True, repr=False)
class NetworkFlowMap:
    """A network's flow map under an SDE.

        X(x; t -> s) = (alpha_s + sigma_s) [x~ + (tau_s - tau_t) u(x; t, s)]

    u is the velocity E[eps - x_0 | x] of the score that the parameterisation makes of the network's output, which is
    also told how far the jump goes. Where that makes no difference yet, X is one Euler step in tau of the network's
    score, which is one DDIM step.

    Args:
        apply: `apply(params, x, labels, cond)`, as of `NetworkScore`. For the score the labels are (n,), the noise
            label of t; for a jump (n, 2), of which the second is tau_s - tau_t, tau = sigma/(alpha + sigma). With 0
            for the second the output must be that without one.
        params: the network's weights, a pytree of arrays.
        sde: the forward process.
        parameterization: how the output becomes a score; by default `VelocityPrediction` with the label tau, by which
            u is the output itself. The Eulerian loss needs that label; the others take any.

    It is learned for jumps towards the data.
    """

    apply: Callable[..., jax.Array]
    params: PyTree
    sde: SDE
    parameterization: Parameterization = field(default_factory=lambda: VelocityPrediction(noise_label=FlowTimeLabel()))

    def __repr__(self) -> str:
        weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.params))
        return f"NetworkFlowMap({weights:,} weights, {self.sde!r}, {type(self.parameterization).__name__})"

    @property
    def score(self) -> NetworkScore:
        """The diagonal: the score of the network without a second label."""
        return NetworkScore(self.apply, self.params, self.sde, self.parameterization)

    def velocity(
        self, x: jax.Array, t: Scalar, s: Scalar, cond: PyTree = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """The mean velocity u(x; t, s), like x."""
        t, s = times_like(x, t, s)
        moved = flow_time(self.sde, s) - flow_time(self.sde, t)
        return straight_velocity(self.sde, self.score(x, t, cond, key=key, moved=moved), x, t)

    def __call__(
        self, x: jax.Array, t: Scalar, s: Scalar, cond: PyTree = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        given, x = x, points(x)
        t, s = times_like(x, t, s)
        return like(jump(self.sde, self.velocity(x, t, s, cond, key=key), x, t, s), given)
