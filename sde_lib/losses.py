"""Denoising score matching (Vincent 2011; Song et al. 2021, arXiv:2011.13456, eq. 7).

With x_t = alpha x_0 + sigma eps, the loss of one example is, averaged over its d entries,

    w(t)/q(t) mean (sigma s(x_t, t) + eps)²        t ~ q on [t_min, t_max]

where w is the weighting and q the law of times, as a density relative to the uniform one. Any weighting goes with any law: the law
changes the variance of the loss, the weighting what it estimates.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sde_lib.score import per_sample
from sde_lib.sde import SDE

Weighting = Callable[[SDE, jax.Array], jax.Array]
TimeLaw = Callable[[SDE, jax.Array], tuple[jax.Array, jax.Array]]


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
) -> jax.Array:
    """The loss of each example, (n,): see the module's text. `score_fn` also takes `key=`, for dropout."""
    sde = score_fn.sde
    key_time, key_noise, key_network = jax.random.split(key, 3)
    t, density = times(sde, stratified_uniform(key_time, x0.shape[0]).astype(x0.dtype))
    noise = jax.random.normal(key_noise, x0.shape, x0.dtype)
    sigma = per_sample(sde.sigma(t), x0)
    x = per_sample(sde.alpha(t), x0) * x0 + sigma * noise
    error = sigma * score_fn(x, t, cond, key=key_network) + noise
    return weighting(sde, t) / density * jnp.mean(error**2, axis=tuple(range(1, error.ndim)))
