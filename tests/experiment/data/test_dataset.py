import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.data.dataset import fixed_order


def test_the_same_examples_are_held_out_on_every_machine_and_in_every_version():
    """Written down: numbers of two versions of the code must be of the same images."""
    train, test = fixed_order(40, "set")
    np.testing.assert_array_equal(test, [10, 16, 35, 39])
    np.testing.assert_array_equal(train, np.setdiff1d(np.arange(40), test))


@pytest.mark.parametrize("n, held_out", [(2, 1), (14, 1), (16, 2), (1797, 180)])
def test_a_tenth_is_held_out_and_at_least_one(n, held_out):
    train, test = fixed_order(n, "set")
    assert len(test) == held_out and sorted([*train, *test]) == list(range(n))


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_hold_out_is_told(n):
    with pytest.raises(UserError, match=rf"set holds {n} example\(s\); at least 2 are needed"):
        fixed_order(n, "set")
