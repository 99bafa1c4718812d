"""Operators against other code, and their transposes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import convolve

from sde_lib.inverse import Convolve, Downsample, Linear, Mask, Operator

RNG = np.random.default_rng(0)
OPERATORS = [
    (Linear(RNG.normal(size=(3, 24))), (4, 6)),
    (Mask(RNG.random((4, 6, 2)) > 0.5), (4, 6, 2)),
    (Downsample(2), (4, 6, 3)),
    (Downsample(2, sides=2), (4, 6)),
    (Downsample(3), (6, 2)),
    (Convolve(RNG.normal(size=(3, 2))), (5, 6, 2)),
    (Convolve(RNG.normal(size=(4,))), (9, 2)),
    (Convolve(RNG.normal(size=(3, 3, 1))), (3, 4, 5, 1)),
    (Operator(lambda x: jnp.cumsum(x, axis=1)), (7,)),
]


@pytest.mark.parametrize(
    ("operator", "shape"), OPERATORS, ids=lambda v: repr(v) if isinstance(v, tuple) else type(v).__name__
)
def test_the_transpose_is_the_adjoint(operator, shape):
    with jax.enable_x64(True):
        x = jnp.asarray(RNG.normal(size=(2, *shape)))
        y = operator(x)
        u = jnp.asarray(RNG.normal(size=y.shape))
        (back,) = jax.linear_transpose(operator, x)(u)
        np.testing.assert_allclose(jnp.vdot(y, u), jnp.vdot(x, back), rtol=1e-12)


@pytest.mark.parametrize("size", [(3, 3), (2, 5), (1, 4)])
@pytest.mark.parametrize("shape", [(6, 7), (5, 8)])
def test_a_convolution_is_scipy_s_on_a_periodic_grid(size, shape):
    kernel, x = RNG.normal(size=size), RNG.normal(size=(2, *shape, 3))
    expected = [[convolve(image[..., c], kernel, mode="wrap") for c in range(3)] for image in x]
    got = Convolve(kernel)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, np.moveaxis(expected, 1, -1), atol=1e-5)


def test_blocks_have_their_means():
    x = np.arange(2 * 4 * 6 * 2, dtype=np.float32).reshape(2, 4, 6, 2)
    got = np.asarray(Downsample(2)(jnp.asarray(x)))
    for i in range(2):
        for j in range(3):
            np.testing.assert_allclose(got[:, i, j], x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: Mask(np.ones((4, 5)))(x), "one entry for each"),
        (lambda x: Mask(np.full((4, 6), 0.5)), "true or false"),
        (lambda x: Downsample(4, sides=2)(x), "must divide"),
        (lambda x: Downsample(0), "at least 1"),
        (lambda x: Convolve(np.ones((5, 5)))(x), "does not fit"),
        (lambda x: Linear(np.ones(24)), "must be"),
        (lambda x: Operator(jnp.sum)(x), "vmap"),
    ],
)
def test_a_misfit_is_told(make, said):
    with pytest.raises(ValueError, match=said):
        make(jnp.zeros((2, 4, 6)))
