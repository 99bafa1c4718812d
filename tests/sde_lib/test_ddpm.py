"""The discrete chain as a model against closed forms: quadrature over x_t, exact recursions, constant denoisers."""

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from sde_lib import VP, CosineVP, ExactScore, GaussianMixture, IsotropicGaussian, denoiser, sample
from sde_lib.bounds import vlb
from sde_lib.chain import (
    Chain,
    chain_of,
    cosine_betas,
    denoiser_from_denoiser,
    denoiser_from_noise,
    denoiser_from_v,
    linear_betas,
)
from sde_lib.ddpm import (
    NoiseOfScore,
    ReverseChain,
    ancestral,
    elbo,
    fixed_large,
    fixed_small,
    l_simple,
    l_vlb,
    learned_range,
)
from sde_lib.pytree import register_dataclass
from sde_lib.samplers import Ancestral, Times
from sde_lib.sde import namespace
from tests.sde_lib.test_chain import composed, conditioned, each_sde, even_in_log_snr, kl

# A mixture on a line, and its posterior mean at a step from the law of (x_0, x_t) within each component.
WEIGHTS, MEANS, STDS = np.array([0.35, 0.65]), np.array([-0.8, 0.9]), np.array([0.35, 0.5])
MIXTURE = GaussianMixture(WEIGHTS, MEANS[:, None], STDS[:, None, None] ** 2)


def mixture_at(factor, variance, x):
    """p_t(x) and E[x_0 | x_t = x] of the mixture."""
    density, first_moment = 0.0, 0.0
    for weight, mean, std in zip(WEIGHTS.tolist(), MEANS.tolist(), STDS.tolist(), strict=True):
        total, offset = factor**2 * std**2 + variance, x - factor * mean
        joint = weight * namespace(x).exp(-0.5 * offset**2 / total) / (2 * np.pi * total) ** 0.5
        density += joint
        first_moment += joint * (mean + factor * std**2 / total * offset)
    return density, first_moment / density


def column_of(chain, t, x):
    """The chain's tables at steps t (n,), ready to multiply x (n, d)."""
    return jax.tree.map(lambda table: jnp.asarray(table, x.dtype)[:, None], chain.at(t))


def mixture_mean(chain, x, t):
    row = column_of(chain, t, x)
    return mixture_at(row.alpha, row.sigma**2, x)[1]


@each_sde
def test_a_score_predicts_the_mixture_s_posterior_mean_in_every_parameterisation(sde):
    with jax.enable_x64(True):
        times = even_in_log_snr(sde, sde.t_min, 9)
        chain, t = chain_of(sde, times), np.arange(1, 10)
        score_fn = ExactScore(jax.tree.map(lambda leaf: leaf.astype(float), MIXTURE), sde)
        x = jnp.linspace(-1.5, 1.5, 9)[:, None]
        factor, variance = composed(chain.betas)
        expected = np.array(
            [mixture_at(f, v, np.asarray(x_i))[1] for f, v, x_i in zip(factor[1:], variance[1:], x, strict=True)]
        )
        predict = NoiseOfScore(score_fn, times)
        denoised, said = jax.jit(lambda x, t: (ReverseChain(predict)(chain, x, t)[0], predict(x, t)))(x, jnp.asarray(t))
        np.testing.assert_allclose(denoised, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(denoised, jax.jit(denoiser)(score_fn, x, jnp.asarray(times)), rtol=1e-9, atol=1e-9)
        # v is linear in eps and x_0, so its mean is that of their means.
        v = chain.alpha[:, None] * said - chain.sigma[:, None] * expected
        np.testing.assert_allclose(
            ReverseChain(lambda x, t: v, denoiser_from_v)(chain, x, t)[0], expected, rtol=1e-5, atol=1e-5
        )


# Five levels at the centres of bins that tile [-1, 1), with unequal probabilities.
LEVELS, PROBABILITIES, WIDTH = np.array([-0.8, -0.4, 0.0, 0.4, 0.8]), np.array([0.35, 0.1, 0.25, 0.05, 0.25]), 0.4
ENTROPY = -PROBABILITIES @ np.log(PROBABILITIES)
EDGES = np.array([-np.inf, -0.6, -0.2, 0.2, 0.6, np.inf])


def level_mean(chain, x, t):
    """E[x_0 | x_t = x] of the levels, exactly: a softmax."""
    row = column_of(chain, t, x)
    levels, logits = jnp.asarray(LEVELS, x.dtype)[None], jnp.log(jnp.asarray(PROBABILITIES, x.dtype))[None]
    logits = logits - 0.5 * ((x - row.alpha * levels) / row.sigma) ** 2
    return jnp.sum(jax.nn.softmax(logits, axis=1) * levels, axis=1, keepdims=True)


def level_model(chain):
    return ReverseChain(jax.tree_util.Partial(level_mean, chain), denoiser_from_denoiser)


def level_terms(betas):
    """Mean and variance over x_t of each term of each level, (T, 5) each, and the prior term, (5,); variance
    fixed_small.
    """
    factor, variance = composed(betas)
    of_x, of_x0, posterior = conditioned(betas)
    eps = np.linspace(-8, 8, 401)
    weights = norm.pdf(eps) / norm.pdf(eps).sum()
    terms = []
    for t in range(1, len(betas) + 1):
        x = factor[t] * LEVELS[:, None] + np.sqrt(variance[t]) * eps
        log = np.log(PROBABILITIES)[:, None, None] - 0.5 * (x - factor[t] * LEVELS[:, None, None]) ** 2 / variance[t]
        ratios = np.exp(log - log.max(0))
        denoised = (ratios * LEVELS[:, None, None]).sum(0) / ratios.sum(0)
        if t == 1:
            std = np.sqrt(posterior[1])
            mass = norm.cdf((EDGES[1:, None] - denoised) / std) - norm.cdf((EDGES[:-1, None] - denoised) / std)
            nats = -np.log(np.maximum(mass, 1e-300))
        else:
            mean, model_mean = (of_x[t - 1] * x + of_x0[t - 1] * x0 for x0 in (LEVELS[:, None], denoised))
            nats = kl(mean, posterior[t - 1], model_mean, posterior[t - 1])
        terms.append((nats @ weights, (nats - (nats @ weights)[:, None]) ** 2 @ weights))
    means, variances = np.array(terms).swapaxes(0, 1)
    return means, variances, kl(factor[-1] * LEVELS, variance[-1], 0.0, 1.0)


N = 8000


def levels_drawn(counts):
    """(counts.sum(), 1) levels in random order, and which they are."""
    index = np.random.default_rng(3).permutation(np.repeat(np.arange(5), counts))
    return jnp.asarray(LEVELS[index], jnp.float32)[:, None], index


def test_each_term_of_the_elbo_is_its_quadrature_at_every_level():
    chain = Chain(cosine_betas(16))
    x0, index = levels_drawn(np.full(5, N // 5))
    result = jax.tree.map(
        lambda v: np.asarray(v, float), elbo(level_model(chain), chain, x0, jax.random.key(0), bin_width=WIDTH)
    )
    means, variances, prior = level_terms(chain.betas)
    terms = np.concatenate([result.reconstruction[:, None], result.step_nats], axis=1)
    for k in range(5):
        tolerance = 4.5 * np.sqrt(variances[:, k] / (N // 5)) + 2e-5
        np.testing.assert_array_less(np.abs(terms[index == k].mean(0) - means[:, k]), tolerance)
    np.testing.assert_allclose(result.prior, prior[index], rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(result.denoising, result.step_nats.sum(1), rtol=1e-5)
    np.testing.assert_allclose(
        result.nats, result.prior + result.denoising + result.reconstruction, rtol=1e-5, atol=1e-6
    )


def log_snr_betas(steps):
    return chain_of(VP(), even_in_log_snr(VP(), 0.01, steps)).betas


def test_the_bound_lies_above_the_entropy_and_nears_it_as_the_chain_grows():
    # Gaps in nats by quadrature; with evenly timed betas the first step also shrinks, and a chain too short for its
    # levels may do better than a longer one, as cosine's of 4 does.
    counts = np.round(N * PROBABILITIES).astype(int)
    x0, _ = levels_drawn(counts)
    for betas, expected in (
        (linear_betas, [6.66, 4.72, 0.832, 0.120]),
        (log_snr_betas, [49.7, 1.16, 0.203, 0.048]),
        (cosine_betas, [0.441, 0.765, 0.273, 0.0565]),
    ):
        for steps, gap in zip((4, 16, 64, 256), expected, strict=True):
            chain = Chain(betas(steps))
            means, variances, prior = level_terms(chain.betas)
            exact = PROBABILITIES @ (means.sum(0) + prior) - ENTROPY
            np.testing.assert_allclose(exact, gap, rtol=0.01)
            nats = elbo(level_model(chain), chain, x0, jax.random.key(1), bin_width=WIDTH).nats
            standard_error = np.sqrt(counts @ variances.sum(0)) / N
            assert abs(float(jnp.mean(nats)) - ENTROPY - exact) < 4.5 * standard_error


def test_the_bound_of_a_density_lies_above_the_cross_entropy_and_nears_it():
    # With fixed_large and steps even in log SNR; E[Var(x_0 | x_t)] makes each term one quadrature over x_t.
    sde, n = VP(), 20_000
    grid = np.linspace(-8, 8, 8001)
    density = mixture_at(1.0, 0.0, grid)[0]
    entropy = -np.trapezoid(density * np.log(np.maximum(density, 1e-300)), grid)
    x0 = MIXTURE.sample(jax.random.key(2), n)
    second = WEIGHTS @ (MEANS**2 + STDS**2)
    gaps = []
    for steps in (4, 16, 64):
        chain = chain_of(sde, even_in_log_snr(sde, sde.t_min, steps))
        factor, variance = composed(chain.betas)
        _, of_x0, posterior = conditioned(chain.betas)
        exact = WEIGHTS @ kl(0.0, variance[-1], factor[-1] * np.sqrt(MEANS**2 + STDS**2), 1.0)
        for t in range(1, steps + 1):
            p, denoised = mixture_at(factor[t], variance[t], grid)
            left = second - np.trapezoid(p * denoised**2, grid)
            beta = chain.betas[t - 1]
            if t == 1:
                exact += 0.5 * (np.log(2 * np.pi * beta) + left / beta)
            else:
                exact += kl(0.0, posterior[t - 1], of_x0[t - 1] * np.sqrt(left), beta)
        model = ReverseChain(jax.tree_util.Partial(mixture_mean, chain), denoiser_from_denoiser, fixed_large)
        # Bound and -log p fluctuate together over the data: their difference says more.
        excess = elbo(model, chain, x0, jax.random.key(3)).nats + MIXTURE.log_prob(x0)
        gaps.append(exact - entropy)
        assert abs(float(jnp.mean(excess)) - gaps[-1]) < 4.5 * float(jnp.std(excess)) / np.sqrt(n)
    np.testing.assert_allclose(gaps, [0.1139, 0.0600, 0.0174], rtol=0.01)


def test_a_longer_chain_nears_the_bound_of_the_sde_by_half_a_step_of_its_denoising():
    # The sum over steps is a Riemann sum of the integral over SNR: with steps even in log SNR, h apart, it is h/2 of
    # its value above it. The score is that of other probabilities, so that neither bound is tight, and what is left
    # between them is the chain's alone.
    sde, n = VP(t_min=0.01), 4000
    score_fn = ExactScore(GaussianMixture([0.1, 0.4, 0.1, 0.3, 0.1], LEVELS[:, None], np.zeros((5, 1, 1))), sde)
    x0, _ = levels_drawn(np.round(n * PROBABILITIES).astype(int))
    continuous = vlb(score_fn, x0, jax.random.key(20), times=32, centres=LEVELS)
    assert -float(continuous.nats.mean()) > ENTROPY + 0.5
    for steps in (64, 512):
        times = even_in_log_snr(sde, sde.t_min, steps)
        h = np.diff(sde.log_snr(times)[::-1]).mean()
        found = elbo(
            ReverseChain(NoiseOfScore(score_fn, times)),
            chain_of(sde, times),
            x0,
            jax.random.key(21),
            bin_width=WIDTH,
            draws=32,
        )
        difference = np.asarray(found.nats + continuous.nats, float)
        expected = 0.5 * h * float(continuous.diffusion.mean())
        assert abs(difference.mean() - expected) < 4 * difference.std() / np.sqrt(n) + h * expected
        assert steps > 64 or difference.mean() > 5 * difference.std() / np.sqrt(n)


def test_drawn_steps_give_the_full_sum_on_average_and_tell_their_own_variance():
    chain, draws, n = Chain(linear_betas(50)), 8, 20_000
    x0 = jnp.full((n, 1), LEVELS[3], jnp.float32)
    full, drawn = (
        elbo(level_model(chain), chain, x0, jax.random.key(15), bin_width=WIDTH, draws=k) for k in (None, draws)
    )
    means, variances, _ = level_terms(chain.betas)
    exact, found = means[1:, 3].sum(), np.asarray(drawn.denoising, float)
    assert abs(float(full.denoising.mean()) - exact) < 4.5 * np.sqrt(variances[1:, 3].sum() / n)
    assert abs(found.mean() - exact) < 4.5 * found.std() / np.sqrt(n)
    assert abs(np.asarray(drawn.draws_variance(), float).mean() / found.var() - 1) < 0.1

    # Exactly, for any KLs: the weight of a step is one over its expected number of draws, which is the log SNR that it
    # crosses in units of that for each draw; and of each of the equal parts every step is drawn as often as it has a
    # share in it.
    factor, variance = composed(chain.betas)
    crossed = np.log(factor[1] ** 2 / variance[1]) - np.log(factor[1:] ** 2 / variance[1:])
    parts = np.linspace(0, crossed[-1], draws // 2 + 1)
    expected = 2 / parts[1] * np.array([np.diff(np.clip(crossed, *ends)) for ends in pairwise(parts)])
    np.testing.assert_allclose(drawn.weights, 1 / expected.sum(0)[np.asarray(drawn.steps) - 2], rtol=1e-3)
    for i, law in enumerate(expected):
        counts = np.bincount(np.ravel(drawn.steps[:, 2 * i : 2 * i + 2]) - 2, minlength=49) / n
        np.testing.assert_allclose(counts, law, atol=5 * np.sqrt(0.5 / n))

    np.testing.assert_array_equal(drawn.prior, full.prior)
    np.testing.assert_array_equal(drawn.reconstruction, full.reconstruction)
    np.testing.assert_allclose(drawn.denoising, jnp.sum(drawn.weights * drawn.step_nats, axis=1), rtol=1e-5)
    np.testing.assert_allclose(drawn.nats, drawn.prior + drawn.denoising + drawn.reconstruction, rtol=1e-5)
    assert (full.weights == 1).all() and (full.steps == jnp.arange(2, 51)[None]).all()


@register_dataclass
@dataclass(frozen=True)
class ToldScore:
    """The exact score of data that are the point told as cond."""

    sde: VP

    def __call__(self, x, t, cond=None):
        return -(x - self.sde.alpha(t)[:, None] * cond) / self.sde.sigma(t)[:, None] ** 2


def test_the_score_is_told_its_condition():
    # A denoiser that always says cond: the KLs with fixed_small add up to half the fall of SNR times the square of its
    # error.
    sde, times = VP(), np.linspace(0.1, 1, 20)
    x0, cond = jnp.array([[0.5], [0.5], [-0.25]]), jnp.array([[0.5], [0.2], [0.0]])
    model = ReverseChain(NoiseOfScore(ToldScore(sde), times, cond))
    found = elbo(model, chain_of(sde, times), x0, jax.random.key(16)).denoising
    fall = np.exp(sde.log_snr(0.1)) - np.exp(sde.log_snr(1.0))
    np.testing.assert_allclose(found, 0.5 * fall * np.array([0.0, 0.09, 0.0625]), rtol=1e-3, atol=1e-4)


def constant_prediction(kind, betas, value, x, t):
    """What a network that always says x_0 = value predicts."""
    factor, variance = (jnp.asarray(v)[t].reshape(-1, *[1] * (x.ndim - 1)) for v in composed(betas))
    eps = (x - factor * value) / jnp.sqrt(variance)
    return {
        denoiser_from_denoiser: jnp.full_like(x, value),
        denoiser_from_noise: eps,
        denoiser_from_v: factor * eps - jnp.sqrt(variance) * value,
    }[kind]


@pytest.mark.parametrize(
    ("kind", "log_variance", "bin_width"),
    [
        (denoiser_from_denoiser, fixed_small, WIDTH),
        (denoiser_from_noise, fixed_large, WIDTH),
        (denoiser_from_v, learned_range, WIDTH),
        (denoiser_from_noise, learned_range, None),
    ],
)
def test_with_a_constant_denoiser_no_term_is_random(kind, log_variance, bin_width):
    # The KLs do not depend on x_t then: each of the terms of images is a closed form.
    with jax.enable_x64(True):
        betas, value = cosine_betas(6), 0.3
        fractions = np.linspace(0.1, 0.9, 6)

        def predict(x, t):
            prediction = constant_prediction(kind, betas, value, x, t)
            fraction = jnp.broadcast_to(jnp.asarray(fractions)[t - 1].reshape(-1, 1, 1), x.shape)
            return (prediction, fraction) if log_variance is learned_range else prediction

        level = np.random.default_rng(4).integers(0, 5, (7, 2, 3))
        x0 = LEVELS[level]
        model = ReverseChain(predict, kind, log_variance)
        found = elbo(model, Chain(betas), jnp.asarray(x0), jax.random.key(0), bin_width=bin_width)
        factor, variance = composed(betas)
        _, of_x0, posterior = conditioned(betas)
        posterior[0] = posterior[1]
        used = {
            fixed_small: posterior,
            fixed_large: betas,
            learned_range: betas**fractions * posterior ** (1 - fractions),
        }[log_variance]
        steps = [kl(of_x0[i] * x0, posterior[i], of_x0[i] * value, used[i]).sum((1, 2)) for i in range(1, 6)]
        np.testing.assert_allclose(found.step_nats, np.transpose(steps), rtol=1e-8)
        np.testing.assert_allclose(found.prior, kl(factor[-1] * x0, variance[-1], 0.0, 1.0).sum((1, 2)), rtol=1e-8)
        std = np.sqrt(used[0])
        mass = norm.cdf(EDGES[level + 1], value, std) - norm.cdf(EDGES[level], value, std)
        nats = -norm.logpdf(x0, value, std) if bin_width is None else -np.log(mass)
        np.testing.assert_allclose(found.reconstruction, nats.sum((1, 2)), rtol=1e-7)
        np.testing.assert_allclose(found.nats, found.prior + np.sum(steps, axis=0) + nats.sum((1, 2)), rtol=1e-7)


@jax.jit
def nats_of_levels(x0, mean, bin_width):
    """-log of N(mean, 0.1²)'s mass on each bin: a chain of one step, whose x_1 a constant denoiser ignores."""
    model = ReverseChain(lambda x, t: jnp.full_like(x, mean), denoiser_from_denoiser)
    return elbo(model, Chain([0.01]), x0, jax.random.key(0), bin_width=bin_width).reconstruction


@pytest.mark.parametrize("first", [-1 + 1 / 256, -1.0], ids=["centres of [-1, 1)", "both ends"])
def test_the_bins_share_out_all_probability_and_keep_their_tails(first):
    # In float32, up to sixty standard deviations out.
    levels, std = np.linspace(first, -first, 256), 0.1
    width = levels[1] - levels[0]
    x0 = jnp.asarray(levels, jnp.float32)[:, None]
    nodes, weights = np.polynomial.legendre.leggauss(40)
    gradient = jax.jit(jax.grad(lambda mean: jnp.sum(nats_of_levels(x0, mean, width))))
    for mean in (-1.2, -0.93, 0.0, 0.31, 1.0, 5.0):
        found = np.asarray(nats_of_levels(x0, mean, width), float)
        np.testing.assert_allclose(np.exp(-found).sum(), 1, rtol=2e-5)
        z = (levels[1:-1, None] + 0.5 * width * nodes - mean) / std
        log = -0.5 * z**2 - 0.5 * np.log(2 * np.pi) + np.log(0.5 * width / std * weights)
        np.testing.assert_allclose(found[1:-1], -np.logaddexp.reduce(log, axis=1), rtol=3e-5, atol=3e-5)
        ends = [norm.logcdf(levels[0] + width / 2, mean, std), norm.logsf(levels[-1] - width / 2, mean, std)]
        np.testing.assert_allclose(found[[0, -1]], -np.array(ends), rtol=3e-5, atol=1e-6)
        assert np.isfinite(gradient(mean))


def affine_mean(chain, mean, variance, x, t):
    """E[x_0 | x_t = x] of data N(mean, variance) in each entry."""
    row = column_of(chain, t, x)
    return (row.alpha * variance * x + row.sigma**2 * mean) / (row.alpha**2 * variance + row.sigma**2)


@pytest.mark.parametrize("log_variance", [fixed_small, fixed_large])
def test_ancestral_sampling_draws_the_law_of_the_exact_recursion(log_variance):
    mean, variance, n = np.array([0.6, -0.4]), np.array([0.1, 0.8]), 20_000
    chain = Chain(cosine_betas(8))
    predict = jax.tree_util.Partial(affine_mean, chain, jnp.float32(mean)[None], jnp.float32(variance)[None])
    drawn = ancestral(ReverseChain(predict, denoiser_from_denoiser, log_variance), chain, jax.random.key(5), n, (2,))
    assert drawn.nfe == 8
    factor, spread = composed(chain.betas)
    of_x, of_x0, posterior = conditioned(chain.betas)
    added = posterior if log_variance is fixed_small else np.append(0.0, chain.betas[1:])  # the last step adds none
    centre, law = np.zeros(2), np.ones(2)
    for t in range(8, 0, -1):
        slope = factor[t] * variance / (factor[t] ** 2 * variance + spread[t])
        offset = mean * (1 - slope * factor[t])
        gain = of_x[t - 1] + of_x0[t - 1] * slope
        centre, law = gain * centre + of_x0[t - 1] * offset, gain**2 * law + added[t - 1]
    x = np.asarray(drawn.x, float)
    np.testing.assert_allclose((x.mean(0) - centre) / np.sqrt(law), 0, atol=5 / np.sqrt(n))
    np.testing.assert_allclose(x.var(0) / law, 1, atol=5 * np.sqrt(2 / n))
    assert np.abs(law / variance - 1).max() > 0.1  # far from the data's own, so that the agreement is with the chain


def test_it_draws_what_the_ancestral_sampler_draws():
    sde = CosineVP()
    times = np.linspace(sde.t_max, sde.t_min, 11)
    score_fn, key = ExactScore(MIXTURE, sde), jax.random.key(6)
    sampler = Ancestral(steps=10, grid=Times(tuple(times)), denoise=True)
    expected = sample(sampler, score_fn, key, 64, (1,), prior=IsotropicGaussian((1,), 1.0)).x
    found = ancestral(ReverseChain(NoiseOfScore(score_fn, times[::-1])), chain_of(sde, times[::-1]), key, 64, (1,)).x
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


TRACED = []


def scaled(weight, x, t):
    TRACED.append(1)
    return weight * x


def test_a_row_s_randomness_is_its_own():
    chain, key, x0 = (
        Chain(cosine_betas(9)),
        jax.random.key(7),
        jnp.asarray([[0.1, 0.2], [0.4, 0.3], [-0.2, 0.6], [-0.2, 0.6]]),
    )
    model = ReverseChain(jax.tree_util.Partial(scaled, jnp.float32(0.5)))
    here, shifted = (elbo(model, chain, x0[i : i + 3], key, bin_width=WIDTH, first=i) for i in (0, 1))
    np.testing.assert_allclose(here.step_nats[1:], shifted.step_nats[:2], rtol=1e-5)
    np.testing.assert_allclose(here.nats[1:], shifted.nats[:2], rtol=1e-5)
    assert (np.abs(shifted.step_nats[1] / shifted.step_nats[2] - 1) > 1e-3).all()  # of equal rows
    assert len(np.unique(np.round(here.step_nats, 6))) == 3 * 8  # other noise at every step
    here, shifted = (ancestral(model, chain, key, 3, (2,), first=i).x for i in (0, 1))
    np.testing.assert_allclose(here[1:], shifted[:2], rtol=1e-5)


def test_learned_range_runs_from_the_posterior_s_variance_to_beta():
    with jax.enable_x64(True):
        betas, t = linear_betas(50), np.arange(2, 51)
        posterior, fractions = conditioned(betas)[2][1:, None], jnp.array([0.0, 1.0, 0.5, 0.25])
        x = jnp.zeros((49, 4))
        model = ReverseChain(lambda x, t: (x, x + fractions[None]), log_variance=learned_range)
        reverse = jax.jit(lambda chain, x, t: model(chain, x, t))
        _, found = reverse(Chain(betas), x, t)
        beta = betas[1:, None]
        expected = np.hstack([posterior, beta, np.sqrt(beta * posterior), (beta * posterior**3) ** 0.25])
        np.testing.assert_allclose(np.exp(found), expected, rtol=1e-9)
        # At t = 1 the lower end is the posterior's at t = 2, and beta itself in a chain of one step.
        for table, low in ((betas, posterior[0, 0]), (betas[:1], betas[0])):
            np.testing.assert_allclose(np.exp(reverse(Chain(table), x[:1], 1)[1][0, 0]), low, rtol=1e-9)


ZERO = ReverseChain(lambda x, t: jnp.zeros_like(x))


@pytest.mark.parametrize("kind", [denoiser_from_noise, denoiser_from_v])
def test_l_simple_is_the_noise_s_error(kind):
    # Data N(0, 0.5²) and the exact network of N(0, 0.8²); then a network that says no noise, whose error is 1 in each
    # entry.
    n, data_std, model_std = 100_000, 0.5, 0.8
    chain = Chain(linear_betas(40))
    factor, variance = (v[1:] for v in composed(chain.betas))
    gain = np.sqrt(variance) / (factor**2 * model_std**2 + variance)  # E[eps | x] = gain x
    slope = {denoiser_from_noise: gain, denoiser_from_v: (gain - np.sqrt(variance)) / factor}[kind]
    model = ReverseChain(lambda x, t: jnp.asarray(slope, x.dtype)[t - 1][:, None] * x, kind)
    x0 = data_std * jax.random.normal(jax.random.key(8), (n, 2))
    loss = jax.jit(l_simple)(model, chain, x0, jax.random.key(9))
    expected = np.mean((1 - gain * np.sqrt(variance)) ** 2 + (gain * factor * data_std) ** 2)
    assert abs(float(jnp.mean(loss)) - expected) < 4.5 * float(jnp.std(loss)) / np.sqrt(n)
    none = jax.jit(l_simple)(ZERO, chain, x0, jax.random.key(9))
    assert abs(float(jnp.mean(none)) - 1) < 4.5 / np.sqrt(n)  # the mean of two squares of normals has variance 1


def test_l_vlb_is_the_bound_less_its_prior_term_on_average():
    chain, n = Chain(cosine_betas(6)), 100_000
    x0, index = levels_drawn(np.full(5, n // 5))
    nats = np.asarray(jax.jit(l_vlb)(level_model(chain), chain, x0, jax.random.key(10), bin_width=WIDTH), float)
    means, _, _ = level_terms(chain.betas)
    for k, expected in enumerate(means.sum(0)):
        of_level = nats[index == k]
        assert abs(of_level.mean() - expected) < 4.5 * of_level.std() / np.sqrt(len(of_level))


def test_stopping_the_mean_leaves_the_variance_s_gradient_alone():
    chain, key = Chain(linear_betas(30)), jax.random.key(11)
    x0 = 0.5 * jax.random.normal(jax.random.key(12), (64, 3))

    def loss(weights, stop_mean):
        model = ReverseChain(lambda x, t: (weights[0] * x, jnp.full_like(x, weights[1])), log_variance=learned_range)
        return jnp.mean(l_vlb(model, chain, x0, key, stop_mean=stop_mean))

    both = jax.jit(lambda weights: [jax.value_and_grad(loss)(weights, stop) for stop in (False, True)])
    (value, free), (stopped_value, stopped) = both(jnp.array([0.9, 0.4]))
    np.testing.assert_allclose(stopped_value, value, rtol=1e-6)
    assert stopped[0] == 0 != free[0]
    np.testing.assert_allclose(stopped[1], free[1], rtol=1e-5)
    assert abs(free[1]) > 1e-3


def test_both_losses_see_every_step_once_in_a_batch_as_long_as_the_chain():
    chain = Chain(cosine_betas(16))

    @jax.jit
    def seen():
        calls = []
        for loss in (l_simple, l_vlb):
            loss(ReverseChain(lambda x, t: calls.append((t, x)) or x), chain, jnp.ones((16, 2)), jax.random.key(13))
        return calls

    (t, x), (t_vlb, x_vlb) = seen()
    assert sorted(t.tolist()) == list(range(1, 17))
    np.testing.assert_array_equal(t, t_vlb)
    np.testing.assert_array_equal(x, x_vlb)
    noise = (np.asarray(x) - chain.alpha[t - 1, None]) / chain.sigma[t - 1, None]
    assert len(np.unique(np.round(noise, 4))) == noise.size  # each entry's own


def test_other_weights_and_other_betas_do_not_recompile():
    traced = []
    for weight, betas in ((0.5, cosine_betas(9)), (0.7, linear_betas(9))):
        model, chain = ReverseChain(jax.tree_util.Partial(scaled, jnp.float32(weight))), Chain(betas)
        elbo(model, chain, jnp.ones((3, 2)), jax.random.key(0), bin_width=weight)
        ancestral(model, chain, jax.random.key(0), 3, (2,))
        traced.append(len(TRACED))
    assert traced[0] == traced[1] > 0


CHAIN = Chain([0.1, 0.2])


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda: elbo(ZERO, CHAIN, jnp.zeros((1, 1)), jax.random.key(0), bin_width=0.0),
            "elbo: bin_width must be positive",
        ),
        (
            lambda: elbo(ZERO, CHAIN, jnp.zeros((1, 1)), jax.random.key(0), draws=3),
            "draws must be even and at least 2.*not 3 of 2",
        ),
        (lambda: elbo(ZERO, CHAIN, jnp.zeros((1, 1)), jax.random.key(0), draws=0), "draws must be even"),
        (
            lambda: elbo(ZERO, Chain([0.1]), jnp.zeros((1, 1)), jax.random.key(0), draws=2),
            "at least 2 steps, not 2 of 1",
        ),
        (
            lambda: l_vlb(ZERO, CHAIN, jnp.zeros((1, 1)), jax.random.key(0), bin_width=-1.0),
            "l_vlb: bin_width must be positive",
        ),
        (lambda: ancestral(ZERO, CHAIN, jax.random.key(0), 0, (1,)), "n must be at least 1, not 0"),
        (lambda: ReverseChain(lambda x, t: x, log_variance=learned_range)(CHAIN, jnp.zeros((1, 1)), 1), "pair"),
    ],
)
def test_bad_input_is_told_in_a_line(act, message):
    with pytest.raises(ValueError, match=message) as error:
        act()
    assert "\n" not in str(error.value)
