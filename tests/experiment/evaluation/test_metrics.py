"""The statistics against closed forms, and what their noise floors promise."""

import numpy as np
import pytest
from scipy.stats import energy_distance as scipy_energy
from scipy.stats import norm, wasserstein_distance
from sklearn.linear_model import LogisticRegression

from experiment.evaluation import metrics
from experiment.evaluation.metrics import (
    ClassFeatures,
    boosted_trees,
    classifier_auc,
    comparison_size,
    disjoint_parts,
    energy_distance,
    frechet,
    frechet_distance,
    memorisation,
    nearest_distances,
    perceptron,
    sliced_wasserstein,
)


def normal(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def test_sliced_wasserstein_of_a_shift_is_its_length_over_root_d():
    # W2 along theta is |theta·v|, and E (theta·v)² = |v|²/d.
    x, v = normal(50, 16), np.arange(16.0)
    assert sliced_wasserstein(x, x + v, projections=100_000) == pytest.approx(np.linalg.norm(v) / 4, rel=0.01)


def test_sliced_wasserstein_of_scaled_points():
    # Along theta the optimal map is x -> 3x, so W2² = 4 mean((theta·x)²), whose mean over theta is 4 mean(|x|²)/d.
    x = normal(400, 8)
    expected = np.sqrt(4 * np.mean(np.sum(x**2, axis=1)) / 8)
    assert sliced_wasserstein(x, 3 * x, projections=50_000) == pytest.approx(expected, rel=0.01)


def test_wasserstein_of_unequal_sizes_is_exact():
    # {0, 1} against {0, 1, 2}: the quantile functions differ by 1 on [1/3, 1/2] and on [2/3, 1], and agree elsewhere.
    x, y = np.array([[0.0], [1.0]]), np.array([[0.0], [1.0], [2.0]])
    assert sliced_wasserstein(x, y) == pytest.approx(np.sqrt(1 / 6 + 1 / 3))
    # Between points on {0, 1} all mass that moves moves by 1, so W2² is W1, for which SciPy is the oracle.
    x, y = np.repeat([0.0, 1.0], [3, 4])[:, None], np.repeat([0.0, 1.0], [5, 6])[:, None]
    assert sliced_wasserstein(x, y) ** 2 == pytest.approx(wasserstein_distance(x[:, 0], y[:, 0]))


def test_sliced_wasserstein_is_the_same_at_every_call():
    x, y = normal(60, 5), normal(60, 5, 1)
    assert sliced_wasserstein(x, y) == sliced_wasserstein(x, y)


def test_energy_distance_of_two_shifted_normals():
    # x - y is N(m, 2), whose absolute value has mean 2√2 pdf(m/√2) + m (2 Phi(m/√2) - 1); x - x' is N(0, 2): 2/√π.
    m, n = 1.0, 6000
    between = 2 * np.sqrt(2) * norm.pdf(m / np.sqrt(2)) + m * (2 * norm.cdf(m / np.sqrt(2)) - 1)
    exact = 2 * between - 4 / np.sqrt(np.pi)
    assert energy_distance(normal(n, 1), m + normal(n, 1, 1)) == pytest.approx(exact, rel=0.05)


def test_energy_distance_is_scipys_without_its_bias():
    # SciPy counts the pairs of a point with itself: E|x - x'| there is (n-1)/n of the mean over distinct pairs.
    x, y = normal(40, 1), 0.5 + normal(30, 1, 1)
    within = [np.abs(z - z.T).mean() for z in (x, y)]
    excess = within[0] / 39 + within[1] / 29
    assert energy_distance(x, y) == pytest.approx(scipy_energy(x[:, 0], y[:, 0]) ** 2 - excess, abs=1e-10)


def test_energy_distance_of_the_same_law_is_zero_on_average():
    values = [energy_distance(normal(50, 3, 2 * s), normal(50, 3, 2 * s + 1)) for s in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0  # an estimate with the diagonal in it never is


def test_energy_distance_does_not_depend_on_its_blocks():
    x, y = normal(2100, 3), 0.3 + normal(1500, 3, 1)
    direct = 2 * np.linalg.norm(x[:, None] - y, axis=2).mean()
    direct -= sum(np.linalg.norm(z[:, None] - z, axis=2).sum() / (len(z) * (len(z) - 1)) for z in (x, y))
    assert energy_distance(x, y) == pytest.approx(direct, abs=1e-6)


@pytest.mark.parametrize("delta", [0.5, 1.5])
def test_auc_of_shifted_normals(delta):
    # The best score is the projection on the shift, and P(score of y > score of x) = Phi(delta/√2).
    x, y = normal(1500, 4), normal(1500, 4, 1)
    y[:, 0] += delta
    exact = norm.cdf(delta / np.sqrt(2))
    assert classifier_auc(x, y, LogisticRegression) == pytest.approx(exact, abs=0.03)
    for classifier in (boosted_trees, perceptron):
        assert exact - 0.06 < classifier_auc(x, y, classifier) < exact + 0.03


def test_auc_of_the_same_law_is_a_half():
    # Held out: the same trees tell the points that they were fitted on with an AUC near 1.
    for classifier in (boosted_trees, perceptron):
        values = [classifier_auc(normal(300, 16, 2 * s), normal(300, 16, 2 * s + 1), classifier) for s in range(4)]
        assert np.mean(values) == pytest.approx(0.5, abs=0.04)


def test_auc_sees_what_means_and_variances_do_not():
    x = normal(600, 4)
    y = normal(600, 4, 1)
    y[:, 1] = y[:, 0] * np.sign(y[:, 1]) * np.sign(y[:, 0])  # |y_1| = |y_0|: uncorrelated, same marginals, another law
    assert classifier_auc(x, y, LogisticRegression) < 0.6
    assert classifier_auc(x, y) > 0.8


def test_auc_says_what_it_needs():
    with pytest.raises(ValueError, match="at least 10"):
        classifier_auc(normal(9, 2), normal(50, 2))


def test_frechet_distance_of_gaussians_that_commute():
    # Diagonal covariances: |m|² + sum (s_i - t_i)².
    s, t, m = np.array([1.0, 2.0, 0.0]), np.array([3.0, 0.5, 2.0]), np.array([1.0, -2.0, 0.5])
    rotation = np.linalg.qr(normal(3, 3))[0]
    first, second = (rotation * v**2 @ rotation.T for v in (s, t))
    assert frechet_distance(m, first, 0 * m, second) == pytest.approx(m @ m + np.sum((s - t) ** 2))


def test_frechet_distance_of_gaussians_that_do_not_commute():
    # tr (C_x^½ C_y C_x^½)^½ is the sum of the roots of the eigenvalues of C_x C_y, which in two dimensions are a
    # quadratic's.
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.8], [-0.8, 3.0]])
    trace, determinant = np.trace(a @ b), np.linalg.det(a @ b)
    cross = np.sqrt(trace + 2 * np.sqrt(determinant))
    assert frechet_distance(np.zeros(2), a, np.zeros(2), b) == pytest.approx(np.trace(a + b) - 2 * cross)


def test_frechet_of_points_is_that_of_their_moments():
    x = normal(500, 3)
    assert frechet(x, 2 + x) == pytest.approx(12)
    assert frechet(x, 3 * x - 2 * x.mean(0)) == pytest.approx(4 * np.trace(np.cov(x.T)))


def test_features_tell_the_classes_and_not_the_batch():
    labels = np.arange(300) % 3
    x = normal(300, 6) * 0.3
    x[np.arange(300), labels] += 2
    features = ClassFeatures(x[:200], labels[:200])
    assert features.accuracy(x[200:], labels[200:]) > 0.95
    assert features(x).shape == (300, 64)
    np.testing.assert_allclose(features(x)[7:9], features(x[7:9]), rtol=1e-12)
    np.testing.assert_array_equal(features(x), ClassFeatures(x[:200], labels[:200])(x))


def test_features_of_a_large_set_come_from_a_part_of_it_drawn_from_all(monkeypatch):
    monkeypatch.setattr(metrics, "MOST_TO_FIT", 100)
    labels = np.sort(np.arange(300) % 3)  # the first hundred are all of one class
    x = normal(300, 6) * 0.3
    x[np.arange(300), labels] += 2
    features = ClassFeatures(x, labels)
    assert features.accuracy(x, labels) > 0.95
    assert features._model.n_iter_ * 100 == features._model.t_  # examples seen, over all passes


def test_features_are_the_classifiers_own():
    # The classifier's answer is its last layer on the features.
    labels = np.arange(90) % 3
    x = normal(90, 6) + labels[:, None]
    features = ClassFeatures(x, labels)
    logits = features(x) @ features._model.coefs_[-1] + features._model.intercepts_[-1]
    np.testing.assert_array_equal(logits.argmax(1), features._model.predict(x))


def test_parts_share_no_example():
    for a, b in disjoint_parts(31, 15, splits=5, seed=3):
        assert len({*a, *b}) == 30
    assert comparison_size(1024, 1500) == 750
    assert comparison_size(100, 1500) == 100
    with pytest.raises(ValueError, match="do not fit"):
        disjoint_parts(31, 16, splits=1)


def test_parts_differ_between_splits_and_seeds():
    first, second = disjoint_parts(100, 50, 2, seed=0)
    other = disjoint_parts(100, 50, 1, seed=1)[0]
    assert set(first[0]) != set(second[0])
    assert set(first[0]) != set(other[0])


def test_floor_is_the_statistics_null_law_at_that_size():
    # Parts of one pool behave as fresh draws of the law do: the floor's mean is the mean between independent sets of
    # the same size.
    pool = normal(4000, 4, 99)
    floor = [sliced_wasserstein(pool[a], pool[b]) for a, b in disjoint_parts(4000, 200, 30)]
    fresh = [sliced_wasserstein(normal(200, 4, 2 * s), normal(200, 4, 2 * s + 1)) for s in range(30)]
    error = np.hypot(np.std(floor), np.std(fresh)) / np.sqrt(30)
    assert abs(np.mean(floor) - np.mean(fresh)) < 4 * error


def test_memorisation_flags_copies():
    train, held_out = normal(500, 8), normal(300, 8, 1)
    of_held_out = nearest_distances(held_out, train)
    fresh = memorisation(nearest_distances(normal(300, 8, 2), train), of_held_out)
    assert fresh["nn_ratio"] == pytest.approx(1, abs=0.1)
    assert fresh["nn_close"] < 0.04
    copies = memorisation(nearest_distances(train[:300] + 1e-3, train), of_held_out)
    assert copies["nn_ratio"] < 0.01
    assert copies["nn_close"] == 1
    some = np.concatenate([normal(270, 8, 2), train[:30]])  # a tenth are copies: the median hardly moves
    assert memorisation(nearest_distances(some, train), of_held_out)["nn_close"] > 0.08


def test_memorisation_is_undefined_where_held_out_examples_are_training_examples():
    assert memorisation(np.ones(3), np.zeros(3))["nn_ratio"] is None
