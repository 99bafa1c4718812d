"""Denoising score matching (Vincent 2011; Song et al. 2021, arXiv:2011.13456, eq. 7).

With x_t = alpha x_0 + sigma eps, the loss of one example is, averaged over its d entries,

    w(t)/q(t) mean (sigma s(x_t, t) + eps)²        t ~ q on [t_min, t_max]

where w is the weighting and q the law of times, as a density relative to the uniform one. Any weighting goes with any law: the law
changes the variance of the loss, the weighting what it estimates.

A weighting is a weight on the noise's error. Papers that put theirs on another error are converted: for one x_t, with
rho = sigma/alpha = SNR^(-1/2), which is EDM's sigma,

    error of x_0 = -rho (error of eps)        error of v = sqrt(1 + rho²) (error of eps), v as `VPrediction` has it.

Papers that draw times from a law and do not divide by its density have it in their weighting: see `Uncorrected`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm

from sde_lib.pytree import register_dataclass
from sde_lib.score import per_sample
from sde_lib.sde import SDE

Weighting = Callable[[SDE, jax.Array], jax.Array]
TimeLaw = Callable[[SDE, jax.Array], tuple[jax.Array, jax.Array]]

# What `LossSecondMoment` leaves to the base law, as the paper's code does: no bin is forgotten.
_BASE_SHARE = 1e-3


class Density(Protocol):
    """A law of times that also tells its density, relative to the uniform one, at any t."""

    def density(self, sde: SDE, t: jax.Array) -> jax.Array: ...


def sigma2_weighting(sde: SDE, t: jax.Array) -> jax.Array:
    """lambda(t) = sigma² on the score's error: the usual weighting, DDPM's L_simple (Ho et al. 2020, eq. 14)."""
    return jnp.ones_like(t)


def likelihood_weighting(sde: SDE, t: jax.Array) -> jax.Array:
    """lambda(t) = g² on the score's error, g²/sigma² on the noise's (Song et al. 2021, arXiv:2101.09258, theorem 1).

    d/2 (t_max - t_min) times the mean loss, less its value at the true score, bounds KL(data || model) in nats, up to the prior's term.
    """
    return sde.g2(t) / sde.sigma(t) ** 2


def flow_matching_weighting(sde: SDE, t: jax.Array) -> jax.Array:
    """The noise's error as that of the velocity eps - x_0: ((alpha + sigma)/alpha)².

    With `uniform_t` on `RectifiedFlow` the loss is conditional flow matching's (Lipman et al. 2023, arXiv:2210.02747, eq. 9).
    """
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return ((alpha + sigma) / alpha) ** 2


def v_weighting(sde: SDE, t: jax.Array) -> jax.Array:
    """The noise's error as that of `VPrediction`'s v: 1 + rho², that is (SNR + 1)/SNR. Salimans & Ho 2022, arXiv:2202.00512, section 4.

    With n² = alpha² + sigma² and x fixed, n v = alpha eps - sigma (x - sigma eps)/alpha, whose error is n²/alpha times that of eps.
    """
    return 1 + _rho2(sde, t)


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma)/SNR = min(1, gamma rho²), which is min(SNR, gamma) on x_0's error. Hang et al. 2023, arXiv:2303.09556."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        _check_positive(self, gamma=self.gamma)

    def __call__(self, sde: SDE, t: jax.Array) -> jax.Array:
        return jnp.minimum(1.0, self.gamma * _rho2(sde, t))


@dataclass(frozen=True)
class SoftMinSNR:
    """rho²/(rho² + sigma_data²), which is 1/(rho² + sigma_data²) on x_0's error: `MinSNR` of gamma = sigma_data^-2 without the corner.

    Crowson et al. 2024, arXiv:2401.11605. k-diffusion writes it as (rho sigma_data)²/(rho² + sigma_data²)² on the error of EDM's network,
    which is that of x_0 over c_out, c_out² = (rho sigma_data)²/(rho² + sigma_data²).
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _check_positive(self, sigma_data=self.sigma_data)

    def __call__(self, sde: SDE, t: jax.Array) -> jax.Array:
        rho2 = _rho2(sde, t)
        return rho2 / (rho2 + self.sigma_data**2)


@dataclass(frozen=True)
class EDMWeighting:
    """1 + (rho/sigma_data)²: EDM's lambda = 1/c_out² = (rho² + sigma_data²)/(rho sigma_data)² on x_0's error, hence times rho².

    Karras et al. 2022, arXiv:2206.00364, table 1: the plain error of the network inside `EDMPreconditioning`. With EDM's law of times,
    by whose density the paper does not divide, it is `Uncorrected(EDMWeighting(), LogNormal())`.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _check_positive(self, sigma_data=self.sigma_data)

    def __call__(self, sde: SDE, t: jax.Array) -> jax.Array:
        return 1 + _rho2(sde, t) / self.sigma_data**2


@dataclass(frozen=True)
class Uncorrected:
    """w(t) q(t): what is trained where times are drawn from q and the loss is not divided by it (Kingma & Gao 2023, arXiv:2303.00848).

    With q as the law of times too the loss is w times the error, as published; any other law of times estimates the same. EDM's is
    `Uncorrected(EDMWeighting(), LogNormal())`; Stable Diffusion 3's, on `RectifiedFlow`, `Uncorrected(flow_matching_weighting,
    LogitNormal())` (Esser et al. 2024, arXiv:2403.03206, eq. 18).
    """

    weighting: Weighting
    law: Density

    def __call__(self, sde: SDE, t: jax.Array) -> jax.Array:
        return self.weighting(sde, t) * self.law.density(sde, t)


def uniform_t(sde: SDE, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """t uniform on [t_min, t_max]."""
    return sde.t_min + u * (sde.t_max - sde.t_min), jnp.ones_like(u)


def uniform_log_snr(sde: SDE, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log SNR uniform over its range: the importance sampling of likelihood weighting, since g²/sigma² = -d(log SNR)/dt.

    With `likelihood_weighting` the loss is then the plain noise error times a constant (Kingma et al. 2021, arXiv:2107.00630).
    """
    high, low = sde.log_snr(sde.t_min), sde.log_snr(sde.t_max)
    t = sde.time_of_log_snr(high + u * (low - high))
    density = sde.g2(t) / sde.sigma(t) ** 2 * (sde.t_max - sde.t_min) / (high - low)
    return t, density


def uniform_log_sigma(sde: SDE, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log sigma uniform, sigma as VP of the same SNR has it: density 1/(1 + rho²), VP's alpha², in log SNR.

    With `likelihood_weighting` the loss is then the plain error of v times a constant (Zheng et al. 2023, arXiv:2305.03935). VP's log sigma
    is -softplus(log SNR)/2.
    """
    high, low = jax.nn.softplus(sde.log_snr(sde.t_min)), jax.nn.softplus(sde.log_snr(sde.t_max))
    y = high + u * (low - high)
    t = sde.time_of_log_snr(y + jnp.log(-jnp.expm1(-y)))
    density = sde.g2(t) / sde.sigma(t) ** 2 / (1 + _rho2(sde, t)) * (sde.t_max - sde.t_min) / (high - low)
    return t, density


@dataclass(frozen=True)
class LogNormal:
    """log rho ~ N(mean, std²), cut to the SDE's range. Karras et al. 2022, arXiv:2206.00364, table 1, there on sigma = rho.

    Beyond a few std the density is next to nothing and what is divided by it is large: made for `Uncorrected` weightings.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        _check_positive(self, std=self.std)

    def __call__(self, sde: SDE, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        sign, start, end = self._cut(sde)
        z = sign * ndtri(start + u * (end - start))
        t = sde.time_of_log_snr(-2 * (self.mean + self.std * z))
        return t, self.density(sde, t)

    def density(self, sde: SDE, t: jax.Array) -> jax.Array:
        """Relative to the uniform law's; dz/dt = g²/(2 sigma² std)."""
        sign, start, end = self._cut(sde)
        rate = sde.g2(t) / (2 * sde.sigma(t) ** 2 * self.std)
        return norm.pdf(self._z(sde, t)) / (sign * (end - start)) * rate * (sde.t_max - sde.t_min)

    def _z(self, sde: SDE, t: Any) -> Any:
        return (-0.5 * sde.log_snr(t) - self.mean) / self.std

    def _cut(self, sde: SDE) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The normal CDF at both ends of the range; of -z (sign -1) where that is the smaller, since near 1 it has no digits left."""
        low, high = self._z(sde, sde.t_min), self._z(sde, sde.t_max)
        sign = jnp.where(low + high > 0, -1.0, 1.0)
        return sign, ndtr(sign * low), ndtr(sign * high)


@dataclass(frozen=True)
class LogitNormal:
    """logit of tau = (t - t_min)/(t_max - t_min) ~ N(mean, std²). Esser et al. 2024, arXiv:2403.03206, eq. 19.

    At both ends the density falls faster than any power of tau, so that a loss divided by it has infinite variance, unless the weighting
    falls too: made for `Uncorrected` weightings.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(self, std=self.std)

    def __call__(self, sde: SDE, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        eps = jnp.finfo(u.dtype).eps
        logit = self.mean + self.std * ndtri(jnp.clip(u, eps / 4, 1 - eps / 2))  # u = 0 would be an infinite logit
        return sde.t_min + jax.nn.sigmoid(logit) * (sde.t_max - sde.t_min), self._density(logit)

    def density(self, sde: SDE, t: jax.Array) -> jax.Array:
        """Relative to the uniform law's: 0 at both ends."""
        inside = (t > sde.t_min) & (t < sde.t_max)
        return jnp.where(inside, self._density(jnp.log(t - sde.t_min) - jnp.log(sde.t_max - t)), 0.0)

    def _density(self, logit: jax.Array) -> jax.Array:
        return norm.pdf(logit, self.mean, self.std) / (jax.nn.sigmoid(logit) * jax.nn.sigmoid(-logit))


@partial(register_dataclass, static=("base", "history"))
@dataclass(frozen=True)
class LossSecondMoment:
    """Importance sampling by the losses seen: p ∝ sqrt(E[loss²]) in each bin of the base law's u.

    Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 18. A law of times and its own state, a pytree, in training:

        u = stratified_uniform(key, n)
        losses = denoising_score_matching(..., times=law, u=u)
        law = law.update(law.bin(u), losses)

    moments: (bins,), mean squared losses. seen: (bins,), how many losses each bin has, up to history. Until every bin has all of them it is
    the base law, as in the paper. See `init`.
    """

    moments: jax.Array
    seen: jax.Array
    base: TimeLaw
    history: int

    @staticmethod
    def init(base: TimeLaw = uniform_log_snr, bins: int = 64, history: int = 10) -> "LossSecondMoment":
        """Nothing seen: `bins` equal bins of u, each to remember about its last `history` losses. Raises ValueError for bins < 2."""
        if bins < 2 or history < 1:
            raise ValueError(f"LossSecondMoment: bins must be at least 2 and history at least 1, not {bins} and {history}")
        return LossSecondMoment(jnp.zeros(bins), jnp.zeros(bins, jnp.int32), base, history)

    def ratios(self) -> jax.Array:
        """(bins,): the density of each bin over the base law's, of mean 1."""
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

    def update(self, bin: jax.Array, loss: jax.Array) -> "LossSecondMoment":
        """The law that has also seen these losses, (n,) and as this law's times gave them, in these bins.

        A bin's mean is plain over its first `history` losses; then each new loss has the weight 1/history.
        """
        squared = (loss * self.ratios()[bin]) ** 2  # of the base law's loss
        count = jnp.zeros_like(self.seen).at[bin].add(1)
        total = jnp.zeros_like(self.moments).at[bin].add(squared)
        window = jnp.clip(self.seen + count, 1, jnp.maximum(self.history, count))
        moments = self.moments + (total - count * self.moments) / window
        return replace(self, moments=moments, seen=jnp.minimum(self.seen + count, self.history))

    def _ends(self) -> jax.Array:
        return jnp.cumsum(self.ratios()) / self.seen.size


def stratified_uniform(key: jax.Array, n: int) -> jax.Array:
    """n numbers, each uniform on [0, 1), one in each of n equal strata (shifted together): (u + i/n) mod 1."""
    return (jax.random.uniform(key) + jnp.arange(n) / n) % 1.0


def denoising_score_matching(
    score_fn: Any,
    x0: jax.Array,
    key: jax.Array,
    cond: Any = None,
    *,
    weighting: Weighting = sigma2_weighting,
    times: TimeLaw = uniform_t,
    u: jax.Array | None = None,
) -> jax.Array:
    """The loss of each example, (n,): see the module's text. `score_fn` also takes `key=`, for dropout.

    u: (n,) in [0, 1), where the times' law draws; default `stratified_uniform`, from the key.
    """
    sde = score_fn.sde
    key_time, key_noise, key_network = jax.random.split(key, 3)
    u = stratified_uniform(key_time, x0.shape[0]) if u is None else u
    t, density = times(sde, u.astype(x0.dtype))
    noise = jax.random.normal(key_noise, x0.shape, x0.dtype)
    sigma = per_sample(sde.sigma(t), x0)
    x = per_sample(sde.alpha(t), x0) * x0 + sigma * noise
    error = sigma * score_fn(x, t, cond, key=key_network) + noise
    return weighting(sde, t) / density * jnp.mean(error**2, axis=tuple(range(1, error.ndim)))


def _rho2(sde: SDE, t: jax.Array) -> jax.Array:
    return (sde.sigma(t) / sde.alpha(t)) ** 2


def _check_positive(owner: Any, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{type(owner).__name__}: {name} must be positive and finite, not {value}")
