import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import (
    VP,
    DenoiserPrediction,
    EDMPreconditioning,
    EpsilonPrediction,
    ExactScore,
    GaussianMixture,
    GaussianPreconditioning,
    NetworkScore,
    RawEpsilonPrediction,
    RectifiedFlow,
    VelocityPrediction,
    VPrediction,
    denoiser,
)
from sde_lib.conversions import (
    denoiser_from_score,
    noise_from_score,
    score_from_denoiser,
    score_from_noise,
    score_from_velocity,
    velocity_from_score,
)
from tests.oracles import ALL_SDE_IDS, ALL_SDES, SDE_IDS, SDES, normal, random_mixture


def posterior_by_quadrature(sde, t, weights, means, stds, x):
    """E[x_0 | x_t = x] of a mixture on the line by brute-force integration."""
    x0 = np.linspace(-8, 8, 40_001)
    prior = sum(w * np.exp(-0.5 * ((x0 - m) / s) ** 2) / s for w, m, s in zip(weights, means, stds, strict=True))
    joint = prior * np.exp(-0.5 * ((x - sde.alpha(t) * x0) / sde.sigma(t)) ** 2)
    return (joint * x0).sum() / joint.sum()


@pytest.mark.parametrize("t", [0.1, 0.4])
@pytest.mark.parametrize("sde", SDES, ids=SDE_IDS)
def test_the_denoiser_is_the_posterior_mean(sde, t):
    from sde_lib import GaussianMixture

    weights, means, stds = [0.3, 0.7], [-1.0, 1.5], [0.4, 0.2]
    data = GaussianMixture(weights, np.array(means)[:, None], np.array(stds)[:, None, None] ** 2)
    points = [-1.2, 0.1, 0.9]
    got = denoiser(ExactScore(data, sde), jnp.array(points)[:, None], t)[:, 0]
    expected = [posterior_by_quadrature(sde, t, weights, means, stds, x) for x in points]
    np.testing.assert_allclose(got, expected, atol=2e-4)


@pytest.mark.parametrize("sde", SDES, ids=SDE_IDS)
def test_a_time_for_each_sample_gives_what_one_time_gives(sde):
    score_fn = ExactScore(random_mixture(0, 3), sde)
    x, t = jax.random.normal(jax.random.key(0), (4, 3)), jnp.array([0.1, 0.3, 0.6, 1.0])
    each = jnp.concatenate([score_fn(x[i : i + 1], t[i]) for i in range(4)])
    np.testing.assert_allclose(score_fn(x, t), each, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sde", ALL_SDES, ids=ALL_SDE_IDS)
def test_conversions_agree_with_the_denoiser_and_the_noise(sde):
    # By definition of the velocity, v = alpha' x0 + sigma' eps, with x = alpha x0 + sigma eps.
    t = 0.35
    x0, noise = jax.random.normal(jax.random.key(0), (2, 5, 3))
    x = sde.alpha(t) * x0 + sde.sigma(t) * noise
    score = score_from_noise(sde, noise, t)
    velocity = sde.alpha_and_derivative(t)[1] * x0 + sde.sigma_and_derivative(t)[1] * noise
    scale = float(jnp.abs(velocity).max())
    np.testing.assert_allclose(denoiser_from_score(sde, score, x, t), x0, atol=1e-4)
    np.testing.assert_allclose(velocity_from_score(sde, score, x, t), velocity, atol=1e-4 * scale)
    np.testing.assert_allclose(score_from_velocity(sde, velocity, x, t), score, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(score_from_denoiser(sde, x0, x, t), score, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(noise_from_score(sde, score, t), noise, rtol=1e-5)


def ideal_network(sde, parameterization, std):
    """What a network must put out for the score of N(0, std² I): linear in its input, found from the definition of each
    target.
    """

    def apply(params, x, c_noise, cond, key):
        t = sde.time_of_log_snr(-8 * c_noise)[:, None]
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        variance = alpha**2 * std**2 + sigma**2
        x = x / params  # undoes c_in, which is handed in
        if isinstance(parameterization, EpsilonPrediction):
            return sigma * x / variance
        denoised = alpha * std**2 * x / variance
        if isinstance(parameterization, DenoiserPrediction):
            return denoised
        noise = sigma * x / variance
        if isinstance(parameterization, VPrediction):
            return (alpha * noise - sigma * denoised) / jnp.sqrt(alpha**2 + sigma**2)
        if isinstance(parameterization, VelocityPrediction):
            return noise - denoised
        v = alpha**2 * parameterization.sigma_data**2 + sigma**2
        c_skip = alpha * parameterization.sigma_data**2 / v
        return (denoised - c_skip * x) / (sigma * parameterization.sigma_data / jnp.sqrt(v))

    return apply


@pytest.mark.parametrize(
    "parameterization",
    [
        EpsilonPrediction(),
        DenoiserPrediction(),
        EDMPreconditioning(0.8),
        GaussianPreconditioning(),
        VPrediction(),
        VelocityPrediction(),
    ],
    ids=str,
)
@pytest.mark.parametrize("sde", ALL_SDES, ids=ALL_SDE_IDS)
def test_each_parameterization_turns_its_ideal_network_into_the_exact_score(sde, parameterization):
    std = 0.5
    t = jnp.array([0.05, 0.4, 0.9])
    x = jax.random.normal(jax.random.key(1), (3, 2))
    c_in = parameterization.c_in(sde.alpha(t), sde.sigma(t))[:, None]
    score_fn = NetworkScore(ideal_network(sde, parameterization, std), c_in, sde, parameterization)
    exact = ExactScore(normal(std), sde)(x, t)
    np.testing.assert_allclose(score_fn(x, t), exact, rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize("sde", SDES, ids=SDE_IDS)
def test_the_network_s_input_has_unit_variance(sde):
    t = jnp.array([0.01, 0.3, 1.0])
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    for p, data_std in (
        (EpsilonPrediction(), 1.0),
        (DenoiserPrediction(), 1.0),
        (VPrediction(), 1.0),
        (EDMPreconditioning(0.3), 0.3),
    ):
        np.testing.assert_allclose(p.c_in(alpha, sigma) ** 2 * ((alpha * data_std) ** 2 + sigma**2), 1.0, rtol=1e-5)


def test_the_network_is_told_its_condition_and_its_key():
    def told(params, x, c_noise, cond, key):
        return x + cond + jax.random.normal(key, x.shape)

    x, cond, key = jnp.ones((4, 2)), jnp.arange(8.0).reshape(4, 2), jax.random.key(3)
    score_fn = NetworkScore(told, {}, VP(), RawEpsilonPrediction())
    expected = -(x + cond + jax.random.normal(key, x.shape)) / VP().sigma(0.5)
    np.testing.assert_allclose(score_fn(x, 0.5, cond, key=key), expected, rtol=1e-5)


def zeros(params, x, c_noise, cond, key):
    return jnp.zeros_like(x)


@pytest.mark.parametrize("sde", SDES, ids=SDE_IDS)
def test_edm_with_a_zero_network_is_the_exact_gaussian_score(sde):
    x, t = jax.random.normal(jax.random.key(0), (6, 2)), jnp.linspace(sde.t_min, 1.0, 6)
    got = NetworkScore(zeros, {}, sde, EDMPreconditioning(0.5))(x, t)
    np.testing.assert_allclose(got, ExactScore(normal(0.5), sde)(x, t), rtol=1e-4)


@pytest.mark.parametrize("t", [None, 0.01, 0.4, 1.0])
@pytest.mark.parametrize("sde", ALL_SDES, ids=ALL_SDE_IDS)
def test_gaussian_preconditioning_with_a_zero_network_is_the_exact_score_of_its_gaussian(sde, t):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    mean, covariance = rng.normal(size=6), root @ root.T + 0.1 * np.eye(6)
    variances, basis = np.linalg.eigh(covariance)
    constants = (jnp.asarray(a, jnp.float32) for a in (mean, basis, variances))
    of = GaussianPreconditioning(1.0, *constants)
    law = ExactScore(GaussianMixture([1.0], mean[None], covariance[None]), sde)
    x = jax.random.normal(jax.random.key(0), (5, 3, 1, 2))
    t = jnp.linspace(sde.t_min, sde.t_max, 5) if t is None else t
    expected = np.asarray(law(x.reshape(5, 6), t))
    got = NetworkScore(zeros, {}, sde, of)(x, t)
    np.testing.assert_allclose(got.reshape(5, 6), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    ones = NetworkScore(lambda *args: jnp.ones_like(args[1]), {}, sde, of)(x, t)  # F is added as EDM's
    edm = NetworkScore(lambda *args: jnp.ones_like(args[1]), {}, sde, EDMPreconditioning(1.0))(x, t)
    plain = NetworkScore(zeros, {}, sde, EDMPreconditioning(1.0))(x, t)
    np.testing.assert_allclose(ones - got, edm - plain, rtol=1e-3, atol=1e-4 * float(jnp.abs(got).max()))


@pytest.mark.parametrize("sde", SDES, ids=SDE_IDS)
def test_edm_matches_karras_table_for_the_denoiser(sde):
    # c_skip and c_out of Karras et al. 2022, table 1, in the variable x/alpha with noise level sigma/alpha.
    sigma_data, network_output = 0.7, 0.3

    def constant(params, x, c_noise, cond, key):
        return jnp.full_like(x, network_output)

    t, x = 0.3, jnp.ones((1, 1))
    level, y = sde.sigma(t) / sde.alpha(t), x / sde.alpha(t)
    skip = sigma_data**2 / (level**2 + sigma_data**2)
    out = level * sigma_data / np.sqrt(level**2 + sigma_data**2)
    got = denoiser(NetworkScore(constant, {}, sde, EDMPreconditioning(sigma_data)), x, t)
    np.testing.assert_allclose(got, skip * y + out * network_output, rtol=1e-4)


def test_other_weights_and_other_constants_do_not_trace_the_network_again():
    traces = []

    def apply(params, x, c_noise, cond, key):
        traces.append(x.shape)
        return params * x

    for weight in (1.0, 2.0, 3.0):
        for sde in (VP(), VP(beta_max=10.0)):
            NetworkScore(apply, jnp.float32(weight), sde, EpsilonPrediction())(jnp.ones((4, 2)), 0.5)
    assert traces == [(4, 2)]


def test_a_velocity_network_s_output_is_the_rectified_flow_s_velocity():
    # The probability-flow drift of the score that it gives is the network's own output.
    def apply(params, x, c_noise, cond, key):
        return jnp.sin(3 * x) + params

    sde, t = RectifiedFlow(), 0.3
    x = jax.random.normal(jax.random.key(0), (5, 2))
    score_fn = NetworkScore(apply, jnp.float32(0.2), sde, VelocityPrediction())
    np.testing.assert_allclose(
        velocity_from_score(sde, score_fn(x, t), x, t), apply(0.2, x, None, None, None), atol=1e-5
    )
