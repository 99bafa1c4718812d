import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.data.simulators import simulations
from experiment.data.whitening import fit_whitening, summary


def test_there_and_back_and_white():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 3)) * np.array([1.0, 50.0, 0.01])
    theta = np.stack([x[:, 1] + rng.standard_normal(4000), 3 + x[:, 1] * 0.1 + 0.2 * rng.standard_normal(4000)], axis=1)
    whitening = fit_whitening(theta, x)
    z = whitening.to_residual(theta, x)
    np.testing.assert_allclose(whitening.to_parameters(z, x), theta, atol=1e-4)
    np.testing.assert_allclose(np.cov(z.T), np.eye(2), atol=1e-2)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(z.T @ whitening.cond(x) / len(x), 0, atol=1e-4)


def test_posterior_of_gaussian_linear():
    # The map alone is a Gaussian posterior, known by the images of 0 and the unit vectors.
    whitening = fit_whitening(*simulations("gaussian_linear", 10_000))
    corners = np.concatenate([np.zeros((1, 10)), np.eye(10)])
    divergence = []
    for observed in simulations("gaussian_linear", 20, seed=7)[1]:
        images = whitening.to_parameters(corners, np.tile(observed, (11, 1)))
        root = (images[1:] - images[0]).T
        off, variance = images[0] - observed / 2, 0.05
        inverse = np.linalg.inv(root @ root.T)  # KL of the exact N(x/2, 0.05 I) from the fitted one
        parts = variance * np.trace(inverse) - 10 + off @ inverse @ off
        divergence.append(0.5 * (parts + 2 * np.linalg.slogdet(root)[1] - 10 * np.log(variance)))
    assert np.max(divergence) < 0.02


def test_independent_draws_have_no_order():
    x = np.random.default_rng(6).standard_normal((5, 8))
    order = x.reshape(5, 4, 2)[:, [2, 0, 3, 1]].reshape(5, 8)
    np.testing.assert_allclose(summary(order, 4), summary(x, 4), rtol=1e-12)
    assert summary(x, 4).shape == (5, 5)
    scaled = summary(x * np.array([2.0, 3.0] * 4), 4)
    np.testing.assert_allclose(scaled[:, :2], summary(x, 4)[:, :2] * np.array([2.0, 3.0]), rtol=1e-12)
    np.testing.assert_allclose(scaled[:, 4], summary(x, 4)[:, 4], atol=0.05)
    np.testing.assert_array_equal(summary(x), x)


def test_too_few_examples_are_refused():
    with pytest.raises(UserError, match="at least 24"):
        fit_whitening(np.zeros((23, 2)), np.zeros((23, 9)))


def test_narrow_peaks_are_followed_to_the_walls():
    # theta is x and a peak of 0.1 or wide noise, cut at 10: least squares lean inwards, by 0.13 at the walls.
    theta, x = simulations("gaussian_mixture", 10_000)
    whitening = fit_whitening(theta, x)
    corners = np.array([[9.0, 9.0], [-9.0, 9.0], [9.0, -9.0], [0.0, 0.0]])
    np.testing.assert_allclose(whitening.to_parameters(np.zeros((4, 2)), corners), corners, atol=0.02)
    np.testing.assert_allclose(np.cov(whitening.to_residual(theta, x).T), np.eye(2), atol=0.02)


def test_normal_noise_is_fitted_by_least_squares():
    theta, x = simulations("gaussian_linear", 1000)
    c = np.concatenate([x, np.ones((1000, 1))], axis=1).astype(np.float64)
    expected = c @ np.linalg.lstsq(c, theta.astype(np.float64), rcond=None)[0]
    np.testing.assert_allclose(fit_whitening(theta, x).to_parameters(np.zeros((1000, 10)), x), expected, atol=1e-6)
