"""Images side by side as one picture, without matplotlib, which takes a while to import."""

import io
import math

import numpy as np
from PIL import Image

Array = np.ndarray


class Picture(bytes):
    """A PNG, which a notebook shows."""

    def __repr__(self) -> str:
        return f"<PNG of {len(self):,} bytes>"

    def _repr_png_(self) -> bytes:
        return bytes(self)


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
    columns = columns or min(len(images), max(1, math.ceil(math.sqrt(len(images)))))
    board = tile(images, columns)
    scale = max(1, 800 // board.shape[1])
    board = board.repeat(scale, axis=0).repeat(scale, axis=1)[..., : 3 if board.shape[-1] >= 3 else 1]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.broadcast_to(board, (*board.shape[:2], 3)))).save(buffer, format="png")
    return Picture(buffer.getvalue())
