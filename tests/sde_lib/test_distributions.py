import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from sde_lib import Density, GaussianMixture, IsotropicGaussian
from tests.oracles import SDE_IDS, SDES, random_mixture


def scipy_log_prob(weights, means, covariances, x):
    """log sum_k w_k N(x; m_k, S_k) by scipy, in float64."""
    parts = [
        np.log(w) + multivariate_normal(m, s).logpdf(x) for w, m, s in zip(weights, means, covariances, strict=True)
    ]
    return np.logaddexp.reduce(parts)


def test_log_prob_is_scipy_s():
    rng = np.random.default_rng(3)
    weights, means, factor = np.array([0.2, 0.5, 0.3]), rng.normal(size=(3, 4)), rng.normal(size=(3, 4, 4))
    covariances = factor @ factor.transpose(0, 2, 1) + 0.1 * np.eye(4)
    x = rng.normal(size=(50, 4)) * 2
    got = GaussianMixture(weights, means, covariances).log_prob(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, scipy_log_prob(weights, means, covariances, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("d", [2, 7])
def test_score_is_the_gradient_of_log_prob(d):
    mixture = random_mixture(d, d)
    x = 2 * jax.random.normal(jax.random.key(0), (20, d))
    gradient = jax.vmap(jax.grad(lambda x: mixture.log_prob(x[None])[0]))(x)
    np.testing.assert_allclose(mixture.score(x), gradient, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sde", SDES, ids=SDE_IDS)
def test_diffused_mixture_has_the_law_of_diffused_samples(sde):
    weights, means = [0.3, 0.7], np.array([[1.0, -1.0], [0.5, 2.0]])
    covariances = np.array([[[0.5, 0.2], [0.2, 0.3]], [[0.1, -0.05], [-0.05, 0.2]]])
    t = 0.4
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    x = np.random.default_rng(0).normal(size=(30, 2)) * 2
    expected = scipy_log_prob(weights, alpha * means, alpha**2 * covariances + sigma**2 * np.eye(2), x)
    got = GaussianMixture(weights, means, covariances).at(sde, t).log_prob(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_samples_have_the_mixture_s_mean_and_covariance():
    mixture = random_mixture(5, 3)
    x = np.asarray(mixture.sample(jax.random.key(1), 100_000), float)
    std = np.sqrt(np.diag(mixture.covariance()))
    np.testing.assert_array_less(np.abs(x.mean(0) - mixture.mean()) / (std / np.sqrt(len(x))), 5.0)
    np.testing.assert_allclose(np.cov(x.T), mixture.covariance(), atol=0.02 * std.max() ** 2)


def test_a_singular_covariance_samples_on_its_plane():
    mixture = GaussianMixture([1.0], [[1.0, 2.0]], [[[1.0, 1.0], [1.0, 1.0]]])
    x = mixture.sample(jax.random.key(0), 1000)
    np.testing.assert_allclose(x[:, 1] - x[:, 0], 1.0, atol=1e-5)


def test_points_of_any_shape_are_points_of_d_entries():
    mixture = random_mixture(2, 6)
    x = jax.random.normal(jax.random.key(0), (5, 6))
    np.testing.assert_allclose(mixture.score(x.reshape(5, 2, 3)).reshape(5, 6), mixture.score(x), rtol=1e-6)


def test_density_gives_the_score_of_its_log():
    gaussian = IsotropicGaussian((3,), 0.7)
    density = Density(lambda x: -0.5 * jnp.sum(x**2) / 0.49)
    x = jax.random.normal(jax.random.key(0), (4, 3))
    np.testing.assert_allclose(density.score(x), gaussian.score(x), rtol=1e-5)
    np.testing.assert_allclose(jnp.diff(density.log_prob(x)), jnp.diff(gaussian.log_prob(x)), rtol=1e-4)


@pytest.mark.parametrize(
    "weights, means, covariances, word",
    [
        ([0.5, 0.6], np.zeros((2, 1)), np.ones((2, 1, 1)), "sum to 1, not .*: divide them by their sum"),
        ([1.5, -0.5], np.zeros((2, 1)), np.ones((2, 1, 1)), "must be positive"),
        ([1.0], np.zeros((1, 2)), np.ones((1, 2)), r"covariances \(k, d, d\)"),
        ([1.0], np.zeros((1, 2)), [[[1.0, 0.5], [0.0, 1.0]]], r"symmetric: use 0.5 \* \(S \+ S.T\)"),
        ([1.0], np.zeros((1, 2)), [[[1.0, 2.0], [2.0, 1.0]]], "semi-definite"),
    ],
)
def test_bad_mixtures_are_refused(weights, means, covariances, word):
    with pytest.raises(ValueError, match=word):
        GaussianMixture(weights, means, covariances)
