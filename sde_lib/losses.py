"""Denoising score matching (Vincent 2011; Song et al. 2021, arXiv:2011.13456, eq. 7).

With x_t = alpha x_0 + sigma eps, the loss of one example is, averaged over its d entries,

    w(t)/q(t) mean (sigma s(x_t, t) + eps)²        t ~ q on [t_min, t_max]

where w is the weighting and q the time distribution, as a density relative to the uniform one. Any weighting goes with
any time distribution: the latter changes the variance of the loss, the weighting what it estimates.

A weighting is a weight on the noise's error. Papers that put theirs on another error are converted: for one x_t, with
rho = sigma/alpha = SNR^(-1/2), which is EDM's sigma,

    error of x_0 = -rho (error of eps)        error of v = sqrt(1 + rho²) (error of eps), v as `VPrediction` has it.

Papers that draw times from a distribution and do not divide by its density have it in their weighting: see
`Uncorrected`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.batch import per_row, points
from sde_lib.pytree import register_dataclass
from sde_lib.score import ScoreFn, TrainableScoreFn
from sde_lib.sde import SDE
from sde_lib.times import TimeDensity, TimeDistribution, check_positive_finite, stratified_uniform, uniform_t
from sde_lib.typing import PyTree

Weighting = Callable[[SDE, jax.Array], jax.Array]


def sigma2_weighting(sde: SDE, t: jax.Array) -> jax.Array:
    """The usual weighting, lambda(t) = sigma² on the score's error: DDPM's L_simple (Ho et al. 2020, eq. 14)."""
    return jnp.ones_like(t)


def likelihood_weighting(sde: SDE, t: jax.Array) -> jax.Array:
    """The weighting lambda(t) = g² on the score's error, g²/sigma² on the noise's.

    Song et al. 2021, arXiv:2101.09258, theorem 1.

    d/2 (t_max - t_min) times the mean loss, less its value at the true score, bounds KL(data || model) in nats, up to
    the prior's term.
    """
    return sde.g2(t) / sde.sigma(t) ** 2


def flow_matching_weighting(sde: SDE, t: jax.Array) -> jax.Array:
    """The noise's error as that of the velocity eps - x_0: ((alpha + sigma)/alpha)².

    With `uniform_t` on `RectifiedFlow` the loss is conditional flow matching's (Lipman et al. 2023, arXiv:2210.02747,
    eq. 9).
    """
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return ((alpha + sigma) / alpha) ** 2


def v_weighting(sde: SDE, t: jax.Array) -> jax.Array:
    """The noise's error as that of `VPrediction`'s v: 1 + rho², that is (SNR + 1)/SNR.

    Salimans & Ho 2022, arXiv:2202.00512, section 4.

    With n² = alpha² + sigma² and x fixed, n v = alpha eps - sigma (x - sigma eps)/alpha, whose error is n²/alpha times
    that of eps.
    """
    return 1 + _rho2(sde, t)


@dataclass(frozen=True)
class MinSNR:
    """The weighting min(SNR, gamma)/SNR = min(1, gamma rho²), which is min(SNR, gamma) on x_0's error.

    Hang et al. 2023, arXiv:2303.09556.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        check_positive_finite(self, gamma=self.gamma)

    def __call__(self, sde: SDE, t: jax.Array) -> jax.Array:
        return jnp.minimum(1.0, self.gamma * _rho2(sde, t))


@dataclass(frozen=True)
class SoftMinSNR:
    """The weighting rho²/(rho² + sigma_data²), which is 1/(rho² + sigma_data²) on x_0's error.

    It is `MinSNR` of gamma = sigma_data^-2 without the corner.

    Crowson et al. 2024, arXiv:2401.11605. k-diffusion writes it as (rho sigma_data)²/(rho² + sigma_data²)² on the error
    of EDM's network, which is that of x_0 over c_out, c_out² = (rho sigma_data)²/(rho² + sigma_data²).
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        check_positive_finite(self, sigma_data=self.sigma_data)

    def __call__(self, sde: SDE, t: jax.Array) -> jax.Array:
        rho2 = _rho2(sde, t)
        return rho2 / (rho2 + self.sigma_data**2)


@dataclass(frozen=True)
class EDMWeighting:
    """The weighting 1 + (rho/sigma_data)², which is EDM's lambda on x_0's error.

    That is lambda = 1/c_out² = (rho² + sigma_data²)/(rho sigma_data)², here times rho².

    Karras et al. 2022, arXiv:2206.00364, table 1: the plain error of the network inside `EDMPreconditioning`. With
    EDM's time distribution, by whose density the paper does not divide, it is
    `Uncorrected(EDMWeighting(), LogNormal())`.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        check_positive_finite(self, sigma_data=self.sigma_data)

    def __call__(self, sde: SDE, t: jax.Array) -> jax.Array:
        return 1 + _rho2(sde, t) / self.sigma_data**2


@dataclass(frozen=True)
class Uncorrected:
    """The weighting w(t) q(t): what is trained where times are drawn from q and the loss is not divided by it.

    Kingma & Gao 2023, arXiv:2303.00848.

    With q as the time distribution too the loss is w times the error, as published; any other one estimates the same.
    EDM's is `Uncorrected(EDMWeighting(), LogNormal())`; Stable Diffusion 3's, on `RectifiedFlow`,
    `Uncorrected(flow_matching_weighting, LogitNormal())` (Esser et al. 2024, arXiv:2403.03206, eq. 18).
    """

    weighting: Weighting
    times: TimeDensity

    def __call__(self, sde: SDE, t: jax.Array) -> jax.Array:
        return self.weighting(sde, t) * self.times.density(sde, t)


@partial(register_dataclass, static=("weighting",))
@dataclass(frozen=True)
class Uncertainty:
    """The weighting w(t) exp(-u(t)) with u learned: at its optimum every t has the mean loss 1.

    Karras et al. 2024, arXiv:2312.02696, eq. 14 and 22.

    u is linear in fixed random Fourier features of c_noise = log(rho)/4, as the paper's one-layer network. A weighting
    and its own weights, a pytree. The network learns from the weighted loss, u from `objective`: together the paper's
    loss/exp(u) + u.
    """

    coefficients: jax.Array
    weighting: Weighting

    @staticmethod
    def init(weighting: Weighting, features: int = 128) -> "Uncertainty":
        """The plain weighting: u = 0."""
        return Uncertainty(jnp.zeros(features), weighting)

    def log_loss(self, sde: SDE, t: jax.Array) -> jax.Array:
        """The logarithm u(t), of any shape, of the mean loss that is expected at t before the division by exp(u)."""
        rng, features, shape = np.random.default_rng(0), self.coefficients.size, (1,) * t.ndim + (-1,)
        frequency, phase = (
            jnp.asarray(v.reshape(shape), t.dtype) for v in (rng.standard_normal(features), rng.random(features))
        )
        turns = -sde.log_snr(t)[..., None] / 8 * frequency + phase
        return jnp.cos(2 * jnp.pi * turns) @ self.coefficients.astype(t.dtype) * (2 / features) ** 0.5

    def __call__(self, sde: SDE, t: jax.Array) -> jax.Array:
        return self.weighting(sde, t) * jnp.exp(-self.log_loss(sde, t))

    def objective(self, sde: SDE, t: jax.Array, loss: jax.Array) -> jax.Array:
        """The objective mean(l exp(-u) + u), whose gradient trains u.

        loss: (n,), those that this weighting gave at t: l exp(-u) is the loss now.
        """
        u = self.log_loss(sde, t)
        return jnp.mean(jax.lax.stop_gradient(loss * jnp.exp(u)) * jnp.exp(-u) + u)


def denoising_score_matching(
    score_fn: TrainableScoreFn,
    x0: jax.Array,
    key: jax.Array,
    cond: PyTree = None,
    *,
    weighting: Weighting = sigma2_weighting,
    times: TimeDistribution = uniform_t,
    u: jax.Array | None = None,
    teacher: ScoreFn | None = None,
) -> jax.Array:
    """The loss of each example, (n,): see the module's text. `score_fn` also takes `key=`, for dropout.

    u: (n,) in [0, 1), where the time distribution draws; default `stratified_uniform`, from the key.
    teacher: a score whose noise -sigma s(x_t, t) takes the place of eps: its distillation, without eps's variance.
    """
    sde, x0 = score_fn.sde, points(x0)
    key_time, key_noise, key_network = jax.random.split(key, 3)
    u = stratified_uniform(key_time, x0.shape[0]) if u is None else u
    t, density = times(sde, u.astype(x0.dtype))
    noise = jax.random.normal(key_noise, x0.shape, x0.dtype)
    sigma = per_row(sde.sigma(t), x0)
    x = per_row(sde.alpha(t), x0) * x0 + sigma * noise
    if teacher is not None:
        noise = -sigma * jax.lax.stop_gradient(teacher(x, t, cond))
    error = sigma * score_fn(x, t, cond, key=key_network) + noise
    return weighting(sde, t) / density * jnp.mean(error**2, axis=tuple(range(1, error.ndim)))


def _rho2(sde: SDE, t: jax.Array) -> jax.Array:
    return (sde.sigma(t) / sde.alpha(t)) ** 2
