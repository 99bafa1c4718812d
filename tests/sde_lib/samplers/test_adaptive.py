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
N, FEW = 5_000, 500


def draws(sampler, data, seed=0, n=FEW, sde=SDES[0], **more):
    d = data.means.shape[1]
    return sample(sampler, ExactScore(data, sde), jax.random.key(seed), n, (d,), **more)


# Every SDE, and every dimension: for each of which all is compiled anew. What an SDE's clock is to one width it is to
# another. From eight steps it is the tolerance alone that makes them enough.
CASES = {
    "VP": (1, AdaptiveSDE(), (0.01, 0.1, 1.0, 2.0)),
    "SubVP": (3, AdaptiveSDE(), (0.01, 1.0)),
    "VE": (8, AdaptiveSDE(), (0.1, 2.0)),
    "CosineVP": (8, AdaptiveSDE(), (0.01, 1.0)),
    "RectifiedFlow": (1, AdaptiveSDE(steps=8), (0.1, 2.0)),
}


@pytest.mark.parametrize("sde", ALL_SDES, ids=ALL_SDE_IDS)
def test_adaptive_steps_sample_gaussians_of_any_width_and_the_weights_of_narrow_peaks(sde):
    d, sampler, widths = CASES[type(sde).__name__]
    alpha, sigma, n = sde.alpha(sde.t_min), sde.sigma(sde.t_min), 20_000 // d
    for width in widths:
        std = np.sqrt((alpha * width) ** 2 + sigma**2)
        z = (np.asarray(draws(sampler, normal(width, d, mean=0.5), n=n, sde=sde).x, float) - alpha * 0.5) / std
        np.testing.assert_allclose(z.std(), 1.0, atol=0.015)  # three standard errors
        assert abs(z.mean()) < 5 / np.sqrt(z.size)
        assert abs((z**4).mean() / z.var() ** 2 - 3) < 5 * np.sqrt(24 / z.size)
        assert np.abs(z).max() < 7
    peaks = two_peaks(std=0.03, d=d)
    x = draws(sampler, peaks, seed=1, n=n, sde=sde).x
    exact = peaks.at(sde, sde.t_min)
    gained = np.asarray(exact.log_prob(x)) - np.asarray(exact.log_prob(exact.sample(jax.random.key(2), n)))
    assert abs(gained.mean()) < 5 * gained.std() / np.sqrt(n)  # steps too long leave far too low densities
    assert abs(np.mean(x[:, 0] < 0) - 0.8) < 5 * np.sqrt(0.16 / n)


def test_samples_of_smaller_tolerances_converge_and_cost_more():
    # The halves of a step that is taken back have its noise: with new noise, samples would differ by as much as two
    # draws do.
    found, nfe = [], []
    for relative in (0.4, 0.1, 0.025, 0.00625):
        result = draws(AdaptiveSDE(relative=relative), two_peaks(), frames=5)
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
    sde, data = VP(), normal(mean=0.5)
    result = draws(AdaptiveSDE(), data, frames=5)
    np.testing.assert_allclose(result.times, UniformLogSNR()(sde, 4), rtol=1e-5)
    t = np.asarray(result.times, float)
    alpha, std = sde.alpha(t), np.sqrt(0.25 * sde.alpha(t) ** 2 + sde.sigma(t) ** 2)
    z = (np.asarray(result.path, float) - 0.5 * alpha[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(z.mean((1, 2)), 0, atol=5 / np.sqrt(2 * FEW))
    np.testing.assert_allclose(z.std((1, 2)), 1, atol=5 / np.sqrt(4 * FEW))
    np.testing.assert_array_equal(result.path[-1], result.x)


def test_an_adaptive_sample_does_not_depend_on_its_batch():
    one, other = (draws(AdaptiveSDE(), two_peaks(), seed=7, first=first, frames=5) for first in (0, FEW - 8))
    np.testing.assert_allclose(other.x[:8], one.x[-8:], rtol=1e-3, atol=1e-3)


def test_adaptive_nfe_is_the_number_of_calls():
    calls, nfe = calls_of(lambda score_fn: sample(AdaptiveSDE(denoise=True), score_fn, jax.random.key(0), 3, (2,)))
    assert nfe == calls > 0


def test_too_few_adaptive_steps_raise_with_the_remedy():
    with pytest.raises(RuntimeError, match="max_steps=5 steps were not enough: raise it"):
        draws(AdaptiveSDE(max_steps=5), normal(), frames=5)
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
