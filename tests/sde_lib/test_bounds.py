"""Levels and bounds: dequantisation is an importance sampler, and the variational bound is tight with the exact
score.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from sde_lib import (
    VE,
    VP,
    ExactScore,
    GaussianMixture,
    NetworkScore,
    RawEpsilonPrediction,
    RectifiedFlow,
    bits_per_dim,
    log_prob,
)
from sde_lib.bounds import clean_offset, vlb
from sde_lib.dequantization import TruncatedNormalDequantization, UniformDequantization, importance_weighted
from tests.oracles import ALL_SDE_IDS, ALL_SDES, ToldScore, random_mixture

WEIGHTS, CENTRES, WIDTH = np.array([0.1, 0.4, 0.2, 0.05, 0.25]), 2 * (np.arange(5) + 0.5) / 5 - 1, 0.4
ENTROPY = -np.sum(WEIGHTS * np.log(WEIGHTS))
LEVELS = GaussianMixture(WEIGHTS, CENTRES[:, None], np.zeros((5, 1, 1)))  # five atoms: E[x_0 | x_t] is a softmax
DEQUANTIZATIONS = [UniformDequantization, TruncatedNormalDequantization]


def examples(n):
    """(their levels, their centres (n, 1))."""
    k = np.random.default_rng(0).choice(5, n, p=WEIGHTS)
    return k, jnp.asarray(CENTRES[k][:, None], jnp.float32)


@pytest.mark.parametrize("sigma", [0.1, 0.5], ids=["narrow", "wide"])
@pytest.mark.parametrize("dequantization", DEQUANTIZATIONS)
def test_the_importance_weights_add_up_to_the_bin_s_probability(dequantization, sigma):
    # E_q p(z)/q(z) is the integral of p over the bin, here of a normal density in three dimensions.
    sde, n = VP(t_min=0.05), 100_000
    x = jnp.tile(jnp.array([[-0.2, 0.2, 0.6]]), (n, 1))
    z, log_q = dequantization(WIDTH)(sde, jax.random.split(jax.random.key(0), n), x)
    ratios = np.exp(norm.logpdf(np.asarray(z, float), 0.1, sigma).sum(1) - np.asarray(log_q, float))
    alpha = sde.alpha(0.05) if dequantization is TruncatedNormalDequantization else 1.0  # the bins tile the space of z
    edges = alpha * np.array([[c - WIDTH / 2, c + WIDTH / 2] for c in (-0.2, 0.2, 0.6)])
    assert (np.asarray(z) >= edges[:, 0] - 1e-5).all() and (np.asarray(z) <= edges[:, 1] + 1e-5).all()
    exact = np.prod(np.diff(norm.cdf(edges, 0.1, sigma), axis=1))
    assert abs(ratios.mean() - exact) < 4 * ratios.std() / np.sqrt(n) + 1e-5 * exact


def test_truncated_normals_leave_the_law_of_training_as_it_is():
    # With many standard deviations to the bin's edge z is alpha x + sigma e of training itself.
    sde, n = VP(t_min=1e-3), 100_000
    z, _ = TruncatedNormalDequantization(WIDTH)(sde, jax.random.split(jax.random.key(0), n), jnp.full((n, 1), 0.2))
    assert abs(float(z.mean()) - sde.alpha(1e-3) * 0.2) < 4 * sde.sigma(1e-3) / np.sqrt(n)
    assert float(z.std()) == pytest.approx(sde.sigma(1e-3), rel=0.01)


@pytest.mark.parametrize("word, least", [(780_233, True), (20_192_286, False)])
def test_the_ends_of_a_truncated_normal_lie_inside_its_bin(word, least):
    # One draw in 2^23 is such an end. The keys of both were found by search.
    keys = jax.random.wrap_key_data(jnp.array([[0, word]], jnp.uint32))
    end = float(jax.random.uniform(keys[0], (1,))[0])
    assert end == (0 if least else 1 - 2.0**-23)
    for sde in ALL_SDES:
        sde = replace(sde, t_min=float(sde.time_of_log_snr(6.0)))  # wide enough for the ends to be met
        for levels in (2, 17, 256):
            x = (2 * np.arange(levels, dtype=np.float32)[:, None] + 1) / levels - 1
            z, log_q = TruncatedNormalDequantization(2 / levels)(sde, jnp.repeat(keys, levels), jnp.asarray(x))
            beyond = (np.asarray(z, float) - sde.alpha(sde.t_min) * x) / (sde.alpha(sde.t_min) / levels)
            assert (np.abs(beyond) < 1).all() and (np.sign(beyond) == (-1 if least else 1)).all()
            assert np.isfinite(log_q).all() and (levels == 2 or np.abs(beyond).min() > 0.99)


def test_more_draws_make_the_bound_tighter_and_never_cross_the_exact_value():
    k, x = examples(4000)
    sde, draws = VP(t_min=0.05), 16
    density = LEVELS.at(sde, sde.t_min)
    exact = -np.log(WEIGHTS[k])
    for dequantization in DEQUANTIZATIONS:
        keys = jax.random.split(jax.random.key(1), len(x) * draws)
        z, log_q = dequantization(WIDTH)(sde, keys, jnp.repeat(x, draws, axis=0))
        ratios = np.asarray(density.log_prob(z) - log_q, float).reshape(-1, draws)
        bounds = [-np.asarray(importance_weighted(ratios[:, :count])) - exact for count in (1, 4, 16)]
        error = np.std(bounds[0]) / np.sqrt(len(x))
        assert bounds[0].mean() > bounds[1].mean() > bounds[2].mean() > -4 * error
    # Of these atoms the truncated normal knows the shape, and the uniform law does not.
    assert bounds[0].mean() < 0.2


def test_importance_weighting_is_the_log_of_the_mean():
    ratios = np.log([[0.2, 0.4, 0.6], [1.0, 2.0, 6.0]])
    np.testing.assert_allclose(importance_weighted(ratios), np.log([0.4, 3.0]), rtol=1e-6)


class UniformScore:
    """The exact score of data uniform on [-1, 1] in each entry: p_t(x) = [Phi((x + alpha)/sigma) - Phi((x -
    alpha)/sigma)]/2 alpha.
    """

    sde = VP(t_min=1e-5)

    def __call__(self, x, t, cond=None):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        above, below = (x + alpha) / sigma, (x - alpha) / sigma
        log_mass = jax.scipy.special.log_ndtr(above) + jnp.log1p(
            -jnp.exp(jax.scipy.special.log_ndtr(below) - jax.scipy.special.log_ndtr(above))
        )
        density = lambda z: jax.scipy.stats.norm.logpdf(z)  # noqa: E731
        return (jnp.exp(density(above) - log_mass) - jnp.exp(density(below) - log_mass)) / sigma


jax.tree_util.register_pytree_node(UniformScore, lambda s: ((), None), lambda *_: UniformScore())


@pytest.mark.parametrize("levels", [2, 17])
def test_data_uniform_over_the_levels_cost_the_log_of_their_number(levels):
    k = np.random.default_rng(levels).integers(levels, size=(64, 4))
    x = jnp.asarray(2 * (k + 0.5) / levels - 1, jnp.float32)
    z, log_q = UniformDequantization(2 / levels)(UniformScore.sde, jax.random.split(jax.random.key(0), 64), x)
    result = log_prob(UniformScore(), z, rtol=1e-4, atol=1e-4)
    bits = bits_per_dim(np.asarray(result.nats - log_q), 4, 1.0)
    assert abs(bits.mean() - np.log2(levels)) < 0.01


@pytest.mark.parametrize("sde", ALL_SDES, ids=ALL_SDE_IDS)
def test_with_the_exact_score_the_bound_is_the_log_density(sde):
    data, n = random_mixture(3, 2), 2000
    x = data.sample(jax.random.key(0), n)
    bound = vlb(ExactScore(data, sde), x, jax.random.key(1), times=32)
    z = sde.alpha(sde.t_min) * x + sde.sigma(sde.t_min) * jax.random.normal(jax.random.key(2), x.shape)
    difference = bound.nats - data.at(sde, sde.t_min).log_prob(z)
    error = float(difference.std()) / np.sqrt(n)
    assert error < 0.15 and abs(float(difference.mean())) < 4 * error
    # A wrong score loses what the bound says: half the integral of its squared error on the noise.
    wrong = vlb(ExactScore(random_mixture(4, 2), sde), x, jax.random.key(1), times=32)
    assert float((bound.nats - wrong.nats).mean()) > 0.1
    np.testing.assert_allclose(-bound.nats, bound.prior + bound.reconstruction + bound.diffusion, rtol=1e-5)
    span = sde.log_snr(sde.t_min) - sde.log_snr(sde.t_max)
    np.testing.assert_allclose(bound.diffusion, span * bound.per_time.mean(1), rtol=1e-4)
    assert float(np.ptp(bound.log_snr)) == pytest.approx(span, rel=0.01)


@pytest.mark.parametrize("sde", [VP(), VE(), VP(t_min=0.02)], ids=["VP", "VE", "VP from 0.02"])
def test_with_the_exact_score_the_bound_of_levels_is_their_entropy(sde):
    k, x = examples(8000)
    bound = vlb(ExactScore(LEVELS, sde), x, jax.random.key(1), times=32, centres=CENTRES)
    difference = np.asarray(-bound.nats, float) + np.log(WEIGHTS[k])
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(k))
    assert abs(-np.log(WEIGHTS[k]).mean() - ENTROPY) < 0.05


@pytest.mark.parametrize(
    "sde", [VP(t_min=0.2), RectifiedFlow(t_min=0.3), VE(t_min=0.6)], ids=["VP", "RectifiedFlow", "VE"]
)
def test_the_clean_data_s_bound_is_importance_sampling_of_the_model_with_its_decoder(sde):
    # p(x) = ∫ p(z) N(x; E[x | z], (sigma/alpha)²) dz by quadrature; the mean of exp(log p(z) + offset) over draws is
    # that, its log no more.
    data = GaussianMixture([0.3, 0.7], [[-1.0], [0.6]], [[[0.09]], [[0.2]]])
    score_fn, density = ExactScore(data, sde), data.at(sde, sde.t_min)
    alpha, sigma = (float(f(sde.t_min)) for f in (sde.alpha, sde.sigma))
    z = jnp.linspace(-6 * alpha - 6 * sigma, 6 * alpha + 6 * sigma, 20_001)[:, None]
    decoded = np.asarray(z + sigma**2 * score_fn(z, sde.t_min), float)[:, 0] / alpha
    p_z, step = np.exp(np.asarray(density.log_prob(z), float)), float(z[1, 0] - z[0, 0])
    for x in (-1.3, 0.2, 0.9):
        exact = np.sum(p_z * norm.pdf(x, decoded, sigma / alpha)) * step
        drawn, offset = clean_offset(score_fn, jnp.full((100_000, 1), x), jax.random.key(0))
        ratios = np.asarray(density.log_prob(drawn) + offset, float)
        weights = np.exp(ratios) / exact
        assert abs(weights.mean() - 1) < 4 * weights.std() / 100_000**0.5 < 0.05
        assert ratios.mean() < np.log(exact)


def test_the_prior_s_term_is_the_kl_of_what_is_left_of_x():
    sde, x = VP(beta_max=3.0), 0.6
    found = vlb(ExactScore(LEVELS, sde), jnp.full((1, 1), x), jax.random.key(1), times=1).prior
    alpha, sigma = sde.alpha(1.0), sde.sigma(1.0)
    z, step = np.linspace(-12, 12, 20_001, retstep=True)
    kl = np.sum(norm.pdf(z, alpha * x, sigma) * (norm.logpdf(z, alpha * x, sigma) - norm.logpdf(z, 0, sigma))) * step
    assert kl > 0.01 and float(found[0]) == pytest.approx(kl, rel=1e-4)


def test_the_reconstruction_is_its_quadrature():
    sde, level, n = VP(t_min=0.05), 1, 40_000
    x = jnp.full((n, 1), CENTRES[level], jnp.float32)
    found = vlb(ExactScore(LEVELS, sde), x, jax.random.key(1), times=1, centres=CENTRES).reconstruction
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    alpha, sigma = sde.alpha(0.05), sde.sigma(0.05)
    z = alpha * CENTRES[level] + sigma * nodes
    logits = norm.logpdf(z[:, None], alpha * CENTRES, sigma)
    exact = (np.logaddexp.reduce(logits, axis=1) - logits[:, level]) @ weights / weights.sum()
    assert exact > 0.02 and abs(float(found.mean()) - exact) < 4 * float(found.std()) / np.sqrt(n)


def test_noise_levels_and_noise_are_independent():
    # A score that is 0 leaves the noise itself: ½ eps² is of mean ½ wherever in its part of the range a level lies.
    sde, n = VP(), 4000
    score_fn = NetworkScore(lambda params, x, *_: 0 * x, {}, sde, RawEpsilonPrediction())
    bound = vlb(score_fn, jnp.zeros((n, 1)), jax.random.key(0), times=3)
    high, low = sde.log_snr(sde.t_min), sde.log_snr(sde.t_max)
    place = (high - np.asarray(bound.log_snr, float)) / (high - low) * 3 - np.arange(3)
    per_time = np.asarray(bound.per_time, float)
    assert place.min() > -1e-3 and place.max() < 1 + 1e-3
    np.testing.assert_allclose(per_time.mean(0), 0.5, atol=5 * np.sqrt(0.5 / n))
    for j in range(3):
        for of_place in (place[:, j], np.abs(place[:, j] - 0.5)):
            assert abs(np.corrcoef(of_place, per_time[:, j])[0, 1]) < 5 / np.sqrt(n)
            assert abs(np.corrcoef(per_time[:, j], per_time[:, j - 1])[0, 1]) < 5 / np.sqrt(n)


def test_the_score_is_told_its_condition():
    # The exact score of data that are the point told makes no error: nothing is left of the diffusion's term.
    x = jnp.array([[3.0, 0.0], [-1.0, 2.0], [0.5, 0.5]])
    score_fn = ToldScore(VP(), 0.0)
    np.testing.assert_allclose(vlb(score_fn, x, jax.random.key(0), times=4, cond=x).diffusion, 0, atol=1e-5)
    z, offset = clean_offset(score_fn, x, jax.random.key(0), cond=x)
    alpha, sigma = score_fn.sde.alpha(1e-3), score_fn.sde.sigma(1e-3)
    noise = (z - alpha * x) / sigma
    np.testing.assert_allclose(offset, 2 * np.log(alpha) + 0.5 * jnp.sum(noise**2, axis=1), rtol=1e-3, atol=1e-3)


def test_a_row_of_the_bound_does_not_depend_on_its_batch():
    _, x = examples(40)
    whole = vlb(ExactScore(LEVELS, VP()), x, jax.random.key(0), times=4, centres=CENTRES)
    part = vlb(ExactScore(LEVELS, VP()), x[30:], jax.random.key(0), times=4, centres=CENTRES, first=30)
    np.testing.assert_allclose(part.nats, whole.nats[30:], rtol=1e-4)
    other = vlb(ExactScore(LEVELS, VP()), x[30:], jax.random.key(0), times=4, centres=CENTRES)
    assert np.abs(other.nats - part.nats).max() > 1e-2
