"""The values of a config that follow the data: what is None there, by the size and the amount of the data.

They are settled once, when a run begins, and kept in its config.json. The table is in docs/data_and_devices.md. An
example's places are its pixels, or its points in time or space. Up to 1,024 of them, 32 x 32 pixels, two cores will do;
beyond that the network is one for a GPU, where there are examples enough for it.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from experiment.config import filled
from experiment.data.dataset import Dataset
from experiment.data.scaling import Scaling
from experiment.data.stored import release

SMALL, LARGE = 32**2, 64**2  # places
MANY = 5_000  # examples, of which a wide network learns fewer by heart
COARSEST = 4  # places along the longest side at the last level, or up to twice as many
ATTENDED, ATTENDED_WIDE = 64, 256  # places of a level with attention, at most
PASSES, LEAST = 128, 16_000  # over the examples in training; examples drawn in it
MOST, MOST_WIDE = 600_000, 64_000_000  # of those at 64 places or fewer, ten minutes of two cores; on a GPU


def follow_data(config: Any, dataset: Dataset) -> Any:
    """The config with a value that suits the data wherever it has None for one."""
    config = filled(config, {name: value(dataset) for name, value in VALUES.items()})
    scaling = Scaling(dataset.levels, config.data.centered, dataset.units)
    later = {"train.steps": steps(dataset, config.train.batch_size), "model.sigma_data": sigma_data(dataset, scaling)}
    return filled(config, later)


def places(dataset: Dataset) -> int:
    """Pixels, or points in time or space; 1 for vectors."""
    return math.prod(dataset.shape[:-1])


def wide(dataset: Dataset) -> bool:
    """Tell whether the network is to be one for a GPU."""
    return places(dataset) > SMALL and len(dataset.train) >= MANY


def width(dataset: Dataset) -> int:
    """Channels at full resolution; of vectors, in every layer."""
    if len(dataset.shape) == 1:
        return int(np.clip(2 ** math.ceil(math.log2(8 * dataset.shape[0])), 128, 1024))
    return 32 if not wide(dataset) else 64 if places(dataset) <= LARGE else 128


def channel_mults(dataset: Dataset) -> tuple[int, ...]:
    """A factor for each level, of which there are as many as leave COARSEST places to the longest side."""
    longest = max(dataset.shape[:-1], default=1)
    levels = 1 + int(math.log2(max(longest / COARSEST, 1)))
    single = 2 if places(dataset) > LARGE else 1  # where the first levels are dear
    return tuple(1 if level < single else 2 for level in range(levels))


def attention(dataset: Dataset) -> tuple[int, ...]:
    """The resolutions, below the first, whose places are few enough to attend to each other."""
    most = ATTENDED_WIDE if wide(dataset) else ATTENDED
    below = [[-(-side // 2**i) for side in dataset.shape[:-1]] for i in range(1, len(channel_mults(dataset)))]
    return tuple(dict.fromkeys(sides[0] for sides in below if math.prod(sides) <= most))


def batch_size(dataset: Dataset) -> int:
    """Examples for an update."""
    if len(dataset.shape) == 1:
        return 512 if len(dataset.train) >= 2048 else 128
    return 64 if len(dataset.train) >= 1000 and places(dataset) <= LARGE else 32


def steps(dataset: Dataset, batch: int) -> int:
    """Updates: PASSES over the examples, LEAST examples at least, and no more than the hardware bears."""
    n = len(dataset.train)
    if len(dataset.shape) == 1:
        return 5000
    dear = places(dataset) * max(1, 3 ** (len(dataset.shape) - 3))  # a kernel of a volume has three times the places
    most = MOST_WIDE if wide(dataset) else MOST * 64 // max(dear, 64)
    return max(1, round(min(max(PASSES * n, LEAST), most) / batch))


def samples(dataset: Dataset) -> int:
    """Samples for each sampler and seed of an evaluation: no more than there are examples to hold them against."""
    most = 1024 if places(dataset) <= 256 or wide(dataset) else 256
    return int(np.clip(len(dataset.train) // 2, 10, most))


def sigma_data(dataset: Dataset, scaling: Scaling) -> float:
    """The standard deviation of the data in the model's space, to two digits."""
    some = dataset.train.x[:: max(1, len(dataset.train) // 1000)]
    spread = 1.0 if dataset.units is not None else float(np.std(np.asarray(scaling.to_model(some), np.float64)))
    release(some)
    return float(f"{max(spread, 1e-3):.2g}")


VALUES: dict[str, Callable[[Dataset], Any]] = {
    "model.width": width,
    "model.channel_mults": channel_mults,
    "model.attention": attention,
    "train.batch_size": batch_size,
    "eval.n": samples,
}
