"""Stationary Gaussian fields against the dense Gaussian of the same covariance, written out by its cosines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from sde_lib import (
    VE,
    VP,
    Exact,
    ExactScore,
    Hutchinson,
    ProbabilityFlow,
    StationaryGaussianField,
    log_prob,
    power_law_field,
)
from sde_lib.fields import exact_radial_spectrum, radial_spectrum
from tests.oracles import ALL_SDE_IDS, ALL_SDES

SHAPES = [(5, 6), (6, 5), (4, 4)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def field_and_covariance(shape, seed=0):
    """A field of random spectrum, and C(x, y) = sum_k P(k) cos(2 pi k·(x - y))/(h w) over all h w modes."""
    h, w = shape
    rng = np.random.default_rng(seed)
    full = rng.uniform(0.1, 3.0, shape)
    mirrored = full[(-np.arange(h)) % h][:, (-np.arange(w)) % w]
    full = (full + mirrored) / 2
    pixels = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1).reshape(-1, 2)
    apart = (pixels[:, None] - pixels[None]) / np.array(shape)
    covariance = sum(full[i, j] * np.cos(2 * np.pi * (apart @ [i, j])) for i in range(h) for j in range(w)) / (h * w)
    return StationaryGaussianField(shape, jnp.asarray(full[:, : w // 2 + 1], jnp.float32)), covariance


@each_shape
@pytest.mark.parametrize("sde", ALL_SDES, ids=ALL_SDE_IDS)
def test_density_and_score_under_every_sde_are_the_dense_gaussian_s(shape, sde):
    field, covariance = field_and_covariance(shape)
    t = 0.3
    dense = sde.alpha(t) ** 2 * covariance + sde.sigma(t) ** 2 * np.eye(len(covariance))
    x = 2 * np.random.default_rng(1).normal(size=(7, *shape)).astype(np.float32)
    flat = x.reshape(7, -1)
    at_t = field.at(sde, t)
    np.testing.assert_allclose(at_t.log_prob(x), multivariate_normal(cov=dense).logpdf(flat), rtol=1e-5, atol=1e-3)
    expected = -np.linalg.solve(dense, flat.T).T.reshape(x.shape)
    for score in (at_t.score(jnp.asarray(x)), ExactScore(field, sde)(x, jnp.full(7, t))):
        np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@each_shape
def test_draws_have_the_covariance(shape):
    field, covariance = field_and_covariance(shape, seed=1)
    n = 40_000
    x = np.asarray(field.sample(jax.random.key(0), n), float).reshape(n, -1)
    variances = np.diag(covariance)
    error = np.sqrt((np.outer(variances, variances) + covariance**2) / n)  # of each entry's estimate
    assert np.abs((x.T @ x / n - covariance) / error).max() < 5
    assert np.abs(x.mean(0) / np.sqrt(variances / n)).max() < 5


def test_a_power_law_has_unit_variance_and_its_slope():
    field = power_law_field((96, 64), exponent=1.0)
    x = field.sample(jax.random.key(0), 64)
    found = radial_spectrum(x)
    assert float(jnp.mean(x**2)) == pytest.approx(1, abs=0.1)  # mostly in a few long waves
    ring, exact = slice(3, 32), radial_spectrum_of(field)
    np.testing.assert_allclose(exact_radial_spectrum(field).power, exact, rtol=1e-6)
    expected = np.asarray(exact)[ring]
    z = (found.power[ring] / expected - 1) / np.sqrt(2 / found.modes[ring])
    assert np.abs(z).max() < 4 and z.std() == pytest.approx(1, abs=0.3)
    slope = np.polyfit(np.log(found.frequency[ring]), np.log(found.power[ring]), 1)[0]
    assert slope == pytest.approx(-2, abs=0.05)


def radial_spectrum_of(field):
    """The mean of P over each ring, from all modes one by one."""
    h, w = field.shape
    rings: dict[int, list[float]] = {}
    for i in range(h):
        for j in range(w):
            row, column = min(i, h - i), min(j, w - j)
            value = field.spectrum[i if j <= w // 2 else -i % h, column]
            rings.setdefault(int(np.floor(np.hypot(row, column) + 0.5)), []).append(float(value))
    return [np.mean(rings[f]) for f in range(min(h, w) // 2 + 1)]


@pytest.mark.parametrize("sde", [VP(), VE()], ids=["VP", "VE"])
def test_the_ode_s_log_density_is_the_field_s(sde):
    field = power_law_field((8, 6))
    x = field.at(sde, sde.t_min).sample(jax.random.key(3), 4)
    prior, exact = field.at(sde, sde.t_max), field.at(sde, sde.t_min).log_prob(x)
    found = log_prob(ExactScore(field, sde), x, jax.random.key(4), divergence=Exact(), prior=prior)
    np.testing.assert_allclose(found.nats, exact, atol=2e-2)
    found = log_prob(ExactScore(field, sde), x, jax.random.key(4), divergence=Hutchinson(probes=16), prior=prior)
    error = found.probe_nats.std(axis=1, ddof=1) / 4
    assert np.abs((found.nats - exact) / error).max() < 4


def test_the_ode_s_samples_are_the_latents_filtered():
    # The flow of a Gaussian scales each Fourier mode by the ratio of its standard deviations.
    field, sde, key = power_law_field((16, 16)), VP(), jax.random.key(0)
    latents = field.at(sde, sde.t_max).sample(key, 2)
    drawn = (
        ProbabilityFlow(rtol=1e-6, atol=1e-6).run(ExactScore(field, sde), latents, jax.random.split(key, 2), None, 0).x
    )
    gain = np.sqrt(field.at(sde, sde.t_min).spectrum / field.at(sde, sde.t_max).spectrum)
    np.testing.assert_allclose(drawn, np.fft.irfft2(gain * np.fft.rfft2(latents), s=(16, 16)), atol=2e-4)
