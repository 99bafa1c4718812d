"""Examples as pictures, and many side by side as one, without matplotlib, which takes a while to import."""

import io
import math
from collections.abc import Sequence
from typing import Self

import numpy as np
from PIL import Image

Array = np.ndarray

CHANNELS, SLICES, LINES = 9, 8, 6  # shown of one example, at most; LINES of a series


class Picture(bytes):
    """A PNG, which a notebook shows."""

    def __repr__(self) -> str:
        return f"<PNG of {len(self):,} bytes>"

    def _repr_png_(self) -> bytes:
        return bytes(self)


Box = tuple[int, int, int, int]  # left, top, width and height, in pixels


class PlacedPicture(Picture):
    """A PNG that knows where on it something is: boxes for each bar, or for each frame."""

    places: list[list[Box]]

    def __new__(cls, content: bytes, places: list[list[Box]]) -> Self:
        picture = super().__new__(cls, content)
        picture.places = places
        return picture


def tile(images: Array, columns: int, gap: int = 1, ground: int = 96) -> Array:
    """Lay images (n, h, w, c) side by side, `columns` to a row, on a grey ground: (H, W, c)."""
    n, h, w, c = images.shape
    rows = math.ceil(n / columns)
    board = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, c), ground, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        board[top : top + h, left : left + w] = image
    return board


def image_grid(images: Array, columns: int | None = None) -> Picture:
    """Draw a plain picture of images uint8 (n, h, w, c), pixels magnified by a whole number to about 800 across."""
    n, h, w, _ = images.shape
    columns = columns or min(n, max(1, math.ceil(math.sqrt(n * h / w))))
    board = tile(images, columns)
    scale = max(1, 800 // board.shape[1])
    board = board.repeat(scale, axis=0).repeat(scale, axis=1)[..., : 3 if board.shape[-1] >= 3 else 1]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.broadcast_to(board, (*board.shape[:2], 3)))).save(buffer, format="png")
    return Picture(buffer.getvalue())


def evenly(count: int, most: int) -> Array:
    """At most so many of 0..count-1, evenly spread, ends included."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def pictures(examples: Array) -> Array:
    """Lay out examples uint8 (n, ..., h, w, c) as pictures (n, H, W, 1 or 3).

    A volume is a row of slices. Channels that are no grey and no colour are pictures of their own, in rows of a square,
    or of a volume one below the other.
    """
    volume = examples if examples.ndim == 5 else examples[:, None]
    volume = volume[:, evenly(volume.shape[1], SLICES)]
    columns = volume.shape[1]
    if volume.shape[-1] not in (1, 3):
        volume = volume[..., :CHANNELS]
        columns = columns if columns > 1 else math.ceil(math.sqrt(volume.shape[-1]))
        volume = np.moveaxis(volume, -1, 1).reshape(len(volume), -1, *volume.shape[2:4], 1)
    if volume.shape[1] == 1:
        return volume[:, 0]
    return np.stack([tile(parts, columns)[1:-1, 1:-1] for parts in volume])


def legend(shape: Sequence[int]) -> str:
    """Say, as the rest of a caption, how examples of this shape are laid out; "" for what needs no word."""
    *sides, channels = shape
    told = []
    if len(sides) == 1:
        told.append("a line for each channel" if channels <= LINES else f"the first {LINES} of {channels} channels")
    if len(sides) == 3:
        told.append(f"{min(sides[0], SLICES)} of {sides[0]} slices from left to right")
    if len(sides) > 1 and channels not in (1, 3):
        first = f"the first {CHANNELS} of {channels}" if channels > CHANNELS else f"the {channels}"
        told.append(f"{first} channels {'one below the other' if len(sides) == 3 else 'row by row'}")
    return f" ({'; '.join(told)})" if told else ""
