"""The exact flow map against an ODE solver that is not ours, and against what every flow map satisfies."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from sde_lib import VP, DiagonalGaussian, ExactFlowMap, power_law_field
from sde_lib.conversions import denoiser
from sde_lib.flow_map import flow_time, jump, straight_velocity, time_of_flow_time
from sde_lib.samplers.exact_law import in_float64
from tests.oracles import ALL_SDE_IDS, ALL_SDES, random_mixture

SHAPE = (2, 3)
MEAN = np.linspace(-1, 1, 6).reshape(SHAPE)
STD = np.linspace(0.2, 1.5, 6).reshape(SHAPE)


def mixture_score(mixture, sde, x, t):
    """The score of a mixture at t, by its definition, in numpy."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    weights, means = np.exp(np.asarray(mixture.log_weights, float)), np.asarray(mixture.means, float)
    covariances = alpha**2 * np.asarray(mixture.covariances, float) + sigma**2 * np.eye(means.shape[1])
    away = x[:, None] - alpha * means
    pull = -np.linalg.solve(covariances[None], away[..., None])[..., 0]
    logits = np.log(weights) + 0.5 * np.sum(away * pull, axis=2) - 0.5 * np.linalg.slogdet(covariances)[1]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.einsum("nk,nki->ni", shares / shares.sum(axis=1, keepdims=True), pull)


def diagonal_score(data, sde, x, t):
    variances = (sde.alpha(t) * np.asarray(data.std)) ** 2 + sde.sigma(t) ** 2
    return -(x - (sde.alpha(t) * np.asarray(data.mean)).ravel()) / variances.ravel()


def field_score(field, sde, x, t):
    gain = -1 / (sde.alpha(t) ** 2 * np.asarray(field.spectrum, float) + sde.sigma(t) ** 2)
    modes = np.fft.rfft2(x.reshape(-1, *field.shape) - sde.alpha(t) * np.asarray(field.mean, float))
    return np.fft.irfft2(gain * modes, s=field.shape).reshape(len(x), -1)


def solved(score, sde, x, t, s):
    """Where scipy's solver carries the probability flow."""

    def drift(t, y):
        y = y.reshape(len(x), -1)
        return (sde.f(t) * y - 0.5 * sde.g2(t) * score(y, t)).ravel()

    flow = solve_ivp(drift, (t, s), np.reshape(x, -1), method="DOP853", rtol=1e-10, atol=1e-10)
    return flow.y[:, -1].reshape(x.shape)


with jax.enable_x64(True):  # so that nothing of them is rounded to float32
    FIELD = power_law_field((4, 3))
    FIELD = replace(FIELD, spectrum=jnp.asarray(FIELD.spectrum, float))
    MIXTURES = {k: random_mixture(k, 3, components=k) for k in (1, 3)}
DISTRIBUTIONS = {
    "one Gaussian": (MIXTURES[1], (3,), mixture_score),
    "diagonal": (DiagonalGaussian(MEAN, STD), SHAPE, diagonal_score),
    "field": (FIELD, (4, 3), field_score),
    "mixture": (MIXTURES[3], (3,), mixture_score),
}


def in_double(sde, distribution):
    return jax.tree.map(in_float64, ExactFlowMap(distribution, sde))


def start(sde, shape, t, n=5):
    return sde.sigma(t) * np.random.default_rng(0).standard_normal((n, *shape))


@pytest.mark.parametrize("sde", ALL_SDES, ids=ALL_SDE_IDS)
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_it_is_where_the_ode_ends(kind, sde):
    data, shape, score = DISTRIBUTIONS[kind]
    x = start(sde, shape, sde.t_max)
    with jax.enable_x64(True):
        found = np.asarray(in_double(sde, data)(jnp.asarray(x), sde.t_max, sde.t_min))
    expected = solved(lambda y, t: score(data, sde, y, t), sde, x, sde.t_max, sde.t_min)
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("sde", ALL_SDES, ids=ALL_SDE_IDS)
@pytest.mark.parametrize("kind", ["one Gaussian", "mixture"])
def test_two_jumps_are_one_and_lead_back_each_row_between_its_own_times(kind, sde):
    data, shape, _ = DISTRIBUTIONS[kind]
    with jax.enable_x64(True):
        exact, x = in_double(sde, data), jnp.asarray(start(sde, shape, sde.t_max))
        middle = time_of_flow_time(sde, np.linspace(0.3, 0.7, len(x)))
        there = exact(x, sde.t_max, middle)
        end = exact(x, sde.t_max, sde.t_min)
        np.testing.assert_allclose(exact(there, middle, np.full(len(x), sde.t_min)), end, atol=1e-6)
        np.testing.assert_allclose(exact(end, sde.t_min, middle), there, atol=1e-6)
        np.testing.assert_allclose(exact(x, sde.t_max, middle[1])[1], there[1], atol=1e-6)
        assert end.dtype == np.float64
        np.testing.assert_allclose(exact(x, middle, middle), x, rtol=1e-12)


def test_in_float32_it_is_as_good_as_float32_allows():
    data, sde, x = random_mixture(3, 3), VP(), start(VP(), (3,), 1.0)
    with jax.enable_x64(True):
        fine = np.asarray(in_double(sde, data)(jnp.asarray(x), sde.t_max, sde.t_min))
    found = ExactFlowMap(data, sde)(jnp.asarray(x, jnp.float32), sde.t_max, sde.t_min)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, fine, atol=2e-5)


@pytest.mark.parametrize("sde", ALL_SDES, ids=ALL_SDE_IDS)
def test_its_mean_velocities_satisfy_what_a_mean_does_in_all_coordinates(sde):
    """D~ = D + (kappa_s - kappa_t) dD~/dkappa_t along the flow, u = v + (tau_s - tau_t) du/dtau_t, and both are X."""
    data, shape, _ = DISTRIBUTIONS["one Gaussian"]
    t, s = (float(time_of_flow_time(sde, tau)) for tau in (0.8, 0.2))
    with jax.enable_x64(True):
        exact, x = in_double(sde, data), jnp.asarray(start(sde, shape, t))
        t, s = jnp.asarray(t, x.dtype), jnp.asarray(s, x.dtype)
        score_fn, (alpha, sigma) = exact.score, (sde.alpha(s), sde.sigma(s))

        def kappa(t):
            return sde.alpha(t) / sde.sigma(t)

        def mean_denoiser(x, t):
            return (exact(x, t, s) / sigma - x / sde.sigma(t)) / (kappa(s) - kappa(t))

        def mean_velocity(x, t):
            scale = sde.alpha(t) + sde.sigma(t)
            return (exact(x, t, s) / (alpha + sigma) - x / scale) / (flow_time(sde, s) - flow_time(sde, t))

        drift = sde.f(t) * x - 0.5 * sde.g2(t) * score_fn(x, t)
        for mean, rate, length, now in (
            (mean_denoiser, jax.grad(kappa)(t), kappa(s) - kappa(t), denoiser(score_fn, x, t)),
            (
                mean_velocity,
                jax.grad(lambda t: flow_time(sde, t))(t),
                flow_time(sde, s) - flow_time(sde, t),
                straight_velocity(sde, score_fn(x, t), x, t),
            ),
        ):
            value, slope = jax.jvp(mean, (x, t), (drift / rate, 1 / rate))
            np.testing.assert_allclose(value, now + length * slope, atol=1e-6)
        jumped = jump(sde, mean_velocity(x, t), x, t, s)
        stretched = sigma / sde.sigma(t) * x + (alpha - sde.alpha(t) * sigma / sde.sigma(t)) * mean_denoiser(x, t)
        np.testing.assert_allclose(jumped, exact(x, t, s), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(stretched, exact(x, t, s), rtol=1e-9, atol=1e-9)


def test_its_diagonal_is_the_exact_score_and_its_mistakes_are_told():
    data = random_mixture(3, 3)
    exact, x = ExactFlowMap(data, VP()), np.ones((2, 3), np.float32)
    np.testing.assert_allclose(exact.score(x, 0.4), mixture_score(data, VP(), x, 0.4), rtol=1e-4)
    with pytest.raises(ValueError, match="one value for all 2 samples"):
        exact(x, np.ones(3), 0.1)
    with pytest.raises(ValueError, match="12 entries"):
        ExactFlowMap(power_law_field((4, 3)), VP())(x, 1.0, 0.1)
