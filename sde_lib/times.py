"""Time distributions for training: t = F(u) from u uniform on [0, 1), and the density that t then has.

A time distribution is a function (sde, u) -> (t, q(t)), with q relative to the uniform density on [t_min, t_max], by
which a loss of any weighting is divided. `LossSecondMoment` and `LearnedLogSNR` learn from the losses seen and are
pytrees.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm

from sde_lib.pytree import register_dataclass
from sde_lib.sde import SDE
from sde_lib.typing import Scalar

TimeDistribution = Callable[[SDE, jax.Array], tuple[jax.Array, jax.Array]]

# What `LossSecondMoment` leaves to the base distribution, as the paper's code does: no bin is forgotten.
_BASE_SHARE = 1e-3


class TimeDensity(Protocol):
    """A time distribution that also tells its density, relative to the uniform one, at any t."""

    def density(self, sde: SDE, t: jax.Array) -> jax.Array: ...


def uniform_t(sde: SDE, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Times uniform on [t_min, t_max]."""
    return sde.t_min + u * (sde.t_max - sde.t_min), jnp.ones_like(u)


def uniform_log_snr(sde: SDE, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Times whose log SNR is uniform over its range: the importance sampling of likelihood weighting.

    That is because g²/sigma² = -d(log SNR)/dt.

    With `likelihood_weighting` the loss is then the plain noise error times a constant (Kingma et al. 2021,
    arXiv:2107.00630).
    """
    high, low = sde.log_snr(sde.t_min), sde.log_snr(sde.t_max)
    t = sde.time_of_log_snr(high + u * (low - high))
    density = sde.g2(t) / sde.sigma(t) ** 2 * (sde.t_max - sde.t_min) / (high - low)
    return t, density


def uniform_log_sigma(sde: SDE, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Times whose log sigma is uniform, sigma as VP of the same SNR has it.

    The density is 1/(1 + rho²), VP's alpha², in log SNR.

    With `likelihood_weighting` the loss is then the plain error of v times a constant (Zheng et al. 2023,
    arXiv:2305.03935). VP's log sigma is -softplus(log SNR)/2.
    """
    high, low = jax.nn.softplus(sde.log_snr(sde.t_min)), jax.nn.softplus(sde.log_snr(sde.t_max))
    y = high + u * (low - high)
    t = sde.time_of_log_snr(y + jnp.log(-jnp.expm1(-y)))
    density = (
        sde.g2(t)
        / sde.sigma(t) ** 2
        / (1 + (sde.sigma(t) / sde.alpha(t)) ** 2)
        * (sde.t_max - sde.t_min)
        / (high - low)
    )
    return t, density


@dataclass(frozen=True)
class LogNormal:
    """The time distribution with log rho ~ N(mean, std²), cut to the SDE's range.

    Karras et al. 2022, arXiv:2206.00364, table 1, there on sigma = rho.

    Beyond a few std the density is next to nothing and what is divided by it is large: made for `Uncorrected`
    weightings.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        check_positive_finite(self, std=self.std)

    def __call__(self, sde: SDE, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        sign, start, end = self._cut(sde)
        z = sign * ndtri(start + u * (end - start))
        t = sde.time_of_log_snr(-2 * (self.mean + self.std * z))
        return t, self.density(sde, t)

    def density(self, sde: SDE, t: jax.Array) -> jax.Array:
        """The density relative to the uniform one; dz/dt = g²/(2 sigma² std)."""
        sign, start, end = self._cut(sde)
        rate = sde.g2(t) / (2 * sde.sigma(t) ** 2 * self.std)
        return norm.pdf(self._z(sde, t)) / (sign * (end - start)) * rate * (sde.t_max - sde.t_min)

    def _z(self, sde: SDE, t: Scalar) -> Scalar:
        return (-0.5 * sde.log_snr(t) - self.mean) / self.std

    def _cut(self, sde: SDE) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The normal CDF at both ends of the range, and the sign of z with which it is taken.

        It is of -z (sign -1) where that is the smaller, since near 1 it has no digits left.

        Returns:
            sign, start, end: scalars.
        """
        low, high = self._z(sde, sde.t_min), self._z(sde, sde.t_max)
        sign = jnp.where(low + high > 0, -1.0, 1.0)
        return sign, ndtr(sign * low), ndtr(sign * high)


@dataclass(frozen=True)
class LogitNormal:
    """The time distribution with logit of tau = (t - t_min)/(t_max - t_min) ~ N(mean, std²).

    Esser et al. 2024, arXiv:2403.03206, eq. 19.

    At both ends the density falls faster than any power of tau, so that a loss divided by it has infinite variance,
    unless the weighting falls too: made for `Uncorrected` weightings.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        check_positive_finite(self, std=self.std)

    def __call__(self, sde: SDE, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        eps = jnp.finfo(u.dtype).eps
        logit = self.mean + self.std * ndtri(jnp.clip(u, eps / 4, 1 - eps / 2))  # u = 0 would be an infinite logit
        return sde.t_min + jax.nn.sigmoid(logit) * (sde.t_max - sde.t_min), self._density(logit)

    def density(self, sde: SDE, t: jax.Array) -> jax.Array:
        """The density relative to the uniform one: 0 at both ends."""
        inside = (t > sde.t_min) & (t < sde.t_max)
        return jnp.where(inside, self._density(jnp.log(t - sde.t_min) - jnp.log(sde.t_max - t)), 0.0)

    def _density(self, logit: jax.Array) -> jax.Array:
        return norm.pdf(logit, self.mean, self.std) / (jax.nn.sigmoid(logit) * jax.nn.sigmoid(-logit))


@partial(register_dataclass, static=("base", "history"))
@dataclass(frozen=True)
class LossSecondMoment:
    """Importance sampling by the losses seen: p ∝ sqrt(E[loss²]) in each bin of the base distribution's u.

    Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 18. A time distribution and its own state, a pytree, in training:

        u = stratified_uniform(key, n)
        losses = denoising_score_matching(..., times=learned, u=u)
        learned = learned.update(u, losses)

    moments: (bins,), mean squared losses. seen: (bins,), how many losses each bin has, up to history. Until every bin
    has all of them it is the base distribution, as in the paper. See `init`.
    """

    moments: jax.Array
    seen: jax.Array
    base: TimeDistribution
    history: int

    @staticmethod
    def init(base: TimeDistribution = uniform_log_snr, bins: int = 64, history: int = 10) -> "LossSecondMoment":
        """No losses seen: `bins` equal bins of u, each to remember about its last `history` losses.

        Raises ValueError for bins < 2.
        """
        if bins < 2 or history < 1:
            raise ValueError(
                f"LossSecondMoment: bins must be at least 2 and history at least 1, not {bins} and {history}"
            )
        return LossSecondMoment(jnp.zeros(bins), jnp.zeros(bins, jnp.int32), base, history)

    def ratios(self) -> jax.Array:
        """The density of each bin over the base distribution's, (bins,), of mean 1."""
        rms = jnp.sqrt(self.moments)
        known = jnp.all(self.seen >= self.history) & jnp.any(rms > 0)
        learned = rms / jnp.where(known, jnp.mean(rms), 1.0)
        return jnp.where(known, (1 - _BASE_SHARE) * learned + _BASE_SHARE, 1.0)

    def bin(self, u: jax.Array) -> jax.Array:
        """The bin in which each u falls, an int like u."""
        return jnp.minimum(jnp.searchsorted(self._ends(), u, side="right"), self.seen.size - 1)

    def __call__(self, sde: SDE, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        bin, bins = self.bin(u), self.seen.size
        ratio = self.ratios()[bin]
        before_end = jnp.clip((self._ends()[bin] - u) * bins / ratio, 0.0, 1.0)
        t, density = self.base(sde, ((bin + 1 - before_end) / bins).astype(u.dtype))
        return t, density * ratio

    def update(self, u: jax.Array, loss: jax.Array) -> "LossSecondMoment":
        """The time distribution that has also seen these losses, (n,) and as its own times gave them at u.

        A bin's mean is plain over its first `history` losses; then each new loss has the weight 1/history.
        """
        bin = self.bin(u)
        squared = (loss * self.ratios()[bin]) ** 2  # of the base distribution's loss
        count = jnp.zeros_like(self.seen).at[bin].add(1)
        total = jnp.zeros_like(self.moments).at[bin].add(squared)
        window = jnp.clip(self.seen + count, 1, jnp.maximum(self.history, count))
        moments = self.moments + (total - count * self.moments) / window
        return replace(self, moments=moments, seen=jnp.minimum(self.seen + count, self.history))

    def _ends(self) -> jax.Array:
        return jnp.cumsum(self.ratios()) / self.seen.size


@register_dataclass
@dataclass(frozen=True)
class LearnedLogSNR:
    """VDM's learned schedule: log SNR as a monotone network of u, trained for the least variance of the loss.

    Kingma et al. 2021, arXiv:2107.00630, section 5.2 and appendix H and I.2. With positive slopes, heights and a

        F(u) ∝ a u + sum_k height_k sigmoid(slope_k (u - centre_k)),   F(0) = 0,  F(1) = 1
        log SNR = high - F(u) (high - low)

    between the SDE's ends, so that it never increases in u. The mean of the loss does not depend on F, since it is
    divided by the density; its variance does, and is what `objective` descends. A time distribution and its own
    weights, a pytree.
    """

    linear: jax.Array
    heights: jax.Array
    slopes: jax.Array
    centres: jax.Array

    @staticmethod
    def init(units: int = 64) -> "LearnedLogSNR":
        """Nearly `uniform_log_snr`: the sigmoids' heights sum to a hundredth. Raises ValueError for units < 1."""
        if units < 1:
            raise ValueError(f"LearnedLogSNR: units must be at least 1, not {units}")
        centres = (jnp.arange(units) + 0.5) / units
        heights, slopes = jnp.full(units, -math.log(100 * units)), jnp.full(units, math.log(units / 4 + 4))
        return LearnedLogSNR(jnp.zeros(()), heights, slopes, centres)  # of all but the centres the logarithms: positive

    def progress(self, u: jax.Array) -> jax.Array:
        """The monotone function F(u)."""
        start, end = self._rise(jnp.zeros((), u.dtype)), self._rise(jnp.ones((), u.dtype))
        return (self._rise(u) - start) / (end - start)

    def _rise(self, u: jax.Array) -> jax.Array:
        slopes, centres = (v.reshape((1,) * u.ndim + v.shape) for v in (jnp.exp(self.slopes), self.centres))
        return jnp.exp(self.linear) * u + jax.nn.sigmoid(slopes * (u[..., None] - centres)) @ jnp.exp(self.heights)

    def _speed(self, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The pair F(u) and F'(u)."""
        return jax.jvp(self.progress, (u,), (jnp.ones_like(u),))

    def __call__(self, sde: SDE, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        progress, speed = self._speed(u)
        t, density = uniform_log_snr(sde, progress.astype(u.dtype))
        return t, density / speed.astype(u.dtype)

    def objective(self, u: jax.Array, loss: jax.Array) -> jax.Array:
        """A scalar whose gradient is that of log E[loss²] for the losses, (n,), that its own times gave at u.

        E[loss²] = ∫ (w error)²/p over log SNR, with p the distribution's density: its gradient is -E[loss² grad log p],
        at fixed log SNR and so at a u that moves with F. No derivative of the network is needed, unlike in the paper's
        chain rule through the sampled log SNR.
        """
        fixed = jax.lax.stop_gradient(self)
        reached, speed = fixed._speed(u)
        moving = u - (self.progress(u) - reached) / speed  # equals u; its derivative keeps F where it is
        loss2 = jax.lax.stop_gradient(loss**2)
        return jnp.sum(loss2 * jnp.log(self._speed(moving)[1])) / jnp.maximum(
            jnp.sum(loss2), jnp.finfo(loss2.dtype).tiny
        )


def stratified_uniform(key: jax.Array, n: int) -> jax.Array:
    """Draw n numbers, each uniform on [0, 1), one in each of n equal strata.

    They are shifted together: (u + i/n) mod 1.
    """
    return (jax.random.uniform(key) + jnp.arange(n) / n) % 1.0


def check_positive_finite(owner: object, **values: float) -> None:
    """Raise ValueError that names the owner's class and the first value that is not positive and finite."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{type(owner).__name__}: {name} must be positive and finite, not {value}")
