"""The exact posterior of an observation, against quadrature and against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from sde_lib import GaussianMixture
from sde_lib.fields import StationaryGaussianField, power_law_field
from sde_lib.inverse import Convolve, Downsample, Linear, Mask, Operator

WEIGHTS = np.array([0.5, 0.2, 0.3])
MEANS = np.array([[-1.0, 0.3], [0.8, -0.9], [0.5, 1.2]])
FACTORS = np.array([[[0.5, 0.1], [0.0, 0.4]], [[0.3, -0.2], [0.2, 0.5]], [[0.6, 0.0], [0.3, 0.35]]])
COVARIANCES = FACTORS @ FACTORS.transpose(0, 2, 1)

CASES = {
    "an entry": (Linear(np.array([[1.0, 0.0]])), [0.4], 0.35),
    "a mean": (Linear(np.array([[0.5, 0.5]])), [-0.2], 0.2),
    "more than x": (Linear(np.array([[1.0, 0.4], [-0.3, 2.0], [0.5, 0.5]])), [0.3, -1.0, 0.1], 0.5),
    "a noise for each": (Linear(np.array([[1.0, 0.4], [-0.3, 2.0]])), [0.3, -1.0], [0.3, 0.9]),
    "a covariance": (Linear(np.array([[1.0, 0.4], [-0.3, 2.0]])), [0.3, -1.0], [[0.3, 0.1], [0.1, 0.2]]),
    "nothing": (Linear(np.zeros((0, 2))), [], 0.3),
    "a mask": (Mask(np.array([False, True])), [np.nan, 0.6], 0.25),
    "blocks": (Downsample(2), [0.1], 0.3),
}


@pytest.mark.parametrize("case", CASES)
def test_the_posterior_of_a_mixture_is_that_of_quadrature(case):
    operator, y, noise = CASES[case]
    y = np.array(y, float)
    place = np.linspace(-5, 5, 601)
    grid = np.stack(np.meshgrid(place, place, indexing="ij"), -1).reshape(-1, 2)
    prior = sum(w * multivariate_normal(m, s).pdf(grid) for w, m, s in zip(WEIGHTS, MEANS, COVARIANCES, strict=True))
    with jax.enable_x64(True):
        expected = np.asarray(operator(jnp.asarray(grid)))
        seen = np.isfinite(y)
        noise_covariance = np.asarray(noise) if np.ndim(noise) == 2 else np.diag(np.broadcast_to(noise, len(y)) ** 2)
        likelihood = 1.0
        if seen.any():
            law = multivariate_normal(np.zeros(seen.sum()), noise_covariance[np.ix_(seen, seen)])
            likelihood = law.pdf((y - expected)[:, seen]).ravel()
        density = prior * likelihood
        evidence = density.sum() * (place[1] - place[0]) ** 2
        posterior, log_evidence = GaussianMixture(WEIGHTS, MEANS, COVARIANCES).observe(operator, y, noise)
        density /= density.sum()
        mean = density @ grid
        np.testing.assert_allclose(log_evidence, np.log(evidence), atol=1e-6)
        np.testing.assert_allclose(posterior.mean(), mean, atol=1e-6)
        np.testing.assert_allclose(
            posterior.covariance(), (grid - mean).T @ ((grid - mean) * density[:, None]), atol=1e-6
        )
        at = grid[::10007]
        np.testing.assert_allclose(
            np.exp(posterior.log_prob(jnp.asarray(at))),
            density[::10007] / (place[1] - place[0]) ** 2,
            rtol=1e-6,
            atol=1e-9,
        )


@pytest.mark.parametrize("shape", [(4, 5), (5, 6)])
@pytest.mark.parametrize(
    "kernel", [np.array([[0.5]]), np.array([[0.1, 0.2, 0.3], [0.05, 0.3, 0.05]])], ids=["1", "2x3"]
)
def test_the_posterior_of_a_field_is_that_of_its_dense_gaussian(shape, kernel):
    field = power_law_field(shape, 0.7)
    mean = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    field = StationaryGaussianField(shape, field.spectrum, mean)
    d = shape[0] * shape[1]
    covariance = np.linalg.inv(
        -np.asarray(field.score(np.eye(d, dtype=np.float32).reshape(d, *shape) + mean), float).reshape(d, d)
    )
    y = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    dense = GaussianMixture([1.0], mean.reshape(1, -1), (covariance + covariance.T)[None] / 2)
    expected, evidence = dense.observe(Convolve(kernel), y, 0.3, shape=shape)
    posterior, log_evidence = field.observe(Convolve(kernel), y, 0.3)
    np.testing.assert_allclose(posterior.mean.ravel(), expected.means[0], atol=2e-5)
    np.testing.assert_allclose(log_evidence, evidence, atol=2e-4)
    x = np.random.default_rng(2).normal(size=(3, *shape)).astype(np.float32)
    np.testing.assert_allclose(posterior.log_prob(x), expected.log_prob(x), atol=2e-3)


MIXTURE = GaussianMixture(WEIGHTS, MEANS, COVARIANCES)


@pytest.mark.parametrize(
    ("operator", "y", "noise", "said"),
    [
        (Operator(lambda x: x**2), [0.0, 0.0], 0.1, "not linear"),
        (Operator(lambda x: x + 1), [0.0, 0.0], 0.1, "not linear"),
        (Linear(np.eye(2)), [0.0], 0.1, "as many"),
        (Linear(np.eye(3)), [0.0, 0.0, 0.0], 0.1, "give a matrix"),
        (Linear(np.eye(2)), [0.0, 0.0], [0.1, 0.1, 0.1], "noise must be"),
        (Linear(np.eye(2)), [0.0, 0.0], -0.1, "negative"),
        (Linear(np.ones((2, 2))), [0.0, 1.0], 0.0, "above 0"),
        (Mask(np.ones(3)), [0.0, 0.0], 0.1, "one entry for each"),
        (lambda x: x, [0.0, 0.0], 0.1, "Operator(function)"),
    ],
)
def test_an_observation_that_cannot_be_is_refused(operator, y, noise, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")):
        MIXTURE.observe(operator, y, noise)
