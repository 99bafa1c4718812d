"""Resampling of images by two: by StyleGAN2's filter, or plainly.

Karras et al. 2020, arXiv:1912.04958, as in Song et al. 2021.

The filter is [1, 3, 3, 1]/8 along each axis, zeros outside the image. It is written as shifts and adds, one axis after
the other, which every backend fuses; a grouped convolution says the same and is slow on CPU. All functions take (n, h,
w, c) and keep the dtype.
"""

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
    """The mean over 2x2 pixels."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def upsample(x: jax.Array) -> jax.Array:
    """The image with each pixel repeated 2x2."""
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)
