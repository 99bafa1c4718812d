import numpy as np
import pytest
from scipy import stats
from scipy.spatial import cKDTree

from experiment.data.load import load_dataset
from experiment.data.toys import EIGHT_NOISE, MIXTURE_STD, TOYS, eight_scale, mixture_parameters


def points(name):
    dataset = load_dataset(name)
    return np.concatenate([dataset.train.x, dataset.test.x]).astype(np.float64)


def labels(name):
    dataset = load_dataset(name)
    return np.concatenate([dataset.train.labels, dataset.test.labels])


@pytest.mark.parametrize("name", TOYS)
def test_mean_zero_and_unit_scale(name):
    x = points(name)
    n = len(x)
    assert np.all(np.abs(x.mean(axis=0)) < 4 * x.std(axis=0) / np.sqrt(n))
    energy = np.sum(x**2, axis=1) / 2  # E = 1 for a law of unit scale
    assert abs(energy.mean() - 1) < 4 * energy.std() / np.sqrt(n)


@pytest.mark.parametrize("name", TOYS)
def test_same_points_every_time_and_none_held_out_twice(name):
    first, second = load_dataset(name), load_dataset(name)
    np.testing.assert_array_equal(first.train.x, second.train.x)
    assert first.train.x.dtype == np.float32 and first.levels is None and first.shape == (2,)
    assert (len(first.train), len(first.test)) == (20_000, 2_000)
    assert not {x.tobytes() for x in first.train.x} & {x.tobytes() for x in first.test.x}


@pytest.mark.parametrize("name", TOYS)
def test_the_draws_are_those_of_one_seed_for_ever(name):
    x, _ = TOYS[name](np.random.default_rng(2011), 22_000)
    np.testing.assert_array_equal(points(name), x.astype(np.float32))


@pytest.mark.parametrize("name", TOYS)
def test_train_and_test_have_one_law(name):
    dataset = load_dataset(name)
    for axis in range(2):
        assert stats.ks_2samp(dataset.train.x[:, axis], dataset.test.x[:, axis]).pvalue > 1e-3


def test_checkerboard_is_uniform_on_its_eight_cells():
    cell = (points("checkerboard") / np.sqrt(3) + 1) * 2
    assert cell.min() >= 0 and cell.max() < 4
    column, row = np.floor(cell).astype(int).T
    counts = np.zeros((4, 4))
    np.add.at(counts, (column, row), 1)
    odd = np.add.outer(np.arange(4), np.arange(4)) % 2 == 1
    assert counts[odd].sum() == 0
    assert stats.chisquare(counts[~odd]).pvalue > 1e-3
    inside = cell - np.floor(cell)
    assert all(stats.kstest(inside[:, axis], "uniform").pvalue > 1e-3 for axis in range(2))


def test_mixture_is_the_one_that_its_parameters_say():
    weights, means, covariances = mixture_parameters()
    x, component = points("mixture"), labels("mixture")
    assert stats.chisquare(np.bincount(component), weights * len(x)).pvalue > 1e-3
    residual = (x - means[component]) / MIXTURE_STD
    assert all(stats.kstest(residual[:, axis], "norm").pvalue > 1e-3 for axis in range(2))
    np.testing.assert_allclose(covariances, np.tile(MIXTURE_STD**2 * np.eye(2), (8, 1, 1)))


def test_gaussian_is_the_one_of_its_law():
    law = load_dataset("gaussian").distribution
    np.testing.assert_allclose(np.linalg.eigvalsh(law.covariances[0]), [0.2, 1.8], rtol=1e-5)
    np.testing.assert_allclose(law.covariances[0], [[1.4, 0.4 * 3**0.5], [0.4 * 3**0.5, 0.6]], rtol=1e-5)  # 30 degrees
    white = np.linalg.solve(np.linalg.cholesky(np.asarray(law.covariances[0], float)), points("gaussian").T)
    assert all(stats.kstest(row, "norm").pvalue > 1e-3 for row in white)
    assert abs(stats.pearsonr(*white).statistic) < 4 / np.sqrt(white.shape[1])


def test_moons_are_apart_and_labelled():
    x, moon = points("two_moons"), labels("two_moons")
    assert set(moon) == {0, 1}
    gap, _ = cKDTree(x[moon == 0]).query(x[moon == 1])
    spacing, _ = cKDTree(x[moon == 0]).query(x[moon == 0], k=2)
    assert gap.min() > 0.05 > 5 * np.median(spacing[:, 1])
    assert x[moon == 0, 1].mean() > x[moon == 1, 1].mean()


def test_figure_eight_lies_on_its_curve():
    t = np.linspace(0, 2 * np.pi, 20_001)
    curve = eight_scale() * np.stack([np.sin(t), np.sin(2 * t) / 2], axis=1)
    distance, _ = cKDTree(curve).query(points("figure_eight"))
    # The distance is |N(0, s²)| away from the crossing, where the nearer branch shortens it a little.
    assert np.sqrt(np.mean(distance**2)) == pytest.approx(EIGHT_NOISE, rel=0.03)
    assert distance.max() < 5 * EIGHT_NOISE


def test_swiss_roll_turns_one_and_a_half_times():
    mean = np.array([2, 2 / (3 * np.pi)])
    scale = np.sqrt((9.75 * np.pi**2 - np.sum(mean**2)) / 2)
    x = points("swiss_roll") * scale + mean
    radius = np.linalg.norm(x, axis=1)
    assert 1.5 * np.pi - 0.3 < radius.min() and radius.max() < 4.5 * np.pi + 0.3
    assert stats.kstest((radius - 1.5 * np.pi) / (3 * np.pi), "uniform").statistic < 0.012
    off = (np.arctan2(x[:, 1], x[:, 0]) - radius + np.pi) % (2 * np.pi) - np.pi  # on the spiral the angle is the radius
    assert np.sqrt(np.mean((off * radius) ** 2)) < 1.5 * 0.05 * np.sqrt(1 + radius.max() ** 2)
