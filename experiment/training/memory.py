"""The memory that training will take, reckoned before it is taken."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax

from experiment.common.errors import UserError, one_line
from experiment.devices.memory import available
from experiment.training.trainer import State, Trainer


def check_state(trainer: Trainer) -> None:
    """Check by its shapes that the state, the gradient and a batch can be in memory. Raises UserError otherwise."""
    state = sum(map(_on_each_device, jax.tree.leaves(trainer.like)))
    gradient = sum(map(_on_each_device, jax.tree.leaves(trainer.like["params"])))
    examples = trainer.config.train.batch_size * trainer.steps_per_call // trainer.mesh.size
    # As the data hold it on the host, and as float32 on the device, with its noise.
    batch = examples * math.prod(trainer.dataset.shape) * (trainer.dataset.train.x.dtype.itemsize + 8)
    _check(state + gradient + batch, trainer)


def check_step(trainer: Trainer, state: State, window: dict[str, float], step: int) -> None:
    """Compile the step, as its first call then finds it, and check that what it needs beside the state is left.

    Raises UserError where it is not.
    """
    found = trainer.compiled_step(state, window, step).memory_analysis()
    if found is not None:
        _check(found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes, trainer)


def _on_each_device(leaf: jax.ShapeDtypeStruct) -> int:
    assert leaf.sharding is not None
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _left(mesh: Any) -> float:
    """The bytes that are left to each device of the mesh. Devices of a CPU share its own."""
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        return (available() or math.inf) / len(mesh.local_devices)
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", math.inf) - stats.get("bytes_in_use", 0)


def _check(needed: float, trainer: Trainer) -> None:
    left = _left(trainer.mesh)
    if needed > left:
        raise UserError(
            f"training {trainer.weights:,} weights on batches of {trainer.config.train.batch_size:,} takes"
            f" {_gib(needed)} of memory, and {_gib(left)} are left: {_remedy(trainer.config)}"
        )


def _remedy(config: Any) -> str:
    more = "" if config.model.remat == "blocks" else ", config.model.remat=blocks"
    return f"lower config.model.width or config.train.batch_size, or raise config.train.accumulate{more}"


def _gib(number: float) -> str:
    gib = number / 2**30
    return f"{gib:,.0f} GiB" if gib >= 10 else f"{gib:.2g} GiB"


@contextlib.contextmanager
def out_of_memory(config: Any) -> Iterator[None]:
    """Turn a device's or NumPy's error that there is not enough memory into a UserError with the remedy."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"there is not enough memory ({one_line(error)}): {_remedy(config)}") from None
