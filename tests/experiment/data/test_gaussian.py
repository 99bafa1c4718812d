"""The Gaussian of the data: near its law, in few examples too where places are alike, and never worse than none."""

from typing import Any

import numpy as np
import pytest

from experiment.data import gaussian
from experiment.data.gaussian import MOST, fit_gaussian

rng = np.random.default_rng(0)


def line(side: int, length: float, around: bool = False) -> np.ndarray:
    """The covariance exp(-distance/length) of a line of places, or of a ring."""
    far = np.abs(np.arange(side)[:, None] - np.arange(side))
    return np.exp(-(np.minimum(far, side - far) if around else far) / length)


def follower(side: int) -> np.ndarray:
    """The covariance of a ring of white noise whose second channel is the first one, a place before, and more noise."""
    before = np.roll(np.eye(side), 1, axis=0)
    blocks = np.block([[np.eye(side), 0.8 * before.T], [0.8 * before, np.eye(side)]])
    order = np.arange(2 * side).reshape(2, side).T.ravel()  # a place's channels lie together
    return blocks[np.ix_(order, order)]


MIXING = np.array([[1.0, 0.0], [0.8, 0.6]])
# The covariance of standardised examples of a shape, and how near a fit to so many examples must come, in nats.
LAWS: dict[str, tuple[tuple[int, ...], np.ndarray, int, float]] = {
    "correlated vectors": ((2,), MIXING @ MIXING.T, 1000, 0.02),
    "vectors in few examples": ((40,), np.eye(40), 60, 1.5),
    "periodic series of two channels": ((24, 2), np.kron(line(24, 3, around=True), MIXING @ MIXING.T), 300, 0.3),
    "a channel that follows the other": ((12, 2), follower(12), 100, 0.5),
    "series with ends": ((24, 1), line(24, 8), 5000, 0.1),
    "periodic field": ((6, 5, 1), np.kron(line(6, 2, around=True), line(5, 1, around=True)), 300, 0.1),
    "periodic volume": ((3, 4, 3, 1), np.kron(line(3, 2, True), np.kron(line(4, 2, True), line(3, 1, True))), 300, 0.1),
}


def divergence(fitted: dict[str, Any], covariance: np.ndarray) -> float:
    """KL(N(0, covariance) || the fitted Gaussian), in nats."""
    mean, basis, variances = (np.asarray(fitted[name], float) for name in ("mean", "basis", "variances"))
    precision = basis @ np.diag(1 / variances) @ basis.T
    traces = np.trace(precision @ covariance) - len(mean) + mean @ precision @ mean
    return float(traces + np.log(variances).sum() - np.linalg.slogdet(covariance)[1]) / 2


@pytest.mark.parametrize("name", LAWS)
def test_the_fit_is_near_the_law(name: str) -> None:
    shape, covariance, n, near = LAWS[name]
    z = rng.standard_normal((n, len(covariance))) @ np.linalg.cholesky(covariance).T
    assert divergence(fit_gaussian(z.reshape(n, *shape).astype(np.float32)), covariance) < near


def test_in_few_examples_the_mean_too_is_the_same_everywhere() -> None:
    """The places' own means would cost d/(2 n) = 0.38 nats."""
    covariance = LAWS["periodic field"][1]
    z = np.random.default_rng(0).standard_normal((40, 30)) @ np.linalg.cholesky(covariance).T
    assert divergence(fit_gaussian(z.reshape(40, 6, 5, 1).astype(np.float32)), covariance) < 0.3


def test_of_more_examples_than_memory_bears_some_from_all_along_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    z = np.random.default_rng(0).standard_normal((1000, 3)) + np.linspace(0, 9, 1000)[:, None]
    some = fit_gaussian(z[::4])
    monkeypatch.setattr(gaussian, "MOST_NUMBERS", 800)
    for name, found in fit_gaussian(z).items():
        np.testing.assert_array_equal(found, some[name])


def test_a_mean_that_follows_the_place_is_kept() -> None:
    wave = np.sin(np.arange(30) / 4)
    z = wave[:, None] + 0.3 * rng.standard_normal((2000, 30, 1))
    np.testing.assert_allclose(fit_gaussian(z)["mean"], wave, atol=0.05)


@pytest.mark.parametrize("shape", [(100, MOST + 1), (100, 33, 32, 1), (19, 2)], ids=str)
def test_too_many_entries_or_too_few_examples_have_none(shape: tuple[int, ...]) -> None:
    assert fit_gaussian(np.zeros(shape, np.float32)) == {}


def test_examples_that_fill_no_volume_have_a_density_all_the_same() -> None:
    z = np.repeat(np.random.default_rng(1).normal(size=(50, 1)), 3, axis=1)
    fitted = fit_gaussian(z)
    assert (fitted["variances"] > 0).all() and np.isfinite(np.log(fitted["variances"])).all()
