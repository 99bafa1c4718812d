"""Resampling by two: of images by StyleGAN2's filter, or plainly, of grids of any size and number of axes.

Karras et al. 2020, arXiv:1912.04958, as in Song et al. 2021.

The filter is [1, 3, 3, 1]/8 along each axis, zeros outside the image. It is written as shifts and adds, one axis after
the other, which every backend fuses; a grouped convolution says the same and is slow on CPU. The filter's functions
take (n, h, w, c); all keep the dtype.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

TAPS = (0.125, 0.375, 0.375, 0.125)


def _padded(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    return jnp.pad(x, [(before, after) if i == axis else (0, 0) for i in range(x.ndim)])


def _filtered(x: jax.Array, axis: int, padding: int, stride: int = 1) -> jax.Array:
    """The correlation with the taps along an axis, `padding` zeros on both sides."""
    x = _padded(x, axis, padding, padding)
    last = x.shape[axis] - len(TAPS) + 1
    return sum(
        (tap * jax.lax.slice_in_dim(x, k, k + last, stride, axis) for k, tap in enumerate(TAPS)), jnp.zeros((), x.dtype)
    )


def fir_downsample(x: jax.Array) -> jax.Array:
    """Filter, then take every second pixel: h and w halved.

    out_i = (x_{2i-1} + 3 x_{2i} + 3 x_{2i+1} + x_{2i+2})/8 along each axis.
    """
    return _filtered(_filtered(x, 1, 1, 2), 2, 1, 2)


def fir_upsample(x: jax.Array) -> jax.Array:
    """Put zeros between the pixels, then filter with gain 2 along each axis: h and w doubled.

    out_{2i} = (x_{i-1} + 3 x_i)/4 and out_{2i+1} = (3 x_i + x_{i+1})/4: the zeros are never multiplied.
    """
    for axis in (1, 2):
        near, far = 2 * TAPS[1], 2 * TAPS[0]
        size = x.shape[axis]
        padded = _padded(x, axis, 1, 1)
        before, after = (jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k in (0, 2))
        pairs = jnp.stack([far * before + near * x, near * x + far * after], axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return x


def fir_blur(x: jax.Array, padding: int, gain: float = 1.0) -> jax.Array:
    """Filter along both axes, times gain along each; h and w grow by 2 padding - 3.

    For a strided convolution or its transpose.
    """
    return gain * gain * _filtered(_filtered(x, 1, padding), 2, padding)


def downsample(x: jax.Array) -> jax.Array:
    """The mean over cells of two places along every axis of space: (n, *sides, c), each side halved, rounded up.

    Of an odd side the last place is a cell of its own.
    """
    if any(side % 2 for side in x.shape[1:-1]):
        x = jnp.pad(x, [(0, 0), *((0, side % 2) for side in x.shape[1:-1]), (0, 0)], mode="edge")
    n, *sides, c = x.shape
    cells = x.reshape(n, *(size for side in sides for size in (side // 2, 2)), c)
    return cells.mean(axis=tuple(range(2, cells.ndim - 1, 2)))


def upsample(x: jax.Array, sides: Sequence[int] = ()) -> jax.Array:
    """The values repeated twice along every axis of space, cut to `sides`, by default twice those of x.

    From a half back to an odd side, the last repetition is cut off.
    """
    n, *own, c = x.shape
    pairs = (size for side in own for size in (side, 2))
    x = jnp.broadcast_to(jnp.expand_dims(x, tuple(range(2, 2 * len(own) + 1, 2))), (n, *pairs, c))
    x = x.reshape(n, *(2 * side for side in own), c)
    return x[(slice(None), *(slice(side) for side in sides))]
