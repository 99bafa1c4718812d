"""The U-Net and the DiT on series, images and volumes of any size: one network, seen along one, two or three axes."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import DiT, UNet
from models.dit import patchify, sincos_positions, unpatchify
from models.resample import downsample, upsample
from tests.models.test_models import call, random_params

SIDES = [(9,), (8,), (5, 6), (7, 3), (1, 4), (3, 4, 5)]


def halves(side: int) -> list[list[int]]:
    """The places of each cell of two; the last of an odd side alone."""
    return [[2 * i, min(2 * i + 1, side - 1)] for i in range(-(-side // 2))]


@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_cells_of_two_are_averaged_and_repeated_along_every_axis(sides: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(2, *sides, 3)).astype(np.float32)
    expected, repeated = x, np.asarray(downsample(jnp.asarray(x)))
    for axis, side in enumerate(sides, 1):
        expected = np.stack([expected.take(cell, axis).mean(axis) for cell in halves(side)], axis)
        repeated = repeated.take(np.arange(side) // 2, axis)
    np.testing.assert_allclose(downsample(jnp.asarray(x)), expected, atol=1e-6)
    np.testing.assert_array_equal(upsample(downsample(jnp.asarray(x)), sides), repeated)


def weights_of_an_axis_more(flat: dict[str, Any], deep: dict[str, Any], position: int) -> dict[str, Any]:
    """The weights of a network with an axis of one place put in: the middle slices of kernels, the rest never met."""

    def put(a: Any, b: Any) -> Any:
        if a.shape == b.shape:
            return a
        return jnp.zeros(b.shape, b.dtype).at[(slice(None),) * position + (1,)].set(a)

    return jax.tree.map(put, flat, deep)


@pytest.mark.parametrize(("sides", "position"), [((9,), 1), ((9,), 0), ((5, 6), 0), ((5, 6), 2)], ids=str)
def test_an_axis_of_one_place_changes_nothing(sides: tuple[int, ...], position: int) -> None:
    """A series is an image of one line, and an image a volume of one slice: to the U-Net, at odd sizes too."""
    more = (*sides[:position], 1, *sides[position:])
    make = partial(UNet, width=8, channel_mults=(1, 2, 2), heads=2)
    apply, params = random_params(partial(make, shape=(*sides, 2)))
    deeper, other = random_params(partial(make, shape=(*more, 2)), seed=1)
    x = jax.random.normal(jax.random.key(0), (3, *sides, 2))
    c_noise = jnp.array([-1.0, 0.0, 0.7])
    expected = call(apply, params, x, c_noise)
    y = call(deeper, weights_of_an_axis_more(params, other, position), x.reshape(3, *more, 2), c_noise)
    assert float(jnp.std(expected)) > 0.1
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("sides", [(7,), (5, 7), (3, 4, 5)], ids=str)
def test_every_corner_is_seen_from_every_corner(sides: tuple[int, ...]) -> None:
    """Nothing is cut off at an odd end: each corner of the input moves each corner of the output."""
    apply, params = random_params(partial(UNet, shape=(*sides, 1), width=8, channel_mults=(1, 2), heads=2))
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in sides])).reshape(len(sides), -1).T
    at = tuple(corners.T)

    def of_corners(values: jax.Array) -> jax.Array:
        x = jax.random.normal(jax.random.key(0), (1, *sides, 1)).at[(0, *at, 0)].add(values)
        return apply(params, x, jnp.zeros(1))[(0, *at, 0)]

    jacobian = jax.jit(jax.jacfwd(of_corners))(jnp.zeros(len(corners)))
    assert np.all(np.abs(jacobian) > 1e-6)


@pytest.mark.parametrize("sides", [(6,), (4, 6), (2, 4, 6)], ids=str)
def test_patches_are_cut_in_rows_and_put_back(sides: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(2, *sides, 3)).astype(np.float32)
    tokens = np.asarray(patchify(jnp.asarray(x), 2))
    for i, place in enumerate(np.ndindex(*(side // 2 for side in sides))):
        patch = x[(slice(None), *(slice(2 * p, 2 * p + 2) for p in place))]
        np.testing.assert_array_equal(tokens[:, i], patch.reshape(2, -1))
    np.testing.assert_array_equal(unpatchify(jnp.asarray(tokens), 2, (*sides, 3)), x)


def test_the_transformer_takes_a_series_as_an_image_of_one_line() -> None:
    make = partial(DiT, width=24, depth=2, heads=2, patch_size=1)
    apply, params = random_params(partial(make, shape=(6, 3)))
    wider, _ = random_params(partial(make, shape=(1, 6, 3)))
    x = jax.random.normal(jax.random.key(0), (2, 6, 3))
    expected = call(apply, params, x, jnp.zeros(2))
    np.testing.assert_allclose(call(wider, params, x[:, None], jnp.zeros(2))[:, 0], expected, atol=1e-4)


def test_positions_share_the_width_among_the_axes() -> None:
    table = sincos_positions([2, 3, 4], 14)
    w = 1e4 ** (-np.arange(2) / 2)
    for i, place in enumerate(np.ndindex(2, 3, 4)):
        waves = [f(p * w) for p in place for f in (np.sin, np.cos)]
        np.testing.assert_allclose(table[i], [*np.concatenate(waves), 0, 0], atol=1e-6)
