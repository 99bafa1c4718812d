"""The samplers that are no table of one row a step: adaptive steps of the reverse SDE, and annealed Langevin."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VP, ExactScore, sample
from sde_lib.samplers import AdaptiveSDE, AnnealedLangevin, gaussian_kl, gaussian_law
from tests.oracles import SDE_IDS, SDES, calls_of, normal, two_peaks

each_sde = pytest.mark.parametrize("sde", SDES, ids=SDE_IDS)
N = 20_000


@each_sde
def test_adaptive_steps_sample_the_law(sde):
    x = np.asarray(sample(AdaptiveSDE(), ExactScore(normal(), sde), jax.random.key(0), N, (2,)).x, float)
    np.testing.assert_allclose(x.std(), 0.5, rtol=0.015)
    np.testing.assert_allclose((x**4).mean() / (x**2).mean() ** 2, 3.0, atol=5 * np.sqrt(24 / x.size))
    peaks = np.asarray(sample(AdaptiveSDE(), ExactScore(two_peaks(), sde), jax.random.key(1), N, (2,)).x, float)
    assert abs((peaks[:, 0] < 0).mean() - 0.8) < 0.01


def test_a_tighter_tolerance_takes_more_steps_and_comes_closer_to_the_law():
    score_fn, exact = ExactScore(normal(), VP()), np.sqrt(VP().alpha(1e-3) ** 2 * 0.25 + VP().sigma(1e-3) ** 2)
    error, nfe = [], []
    for scale in (40.0, 1.0):
        result = sample(
            AdaptiveSDE(relative=0.02 * scale, absolute=0.005 * scale), score_fn, jax.random.key(0), N, (2,)
        )
        error.append(abs(float(jnp.std(result.x)) - exact))
        nfe.append(result.nfe)
    assert error[1] < error[0] / 3 and 2 * nfe[0] < nfe[1]


def test_adaptive_frames_hold_the_marginals_at_their_times():
    sde = VP()
    result = sample(AdaptiveSDE(), ExactScore(normal(), sde), jax.random.key(2), N, (2,), frames=4)
    np.testing.assert_allclose(result.times, np.linspace(1.0, 1e-3, 4), rtol=1e-5)
    t = np.asarray(result.times, float)
    np.testing.assert_allclose(
        np.std(result.path, axis=(1, 2)), np.sqrt(0.25 * sde.alpha(t) ** 2 + sde.sigma(t) ** 2), rtol=0.02
    )
    np.testing.assert_array_equal(result.path[-1], result.x)


def test_an_adaptive_sample_does_not_depend_on_its_batch():
    score_fn, key = ExactScore(two_peaks(), VP()), jax.random.key(7)
    together = sample(AdaptiveSDE(), score_fn, key, 12, (2,)).x
    np.testing.assert_allclose(
        sample(AdaptiveSDE(), score_fn, key, 4, (2,), first=8).x, together[8:], rtol=1e-3, atol=1e-3
    )


def test_adaptive_nfe_is_the_number_of_calls():
    calls, nfe = calls_of(lambda score_fn: sample(AdaptiveSDE(denoise=True), score_fn, jax.random.key(0), 3, (2,)))
    assert nfe == calls > 0


def test_too_few_adaptive_steps_raise_with_the_remedy():
    with pytest.raises(RuntimeError, match="max_steps=5 steps were not enough: raise it"):
        sample(AdaptiveSDE(max_steps=5), ExactScore(normal(), VP()), jax.random.key(0), 3, (2,))
    with pytest.raises(ValueError, match="relative"):
        AdaptiveSDE(relative=0.0)


@pytest.mark.parametrize("r", [0.2, 1.0])
@each_sde
def test_annealed_langevin_settles_in_the_biased_law_of_its_step(sde, r):
    # At one level Langevin steps of eps = r sigma²/2 on a Gaussian of variance v settle in variance v/(1 - eps/(2 v)),
    # exactly.
    sde = replace(sde, t_min=0.5)
    sampler = AnnealedLangevin(steps=1, langevin_steps=3000, step_size=r)
    mean, covariance = gaussian_law(sampler, sde, [0.4], [[0.25]])
    v, eps = 0.25 * sde.alpha(0.5) ** 2 + sde.sigma(0.5) ** 2, 0.5 * r * sde.sigma(0.5) ** 2
    np.testing.assert_allclose(mean, 0.4 * sde.alpha(0.5), rtol=1e-6)
    np.testing.assert_allclose(covariance[0, 0], v / (1 - eps / (2 * v)), rtol=1e-6)


@each_sde
def test_annealed_langevin_nears_the_law_as_the_ladder_grows(sde):
    kl = [gaussian_kl(AnnealedLangevin(steps=n), sde, [0.4], [[0.25]]) for n in (50, 200, 800)]
    assert kl[0] > 3 * kl[1] > 9 * kl[2]


def test_annealed_langevin_draws_its_law():
    sampler, sde = AnnealedLangevin(steps=6, langevin_steps=3), VP()
    x = np.asarray(sample(sampler, ExactScore(normal(), sde), jax.random.key(0), N, (2,)).x, float)
    _, covariance = gaussian_law(sampler, sde, [0.0], [[0.25]], prior=(0.0, sde.sigma(1.0)))
    np.testing.assert_allclose(x.var(), covariance[0, 0], rtol=5 * np.sqrt(2 / x.size))
    with pytest.raises(ValueError, match="step_size"):
        AnnealedLangevin(step_size=4.0)
