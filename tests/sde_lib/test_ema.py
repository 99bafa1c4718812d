"""Power-function averages against closed forms and explicit sums; reconstructed ones against the average that was not
tracked.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib.ema import gamma_of, power_ema_decay, reconstruct_ema, reconstruction_weights

STEPS, EVERY, TRACKED = 4096, 128, (0.05, 0.10)


def width(gamma):
    return np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def true_weights(step, sigma_rel):
    """Of the params of steps 1, 2, ..., STEPS in the average at `step`: the integrals of its profile over each step."""
    ends = np.minimum(np.arange(STEPS + 1) / step, 1.0) ** (gamma_of(sigma_rel) + 1)
    return np.diff(ends)


@pytest.fixture(scope="module")
def params():
    """A training: smooth changes, a random walk, noise around a mean. (STEPS, 6)."""
    s, rng = np.arange(1, STEPS + 1) / STEPS, np.random.default_rng(0)
    walk, noise = np.cumsum(rng.normal(size=STEPS)) / 64, 1 + 0.1 * rng.normal(size=STEPS)
    return np.stack([s, s**2, np.cos(8 * s), np.exp(-6 * s), walk, noise], axis=1)


@pytest.fixture(scope="module")
def snapshots(params):
    at = [(step, sigma_rel) for step in range(EVERY, STEPS + 1, EVERY) for sigma_rel in TRACKED]
    return [(step, sigma_rel, {"w": true_weights(step, sigma_rel) @ params}) for step, sigma_rel in at]


def test_gamma_is_the_published_one():
    # Karras et al. 2024: gamma 16.97 and 6.94 for the widths that EDM2 tracks.
    np.testing.assert_allclose([gamma_of(0.05), gamma_of(0.10)], [16.97, 6.94], atol=0.005)


@pytest.mark.parametrize("gamma", [1e-3, 0.5, 1.0, 6.94, 16.97, 400.0])
def test_gamma_gives_a_profile_of_that_width(gamma):
    np.testing.assert_allclose(gamma_of(width(gamma)), gamma, rtol=1e-6)
    tau = np.linspace(0, 1, 400_001)
    p = (gamma + 1) * tau**gamma
    mean = np.trapezoid(p * tau, tau)
    np.testing.assert_allclose(np.sqrt(np.trapezoid(p * (tau - mean) ** 2, tau)), width(gamma), rtol=1e-4)


def averaged(sigma_rel, sequence):
    """The average after each step of params (t, ...), as a trainer computes it."""

    def update(ema, step_and_params):
        step, params = step_and_params
        decay = power_ema_decay(sigma_rel, step)
        ema = decay * ema + (1 - decay) * params
        return ema, ema

    steps = jnp.arange(1, len(sequence) + 1)
    return jax.lax.scan(
        update, jnp.full(sequence.shape[1:], jnp.float32(1e6)), (steps, jnp.asarray(sequence, jnp.float32))
    )[1]


def test_averages_of_known_params_are_the_closed_forms():
    # gamma = 1 weighs the params of step s with (2s - 1)/t². What was there before the first step, here 1e6, leaves no
    # trace.
    t = np.arange(1, 301, dtype=float)
    of_t, of_t2 = averaged(width(1.0), np.stack([t, t**2], axis=1)).T
    np.testing.assert_allclose(of_t, (t + 1) * (4 * t - 1) / (6 * t), rtol=1e-5)
    np.testing.assert_allclose(of_t2, (t + 1) ** 2 / 2 - (t + 1) * (2 * t + 1) / (6 * t), rtol=1e-5)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.10, 0.25])
def test_averages_weigh_each_step_by_the_integral_of_the_profile(sigma_rel, params):
    running = np.asarray(averaged(sigma_rel, params))
    for step in (1, 2, 17, 1000, STEPS):
        np.testing.assert_allclose(running[step - 1], true_weights(step, sigma_rel) @ params, atol=2e-5)


def test_the_decay_keeps_its_digits_late():
    # 1 - 1/t in float32 is wrong by 6e-8, which is 6 % of 1/t at a million steps.
    t = np.array([10, 1_000, 1_000_000])
    expected = -np.expm1((gamma_of(0.05) + 1) * np.log1p(-1 / t))
    np.testing.assert_allclose(1 - np.asarray(power_ema_decay(0.05, jnp.asarray(t)), float), expected, rtol=3e-3)


@pytest.mark.parametrize("index", [0, 21, 40, 63])
def test_a_snapshot_is_reconstructed_from_itself_alone(index, snapshots):
    step, sigma_rel, params = snapshots[index]
    weights = reconstruction_weights([(at, width) for at, width, _ in snapshots], step, sigma_rel)
    np.testing.assert_allclose(weights, np.arange(len(snapshots)) == index, atol=1e-6)
    np.testing.assert_allclose(reconstruct_ema(snapshots, step, sigma_rel)["w"], params["w"], atol=1e-6)


@pytest.mark.parametrize("sigma_rel, error", [(0.06, 1e-4), (0.07, 1e-4), (0.15, 1e-4), (0.20, 1e-3)])
def test_an_average_that_was_not_tracked_is_reconstructed(sigma_rel, error, params, snapshots):
    # Measured at sigma_rel 0.07: 3e-5, where the nearest snapshot is off by 0.09; the walk and the noise are in it.
    expected = true_weights(STEPS, sigma_rel) @ params
    found = reconstruct_ema(snapshots, STEPS, sigma_rel)["w"]
    nearest = min(np.abs(snapshot["w"] - expected).max() for _, _, snapshot in snapshots)
    assert np.abs(found - expected).max() < error < nearest / 100


def test_early_and_between_snapshots(params, snapshots):
    for step, error in ((EVERY * 8, 1e-3), (3000, 1e-2)):
        expected = true_weights(step, 0.07) @ params
        assert np.abs(reconstruct_ema(snapshots, step, 0.07)["w"] - expected).max() < error


def test_constant_params_stay_and_trees_keep_their_structure_and_dtypes(snapshots):
    tree = {"a": [jnp.full((2, 3), 1000.1, jnp.float32)], "b": jnp.full(2, 3, jnp.bfloat16), "c": np.float32(7)}
    constant = [(step, sigma_rel, tree) for step, sigma_rel, _ in snapshots]
    found = reconstruct_ema(constant, 3000, 0.03)  # weights of 14 and -14
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for leaf, expected in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
        assert (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(leaf, expected)


def test_one_snapshot_is_enough_and_twice_the_same_is_no_harm():
    assert reconstruct_ema([(10, 0.1, 5.0)], 10, 0.2) == 5.0
    np.testing.assert_allclose(
        reconstruction_weights([(5, 0.05), (10, 0.1), (10, 0.1)], 10, 0.1), [0, 0.5, 0.5], atol=1e-9
    )


MISTAKES = {
    "sigma_rel must be above 0 and below 0.2887": lambda: gamma_of(0.0),
    "sigma_rel must be above 0 .* not 0.3": lambda: power_ema_decay(0.3, 5),
    "not nan": lambda: gamma_of(float("nan")),
    "save some": lambda: reconstruct_ema([], 10, 0.1),
    "between the first and the last snapshot's, 5 and 10, not 11": lambda: reconstruction_weights(
        [(5, 0.05), (10, 0.1)], 11, 0.1
    ),
    "5 and 10, not 4": lambda: reconstruction_weights([(10, 0.05), (5, 0.1)], 4, 0.1),
    "steps count from 1, and a snapshot's is 0": lambda: reconstruction_weights([(0, 0.05), (10, 0.1)], 10, 0.1),
}


@pytest.mark.parametrize("told", MISTAKES)
def test_mistakes_are_told_in_one_line(told):
    with pytest.raises(ValueError, match=told) as error:
        MISTAKES[told]()
    assert "\n" not in str(error.value)
