import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.data.simulators import simulations
from experiment.data.whitening import fit_whitening, summary, whitening_arrays, whitening_of_arrays

HALF = np.array([2.0, 3.0])


def curved(rng, n):
    """theta_1 = sin(3 x) + 0.1 (1 + x²) noise within (-2, 2), theta_2 = 3 tanh(theta_1 x + noise) within (-3, 3)."""
    x = rng.uniform(-1.5, 1.5, (n, 1))
    first = 2 * np.tanh((np.sin(3 * x) + 0.1 * (1 + x**2) * rng.standard_normal((n, 1))) / 2)
    return np.concatenate([first, 3 * np.tanh(first * x + 0.3 * rng.standard_normal((n, 1)))], axis=1), x


@pytest.fixture(scope="module")
def fit():
    theta, x = curved(np.random.default_rng(0), 2000)
    return fit_whitening(theta, x, (-HALF, HALF), steps=400)


def log_normal(z):
    return -0.5 * np.sum(z.astype(np.float64) ** 2 + np.log(2 * np.pi), axis=1)


def test_there_and_back(fit):
    theta, x = curved(np.random.default_rng(1), 100)
    z = fit[0].to_residual(theta, x)
    np.testing.assert_allclose(fit[0].to_parameters(z, x), theta, atol=1e-4)
    saved = whitening_of_arrays(whitening_arrays(fit[0]))
    np.testing.assert_array_equal(saved.to_residual(theta, x), z)
    np.testing.assert_array_equal(saved.log_det(theta, x), fit[0].log_det(theta, x))


def test_log_det_is_that_of_the_map(fit):
    theta, x = curved(np.random.default_rng(2), 20)
    theta = np.clip(theta, -0.9 * HALF, 0.9 * HALF)
    step = 1e-3
    columns = []
    for axis in np.eye(2):
        ends = [fit[0].to_residual(theta + sign * step * axis, x).astype(np.float64) for sign in (1, -1)]
        columns.append((ends[0] - ends[1]) / (2 * step))
    numeric = np.linalg.slogdet(np.stack(columns, axis=-1))[1]
    np.testing.assert_allclose(fit[0].log_det(theta, x), numeric, atol=1e-2)


def test_it_learns_what_a_line_cannot(fit):
    # u is 2-d normal given x but for the tails of tanh against those of the normal quantile: near to the exact density.
    theta, x = curved(np.random.default_rng(3), 4000)
    line, _ = fit_whitening(*curved(np.random.default_rng(0), 2000), (-HALF, HALF), steps=20)
    learned, linear = (np.mean(log_normal(m.to_residual(theta, x)) + m.log_det(theta, x)) for m in (fit[0], line))
    first = 2 * np.arctanh(theta[:, :1] / 2)
    noise = (first - np.sin(3 * x)) / (0.1 * (1 + x**2)), (np.arctanh(theta[:, 1:] / 3) - theta[:, :1] * x) / 0.3
    slopes = 0.1 * (1 + x**2) * (1 - theta[:, :1] ** 2 / 4), 0.3 * 3 * (1 - theta[:, 1:] ** 2 / 9)
    exact = np.mean(log_normal(np.concatenate(noise, axis=1)) - np.sum(np.log(np.concatenate(slopes, axis=1)), axis=1))
    assert linear < learned - 0.5
    assert exact - 0.15 < learned < exact + 0.03


def test_residuals_of_the_examples_are_as_wide_as_those_of_new_ones():
    # Few examples and many numbers to tell: a network's residuals of what it has seen are narrower by a third.
    def draw(seed, n):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((n, 6))
        return 2 * np.sin(2 * x[:, :1]) + 0.3 * rng.standard_normal((n, 1)), x

    whitening, z = fit_whitening(*draw(0, 500), steps=400)
    assert np.any(whitening.networks["outer"]["kernel"] != 0)
    new = whitening.to_residual(*draw(1, 4000))
    assert 0.9 * new.std() < z.std() < 1.4 * new.std()


def test_noise_is_not_learned():
    # With nothing to learn the held-out parts choose the least-squares fit, or what is as good.
    rng = np.random.default_rng(5)
    theta, x = rng.standard_normal((400, 3)), rng.standard_normal((400, 8))
    whitening, _ = fit_whitening(theta, x, steps=100)
    fresh = rng.standard_normal((4000, 3)), rng.standard_normal((4000, 8))
    density = np.mean(log_normal(whitening.to_residual(*fresh)) + whitening.log_det(*fresh))
    assert density > np.mean(log_normal(fresh[0])) - 0.06  # of the 27 + 6 numbers that are fitted, each costs 1/(2 n)


def test_posterior_of_gaussian_linear():
    # The map is the least-squares fit: its posterior is a Gaussian, known by the images of 0 and the unit vectors.
    theta, x = simulations("gaussian_linear", 10_000)
    whitening, _ = fit_whitening(theta, x, steps=20)
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
