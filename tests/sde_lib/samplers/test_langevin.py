import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import Density, GaussianMixture, IsotropicGaussian, Langevin, langevin
from tests.oracles import random_mixture

N = 20_000


@pytest.mark.parametrize("step_size, metropolis", [(0.05, False), (0.2, False), (0.2, True)])
def test_stationary_variance(step_size, metropolis):
    # Unadjusted: x' = (1 - e/v) x + sqrt(2 e) z settles in variance v/(1 - e/(2 v)). Metropolis-adjusted: v.
    std = 0.6
    variance = std**2
    sampler = Langevin(steps=200, step_size=step_size, metropolis=metropolis)
    x = std * jax.random.normal(jax.random.key(0), (N, 1))
    result = langevin(sampler, IsotropicGaussian((1,), std), x, jax.random.key(1))
    expected = variance if metropolis else variance / (1 - step_size / (2 * variance))
    np.testing.assert_allclose(jnp.var(result.x), expected, rtol=5 * np.sqrt(2 / N))
    assert (result.acceptance == 1) != metropolis and result.acceptance > 0.5


def test_metropolis_gets_the_weights_of_a_mixture_from_its_density():
    mixture = GaussianMixture([0.3, 0.7], [[-0.7], [0.7]], np.full((2, 1, 1), 0.2))
    density = Density(lambda x: mixture.log_prob(x[None])[0])
    start = jnp.zeros((N, 1))
    x = langevin(Langevin(steps=400, step_size=0.1, metropolis=True), density, start, jax.random.key(0)).x
    exact = mixture.sample(jax.random.key(5), 200_000)
    np.testing.assert_allclose((x < 0).mean(), (exact < 0).mean(), atol=0.012)
    np.testing.assert_allclose(x.std(), exact.std(), rtol=0.02)


def test_without_noise_it_climbs_to_the_peaks():
    mixture = GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], np.full((2, 1, 1), 0.05))
    x = langevin(
        Langevin(steps=500, step_size=0.01, noise=0.0), mixture, jnp.array([[-1.0], [0.5], [3.0]]), jax.random.key(0)
    ).x
    np.testing.assert_allclose(x[:, 0], [-2.0, 2.0, 2.0], atol=1e-3)


def test_a_chain_depends_on_its_own_index_alone_and_frames_are_its_path():
    mixture = random_mixture(0, 2)
    x = jax.random.normal(jax.random.key(0), (8, 2))
    whole = langevin(Langevin(steps=20), mixture, x, jax.random.key(1), frames=3)
    np.testing.assert_allclose(
        langevin(Langevin(steps=20), mixture, x[:3], jax.random.key(1)).x, whole.x[:3], rtol=1e-5
    )
    np.testing.assert_array_equal(whole.path[0], x)
    np.testing.assert_array_equal(whole.path[2], whole.x)
    np.testing.assert_allclose(whole.path[1], langevin(Langevin(steps=10), mixture, x, jax.random.key(1)).x, rtol=1e-5)


def test_more_frames_than_steps_repeat_those_that_there_are():
    x = jax.random.normal(jax.random.key(0), (4, 2)) + 5.0
    run = [langevin(Langevin(steps=3), random_mixture(0, 2), x, jax.random.key(1), frames=n).path for n in (4, 9)]
    np.testing.assert_array_equal(run[1], np.asarray(run[0])[[0, 0, 1, 1, 2, 2, 2, 3, 3]])


@pytest.mark.parametrize(
    "settings, word",
    [({"steps": 0}, "steps"), ({"step_size": 0.0}, "step_size"), ({"metropolis": True, "noise": 0.5}, "noise=1")],
)
def test_bad_settings_are_refused(settings, word):
    with pytest.raises(ValueError, match=word):
        Langevin(**settings)
