"""The exact flow map of a known distribution: in closed form on Gaussians, else the ODE solved tightly."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.batch import check_entries, like, per_row, points
from sde_lib.distributions import DiagonalGaussian, Diffusible, GaussianMixture
from sde_lib.fields import StationaryGaussianField
from sde_lib.flow_map.base import times_like
from sde_lib.pytree import register_dataclass
from sde_lib.samplers.ode import ProbabilityFlow, solve
from sde_lib.score import ExactScore
from sde_lib.sde import SDE, RectifiedFlow
from sde_lib.typing import PyTree, Scalar

_HIGHEST = jax.lax.Precision.HIGHEST
TOLERANCES = {jnp.dtype(np.float64): 1e-11, jnp.dtype(np.float32): 1e-6}  # of each step, relative and absolute
MOST_STEPS = 2**14


@register_dataclass
@dataclass(frozen=True)
class ExactFlowMap:
    """The exact flow map of a distribution that stays exact under the SDE: the oracle, with a network's interface.

    Of a Gaussian with variances v along its axes, `DiagonalGaussian`, `StationaryGaussianField` or a `GaussianMixture`
    of one component, it is

        X(x; t -> s) = alpha_s m + sqrt((alpha_s² v + sigma_s²)/(alpha_t² v + sigma_t²)) (x - alpha_t m)

    and of anything else the probability flow, solved in log SNR to 1e-11 in each step where x is float64, and to what
    float32 allows where it is that. The rows of x share the steps of the solver, which moves a row within these. A time
    may be earlier or later than the other.
    """

    distribution: Diffusible
    sde: SDE

    @property
    def score(self) -> ExactScore:
        """The exact score, which is the diagonal."""
        return ExactScore(self.distribution, self.sde)

    def __call__(self, x: jax.Array, t: Scalar, s: Scalar, cond: PyTree = None) -> jax.Array:
        given, x = x, points(x)
        t, s = times_like(x, t, s)
        closed = None if _components(self.distribution) > 1 else CLOSED_FORMS.get(type(self.distribution))
        if closed is not None:
            return like(closed(self.distribution, x, _moments(self.sde, x, t), _moments(self.sde, x, s)), given)
        return like(_solved(self.distribution, self.sde, x, t, s), given)


_Moments = tuple[jax.Array, jax.Array]


def _moments(sde: SDE, x: jax.Array, t: Scalar) -> _Moments:
    """The alpha and sigma at t as (1, 1) or (n, 1): for points laid flat."""
    alpha, sigma = (jnp.reshape(jnp.asarray(f(t), x.dtype), (-1, 1)) for f in (sde.alpha, sde.sigma))
    return alpha, sigma


def _ratio(variances: jax.Array, start: _Moments, end: _Moments) -> jax.Array:
    """The factor by which the flow stretches along axes of these variances."""
    return jnp.sqrt((end[0] ** 2 * variances + end[1] ** 2) / (start[0] ** 2 * variances + start[1] ** 2))


def _diagonal(data: DiagonalGaussian, x: jax.Array, start: _Moments, end: _Moments) -> jax.Array:
    check_entries(data, x, np.shape(data.mean))
    mean, std = (jnp.asarray(v, x.dtype).reshape(1, -1) for v in (data.mean, data.std))
    flat = x.reshape(len(x), -1)
    return (end[0] * mean + _ratio(std**2, start, end) * (flat - start[0] * mean)).reshape(x.shape)


def _one_component(data: GaussianMixture, x: jax.Array, start: _Moments, end: _Moments) -> jax.Array:
    check_entries(data, x, data.means.shape[1:])
    mean, basis, variances = (v.astype(x.dtype) for v in (data.means, data.basis[0], data.variances))
    away = x.reshape(len(x), -1) - start[0] * mean
    product = partial(jnp.matmul, precision=_HIGHEST)
    basis = 1.5 * basis - 0.5 * product(basis, product(basis.T, basis))  # of a basis kept in float32, for float64
    # As a change: between equal times there is none.
    change = product((_ratio(variances, start, end) - 1) * product(away, basis), basis.T)
    return (end[0] * mean + away + change).reshape(x.shape)


def _field(data: StationaryGaussianField, x: jax.Array, start: _Moments, end: _Moments) -> jax.Array:
    check_entries(data, x, data.shape)
    mean = jnp.broadcast_to(jnp.asarray(data.mean, x.dtype), data.shape)[None]
    gain = _ratio(jnp.asarray(data.spectrum, x.dtype).reshape(1, -1), start, end).reshape(-1, *data.spectrum.shape)
    modes = jnp.fft.rfft2(x - start[0][:, :, None] * mean)
    return end[0][:, :, None] * mean + jnp.fft.irfft2(gain * modes, s=data.shape)


CLOSED_FORMS: dict[type, Callable[[Any, jax.Array, _Moments, _Moments], jax.Array]] = {
    DiagonalGaussian: _diagonal,
    GaussianMixture: _one_component,
    StationaryGaussianField: _field,
}


def _components(distribution: Diffusible) -> int:
    return len(distribution.means) if isinstance(distribution, GaussianMixture) else 1


def _solved(distribution: Diffusible, sde: SDE, x: jax.Array, t: jax.Array, s: jax.Array) -> jax.Array:
    """The flow from x at t to s, in x~ over log SNR: smooth at both ends, and without a time to look for."""
    scale = [per_row(sde.alpha(time) + sde.sigma(time), x) for time in (t, s)]
    tolerance = TOLERANCES.get(x.dtype, 1e-6)
    flow = ProbabilityFlow(rtol=tolerance, atol=tolerance, max_steps=MOST_STEPS)
    args = (distribution, jnp.broadcast_to(sde.log_snr(t), x.shape[:1]), jnp.broadcast_to(sde.log_snr(s), x.shape[:1]))
    path, _ = solve(flow, _drift, x / scale[0], jnp.asarray([0.0, 1.0], x.dtype), args)
    return scale[1] * path[-1]


def _drift(r: Scalar, x: jax.Array, args: tuple[Diffusible, jax.Array, jax.Array]) -> jax.Array:
    """The derivative of x~ along the straight line in log SNR from its start, r = 0, to its end, r = 1.

    With the score s~ of x~ under the rectified flow it is tau (x~ + tau s~)/2 times the line's length.
    """
    distribution, start, end = args
    tau = jax.nn.sigmoid(-0.5 * (start + r * (end - start)))
    score = ExactScore(distribution, RectifiedFlow())(x, tau)
    return per_row(0.5 * (end - start) * tau, x) * (x + per_row(tau, x) * score)
