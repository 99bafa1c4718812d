import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VP, Exact, ExactScore, Hutchinson, bits_per_dim, log_prob
from tests.oracles import SDE_IDS, SDES, calls_of, random_mixture

each_sde = pytest.mark.parametrize("sde", SDES, ids=SDE_IDS)


def setting(sde, d, n=64):
    data = random_mixture(d, d)
    at_t_min = data.at(sde, sde.t_min)
    x = at_t_min.sample(jax.random.key(1), n)
    return ExactScore(data, sde), x, at_t_min.log_prob(x), data.at(sde, sde.t_max)


@pytest.mark.parametrize("d", [2, 50])
@each_sde
def test_the_ode_s_log_density_is_the_mixture_s(sde, d):
    score_fn, x, exact, prior = setting(sde, d)
    errors = []
    for tolerance in (1e-2, 1e-3, 1e-5):
        result = log_prob(score_fn, x, divergence=Exact(), prior=prior, rtol=tolerance, atol=tolerance)
        errors.append(float(jnp.abs(result.nats - exact).max()))
    assert errors[2] < 1e-3
    assert errors[2] < errors[1] / 5 < errors[0] / 5, errors


@each_sde
def test_the_default_prior_costs_exactly_its_mismatch(sde):
    score_fn, x, exact, prior = setting(sde, 2)
    result = log_prob(score_fn, x)
    mismatch = sde.prior((2,)).log_prob(result.latent) - prior.log_prob(result.latent)
    np.testing.assert_allclose(result.nats - exact, mismatch, atol=1e-3)


@pytest.mark.parametrize("d", [2, 50])
@each_sde
def test_hutchinson_is_unbiased_within_its_own_standard_error(sde, d):
    score_fn, x, exact, prior = setting(sde, d)
    result = log_prob(score_fn, x, jax.random.key(2), divergence=Hutchinson(probes=32), prior=prior)
    error = jnp.std(result.probe_nats, axis=1, ddof=1) / np.sqrt(32)
    z = (result.nats - exact) / jnp.hypot(error, 1e-3)
    assert jnp.abs(jnp.mean(z)) < 4 / np.sqrt(len(x))
    assert jnp.abs(z).max() < 5.5  # 64 points of a t distribution with 31 degrees of freedom
    assert 0.5 < jnp.std(z) < 1.5
    np.testing.assert_allclose(result.nats, result.probe_nats.mean(1), rtol=1e-6)


def test_hutchinson_s_variance_is_the_formula_s():
    # On a linear field with matrix A: variance 2 (|A|_F² - sum a_ii²), for the symmetric part of A.
    matrix = jax.random.normal(jax.random.key(0), (6, 6))
    symmetric = 0.5 * (matrix + matrix.T)
    x = jnp.zeros((4000, 6))
    probes = Hutchinson(probes=10).probes(jax.random.split(jax.random.key(1), 4000), x)
    value, estimates = Hutchinson(probes=10)(lambda x: x @ matrix.T + 1.0, x, probes)
    np.testing.assert_allclose(value, 1.0)
    variance = 2 * (jnp.sum(symmetric**2) - jnp.sum(jnp.diag(symmetric) ** 2))
    np.testing.assert_allclose(jnp.var(estimates), variance, rtol=0.05)
    np.testing.assert_allclose(jnp.mean(estimates), jnp.trace(matrix), atol=5 * float(jnp.sqrt(variance / 40_000)))


@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_exact_divergence_of_a_nonlinear_field_on_images(chunk):
    def field(x):  # each sample's own: div = sum_ij cos(x_ij) + 2 x_00
        return jnp.sin(x) + jnp.zeros_like(x).at[:, 0, 0].set(x[:, 0, 0] ** 2 + x[:, 1, 1])

    x = jax.random.normal(jax.random.key(0), (5, 3, 2))
    value, divergence = Exact(chunk=chunk)(field, x, Exact().probes(None, x))
    np.testing.assert_allclose(value, field(x))
    np.testing.assert_allclose(divergence[:, 0], jnp.cos(x).sum((1, 2)) + 2 * x[:, 0, 0], rtol=1e-5)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_row_does_not_depend_on_its_batch(per_sample):
    score_fn, x, _, prior = setting(VP(), 2)
    settings = {"divergence": Hutchinson(probes=2), "prior": prior, "per_sample": per_sample}
    whole = log_prob(score_fn, x, jax.random.key(0), **settings)
    part = log_prob(score_fn, x[40:], jax.random.key(0), first=40, **settings)
    np.testing.assert_allclose(part.probe_nats, whole.probe_nats[40:], atol=1e-4 if per_sample else 2e-3)


def test_nfe_is_the_number_of_calls():
    calls, nfe = calls_of(lambda score_fn: log_prob(score_fn, jnp.ones((2, 2)), jax.random.key(0), divergence=Hutchinson()))
    assert nfe == calls > 0


def test_bits_per_dim_of_uniform_data_is_the_log_of_its_levels():
    # Density 1/2 on [-1, 1] in each of 5 dimensions, cut into 17 or 256 levels.
    nats = -5 * np.log(2.0)
    assert abs(bits_per_dim(nats, 5, 2 / 256) - 8) < 1e-12
    assert abs(bits_per_dim(nats, 5, 2 / 17) - np.log2(17)) < 1e-12


def test_hutchinson_without_a_key_is_refused():
    score_fn, x, _, _ = setting(VP(), 2, n=2)
    with pytest.raises(ValueError, match="give it a key"):
        log_prob(score_fn, x, divergence=Hutchinson(probes=2))
    with pytest.raises(ValueError, match="probes"):
        Hutchinson(probes=0)
