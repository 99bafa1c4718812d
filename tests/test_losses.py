import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import RectifiedFlow
from sde_lib.losses import (
    denoising_score_matching,
    flow_matching_weighting,
    likelihood_weighting,
    sigma2_weighting,
    stratified_uniform,
    uniform_log_snr,
    uniform_t,
)
from sde_lib.score import EDMPreconditioning, NetworkScore, VelocityPrediction
from tests.oracles import SDE_IDS, SDES

N, DATA_STD, MODEL_STD = 200_000, 0.5, 0.8
each_sde = pytest.mark.parametrize("sde", SDES, ids=SDE_IDS)


def zeros(params, x, c_noise, cond, key):
    return jnp.zeros_like(x)


def expected_error(sde, t):
    """E (sigma s + eps)² per entry, for data N(0, DATA_STD²) and the score -x/v of N(0, MODEL_STD²), v = alpha² MODEL_STD² + sigma²."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    v = alpha**2 * MODEL_STD**2 + sigma**2
    return (alpha * DATA_STD * sigma / v) ** 2 + (1 - sigma**2 / v) ** 2


@pytest.mark.parametrize("times", [uniform_t, uniform_log_snr])
@pytest.mark.parametrize("weighting", [sigma2_weighting, likelihood_weighting])
@each_sde
def test_the_loss_is_the_integral_it_estimates(sde, weighting, times):
    # Every time law estimates the same number, 1/(t_max - t_min) ∫ w(t) E error(t) dt, here by quadrature on a grid even in log SNR.
    x0 = DATA_STD * jax.random.normal(jax.random.key(0), (N, 2))
    score_fn = NetworkScore(zeros, {}, sde, EDMPreconditioning(MODEL_STD))
    loss = jax.jit(denoising_score_matching, static_argnames=("weighting", "times"))(
        score_fn, x0, jax.random.key(1), weighting=weighting, times=times
    )
    t = sde.time_of_log_snr(np.linspace(sde.log_snr(sde.t_max), sde.log_snr(sde.t_min), 100_001))
    weight = np.ones_like(t) if weighting is sigma2_weighting else sde.g2(t) / sde.sigma(t) ** 2
    expected = abs(np.trapezoid(weight * expected_error(sde, t), t)) / (sde.t_max - sde.t_min)
    standard_error = float(jnp.std(loss)) / np.sqrt(N)
    assert abs(float(jnp.mean(loss)) - expected) < 4 * standard_error + 1e-3 * expected


@each_sde
def test_uniform_log_snr_makes_the_likelihood_weight_constant(sde):
    u = jnp.linspace(0.0, 1.0, 50, dtype=jnp.float32)
    t, density = uniform_log_snr(sde, u)
    z = (sde.log_snr(sde.t_min) - sde.log_snr(sde.t_max)) / (sde.t_max - sde.t_min)
    np.testing.assert_allclose(likelihood_weighting(sde, t) / density, z, rtol=1e-4)
    spread = sde.log_snr(np.asarray(t, float))
    np.testing.assert_allclose(np.diff(spread), np.diff(spread).mean(), rtol=0.02)


def test_stratified_times_hit_every_stratum_once_and_stay_uniform():
    draws = np.stack([stratified_uniform(jax.random.key(i), 16) for i in range(400)])
    assert all(set(np.floor(row * 16).astype(int)) == set(range(16)) for row in draws)
    np.testing.assert_allclose(draws[:, 0].mean(), 0.5, atol=5 * np.sqrt(1 / 12 / 400))


def test_the_dropout_key_reaches_the_network_and_differs_from_the_noise():
    seen = []

    def apply(params, x, c_noise, cond, key):
        seen.append(key is not None)
        return jnp.zeros_like(x)

    denoising_score_matching(NetworkScore(apply, {}, SDES[0], EDMPreconditioning(0.5)), jnp.ones((4, 2)), jax.random.key(0))
    assert seen == [True]


def test_flow_matching_weighting_is_the_velocity_s_error():
    # Lipman et al. 2023, eq. 9: the mean of |v - (eps - x_0)|² at uniform times, with the same times and noise.
    def apply(params, x, c_noise, cond, key):
        return jnp.cos(x) * params

    sde, x0, key = RectifiedFlow(), 0.5 * jax.random.normal(jax.random.key(0), (512, 3)), jax.random.key(1)
    score_fn = NetworkScore(apply, jnp.float32(0.7), sde, VelocityPrediction())
    loss = denoising_score_matching(score_fn, x0, key, weighting=flow_matching_weighting, times=uniform_t)
    key_time, key_noise, _ = jax.random.split(key, 3)
    t = (sde.t_min + stratified_uniform(key_time, 512) * (sde.t_max - sde.t_min))[:, None]
    noise = jax.random.normal(key_noise, x0.shape)
    velocity = 0.7 * jnp.cos((1 - t) * x0 + t * noise)
    np.testing.assert_allclose(loss, jnp.mean((velocity - (noise - x0)) ** 2, axis=1), rtol=2e-3)
