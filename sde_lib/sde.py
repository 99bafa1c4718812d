"""Forward processes.

Every linear Gaussian path is one SDE: dx = f(t) x dt + g(t) dw on [t_min, t_max], with
x_t | x_0 ~ N(alpha(t) x_0, sigma(t)² I). A process is its two primitives `alpha` and `sigma`; all else is derived from
them (Kingma et al. 2021, arXiv:2107.00630, eq. 6 and appendix A; Karras et al. 2022, arXiv:2206.00364, appendix B):

    f = alpha'/alpha        g² = 2 sigma sigma' - 2 f sigma²        log SNR = log(alpha²/sigma²)

Times are scalars or arrays, numpy or jax. On numpy numbers everything is computed in float64 on the host, which is what
solver tables use; on jax arrays, in their own dtype and under any transformation.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from types import ModuleType
from typing import Any, ClassVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.distributions import IsotropicGaussian
from sde_lib.pytree import register_dataclass
from sde_lib.typing import Array, Scalar, ScalarT

# Bisection halves the interval until neighbouring floats are left, also in float64 and also near t_min.
_BISECTIONS = 64
# The step of the complex-step derivative is far below rounding, so the result is exact to machine precision.
_COMPLEX_STEP = 1e-30
# Where in [t_min, t_max] a formula is tried: odd places, where no table of a user's has a node.
_PLACES = np.array([0.0371, 0.2113, 0.4637, 0.6871, 0.9229])


def namespace(*values: object) -> ModuleType:
    """The module to compute with: numpy for host numbers, jax.numpy if a value lives on a device or is traced."""
    return jnp if any(isinstance(v, jax.Array) for v in values) else np


def _at_each_time(formula: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The formula with a value for each time, also where it is a constant."""

    @functools.wraps(formula)
    def broadcast(self: Any, t: Any) -> Any:
        value = formula(self, t)
        return value if np.shape(value) == np.shape(t) else namespace(t, value).broadcast_to(value, np.shape(t))

    return broadcast


@dataclass_transform(frozen_default=True)
@dataclass(frozen=True)
class SDE:
    """A forward process dx = f(t) x dt + g(t) dw, given by its subclass's `alpha` and `sigma`.

    An SDE is a pytree whose leaves are its constants: other constants never recompile what uses it. `t_min` is the one
    cut-off of time: training, sampling and likelihood end there. A subclass is a frozen dataclass without saying so.
    Its formulas must be analytic in t (no abs, clip or interp), since the host's derivative is a complex step; one
    that is not defines `alpha_and_derivative` or `sigma_and_derivative` itself. Constants may have any sign but for
    those that `positive` names.

    Raises ValueError for constants that are out of range, and for formulas that are no process's: not positive, with a
    signal-to-noise ratio that does not fall, or with another derivative on the host than finite differences.
    """

    _: KW_ONLY
    t_min: float = 1e-3
    t_max: float = 1.0

    positive: ClassVar[tuple[str, ...]] = ()  # the constants that must be

    def __init_subclass__(cls) -> None:
        for name in ("alpha", "sigma"):
            if name in cls.__dict__:
                setattr(cls, name, _at_each_time(cls.__dict__[name]))
        register_dataclass(dataclass(frozen=True)(cls))

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if any(isinstance(v, jax.core.Tracer) for v in jax.tree.leaves(values)):
            return  # traced constants cannot be checked
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise ValueError(f"{type(self).__name__}: {name} must be finite, not {value}")
            if name in self.positive and not np.all(np.asarray(value) > 0):
                raise ValueError(f"{type(self).__name__}: {name} must be positive, not {value}")
        self._check_order("t_min", "t_max")
        self._check()
        with np.errstate(all="ignore"):  # what is not finite is refused in words
            _check_formulas(host_sde(self))

    def _check(self) -> None:
        """Raise ValueError for constants that are out of order."""

    def _check_order(self, low: str, high: str) -> None:
        if not getattr(self, low) < getattr(self, high):
            raise ValueError(
                f"{type(self).__name__}: {low} must be less than {high}, but {low}={getattr(self, low)} and "
                f"{high}={getattr(self, high)}"
            )

    def namespace(self, t: Scalar) -> ModuleType:
        """The module to compute with at time t: see `namespace`."""
        return namespace(t, *jax.tree.leaves(self))

    def alpha(self, t: ScalarT) -> ScalarT:
        """The signal's scale: x_t given x_0 has mean alpha(t) x_0."""
        raise TypeError(f"{type(self).__name__} must define alpha(t)")

    def sigma(self, t: ScalarT) -> ScalarT:
        """The noise's scale: x_t given x_0 has standard deviation sigma(t)."""
        raise TypeError(f"{type(self).__name__} must define sigma(t)")

    def alpha_and_derivative(self, t: ScalarT) -> tuple[ScalarT, ScalarT]:
        """The pair alpha(t) and d alpha/dt."""
        return self._with_derivative(self.alpha, t)

    def sigma_and_derivative(self, t: ScalarT) -> tuple[ScalarT, ScalarT]:
        """The pair sigma(t) and d sigma/dt."""
        return self._with_derivative(self.sigma, t)

    def f(self, t: ScalarT) -> ScalarT:
        """The drift's coefficient f(t) = d log alpha/dt."""
        alpha, rate = self.alpha_and_derivative(t)
        return rate / alpha

    def g2(self, t: ScalarT) -> ScalarT:
        """The squared diffusion g(t)² = 2 sigma sigma' - 2 f sigma² = -sigma² d(log SNR)/dt."""
        sigma, rate = self.sigma_and_derivative(t)
        return 2 * sigma * rate - 2 * self.f(t) * sigma**2

    def log_snr(self, t: ScalarT) -> ScalarT:
        """The logarithm of the signal-to-noise ratio alpha(t)²/sigma(t)², decreasing in t."""
        xp = self.namespace(t)
        return 2 * (xp.log(self.alpha(t)) - xp.log(self.sigma(t)))

    def time_of_log_snr(self, log_snr: ScalarT) -> ScalarT:
        """The time at which `log_snr` has this value, by bisection; its derivatives by the implicit function theorem.

        Values outside the SDE's range give its nearest end.
        """
        if self.namespace(log_snr) is jnp:
            return _time_of_log_snr(self, jnp.asarray(log_snr, jnp.result_type(log_snr, jnp.float32)))
        target = np.asarray(log_snr, float)
        try:
            times: Any = _bisected(self, target.shape, target.tobytes())
        except TypeError:  # its constants are arrays, which have no hash
            return _bisect(self, target)
        return times.copy()[()]  # a number of one

    def prior(self, shape: tuple[int, ...]) -> IsotropicGaussian:
        """The Gaussian N(0, sigma(t_max)² I) over arrays of this shape.

        It is what x at t_max is close to, for data of zero mean.
        """
        return IsotropicGaussian(shape, self.sigma(self.t_max))

    def _with_derivative(self, function: Callable[[Any], Any], t: ScalarT) -> tuple[ScalarT, ScalarT]:
        if self.namespace(t) is jnp:
            primal = jnp.asarray(t, jnp.result_type(t, jnp.float32))
            return jax.jvp(lambda t: jnp.asarray(function(t), t.dtype), (primal,), (jnp.ones_like(primal),))
        value = function(np.asarray(t, float) + 1j * _COMPLEX_STEP)
        return value.real, value.imag / _COMPLEX_STEP


class _LinearBeta(SDE):
    """The part that VP and SubVP share: beta(t) = beta_min + t (beta_max - beta_min) and alpha = exp(-B/2).

    B is beta's integral from 0 to t.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    positive: ClassVar[tuple[str, ...]] = ("t_min", "beta_min", "beta_max")

    def _check(self) -> None:
        self._check_order("beta_min", "beta_max")

    def integral_of_beta(self, t: ScalarT) -> ScalarT:
        """The integral B(t) of beta from 0 to t."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def alpha(self, t: ScalarT) -> ScalarT:
        return self.namespace(t).exp(-0.5 * self.integral_of_beta(t))


class VP(_LinearBeta):
    """The variance preserving SDE: alpha = exp(-B/2), sigma² = 1 - exp(-B), B the integral of a linear beta.

    Song et al. 2021, arXiv:2011.13456, eq. 11 and appendix C; the continuous limit of DDPM (Ho et al. 2020).
    """

    def sigma(self, t: ScalarT) -> ScalarT:
        xp = self.namespace(t)
        return xp.sqrt(-xp.expm1(-self.integral_of_beta(t)))


class SubVP(_LinearBeta):
    """The sub-variance preserving SDE: alpha = exp(-B/2), sigma = 1 - exp(-B), with VP's B.

    Song et al. 2021, arXiv:2011.13456, eq. 13 and 29.
    """

    def sigma(self, t: ScalarT) -> ScalarT:
        return -self.namespace(t).expm1(-self.integral_of_beta(t))


class VE(SDE):
    """The variance exploding SDE: alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t.

    Song et al. 2021, arXiv:2011.13456, eq. 9 and appendix C.

    sigma_max should be about the largest distance between two data points (Song & Ermon 2020, arXiv:2006.09011,
    technique 1).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    _: KW_ONLY
    t_min: float = 1e-5

    positive: ClassVar[tuple[str, ...]] = ("t_min", "sigma_min", "sigma_max")

    def _check(self) -> None:
        self._check_order("sigma_min", "sigma_max")

    def alpha(self, t: ScalarT) -> ScalarT:
        return self.namespace(t).ones_like(t)

    def sigma(self, t: ScalarT) -> ScalarT:
        xp = self.namespace(t)
        return self.sigma_min * xp.exp(t * xp.log(self.sigma_max / self.sigma_min))


class CosineVP(SDE):
    """A variance preserving SDE with alpha = cos(a(t))/cos(a(0)), a(t) = (t + s)/(1 + s) pi/2.

    sigma² = 1 - alpha².

    Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17. Noise comes more evenly than with a linear beta. At t = 1 no
    signal is left and f is infinite, so t_max lies before it (Lu et al. 2022, arXiv:2206.00927, appendix D.4).
    """

    s: float = 0.008
    _: KW_ONLY
    t_max: float = 0.9946

    positive: ClassVar[tuple[str, ...]] = ("t_min", "s")

    def _check(self) -> None:
        _check_before_one(self)

    def _angle(self, t: ScalarT) -> ScalarT:
        return (t + self.s) / (1 + self.s) * (math.pi / 2)

    def alpha(self, t: ScalarT) -> ScalarT:
        xp = self.namespace(t)
        return xp.cos(self._angle(t)) / xp.cos(self._angle(0.0))

    def sigma(self, t: ScalarT) -> ScalarT:
        # cos² a0 - cos² a = sin(a - a0) sin(a + a0): no difference of nearly equal squares at small t.
        xp, start = self.namespace(t), self._angle(0.0)
        moved = t / (1 + self.s) * (math.pi / 2)
        return xp.sqrt(xp.sin(moved) * xp.sin(moved + 2 * start)) / xp.cos(start)


class RectifiedFlow(SDE):
    """The straight path alpha = 1 - t, sigma = t: flow matching as one more SDE, f = -1/(1 - t), g² = 2t/(1 - t).

    Liu et al. 2023, arXiv:2209.03003; Lipman et al. 2023, arXiv:2210.02747. The probability flow's velocity is E[eps -
    x_0 | x]. At t = 1 f is infinite, so t_max lies before it.
    """

    _: KW_ONLY
    t_max: float = 0.999

    positive: ClassVar[tuple[str, ...]] = ("t_min",)

    def _check(self) -> None:
        _check_before_one(self)

    def alpha(self, t: ScalarT) -> ScalarT:
        return 1 - t

    def sigma(self, t: ScalarT) -> ScalarT:
        return 1 * t


def _bisect(sde: SDE, target: Any) -> Any:
    """The time at which `log_snr` is `target`, in its namespace and dtype."""
    xp = namespace(target)
    low = xp.full(target.shape, sde.t_min, target.dtype)
    high = xp.full(target.shape, sde.t_max, target.dtype)

    def halve(_: int | jax.Array, interval: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = interval
        middle = 0.5 * (low + high)
        early = sde.log_snr(middle) > target
        return xp.where(early, middle, low), xp.where(early, high, middle)

    if xp is jnp:
        low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
    else:
        for i in range(_BISECTIONS):
            low, high = halve(i, (low, high))
    return 0.5 * (low + high)


@functools.lru_cache(maxsize=64)
def _bisected(sde: SDE, shape: tuple[int, ...], target: bytes) -> np.ndarray:
    """The same on the host, kept: every call of a sampler asks for the times of its grid."""
    return np.asarray(_bisect(sde, np.frombuffer(target).reshape(shape)))


_time_of_log_snr = jax.custom_jvp(_bisect)


@_time_of_log_snr.defjvp
def _time_of_log_snr_jvp(
    primals: tuple[SDE, jax.Array], tangents: tuple[SDE, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The derivative of t(target, constants) from log_snr(t, constants) = target; beyond an end, that of the end."""
    (sde, target), (sde_dot, target_dot) = primals, tangents
    t = _time_of_log_snr(sde, target)
    _, log_snr_dot = jax.jvp(lambda sde: sde.log_snr(t), (sde,), (sde_dot,))
    rate = -sde.g2(t) / sde.sigma(t) ** 2  # d(log SNR)/dt
    beyond_start, beyond_end = target > sde.log_snr(sde.t_min), target < sde.log_snr(sde.t_max)
    inside = (target_dot - log_snr_dot) / rate
    return t, jnp.where(beyond_start, sde_dot.t_min, jnp.where(beyond_end, sde_dot.t_max, inside))


def host_sde(sde: SDE) -> SDE:
    """The SDE with Python numbers for constants, so that tables come in float64; unchanged under a transformation."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(sde)):
        return sde
    return jax.tree.map(lambda leaf: np.asarray(leaf, float) if np.ndim(leaf) else float(leaf), sde)


def _check_formulas(sde: SDE) -> None:
    """Raise ValueError where alpha and sigma are no process's, or cannot be differentiated on the host."""
    name, length = type(sde).__name__, sde.t_max - sde.t_min
    t, step = sde.t_min + _PLACES * length, 1e-3 * length
    for which in ("alpha", "sigma"):
        function = getattr(sde, which)
        at_ends = np.array([float(function(np.float64(end))) for end in (sde.t_min, sde.t_max)])
        if not (np.isfinite(at_ends).all() and (at_ends > 0).all()):
            raise ValueError(
                f"{name}: {which}(t) must be positive and finite from t_min={sde.t_min:g} to "
                f"t_max={sde.t_max:g}, where it is {at_ends[0]:g} and {at_ends[1]:g}"
            )
        try:
            value, rate = getattr(sde, f"{which}_and_derivative")(t)
        except (TypeError, ValueError):  # a function that takes no complex numbers
            value, rate = np.inf, np.nan
        change = np.asarray(function(t + step)) - np.asarray(function(t - step))
        if not (np.abs(2 * step * rate - change) < 0.01 * np.abs(change) + 1e-6 * np.abs(value)).all():
            raise ValueError(
                f"{name}: the derivative of {which}(t) on the host, by a complex step, is wrong: write {which} without "
                f"abs, clip or interp, or define {which}_and_derivative(t)"
            )
    if not (np.diff(sde.log_snr(np.array([sde.t_min, *t, sde.t_max]))) < 0).all():
        raise ValueError(f"{name}: the signal-to-noise ratio alpha(t)/sigma(t) must fall from t_min to t_max")


def _check_before_one(sde: SDE) -> None:
    if not sde.t_max < 1:
        raise ValueError(f"{type(sde).__name__}: t_max must be less than 1, where no signal is left, not {sde.t_max}")
