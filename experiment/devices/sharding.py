"""One mesh with axes `data` and `fsdp`. One device is the 1x1 mesh, not another code path.

A batch is split over both axes; a weight, with its EMA and moments, is split over `fsdp` when it is large enough to
pay.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiment.common.errors import UserError

# Smaller weights, biases and gains of norms, stay whole: each would cost a gathering, and together they are 2 % of a
# network of width 32.
SHARD_FROM = 2**10


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Arrange the devices, by default all of all hosts, as a mesh (data, fsdp).

    Raises UserError when `fsdp` does not divide their number.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % fsdp:
        raise UserError(f"config.train.fsdp is {fsdp}: it must divide the number of devices, {len(devices)}")
    shape, axis_types = (len(devices) // fsdp, fsdp), (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types, devices=devices)


def mesh_here(fsdp: int = 1) -> Mesh:
    """The mesh of this host's devices, where runs are sampled and evaluated, wherever they were trained.

    Weights stay whole where fsdp does not divide the number of devices.
    """
    devices = jax.local_devices()
    return make_mesh(1 if len(devices) % fsdp else fsdp, devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding with a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding with this axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, ("data", "fsdp")))


def _weight(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    size = mesh.shape["fsdp"]
    divisible = [axis for axis, n in enumerate(shape) if n % size == 0]
    if size == 1 or not divisible or math.prod(shape) < SHARD_FROM:
        return replicated(mesh)
    largest = max(divisible, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))


def weight_shardings(mesh: Mesh, tree: Any) -> Any:
    """The shardings that split each array's largest axis divisible by `fsdp` over it; small arrays are replicated."""
    return jax.tree.map(lambda leaf: _weight(mesh, leaf.shape), tree)


class Rows(Protocol):
    """An array, or what gives some rows of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray: ...


def put_rows(rows: np.ndarray, source: Rows, mesh: Mesh) -> jax.Array:
    """Put source[rows] on the mesh, split over the rows' last axis, the batch.

    Each host reads only the rows of its own devices.
    """
    shape = (*rows.shape, *source.shape[1:])

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        return source[rows[index[: rows.ndim] if index else ...]]

    return jax.make_array_from_callback(shape, over_batch(mesh, rows.ndim - 1), read)


def round_up(n: int, mesh: Mesh) -> int:
    """n rounded up to a multiple of the number of devices."""
    return -(-n // mesh.size) * mesh.size


@dataclass(frozen=True)
class OverBatch:
    """A network's `apply` with its batch split over the mesh, where the number of devices divides it.

    A computation that calls it is then split too. A batch that the devices do not divide is computed whole on each.
    Weights that are split are gathered where they are used: otherwise the compiler might split activations as it finds
    the weights, and move those around.
    """

    apply: Callable[..., jax.Array]
    mesh: Mesh

    def __call__(self, params: Any, x: jax.Array, *rest: Any) -> jax.Array:
        params = jax.lax.with_sharding_constraint(params, replicated(self.mesh))
        return self._split(self.apply(params, self._split(x), *rest))

    def _split(self, x: jax.Array) -> jax.Array:
        return x if len(x) % self.mesh.size else jax.lax.with_sharding_constraint(x, over_batch(self.mesh))
