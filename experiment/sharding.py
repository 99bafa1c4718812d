"""One mesh with axes `data` and `fsdp`. One device is the 1x1 mesh, not another code path.

A batch is split over both axes; a weight, with its EMA and moments, is split over `fsdp` when it is large enough to
pay.

"""

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiment.errors import UserError

# Below this many entries, gathering a weight costs more than holding a copy on every device.
SHARD_FROM = 2**14

# What a cluster's environment says to a process that is one of several; jax finds the rest itself.
_CLUSTERS: dict[str, Callable[[str], bool]] = {
    "SLURM_STEP_NUM_TASKS": lambda value: value.isdigit() and int(value) > 1,
    "OMPI_COMM_WORLD_SIZE": lambda value: value.isdigit() and int(value) > 1,
    "TPU_WORKER_HOSTNAMES": lambda value: "," in value,
}
_BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialise_distributed() -> None:
    """Join the other processes when the environment says that there are some. Before anything else that uses a device.

    By hand: JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES, JAX_PROCESS_ID. Raises UserError for the first alone.
    """
    if jax.distributed.is_initialized():
        return
    address, processes, process = (os.environ.get(name, "") for name in _BY_HAND)
    if address:
        if not (processes.isdigit() and process.isdigit()):
            raise UserError(f"{_BY_HAND[0]} is set: set {_BY_HAND[1]} and {_BY_HAND[2]} too, to numbers")
        jax.distributed.initialize(address, int(processes), int(process))
    elif any(several(os.environ.get(name, "")) for name, several in _CLUSTERS.items()):
        jax.distributed.initialize()


def make_mesh(fsdp: int = 1) -> Mesh:
    """All devices as (data, fsdp). Raises UserError when `fsdp` does not divide their number."""
    devices = jax.device_count()
    if devices % fsdp:
        raise UserError(f"config.train.fsdp is {fsdp}: it must divide the number of devices, {devices}")
    return jax.make_mesh((devices // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The first axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def _weight(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    size = mesh.shape["fsdp"]
    divisible = [axis for axis, n in enumerate(shape) if n % size == 0]
    if size == 1 or not divisible or math.prod(shape) < SHARD_FROM:
        return replicated(mesh)
    largest = max(divisible, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))


def weight_shardings(mesh: Mesh, tree: Any) -> Any:
    """Each array's largest axis that `fsdp` divides is split over it; small arrays are replicated."""
    return jax.tree.map(lambda leaf: _weight(mesh, leaf.shape), tree)


def put_rows(rows: np.ndarray, source: np.ndarray, mesh: Mesh) -> jax.Array:
    """source[rows] on the mesh, split over the batch. Each host reads only the rows of its own devices."""
    shape = (len(rows), *source.shape[1:])

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        return source[rows[index[0] if index else slice(None)]]

    return jax.make_array_from_callback(shape, over_batch(mesh), read)
