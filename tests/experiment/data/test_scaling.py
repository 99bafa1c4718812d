import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiment.data.scaling import Scaling, random_flip

LEVELS = [2, 17, 255, 256]


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("levels", LEVELS)
def test_every_level_survives_dequantisation(levels, centered):
    scaling = Scaling(levels, centered)
    k = np.tile(np.arange(levels, dtype=np.uint8), (1000, 1))
    for key in (None, jax.random.key(0)):
        np.testing.assert_array_equal(scaling.to_data(jax.jit(scaling.to_model)(k, key)), k)


@pytest.mark.parametrize("levels", LEVELS)
def test_bins_tile_minus_one_to_one(levels):
    k = np.arange(levels)
    scaling = Scaling(levels)
    np.testing.assert_allclose(scaling.to_model(k), (2 * k + 1) / levels - 1, atol=2e-7)  # centres
    assert scaling.bin_width == 2 / levels
    for u in (0.0, 0.25, 0.999):  # a bin holds its lower edge, and not its upper one
        x = ((k + u) * 2 / levels - 1).astype(np.float32)
        np.testing.assert_array_equal(scaling.to_data(x), k)


@pytest.mark.parametrize("levels", LEVELS)
def test_bins_tile_zero_to_one(levels):
    k = np.arange(levels)
    scaling = Scaling(levels, centered=False)
    np.testing.assert_allclose(scaling.to_model(k), (k + 0.5) / levels, atol=2e-7)
    assert scaling.bin_width == 1 / levels
    for u in (0.0, 0.25, 0.999):
        np.testing.assert_array_equal(scaling.to_data(((k + u) / levels).astype(np.float32)), k)


def test_values_outside_are_clipped():
    np.testing.assert_array_equal(Scaling(17).to_data(jnp.array([-3.0, -1.0, 1.0, 7.0])), [0, 0, 16, 16])


@pytest.mark.parametrize("levels", [17, 256])
def test_dequantised_values_are_uniform_in_their_bin(levels):
    k = np.repeat(np.array([0, levels // 2, levels - 1], np.uint8)[:, None], 50_000, axis=1)
    u = (np.asarray(Scaling(levels).to_model(k, jax.random.key(1)), np.float64) + 1) * levels / 2 - k
    assert u.min() >= 0 and u.max() < 1
    # On the midpoints of 4096 cells: no edge is met, and the mean is 1/2 to the last bit.
    np.testing.assert_allclose(u * 4096 % 1, 0.5, atol=0.1)
    for row in u:
        assert stats.kstest(row, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u)[0, 1]) < 4 / np.sqrt(50_000)  # each value has its own u


def test_grey_values_span_black_to_white():
    np.testing.assert_array_equal(Scaling(256).to_uint8(np.arange(256)), np.arange(256))
    digits = Scaling(17).to_uint8(np.arange(17))
    assert digits[0] == 0 and digits[-1] == 255 and digits.dtype == np.uint8
    np.testing.assert_allclose(digits, np.arange(17) * 255 / 16, atol=0.5)


def test_vectors_pass_unchanged():
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    scaling = Scaling(None)
    np.testing.assert_array_equal(scaling.to_model(x, jax.random.key(0)), x)
    np.testing.assert_array_equal(scaling.to_data(x), x)
    assert scaling.bin_width is None
    with pytest.raises(ValueError, match="vectors"):
        scaling.to_uint8(x)


@pytest.mark.parametrize("levels", [1, 0, 257])
def test_impossible_levels_are_refused(levels):
    with pytest.raises(ValueError, match="2 to 256"):
        Scaling(levels)


def test_flips_mirror_half_of_the_images_left_to_right():
    n = 4000
    x = np.random.default_rng(0).integers(0, 256, (n, 2, 3, 1), np.uint8)
    y = np.asarray(random_flip(x, jax.random.key(0)))
    same = (y == x).all(axis=(1, 2, 3))
    mirrored = (y == x[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same | mirrored).all()
    assert abs(np.mean(~same) - 0.5) < 4 * 0.5 / np.sqrt(n)
