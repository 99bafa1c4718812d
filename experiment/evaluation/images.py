"""Images that are read some at a time: those of a set of hundreds of thousands are never all in memory."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiment.data.scaling import Scaling
from experiment.data.stored import release

Array = np.ndarray


class Images:
    """Grey values 0..255, uint8 (n, h, w, c), of arrays of levels one after another; they may lie in mapped files."""

    dtype = np.dtype(np.uint8)

    def __init__(self, parts: Sequence[Array], levels: int = 256):
        self._parts, self._table = parts, Scaling(levels).to_uint8(np.arange(levels))
        self._levels = levels

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, h, w, c)."""
        return (len(self), *self._parts[0].shape[1:])

    def batches(self, size: int) -> Iterator[Array]:
        """The images in order, `size` at once; what is mapped is given back to the system on the way."""
        for part in self._parts:
            for first in range(0, len(part), size):
                yield self._grey(part[first : first + size])
                release(part)

    def _grey(self, levels: Array) -> Array:
        # Through a table: `Scaling.to_uint8` takes eight bytes for each.
        return np.array(levels, np.uint8) if self._levels == 256 else self._table[levels]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """All of them in memory."""
        whole = np.concatenate([self._grey(part) for part in self._parts])
        return whole if dtype is None else whole.astype(dtype)
