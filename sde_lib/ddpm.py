"""The discrete diffusion model as a model in its own right: a chain of T steps, and no SDE.

    q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)                        the forward chain, t = 1..T
    q(x_t | x_0)     = N(alpha_t x_0, sigma_t² I)                                   alpha_t² = prod_{s <= t} (1 - beta_s) = 1 - sigma_t²
    p(x_{t-1} | x_t) = N(mean of q(x_{t-1} | x_t, x_0 = D(x_t, t)), Sigma_t)        the model, from p(x_T) = N(0, I)

(Ho et al. 2020, arXiv:2006.11239, eq. 1 to 7; Nichol & Dhariwal 2021, arXiv:2102.09672.) D is what the network says of x_0. alpha and
sigma mean what they mean for an SDE, and not Ho et al.'s 1 - beta: alpha² is their alpha-bar. x is (n, *shape); t is a step, 1 to T, an
integer or (n,) of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from sde_lib.conversions import noise
from sde_lib.losses import stratified_uniform
from sde_lib.pytree import register_dataclass
from sde_lib.samplers.base import Samples, host_sde
from sde_lib.samplers.linear import normal_like
from sde_lib.score import ScoreFn, per_sample
from sde_lib.sde import SDE, namespace

# All randomness of sample i comes from fold_in(key, i), split by purpose, as for `sample`.
_PRIOR, _NOISE = 0, 1


@register_dataclass
@dataclass(frozen=True)
class Chain:
    """q, the forward chain, as tables of which entry t - 1 belongs to step t.

    A pytree whose leaves are the tables, computed once, on the host in float64: a compiled function rounds them, and computes none.

    Args:
        betas: (T,), the variance that each step adds, in (0, 1). Raises ValueError for others.

    The tables that follow from it, (T,) each:
        alpha, sigma: x_t = alpha x_0 + sigma eps.
        from_x, from_x0: the posterior's mean is from_x x_t + from_x0 x_0.
        log_small: log of the posterior's variance; at t = 1, where that is zero, of the one at t = 2, as published code has it (of beta_1
            in a chain of one step).
        log_large: log beta.
    """

    betas: Any
    alpha: Any = field(init=False)
    sigma: Any = field(init=False)
    from_x: Any = field(init=False)
    from_x0: Any = field(init=False)
    log_small: Any = field(init=False)
    log_large: Any = field(init=False)

    def __post_init__(self) -> None:
        betas = np.asarray(self.betas, float)
        if betas.ndim != 1 or not len(betas):
            raise ValueError(f"Chain: betas must be (T,) with at least one step, not of shape {betas.shape}")
        wrong = betas[~((betas > 0) & (betas < 1))]
        if len(wrong):
            raise ValueError(f"Chain: every beta must lie between 0 and 1, not {wrong[0]:g}: cap it, at 0.999 for example")
        log_alpha_bar = np.cumsum(np.log1p(-betas))
        sigma2 = -np.expm1(log_alpha_bar)
        sigma2_before, alpha_before = np.append(0.0, sigma2[:-1]), np.append(1.0, np.exp(0.5 * log_alpha_bar[:-1]))
        log_posterior = np.log(betas[1:] * sigma2_before[1:] / sigma2[1:])
        tables = {
            "betas": betas,
            "alpha": np.exp(0.5 * log_alpha_bar),
            "sigma": np.sqrt(sigma2),
            "from_x": np.sqrt(1 - betas) * sigma2_before / sigma2,
            "from_x0": alpha_before * betas / sigma2,
            "log_small": np.append(log_posterior[0] if len(betas) > 1 else np.log(betas[0]), log_posterior),
            "log_large": np.log(betas),
        }
        for name, table in tables.items():
            object.__setattr__(self, name, table)

    @property
    def steps(self) -> int:
        """T."""
        return len(self.betas)

    def at(self, t: Any) -> "Chain":
        """Each table's entries for steps t, shaped as t is. Raises ValueError for steps outside 1..T."""
        if not isinstance(t, jax.core.Tracer):  # traced steps cannot be checked
            values = np.asarray(t)
            if not np.issubdtype(values.dtype, np.integer) or (values < 1).any() or (values > self.steps).any():
                raise ValueError(f"a step t must be an integer from 1 to {self.steps} (x_0 is the data), not {t}")
        xp = namespace(t, self.betas)
        return jax.tree.map(lambda table: xp.asarray(table)[t - 1], self)

    def forward(self, x: jax.Array, t: Any) -> tuple[jax.Array, jax.Array]:
        """Mean, like x, and variance of q(x_t | x_{t-1} = x): one step (Ho et al. 2020, eq. 2)."""
        betas = per_sample(self.at(t).betas, x)
        return jnp.sqrt(1 - betas) * x, betas

    def jump(self, x0: jax.Array, t: Any) -> tuple[jax.Array, jax.Array]:
        """Mean, like x0, and variance of q(x_t | x_0): t steps at once (Ho et al. 2020, eq. 4)."""
        row = self.at(t)
        return per_sample(row.alpha, x0) * x0, per_sample(row.sigma, x0) ** 2

    def posterior(self, x: jax.Array, x0: jax.Array, t: Any) -> tuple[jax.Array, jax.Array]:
        """Mean, like x, and variance of q(x_{t-1} | x_t = x, x_0), which is x_0 itself for t = 1 (Ho et al. 2020, eq. 6 and 7)."""
        row = self.at(t)
        variance = jnp.where(per_sample(row.from_x, x) > 0, jnp.exp(per_sample(row.log_small, x)), 0)
        return per_sample(row.from_x, x) * x + per_sample(row.from_x0, x) * x0, variance


def linear_betas(steps: int, max_beta: float = 0.999) -> np.ndarray:
    """(steps,) betas, linear from 1e-4 to 0.02 at 1,000 steps; times 1000/steps at other lengths, so that x_T stays as noisy.

    Ho et al. 2020, section 4; the rescaling is that of Nichol & Dhariwal's code. Below 21 steps it would leave (0, 1): `max_beta` caps it.
    """
    _check_steps("linear_betas", steps)
    return np.minimum(np.linspace(1e-4, 0.02, steps) * 1000 / steps, max_beta)


def cosine_betas(steps: int, max_beta: float = 0.999) -> np.ndarray:
    """(steps,) betas of alpha_t = cos(a_t)/cos(a_0), a_t = (t/steps + s)/(1 + s) pi/2, s = 0.008: `CosineVP` at evenly spaced times.

    Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17. `max_beta` is their cap, which the last step always meets.
    """
    _check_steps("cosine_betas", steps)
    angle = (np.arange(steps + 1) / steps + 0.008) / 1.008 * (math.pi / 2)
    # cos² a - cos² b = sin(b - a) sin(b + a): no difference of nearly equal squares.
    betas = np.sin(np.diff(angle)) * np.sin(angle[1:] + angle[:-1]) / np.cos(angle[:-1]) ** 2
    return np.minimum(betas, max_beta)


def chain_of(sde: SDE, times: Any) -> Chain:
    """The chain whose x_t is the SDE's at times[t - 1]: the same alpha and sigma there.

    Args:
        sde: one with alpha² + sigma² = 1, such as `VP` or `CosineVP`.
        times: (T,), increasing, within [t_min, t_max].

    Raises:
        ValueError: for another SDE, or such times.
    """
    sde, times = host_sde(sde), np.asarray(times, float)
    if times.ndim != 1 or not len(times) or not (np.diff(times) > 0).all():
        raise ValueError("chain_of: times must be (T,), increasing: those of a sampler's grid, reversed")
    if times[0] < sde.t_min * (1 - 1e-9) or times[-1] > sde.t_max * (1 + 1e-9):
        raise ValueError(f"chain_of: times must stay within the SDE's [t_min, t_max] = [{sde.t_min:g}, {sde.t_max:g}]")
    variance = sde.alpha(times) ** 2 + sde.sigma(times) ** 2
    if not np.allclose(variance, 1, rtol=0, atol=1e-9):
        raise ValueError(f"chain_of takes an SDE with alpha² + sigma² = 1, such as VP or CosineVP, not {type(sde).__name__}")
    # beta_t/sigma_t² = 1 - SNR_t/SNR_{t-1}: no difference of nearly equal alphas.
    share = -np.expm1(np.diff(sde.log_snr(times)))
    return Chain(sde.sigma(times) ** 2 * np.append(1.0, share))


# What a network may predict, with the denoiser E[x_0 | x_t] as the pivot; each takes (chain, quantity, x, t) and returns one like x.
Conversion = Callable[[Chain, jax.Array, jax.Array, Any], jax.Array]


def denoiser_from_denoiser(chain: Chain, denoised: jax.Array, x: jax.Array, t: Any) -> jax.Array:
    """For a network that predicts x_0."""
    return denoised


def denoiser_from_noise(chain: Chain, noise: jax.Array, x: jax.Array, t: Any) -> jax.Array:
    """x_0 = (x - sigma eps)/alpha (Ho et al. 2020, eq. 15)."""
    row = chain.at(t)
    return (x - per_sample(row.sigma, x) * noise) / per_sample(row.alpha, x)


def noise_from_denoiser(chain: Chain, denoised: jax.Array, x: jax.Array, t: Any) -> jax.Array:
    """eps = (x - alpha x_0)/sigma."""
    row = chain.at(t)
    return (x - per_sample(row.alpha, x) * denoised) / per_sample(row.sigma, x)


def denoiser_from_v(chain: Chain, v: jax.Array, x: jax.Array, t: Any) -> jax.Array:
    """x_0 = alpha x - sigma v, with v = alpha eps - sigma x_0 (Salimans & Ho 2022, arXiv:2202.00512, appendix D)."""
    row = chain.at(t)
    return per_sample(row.alpha, x) * x - per_sample(row.sigma, x) * v


def v_from_denoiser(chain: Chain, denoised: jax.Array, x: jax.Array, t: Any) -> jax.Array:
    """v = (alpha x - x_0)/sigma."""
    row = chain.at(t)
    return (per_sample(row.alpha, x) * x - denoised) / per_sample(row.sigma, x)


# log Sigma_t from (chain, fraction, x, t), ready to multiply x; fraction is the network's second output, or None.
LogVariance = Callable[[Chain, Any, jax.Array, Any], jax.Array]


def fixed_small(chain: Chain, fraction: Any, x: jax.Array, t: Any) -> jax.Array:
    """The posterior's variance: right for data that are a single point (Ho et al. 2020, section 3.2).

    At t = 1 see `Chain.log_small`. With steps even in log SNR, that variance goes to zero as they grow in number, and with it the
    density of data without bins: there, `fixed_large`.
    """
    return per_sample(chain.at(t).log_small, x)


def fixed_large(chain: Chain, fraction: Any, x: jax.Array, t: Any) -> jax.Array:
    """beta_t: right for data from N(0, I) (Ho et al. 2020, section 3.2). Their code has the posterior's at t = 1, as `fixed_small` does."""
    return per_sample(chain.at(t).log_large, x)


def learned_range(chain: Chain, fraction: Any, x: jax.Array, t: Any) -> jax.Array:
    """log Sigma = fraction log beta + (1 - fraction) log posterior variance (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15).

    Raises ValueError for a network that predicts no fraction.
    """
    if fraction is None:
        raise ValueError("learned_range: predict must return a pair (prediction, fraction); for one that returns an array: fixed_small")
    small = fixed_small(chain, fraction, x, t)
    return small + fraction * (fixed_large(chain, fraction, x, t) - small)


@partial(register_dataclass, static=("to_denoiser", "log_variance"))
@dataclass(frozen=True)
class Model:
    """p, the reverse chain of a network: what it says of x_0, and how sure it is of x_{t-1}.

    Args:
        predict: `predict(x, t)`, t (n,): the prediction, like x, or, for `learned_range`, a pair with the fraction, like x in [0, 1].
            A pytree, such as `jax.tree_util.Partial(apply, params)`, whose leaves never recompile; of a plain function, what it closes
            over is a constant of the compiled code.
        to_denoiser: what it predicts: `denoiser_from_noise`, `denoiser_from_v` or `denoiser_from_denoiser`.
        log_variance: `fixed_small`, `fixed_large` or `learned_range`.
    """

    predict: Any
    to_denoiser: Conversion = denoiser_from_noise
    log_variance: LogVariance = fixed_small

    def __post_init__(self) -> None:
        if jax.tree_util.treedef_is_leaf(jax.tree.structure(self.predict)):  # a plain function
            object.__setattr__(self, "predict", jax.tree_util.Partial(self.predict))

    def __call__(self, chain: Chain, x: jax.Array, t: Any) -> tuple[jax.Array, jax.Array]:
        """The denoiser D(x, t), like x, and log Sigma_t, ready to multiply x."""
        t = jnp.broadcast_to(jnp.asarray(t), x.shape[:1])
        output = self.predict(x, t)
        prediction, fraction = output if isinstance(output, tuple) else (output, None)
        return self.to_denoiser(chain, prediction, x, t), self.log_variance(chain, fraction, x, t)


@register_dataclass
@dataclass(frozen=True)
class NoiseOfScore:
    """Any score as the network of `chain_of(score_fn.sde, times)`: it predicts the noise E[eps | x] at times[t - 1]."""

    score_fn: ScoreFn
    times: Any

    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        return noise(self.score_fn, x, jnp.asarray(self.times, x.dtype)[t - 1])


def l_simple(model: Model, chain: Chain, x0: jax.Array, key: jax.Array) -> jax.Array:
    """mean (eps - E[eps | x_t])² over the entries of each example, (n,), at one random step each (Ho et al. 2020, eq. 14).

    The noise's error, whatever the network predicts.
    """
    t, x, eps = _noised(chain, x0, key)
    denoised, _ = model(chain, x, t)
    return jnp.mean((eps - noise_from_denoiser(chain, denoised, x, t)).reshape(x0.shape[0], -1) ** 2, axis=1)


def l_vlb(
    model: Model, chain: Chain, x0: jax.Array, key: jax.Array, *, bin_width: float | None = None, stop_mean: bool = False
) -> jax.Array:
    """An unbiased estimate of `elbo`'s nats less their prior term, (n,): T times the term of one random step each.

    Args:
        bin_width: as for `elbo`.
        stop_mean: no gradient through D, only through Sigma. In L_hybrid = L_simple + 0.001 L_vlb (bits per dimension in their code)
            the mean learns by L_simple alone (Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.1). With the same key both losses draw
            the same steps and noise.
    """
    _check_bin_width("l_vlb", bin_width)
    t, x, _ = _noised(chain, x0, key)
    denoised, log_variance = model(chain, x, t)
    if stop_mean:
        denoised = jax.lax.stop_gradient(denoised)
    nats = jnp.where(t == 1, _reconstruction(x0, denoised, log_variance, bin_width), _kl(chain, x0, denoised, log_variance, t))
    return chain.steps * nats


class ELBO(NamedTuple):
    """What `elbo` returns, in nats for each example: the bound of -log p(x_0), which is minus the ELBO.

    nats: (n,), prior + denoising + reconstruction. `bits_per_dim(-nats, d, 1.0)` where the data have bins.
    prior: (n,), KL(q(x_T | x_0) || N(0, I)); no draw is in it.
    denoising: (n,), the sum of step_nats.
    reconstruction: (n,), -log p(x_0 | x_1).
    step_nats: (n, T - 1), KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t = 2..T.
    """

    nats: jax.Array
    prior: jax.Array
    denoising: jax.Array
    reconstruction: jax.Array
    step_nats: jax.Array


def elbo(model: Model, chain: Chain, x0: jax.Array, key: jax.Array, *, bin_width: float | None = None, first: int = 0) -> ELBO:
    """The variational bound of -log p(x_0), each of its T terms with one draw of x_t (Ho et al. 2020, arXiv:2006.11239, eq. 5).

    Step by step, so that memory does not grow with T, but for step_nats.

    Args:
        x0: (n, *shape).
        key: randomness; that of row i comes from (key, first + i).
        bin_width: of data with levels, at the centres of bins that tile [-1, 1) (2/256 for bytes), or from -1 to 1 with both ends
            (2/255): -log p(x_0 | x_1) is that of a probability, the Gaussian's mass on the bin, where the first and the last reach to
            infinity (Ho et al. 2020, eq. 13). None for data without: that of a density.

    Raises:
        ValueError: for such a bin_width.
    """
    _check_bin_width("elbo", bin_width)
    return _elbo(model, chain, x0, _row_keys(key, first, x0.shape[0]), bin_width)


def ancestral(
    model: Model, chain: Chain, key: jax.Array, n: int, shape: tuple[int, ...], *, first: int = 0, dtype: Any = jnp.float32
) -> Samples:
    """n draws of the model, from x_T ~ N(0, I) down to D(x_1, 1), to which no noise is added (Ho et al. 2020, algorithm 2).

    Sample i depends on (key, first + i) alone, whatever the batch. With the same key, and from the prior N(0, I), the sampler `Ancestral`
    on the SDE and the times of `chain_of`, with its final denoising, draws the same samples where the variance is `fixed_small`.

    Raises:
        ValueError: for n less than 1.
    """
    if n < 1:
        raise ValueError(f"ancestral: n must be at least 1, not {n}")
    return Samples(_ancestral(model, chain, _row_keys(key, first, n), tuple(shape), jnp.dtype(dtype)), chain.steps)


@jax.jit
def _elbo(model: Model, chain: Chain, x0: jax.Array, keys: jax.Array, bin_width: Any) -> ELBO:
    def reverse(t: Any) -> tuple[jax.Array, jax.Array]:
        mean, variance = chain.jump(x0, t)
        return model(chain, mean + jnp.sqrt(variance) * normal_like(jax.vmap(jax.random.fold_in, (0, None))(keys, t), x0), t)

    def step(_: None, t: Any) -> tuple[None, jax.Array]:
        return None, _kl(chain, x0, *reverse(t), t)

    _, step_nats = jax.lax.scan(step, None, jnp.arange(2, chain.steps + 1))
    mean, _ = chain.jump(x0, chain.steps)
    # sigma² - 1 is -alpha², which float32 keeps where alpha is small.
    alpha2 = per_sample(chain.alpha[-1], x0) ** 2
    prior = 0.5 * _sum(mean**2 - alpha2 - jnp.log1p(-alpha2))
    denoising = jnp.sum(step_nats, axis=0)
    reconstruction = _reconstruction(x0, *reverse(1), bin_width)
    return ELBO(prior + denoising + reconstruction, prior, denoising, reconstruction, step_nats.T)


@partial(jax.jit, static_argnums=(3, 4))
def _ancestral(model: Model, chain: Chain, keys: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    fold_in = jax.vmap(jax.random.fold_in, (0, None))
    x = normal_like(fold_in(keys, _PRIOR), jnp.zeros((len(keys), *shape), dtype))
    keys = fold_in(keys, _NOISE)

    def step(x: jax.Array, i: Any) -> tuple[jax.Array, None]:
        t = chain.steps - i
        denoised, log_variance = model(chain, x, t)
        mean, _ = chain.posterior(x, denoised, t)
        noisy = mean + jnp.exp(0.5 * log_variance) * normal_like(fold_in(keys, i), x)
        return jnp.where(t > 1, noisy, mean), None

    return jax.lax.scan(step, x, jnp.arange(chain.steps))[0]


def _noised(chain: Chain, x0: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A random step for each example, stratified over the batch, with x_t and its noise."""
    key_time, key_noise = jax.random.split(key)
    t = 1 + jnp.minimum(jnp.floor(chain.steps * stratified_uniform(key_time, x0.shape[0])).astype(int), chain.steps - 1)
    eps = jax.random.normal(key_noise, x0.shape, x0.dtype)
    mean, variance = chain.jump(x0, t)
    return t, mean + jnp.sqrt(variance) * eps, eps


def _kl(chain: Chain, x0: jax.Array, denoised: jax.Array, log_variance: jax.Array, t: Any) -> jax.Array:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 1, (n,): ½ sum r - 1 - log r + (difference of means)²/Sigma.

    r is the ratio of q's variance to p's.
    """
    row = chain.at(t)
    log_ratio = per_sample(row.log_small, x0) - log_variance
    difference = per_sample(row.from_x0, x0) * (x0 - denoised)
    return 0.5 * _sum(jnp.expm1(log_ratio) - log_ratio + difference**2 * jnp.exp(-log_variance))


def _reconstruction(x0: jax.Array, mean: jax.Array, log_variance: jax.Array, bin_width: Any) -> jax.Array:
    """-log p(x_0 | x_1), (n,)."""
    if bin_width is None:
        return 0.5 * _sum((x0 - mean) ** 2 * jnp.exp(-log_variance) + log_variance + math.log(2 * math.pi))
    return -_sum(_log_mass(x0, mean, jnp.exp(0.5 * log_variance), bin_width))


def _log_mass(x0: jax.Array, mean: jax.Array, std: jax.Array, bin_width: Any) -> jax.Array:
    """log of N(mean, std²)'s mass on the bin of each entry, like x0."""
    left, right = (x0 - 0.5 * bin_width - mean) / std, (x0 + 0.5 * bin_width - mean) / std
    # Centres lie half a bin from an end, or on it; their neighbours a bin or more.
    is_first, is_last = x0 < -1 + 0.75 * bin_width, x0 > 1 - 0.75 * bin_width
    # The mass on (left, right) is that on (-right, -left): taken in the lower tail, where log_ndtr keeps its relative precision.
    mirrored = is_last | (~is_first & (left + right > 0))
    low, high = jnp.where(mirrored, -right, left), jnp.where(mirrored, -left, right)
    log_below = log_ndtr(high)
    log_ratio = jnp.where(is_first | is_last, -jnp.inf, log_ndtr(low) - log_below)
    return log_below + jnp.log(-jnp.expm1(log_ratio))


def _sum(x: jax.Array) -> jax.Array:
    """The sum over the entries of each example, (n,)."""
    return jnp.sum(x.reshape(x.shape[0], -1), axis=1)


def _row_keys(key: jax.Array, first: int, n: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(n))


def _check_steps(name: str, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"{name}: steps must be at least 1, not {steps}")


def _check_bin_width(name: str, bin_width: Any) -> None:
    if bin_width is not None and not isinstance(bin_width, jax.core.Tracer) and not bin_width > 0:
        raise ValueError(f"{name}: bin_width must be positive (2/256 for bytes on [-1, 1)), or None for data without bins, not {bin_width}")
