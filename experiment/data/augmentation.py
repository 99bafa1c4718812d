"""Geometric augmentations of images, told to the network so that they do not leak into its samples.

After Karras et al. 2022, arXiv:2206.00364, appendix F.2 and table 6: each image is mirrored with probability 1/2, and
each of five other transforms happens with a small one. The network is told all of them as nine numbers, which are 0 for
an image that is left as it is; it samples with zeros.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

Array = jax.Array

LABELS = 9
SIZE, STRETCH, SHIFT = 0.2, 0.2, 0.125  # standard deviations: of log2 of a factor, twice, and of a shift in sides
SLANTED = 0.5  # the share of stretches that are not along an axis


def augment(x: Array, key: Array, probability: float) -> tuple[Array, Array]:
    """Transform images at random, each by itself.

    Args:
        x: (n, h, w, c), floats.
        key: of all of them.
        probability: of each transform but the first; the second is a coin where it happens.

    Returns:
        x: the images.
        labels: what was done to each, (n, 9), as `transformed` takes it.
    """
    labels = jax.vmap(lambda key: _draw(key, probability))(jax.random.split(key, len(x)))
    return jax.vmap(transformed)(x, labels), labels


def _draw(key: Array, probability: float) -> Array:
    """Draw an image's labels, (9,)."""
    keys = jax.random.split(key, 3)
    happens = jax.random.bernoulli(keys[0], jnp.asarray([0.5, 0.5 * probability, *[probability] * 4, SLANTED]))
    size, stretch, *shift = jax.random.normal(keys[1], (4,))
    turn, slant = jax.random.uniform(keys[2], (2,), minval=-math.pi, maxval=math.pi)
    turn, slant = jnp.where(happens[3], turn, 0.0), jnp.where(happens[6], slant, 0.0)
    size, stretch = jnp.where(happens[2], size, 0.0), jnp.where(happens[4], stretch, 0.0)
    shift = [jnp.where(happens[5], side, 0.0) for side in shift]
    turned = [jnp.cos(turn) - 1, jnp.sin(turn)]
    stretched = [stretch * jnp.cos(2 * slant), stretch * jnp.sin(2 * slant)]
    return jnp.stack([happens[0], happens[1], size, *turned, *stretched, *shift]).astype(jnp.float32)


def transformed(x: Array, labels: Array) -> Array:
    """Do to an image (h, w, c) what its labels (9,) say, in their order.

    mirrored left to right; upside down; a, larger by 2^(0.2 a); cos w - 1, sin w, turned by w; b cos 2r, b sin 2r,
    stretched by 2^(0.2 b) in the direction r and by its inverse across; c, d, moved by 0.125 c widths, 0.125 d heights.
    The angle r is doubled, which the paper's is not, since b at r is -b at r + 90 degrees: so labels tell all.

    Between pixels values are linear, and beyond the border the image is reflected: one that is only mirrored keeps its
    values.
    """
    height, width, _ = x.shape
    mirrored, upside_down, size, cos, sin, along, across, right, down = labels
    # From a place in the result, (x, y) about the middle, back to where it comes from: each inverse, the last first.
    stretch, rate = jnp.hypot(along, across), STRETCH * math.log(2.0)
    ratio = jnp.where(stretch > 0, jnp.sinh(rate * stretch) / jnp.where(stretch > 0, stretch, 1.0), 0.0)
    back = jnp.cosh(rate * stretch) * jnp.eye(2) - ratio * jnp.array([[along, across], [across, -along]])
    back = _product(jnp.array([[1 + cos, sin], [-sin, 1 + cos]]), back)
    back = 2.0 ** (-SIZE * size) * back * jnp.array([[1 - 2 * mirrored], [1 - 2 * upside_down]])
    middle = jnp.array([(width - 1) / 2, (height - 1) / 2])
    rows, columns = jnp.mgrid[:height, :width]
    places = jnp.stack([columns.ravel(), rows.ravel()]) - middle[:, None]
    moved = SHIFT * jnp.array([right * width, down * height])
    columns, rows = _product(back, places - moved[:, None]) + middle[:, None]

    def one(channel: Array) -> Array:
        return map_coordinates(channel, [rows, columns], order=1, mode="reflect").reshape(height, width)

    return jax.vmap(one, in_axes=2, out_axes=2)(x)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
