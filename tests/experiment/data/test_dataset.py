import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.data.dataset import fixed_order, some_of


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


def test_some_examples_are_of_all_classes_always_the_same_and_all_where_there_are_no_more():
    np.testing.assert_array_equal(some_of(4, 40), [10, 16, 35, 39])
    classes = np.repeat(np.arange(10), 100)  # a folder's files lie class by class
    few, more = some_of(200, 1000), some_of(400, 1000)
    assert set(few) < set(more) and (np.diff(more) > 0).all()
    assert (np.bincount(classes[few], minlength=10) > 8).all()
    np.testing.assert_array_equal(some_of(60, 50), np.arange(50))
