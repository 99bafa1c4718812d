"""The map from the levels that the data have to the space that the network sees, and back; random flips.

Data with L levels: level k occupies the bin [2k/L - 1, 2(k+1)/L - 1) of [-1, 1), of width 2/L. Dequantisation places
x = 2(k + u)/L - 1 with u uniform in its bin, so that a density over x is comparable with a probability over k:
log2 P(k) >= E_u[log2 p(x)] + dim log2(2/L) (Theis et al. 2016, arXiv:1511.01844, section 3.1).
Data that are not centred fill [0, 1), in bins half as wide: the space of NCSN++ and its VE constants.

Data without levels are standardised by their `Units`, and pass unchanged where they have none, as the toys, which are
of unit scale by construction.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiment.data.stored import in_blocks
from experiment.data.units import Units

Array = Any

_GRID_BITS = 12  # u lies on the midpoints of 2^12 cells of its bin; every one survives float32, there and back


@dataclass(frozen=True)
class Scaling:
    """The map between integer levels 0..levels-1 and [-1, 1), or [0, 1) if not `centered`.

    Without levels (None) it is that of `units`, or the identity. Frozen and hashable, so it may be a static argument of
    a jitted function. Raises ValueError for levels not in 2..256.
    """

    levels: int | None
    centered: bool = True
    units: Units | None = None

    def __post_init__(self) -> None:
        if self.levels is not None and not 2 <= self.levels <= 256:
            raise ValueError(f"levels={self.levels}: data have 2 to 256 levels; use levels=None for floats")

    @property
    def _low(self) -> float:
        return -1.0 if self.centered else 0.0

    @property
    def bin_width(self) -> float | None:
        """The width of one level in model space, 2/levels, or 1/levels if not centred; None without levels."""
        return None if self.levels is None else (1.0 - self._low) / self.levels

    def to_model(self, k: Array, key: Array | None = None) -> jax.Array:
        """Map levels k to x = 2(k + u)/levels - 1, or (k + u)/levels if not centred, float32, shaped like k.

        u is uniform, drawn from `key`; without a key it is 1/2, the centre of each bin. Without levels k are floats in
        the user's units, which are standardised on the host.
        """
        if self.bin_width is None:
            return jnp.asarray(k if self.units is None else self.units.to_model(k), jnp.float32)
        k = jnp.asarray(k, jnp.float32)
        u = 0.5 if key is None else _uniform_in_bin(key, k.shape)
        return (k + u) * self.bin_width + self._low

    def to_data(self, x: Array) -> Array:
        """The level whose bin holds x, uint8, clipped to 0..levels-1; the inverse of `to_model` for every u.

        Without levels, x in the user's units.
        """
        xp = jnp if isinstance(x, jax.Array) else np  # on the host, where samples are, op by op costs nothing
        if self.levels is None or self.bin_width is None:
            return xp.asarray(x) if self.units is None else self.units.to_data(x)
        x = xp.asarray(x)
        # The slack puts a bin's own lower edge, which float32 may round to just below itself, into that bin.
        slack = self.levels * 2.0**-22
        k = xp.floor((x.astype(np.float32) - self._low) * (1.0 / self.bin_width) + slack)
        return xp.clip(k, 0, self.levels - 1).astype(np.uint8)

    def affine(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of data = shift + scale x, each (*shape), float64: `to_data` before it cuts to whole levels.

        The centre of a level's bin is the level itself.
        """
        if self.bin_width is not None:
            shift, scale = -self._low / self.bin_width - 0.5, 1.0 / self.bin_width
        else:
            shift, scale = (0.0, 1.0) if self.units is None else (self.units.mean, self.units.std)  # type: ignore[assignment]
        return np.broadcast_to(shift, shape).astype(float), np.broadcast_to(scale, shape).astype(float)

    def log_det(self, shape: tuple[int, ...]) -> float:
        """The nats that an example's log-density loses on its way to the user's units; 0 with levels."""
        return 0.0 if self.units is None else self.units.log_det(shape)

    def to_uint8(self, k: Array) -> np.ndarray:
        """Turn levels into a picture's grey values, round(255 k/(levels - 1)), and standardised data, mean ± 3 std,
        into 0..255.

        Raises ValueError for data that are neither.
        """
        if self.units is not None:
            return np.rint(np.clip(127.5 + 42.5 * self.units.to_model(k), 0, 255)).astype(np.uint8)
        if self.levels is None:
            raise ValueError("vectors have no grey values: to_uint8 is for data with levels or units")
        return np.rint(np.asarray(k, np.float64) * 255.0 / (self.levels - 1)).astype(np.uint8)


class Scaled:
    """Examples as the network sees them, float32, without dequantisation: those that are asked for, scaled then.

    A large set, which lies in a mapped file, is never in memory.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, scaling: Scaling, x: np.ndarray):
        self._scaling, self._x = scaling, x

    def __len__(self) -> int:
        return len(self._x)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, ...)."""
        return self._x.shape

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        units = self._scaling.units  # on the host: a batch goes to its devices once
        x = self._x[rows]
        return np.asarray(self._scaling.to_model(x)) if units is None else units.to_model(x)

    def blocks(self) -> Iterator[np.ndarray]:
        """All of them in order, some at a time."""
        for x in in_blocks(self._x):
            yield Scaled(self._scaling, x)[:]


def _uniform_in_bin(key: Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw u = (j + 1/2)/2^m with j uniform in 0..2^m - 1, m = _GRID_BITS.

    Its mean is exactly 1/2, and it is never so near to an edge that k + u rounds across it.
    """
    j = jax.random.bits(key, shape, jnp.uint16) >> (16 - _GRID_BITS)
    return (j.astype(jnp.float32) + 0.5) * 2.0**-_GRID_BITS


def random_flip(x: Array, key: Array) -> jax.Array:
    """Mirror each image of x (n, h, w, c) left to right with probability 1/2, independently of the others."""
    coin = jax.random.bernoulli(key, shape=(x.shape[0], 1, 1, 1))
    return jnp.where(coin, jnp.flip(x, axis=2), x)
