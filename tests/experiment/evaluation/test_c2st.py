import numpy as np
import pytest
from scipy.stats import norm

from experiment.common.errors import UserError
from experiment.evaluation.c2st import c2st

ROWS = 600


def normal(seed, shift=0.0):
    return np.random.default_rng(seed).standard_normal((ROWS, 2)) + np.array([shift, 0.0])


def test_samples_of_one_distribution_cannot_be_told_apart():
    assert abs(c2st(normal(0), normal(1)) - 0.5) < 4 * 0.5 / np.sqrt(2 * ROWS)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_accuracy_is_that_of_bayes_for_shifted_gaussians(shift):
    # The best classifier of N(0, I) and N(shift e_1, I) is right with probability Phi(shift/2).
    accuracy = norm.cdf(shift / 2)
    error = np.sqrt(accuracy * (1 - accuracy) / (2 * ROWS))
    found = c2st(normal(2), normal(3, shift))
    assert accuracy - 0.02 - 3 * error < found < accuracy + 3 * error


def test_the_reference_sets_the_scale():
    # A power of two leaves every digit: only the reference's own scale may matter, so both in other units change none.
    reference, samples = normal(4)[:200], 0.5 * normal(5)[:200]
    assert c2st(reference * 1024, samples * 1024) == c2st(reference, samples)


def test_mistakes():
    good = normal(0)
    with pytest.raises(UserError, match="give both as rows of equal length"):
        c2st(good, good[:, :1])
    with pytest.raises(UserError, match="at least 5 rows"):
        c2st(good, good[:3])
    with pytest.raises(UserError, match="NaN or infinity"):
        c2st(good, np.where(np.arange(ROWS)[:, None] == 3, np.nan, good))
    with pytest.raises(UserError, match="column 1 of the reference is constant"):
        c2st(good * np.array([1.0, 0.0]), good)
