"""What a config leaves to the data is settled when a run begins, and stays."""

from typing import Any

import numpy as np
import pytest

from configs import fields, images, vectors
from experiment.build.objects import abstract_network
from experiment.config import FOLLOWING, check_config, whole_config
from experiment.data.dataset import Dataset, Split
from experiment.training.sizing import follow_data


def data_of(shape: tuple[int, ...], n: int, levels: int | None = 256) -> Dataset:
    """A data set of which only the size is looked at; its examples are one example, seen n times."""
    one = np.random.default_rng(0).integers(0, levels or 2, (1, *shape)).astype(np.uint8 if levels else np.float32)
    split = Split(np.broadcast_to(one, (n, *shape)))
    return Dataset("any", split, split, levels)


# width, levels, attention, batch, steps; the examples that training draws are what two cores bear in ten minutes.
SIZES: dict[str, tuple[Any, Dataset, tuple[Any, ...]]] = {
    "12 x 12 grey": (images, data_of((12, 12, 1), 300), (32, (1, 2), (6,), 32, 128 * 300 // 32)),
    "few": (images, data_of((12, 12, 1), 60), (32, (1, 2), (6,), 32, 500)),
    "28 x 28 grey": (images, data_of((28, 28, 1), 60_000), (32, (1, 2, 2), (7,), 64, 765)),
    "32 x 32 colour": (images, data_of((32, 32, 3), 50_000), (32, (1, 2, 2, 2), (8, 4), 64, 586)),
    "45 x 60 colour, few": (images, data_of((45, 60, 3), 400), (32, (1, 2, 2, 2), (6,), 32, 444)),
    "64 x 64, seven channels": (images, data_of((64, 64, 7), 20_000), (64, (1, 2, 2, 2, 2), (16, 8, 4), 64, 40_000)),
    "256 x 256": (images, data_of((256, 256, 3), 30_000), (128, (1, 1, 2, 2, 2, 2, 2), (16, 8, 4), 32, 120_000)),
    "series": (fields, data_of((64, 2), 2000, None), (32, (1, 2, 2, 2, 2), (32, 16, 8, 4), 64, 4000)),
    "volume": (fields, data_of((8, 8, 8, 1), 2000, None), (32, (1, 2), (4,), 64, 391)),
    "vectors, few": (vectors, data_of((2,), 2047, None), (128, (1, 2), (), 128, 5000)),
    "vectors": (vectors, data_of((40,), 5000, None), (512, (1, 2), (), 512, 5000)),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_network_and_its_training_follow_the_size_and_the_amount(name: str) -> None:
    file, dataset, expected = SIZES[name]
    config = follow_data(check_config(file.get_config()), dataset)
    model, training = config.model, config.train
    assert (model.width, model.channel_mults, model.attention, training.batch_size, training.steps) == expected
    assert all(config[key.split(".")[0]][key.split(".")[1]] is not None for key in FOLLOWING)
    abstract_network(config, dataset)  # they make a network


def test_what_is_given_stays_and_the_rest_follows() -> None:
    config = whole_config(images.get_config())
    config.model.width, config.train.batch_size = 16, 8
    settled = follow_data(check_config(config), data_of((12, 12, 1), 300))
    assert (settled.model.width, settled.train.batch_size, settled.train.steps) == (16, 8, 128 * 300 // 8)
    assert settled.model.channel_mults == (1, 2)


@pytest.mark.parametrize(
    "name, n", [("few", 30), ("series", 1000), ("vectors", 1024), ("64 x 64, seven channels", 1024)]
)
def test_an_evaluation_draws_half_as_many_samples_as_there_are_examples_at_most(name: str, n: int) -> None:
    file, dataset, _ = SIZES[name]
    assert follow_data(check_config(file.get_config()), dataset).eval.n == n


def test_data_that_are_all_alike_have_a_spread_to_divide_by() -> None:
    zeros = Split(np.zeros((100, 8, 8, 1), np.uint8))
    assert follow_data(check_config(images.get_config()), Dataset("grey", zeros, zeros, 256)).model.sigma_data == 1e-3
