"""The discrete diffusion model as a model in its own right: a chain of T steps, and no SDE.

    q(x_t | x_{t-1})                                                                the forward chain, t = 1..T
    p(x_{t-1} | x_t) = N(mean of q(x_{t-1} | x_t, x_0 = D(x_t, t)), Sigma_t)        the model, from p(x_T) = N(0, I)

(Ho et al. 2020, arXiv:2006.11239; Nichol & Dhariwal 2021, arXiv:2102.09672.) The forward chain is `sde_lib.chain`'s; D
is the network's prediction of x_0. x is (n, *shape); t is a step, 1 to T, an integer or (n,) of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jax.typing import DTypeLike

from sde_lib.batch import fold_in_each, normal_like, per_row, points, row_keys, sum_of_entries
from sde_lib.chain import Chain, Conversion, denoiser_from_noise, noise_from_denoiser
from sde_lib.conversions import noise
from sde_lib.pytree import register_dataclass
from sde_lib.samplers.base import Samples
from sde_lib.score import ScoreFn
from sde_lib.times import stratified_uniform
from sde_lib.typing import Array, PyTree, Scalar, Step

# All randomness of sample i comes from fold_in(key, i), split by purpose, as for `sample`.
_PRIOR, _NOISE = 0, 1


# log Sigma_t from (chain, fraction, x, t), ready to multiply x; fraction is the network's second output, or None.
LogVariance = Callable[[Chain, jax.Array | None, jax.Array, Step], jax.Array]


def fixed_small(chain: Chain, fraction: jax.Array | None, x: jax.Array, t: Step) -> jax.Array:
    """The posterior's variance: right for data that are a single point (Ho et al. 2020, section 3.2).

    At t = 1 see `Chain.log_small`. With steps even in log SNR, that variance goes to zero as they grow in number, and
    with it the density of data without bins: there, `fixed_large`.
    """
    return per_row(chain.at(t).log_small, x)


def fixed_large(chain: Chain, fraction: jax.Array | None, x: jax.Array, t: Step) -> jax.Array:
    """The variance beta_t: right for data from N(0, I) (Ho et al. 2020, section 3.2).

    Their code has the posterior's at t = 1, as `fixed_small` does.
    """
    return per_row(chain.at(t).log_large, x)


def learned_range(chain: Chain, fraction: jax.Array | None, x: jax.Array, t: Step) -> jax.Array:
    """A learned variance between the two fixed ones (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15).

        log Sigma = fraction log beta + (1 - fraction) log posterior variance

    Raises ValueError for a network that predicts no fraction.
    """
    if fraction is None:
        raise ValueError(
            "learned_range: predict must return a pair (prediction, fraction); for one that returns an array: "
            "fixed_small"
        )
    small = fixed_small(chain, fraction, x, t)
    return small + fraction * (fixed_large(chain, fraction, x, t) - small)


@partial(register_dataclass, static=("to_denoiser", "log_variance"))
@dataclass(frozen=True)
class ReverseChain:
    """The reverse chain p of a network: its prediction of x_0, and the variance of x_{t-1}.

    Args:
        predict: `predict(x, t)`, t (n,): the prediction, like x, or, for `learned_range`, a pair with the fraction,
            like x in [0, 1]. A pytree, such as `jax.tree_util.Partial(apply, params)`, whose leaves never recompile; of
            a plain function, what it closes over is a constant of the compiled code.
        to_denoiser: what it predicts: `denoiser_from_noise`, `denoiser_from_v` or `denoiser_from_denoiser`.
        log_variance: `fixed_small`, `fixed_large` or `learned_range`.
    """

    predict: Callable[..., Any]
    to_denoiser: Conversion = denoiser_from_noise
    log_variance: LogVariance = fixed_small

    def __post_init__(self) -> None:
        if jax.tree_util.treedef_is_leaf(jax.tree.structure(self.predict)):  # a plain function
            object.__setattr__(self, "predict", jax.tree_util.Partial(self.predict))

    def __call__(self, chain: Chain, x: jax.Array, t: Step) -> tuple[jax.Array, jax.Array]:
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
    times: Array
    cond: PyTree = None

    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        # A step beyond the last time is not a number: an index would take the last one for it.
        time = jnp.asarray(self.times, points(x).dtype).at[t - 1].get(mode="fill", fill_value=jnp.nan)
        return noise(self.score_fn, x, time, self.cond)


def l_simple(model: ReverseChain, chain: Chain, x0: jax.Array, key: jax.Array) -> jax.Array:
    """The mean of (eps - E[eps | x_t])² over each example's entries, (n,), at one random step each.

    Ho et al. 2020, eq. 14.

    The noise's error, whatever the network predicts.
    """
    t, x, eps = _noised(chain, x0, key)
    denoised, _ = model(chain, x, t)
    return jnp.mean((eps - noise_from_denoiser(chain, denoised, x, t)).reshape(x0.shape[0], -1) ** 2, axis=1)


def l_vlb(
    model: ReverseChain,
    chain: Chain,
    x0: jax.Array,
    key: jax.Array,
    *,
    bin_width: float | None = None,
    stop_mean: bool = False,
) -> jax.Array:
    """An unbiased estimate of `elbo`'s nats less their prior term, (n,): T times the term of one random step each.

    Args:
        bin_width: as for `elbo`.
        stop_mean: no gradient through D, only through Sigma. In L_hybrid = L_simple + 0.001 L_vlb (bits per dimension
            in their code) the mean learns by L_simple alone (Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.1).
            With the same key both losses draw the same steps and noise.
    """
    _check_bin_width("l_vlb", bin_width)
    t, x, _ = _noised(chain, x0, key)
    denoised, log_variance = model(chain, x, t)
    if stop_mean:
        denoised = jax.lax.stop_gradient(denoised)
    nats = jnp.where(
        t == 1, _reconstruction(x0, denoised, log_variance, bin_width), _kl(chain, x0, denoised, log_variance, t)
    )
    return chain.steps * nats


class ELBO(NamedTuple):
    """The result of `elbo`, in nats for each example: the bound of -log p(x_0), which is minus the ELBO.

    nats: (n,), prior + denoising + reconstruction. `bits_per_dim(-nats, d, 1.0)` where the data have bins.
    prior: (n,), KL(q(x_T | x_0) || N(0, I)); no draw is in it.
    denoising: (n,), the sum of weights step_nats.
    reconstruction: (n,), -log p(x_0 | x_1).
    step_nats, steps: (n, k), KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) and its t: all of 2..T in a row, or drawn
        ones.
    weights: (n, k), 1, or of drawn steps one over the expected number of their draws.
    """

    nats: jax.Array
    prior: jax.Array
    denoising: jax.Array
    reconstruction: jax.Array
    step_nats: jax.Array
    steps: jax.Array
    weights: jax.Array

    def draws_variance(self) -> jax.Array:
        """An unbiased estimate, (n,), of the variance of `denoising` that the draws of steps and of x_t make.

        It is for drawn steps, which come in pairs.
        """
        first, second = jnp.moveaxis((self.weights * self.step_nats).reshape(len(self.nats), -1, 2), 2, 0)
        return jnp.sum((first - second) ** 2, axis=1)


def elbo(
    model: ReverseChain,
    chain: Chain,
    x0: jax.Array,
    key: jax.Array,
    *,
    bin_width: float | None = None,
    first: int = 0,
    draws: int | None = None,
) -> ELBO:
    """Bound -log p(x_0) from above, each of the bound's T terms with one draw of x_t.

    Ho et al. 2020, arXiv:2006.11239, eq. 5.

    Step by step, so that memory does not grow with T, but for step_nats, steps and weights.

    Args:
        x0: (n, *shape).
        key: randomness; that of row i comes from (key, first + i).
        bin_width: of data with levels, at the centres of bins that tile [-1, 1) (2/256 for bytes), or from -1 to 1 with
            both ends (2/255): -log p(x_0 | x_1) is that of a probability, the Gaussian's mass on the bin, where the
            first and the last reach to infinity (Ho et al. 2020, eq. 13). None for data without: that of a density.
        draws: an even number of steps for each example in place of all T - 1, which leaves the bound's expectation as
            it is. A step is drawn in proportion to the log SNR that it crosses, two in each of draws/2 equal parts of
            the range.

    Raises:
        ValueError: for such a bin_width or such draws, and for draws from a chain of one step.
    """
    _check_bin_width("elbo", bin_width)
    if draws is not None and (draws < 2 or draws % 2 or chain.steps < 2):
        raise ValueError(
            f"elbo: draws must be even and at least 2, of a chain of at least 2 steps, not {draws} of {chain.steps}"
        )
    x0 = points(x0)
    return _elbo(model, chain, x0, row_keys(key, first + jnp.arange(x0.shape[0])), bin_width, draws)


def ancestral(
    model: ReverseChain,
    chain: Chain,
    key: jax.Array,
    n: int,
    shape: tuple[int, ...],
    *,
    first: int = 0,
    dtype: DTypeLike = jnp.float32,
) -> Samples:
    """Draw n samples of the model, from x_T ~ N(0, I) down to D(x_1, 1) (Ho et al. 2020, algorithm 2).

    No noise is added to D(x_1, 1).

    Sample i depends on (key, first + i) alone, whatever the batch. With the same key, and from the prior N(0, I), the
    sampler `Ancestral` on the SDE and the times of `chain_of`, with its final denoising, draws the same samples where
    the variance is `fixed_small`.

    Raises:
        ValueError: for n less than 1.
    """
    if n < 1:
        raise ValueError(f"ancestral: n must be at least 1, not {n}")
    state = jnp.promote_types(dtype, jnp.float32)  # steps in half precision would not add up
    x = _ancestral(model, chain, row_keys(key, first + jnp.arange(n)), tuple(shape), state)
    return Samples(x.astype(dtype), chain.steps)


@partial(jax.jit, static_argnames="draws")
def _elbo(
    model: ReverseChain, chain: Chain, x0: jax.Array, keys: jax.Array, bin_width: Scalar | None, draws: int | None
) -> ELBO:
    def reverse(t: Step, number: Step) -> tuple[jax.Array, jax.Array]:
        mean, variance = chain.jump(x0, t)
        return model(chain, mean + jnp.sqrt(variance) * normal_like(fold_in_each(keys, number), x0), t)

    def step(_: None, drawn: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        t, number = drawn
        return None, _kl(chain, x0, *reverse(t, number), t)

    if draws is None:
        numbers = jnp.arange(2, chain.steps + 1)
        steps = jnp.broadcast_to(numbers[:, None], (len(numbers), len(x0)))
        weights = jnp.ones(steps.shape, x0.dtype)
    else:
        steps, weights = _drawn_steps(chain, keys, draws, x0.dtype)
        numbers = chain.steps + 1 + jnp.arange(draws)  # the noise of a step that is drawn twice is not the same
    _, step_nats = jax.lax.scan(step, None, (steps, numbers))
    mean, _ = chain.jump(x0, chain.steps)
    # sigma² - 1 is -alpha², which float32 keeps where alpha is small.
    alpha2 = per_row(chain.alpha[-1], x0) ** 2
    prior = 0.5 * sum_of_entries(mean**2 - alpha2 - jnp.log1p(-alpha2))
    denoising = jnp.sum(weights * step_nats, axis=0)
    reconstruction = _reconstruction(x0, *reverse(1, 1), bin_width)
    return ELBO(prior + denoising + reconstruction, prior, denoising, reconstruction, step_nats.T, steps.T, weights.T)


def _drawn_steps(chain: Chain, keys: jax.Array, draws: int, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """Steps from 2 to T for each example, two in each of draws/2 equal parts of the range of log SNR.

    Draws 2 i and 2 i + 1 come from one part.

    Returns:
        steps, weights: (draws, n).
    """
    log_snr = 2 * (jnp.log(jnp.asarray(chain.alpha, dtype)) - jnp.log(jnp.asarray(chain.sigma, dtype)))
    crossed = log_snr[0] - log_snr
    u = jax.vmap(lambda key: jax.random.uniform(key, (draws,), dtype))(fold_in_each(keys, 0))
    place = (2 * crossed[-1] / draws) * (jnp.arange(draws)[None] // 2 + u)
    index = jnp.clip(
        jnp.searchsorted(crossed, place, side="right"), 1, chain.steps - 1
    )  # entry t - 1 belongs to step t
    return (index + 1).T, (crossed[-1] / (draws * (crossed[index] - crossed[index - 1]))).T


@partial(jax.jit, static_argnums=(3, 4))
def _ancestral(
    model: ReverseChain, chain: Chain, keys: jax.Array, shape: tuple[int, ...], dtype: DTypeLike
) -> jax.Array:
    x = normal_like(fold_in_each(keys, _PRIOR), jnp.zeros((len(keys), *shape), dtype))
    keys = fold_in_each(keys, _NOISE)

    def step(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        t = chain.steps - i
        denoised, log_variance = model(chain, x, t)
        mean, _ = chain.posterior(x, denoised, t)
        noisy = mean + jnp.exp(0.5 * log_variance) * normal_like(fold_in_each(keys, i), x)
        return jnp.where(t > 1, noisy, mean), None

    return jax.lax.scan(step, x, jnp.arange(chain.steps))[0]


def _noised(chain: Chain, x0: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draw a random step for each example, stratified over the batch, and x_t there.

    Returns:
        t: (n,), the steps.
        x, eps: like x0, x_t and its noise.
    """
    x0 = points(x0)
    key_time, key_noise = jax.random.split(key)
    t = 1 + jnp.minimum(jnp.floor(chain.steps * stratified_uniform(key_time, x0.shape[0])).astype(int), chain.steps - 1)
    eps = jax.random.normal(key_noise, x0.shape, x0.dtype)
    mean, variance = chain.jump(x0, t)
    return t, mean + jnp.sqrt(variance) * eps, eps


def _kl(chain: Chain, x0: jax.Array, denoised: jax.Array, log_variance: jax.Array, t: Step) -> jax.Array:
    """The divergence KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 1, (n,).

        ½ sum [r - 1 - log r + (difference of means)²/Sigma]

    with r the ratio of q's variance to p's.
    """
    row = chain.at(t)
    log_ratio = per_row(row.log_small, x0) - log_variance
    difference = per_row(row.from_x0, x0) * (x0 - denoised)
    return 0.5 * sum_of_entries(jnp.expm1(log_ratio) - log_ratio + difference**2 * jnp.exp(-log_variance))


def _reconstruction(x0: jax.Array, mean: jax.Array, log_variance: jax.Array, bin_width: Scalar | None) -> jax.Array:
    """The reconstruction term -log p(x_0 | x_1), (n,)."""
    if bin_width is None:
        return 0.5 * sum_of_entries((x0 - mean) ** 2 * jnp.exp(-log_variance) + log_variance + math.log(2 * math.pi))
    return -sum_of_entries(_log_mass(x0, mean, jnp.exp(0.5 * log_variance), bin_width))


def _log_mass(x0: jax.Array, mean: jax.Array, std: jax.Array, bin_width: Scalar) -> jax.Array:
    """The logarithm of N(mean, std²)'s mass on the bin of each entry, like x0."""
    left, right = (x0 - 0.5 * bin_width - mean) / std, (x0 + 0.5 * bin_width - mean) / std
    # Centres lie half a bin from an end, or on it; their neighbours a bin or more.
    is_first, is_last = x0 < -1 + 0.75 * bin_width, x0 > 1 - 0.75 * bin_width
    # The mass on (left, right) is that on (-right, -left): taken in the lower tail, where log_ndtr keeps its relative
    # precision.
    mirrored = is_last | (~is_first & (left + right > 0))
    low, high = jnp.where(mirrored, -right, left), jnp.where(mirrored, -left, right)
    log_below = log_ndtr(high)
    log_ratio = jnp.where(is_first | is_last, -jnp.inf, log_ndtr(low) - log_below)
    return log_below + jnp.log(-jnp.expm1(log_ratio))


def _check_bin_width(name: str, bin_width: Scalar | None) -> None:
    if bin_width is not None and not isinstance(bin_width, jax.core.Tracer) and not bin_width > 0:
        raise ValueError(
            f"{name}: bin_width must be positive (2/256 for bytes on [-1, 1)), or None for data without bins, not "
            f"{bin_width}"
        )
