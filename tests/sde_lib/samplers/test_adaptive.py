"""The samplers that are no table of one row a step: adaptive steps of the reverse SDE, and annealed Langevin."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VP, ExactScore, sample
from sde_lib.samplers import AdaptiveSDE, AnnealedLangevin, UniformLogSNR, gaussian_kl, gaussian_law
from sde_lib.samplers.adaptive import _brownian
from tests.oracles import ALL_SDE_IDS, ALL_SDES, SDE_IDS, SDES, calls_of, normal, two_peaks

each_sde = pytest.mark.parametrize("sde", SDES, ids=SDE_IDS)
N = 5_000


@pytest.mark.parametrize("sde", ALL_SDES, ids=ALL_SDE_IDS)
def test_adaptive_steps_sample_gaussians_of_any_width_and_the_weights_of_narrow_peaks(sde):
    alpha, sigma = sde.alpha(sde.t_min), sde.sigma(sde.t_min)
    for width in (0.01, 0.1, 2.0):
        x = np.asarray(sample(AdaptiveSDE(), ExactScore(normal(width), sde), jax.random.key(0), N, (2,)).x, float)
        std = np.sqrt((alpha * width) ** 2 + sigma**2)
        np.testing.assert_allclose(x.std(), std, rtol=0.02)  # three standard errors
        np.testing.assert_allclose(x.mean(), 0.0, atol=5 * std / np.sqrt(x.size))
        np.testing.assert_allclose((x**4).mean() / (x**2).mean() ** 2, 3.0, atol=5 * np.sqrt(24 / x.size))
        assert np.abs(x).max() < 7 * std
    peaks = two_peaks(std=0.03)
    x = sample(AdaptiveSDE(), ExactScore(peaks, sde), jax.random.key(1), N, (2,)).x
    exact = peaks.at(sde, sde.t_min)
    gained = np.asarray(exact.log_prob(x)) - np.asarray(exact.log_prob(exact.sample(jax.random.key(2), N)))
    assert abs(gained.mean()) < 5 * gained.std() / np.sqrt(N)  # steps too long leave far too low densities
    assert abs(np.mean(x[:, 0] < 0) - 0.8) < 5 * np.sqrt(0.16 / N)


def test_samples_of_smaller_tolerances_converge_and_cost_more():
    # The halves of a step that is taken back have its noise: with new noise, samples would differ by as much as two
    # draws do.
    score_fn, found, nfe = ExactScore(two_peaks(), VP()), [], []
    for relative in (0.4, 0.1, 0.025, 0.00625):
        result = sample(AdaptiveSDE(relative=relative), score_fn, jax.random.key(0), 500, (2,))
        found.append(np.asarray(result.x, float))
        nfe.append(result.nfe)
    errors = [np.median(np.abs(x - found[-1])) for x in found[:-1]]
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2] and errors[2] < 0.02, errors
    assert nfe[0] < nfe[1] < nfe[2] < nfe[3]


def test_the_halves_of_a_step_share_its_noise():
    keys, x = jax.random.split(jax.random.key(0), N), jnp.zeros((N, 1))

    def increments(level, part):
        whole, half = _brownian(keys, x, *(jnp.full((N,), v) for v in (3, level, part)))
        return np.asarray(whole, float)[:, 0], np.asarray(half, float)[:, 0]

    whole, half = increments(0, 0)
    first, second = increments(1, 0)[0], increments(1, 1)[0]
    np.testing.assert_allclose(first, half, atol=1e-6)
    np.testing.assert_allclose((first + second) / np.sqrt(2), whole, atol=1e-6)
    quarters = [increments(2, j)[0] for j in range(4)]
    np.testing.assert_allclose((quarters[2] + quarters[3]) / np.sqrt(2), second, atol=1e-6)
    np.testing.assert_allclose(np.cov(quarters), np.eye(4), atol=5 * np.sqrt(2 / N))


def test_adaptive_frames_hold_the_marginals_at_their_times():
    sde = VP()
    result = sample(AdaptiveSDE(), ExactScore(normal(), sde), jax.random.key(2), N, (2,), frames=5)
    np.testing.assert_allclose(result.times, UniformLogSNR()(sde, 4), rtol=1e-5)
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
