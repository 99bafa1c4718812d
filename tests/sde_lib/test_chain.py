"""The chain's tables against closed forms: composed steps, joint laws conditioned, the SDE's marginals.

`composed` and `conditioned` know only the betas: what they give of the chain comes from composing its steps, in
float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from sde_lib import VE, VP, CosineVP, SubVP
from sde_lib.chain import (
    Chain,
    chain_of,
    cosine_betas,
    denoiser_from_denoiser,
    denoiser_from_noise,
    denoiser_from_v,
    linear_betas,
    noise_from_denoiser,
    v_from_denoiser,
)
from sde_lib.samplers import Ancestral

BETAS = {"linear": linear_betas, "cosine": cosine_betas}
each_table = pytest.mark.parametrize("betas", BETAS.values(), ids=BETAS)
each_sde = pytest.mark.parametrize("sde", [VP(), CosineVP()], ids=["VP", "CosineVP"])


def composed(betas):
    """Factor and variance of x_t given x_0 after each of the steps, (T + 1,) each, from step 0 on."""
    factor, variance = [1.0], [0.0]
    for beta in betas:
        factor.append(factor[-1] * np.sqrt(1 - beta))
        variance.append((1 - beta) * variance[-1] + beta)
    return np.array(factor), np.array(variance)


def conditioned(betas):
    """Weights of x_t and x_0 in the mean of q(x_{t-1} | x_t, x_0), and its variance, (T,) each, from the joint law of
    x_{t-1} and x_t.
    """
    factor, variance = composed(betas)
    keep = np.sqrt(1 - betas)
    covariance, total = keep * variance[:-1], keep**2 * variance[:-1] + betas
    gain = covariance / total
    return gain, factor[:-1] - gain * keep * factor[:-1], variance[:-1] - gain * covariance


def kl(mean, variance, model_mean, model_variance):
    return 0.5 * (np.log(model_variance / variance) + (variance + (mean - model_mean) ** 2) / model_variance - 1)


def even_in_log_snr(sde, t_first, steps):
    return sde.time_of_log_snr(np.linspace(sde.log_snr(t_first), sde.log_snr(sde.t_max), steps))


@jax.jit
def moved_by_steps_and_by_jumps(chain):
    """Mean of x_t from x_0 = 1 and its variance, for t = 1..T: by all steps before, and at once."""
    one = jnp.ones((1, 1))

    def step(state, t):
        mean, variance = state
        (keep, added), (moved, _) = chain.forward(one, t), chain.forward(mean, t)
        return (moved, keep**2 * variance + added), (moved, keep**2 * variance + added)

    t = jnp.arange(1, chain.steps + 1)
    _, by_steps = jax.lax.scan(step, (one, 0 * one), t)
    return by_steps, chain.jump(jnp.ones((chain.steps, 1)), t)


@each_table
@pytest.mark.parametrize("steps", [1, 4, 50, 1000])
def test_the_jump_is_the_composed_steps(betas, steps):
    with jax.enable_x64(True):
        by_steps, at_once = moved_by_steps_and_by_jumps(Chain(betas(steps)))
        factor, variance = composed(betas(steps))
        for ours, jumped, expected in zip(by_steps, at_once, (factor, variance), strict=True):
            np.testing.assert_allclose(ours.ravel(), expected[1:], rtol=1e-11)
            np.testing.assert_allclose(jumped.ravel(), expected[1:], rtol=1e-11)


def test_no_digits_are_lost_to_tiny_betas():
    # x_t is next to x_0: every variance is the sum of its steps' own, to first order in them.
    betas = 1e-12 * np.arange(1.0, 7.0)
    chain, total = Chain(betas), np.cumsum(betas)
    np.testing.assert_allclose(chain.sigma**2, total, rtol=1e-10)
    np.testing.assert_allclose(chain.from_x[1:], total[:-1] / total[1:], rtol=1e-10)
    np.testing.assert_allclose(chain.from_x0, betas / total, rtol=1e-10)
    np.testing.assert_allclose(np.exp(chain.log_small[1:]), betas[1:] * total[:-1] / total[1:], rtol=1e-10)


@each_sde
@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_chain_of_has_the_marginals_of_the_sde(sde, steps):
    for times in (np.linspace(sde.t_max, 2 * sde.t_min, steps)[::-1], even_in_log_snr(sde, sde.t_min, steps)):
        factor, variance = composed(chain_of(sde, times).betas)
        np.testing.assert_allclose(factor[1:], sde.alpha(times), rtol=1e-11)
        np.testing.assert_allclose(variance[1:], sde.sigma(times) ** 2, rtol=1e-11)


@pytest.mark.parametrize("steps", [1, 4, 1000, 100_000])
def test_cosine_betas_are_the_cosine_sde_s_but_for_the_cap(steps):
    betas = cosine_betas(steps)
    assert betas[-1] == 0.999
    np.testing.assert_array_equal(cosine_betas(steps, max_beta=0.5), np.minimum(betas, 0.5))
    if steps > 1:
        sde = CosineVP(t_min=0.5 / steps, t_max=1 - 0.5 / steps)
        expected = chain_of(sde, np.arange(1, steps) / steps).betas
        np.testing.assert_allclose(betas[:-1], expected, rtol=1e-9)
        np.testing.assert_allclose(betas[:3], expected[:3], rtol=1e-12)  # 4e-7 at 100,000 steps


def test_linear_betas_are_the_published_ones_and_near_vp_at_any_length():
    betas = linear_betas(1000)
    np.testing.assert_allclose(betas[[0, -1]], [1e-4, 0.02], rtol=1e-12)
    np.testing.assert_allclose(np.diff(betas), 0.0199 / 999, rtol=1e-9)
    # The chain is first order in its step. At 1,000 steps alpha is off by 3.3 % at most, at T, where it is 0.0066
    # (prod(1 - beta) is not exp(-sum of betas)), and sigma by 4.6 %, at the first step (beta is that of the step's
    # beginning there).
    for steps, of_alpha, of_sigma in ((1000, 0.034, 0.047), (4000, 0.009, 0.013)):
        chain, t = Chain(linear_betas(steps)), np.arange(1, steps + 1) / steps
        off_alpha, off_sigma = (
            np.abs(ours / sdes - 1).max() for ours, sdes in ((chain.alpha, VP().alpha(t)), (chain.sigma, VP().sigma(t)))
        )
        assert 0.5 * of_alpha < off_alpha < of_alpha, off_alpha
        assert 0.5 * of_sigma < off_sigma < of_sigma, off_sigma
    assert linear_betas(20).max() == 0.999
    assert linear_betas(10, max_beta=0.6).max() == 0.6 == cosine_betas(10, max_beta=0.6).max()
    assert linear_betas(21).max() < 0.999
    assert Chain(linear_betas(1)).alpha[-1] < 1


posterior_of = jax.jit(Chain.posterior)


@each_table
@pytest.mark.parametrize("steps", [1, 12, 1000])
def test_the_posterior_is_the_joint_law_conditioned(betas, steps):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, x0, t = rng.normal(size=(steps, 3)), rng.normal(size=(steps, 3)), np.arange(1, steps + 1)
        mean, variance = posterior_of(Chain(betas(steps)), x, x0, t)
        of_x, of_x0, expected = (v[:, None] for v in conditioned(betas(steps)))
        np.testing.assert_allclose(mean, of_x * x + of_x0 * x0, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(variance, expected, rtol=1e-8)
        np.testing.assert_allclose(mean[0], x0[0], rtol=1e-12)
        assert variance[0] == 0


@each_table
def test_the_posterior_is_the_product_of_its_gaussians_normalised(betas):
    with jax.enable_x64(True):
        table, x, x0 = betas(12), 0.7, -0.4
        factor, variance = composed(table)
        grid = np.linspace(-12, 12, 20_001)
        for t in range(2, 13):
            log = norm.logpdf(x, np.sqrt(1 - table[t - 1]) * grid, np.sqrt(table[t - 1]))
            log = log + norm.logpdf(grid, factor[t - 1] * x0, np.sqrt(variance[t - 1]))
            weights = np.exp(log - log.max())
            mean = (weights @ grid) / weights.sum()
            spread = (weights @ (grid - mean) ** 2) / weights.sum()
            found = posterior_of(Chain(table), np.full((1, 1), x), np.full((1, 1), x0), t)
            np.testing.assert_allclose([v.item() for v in found], [mean, spread], rtol=1e-8)


def test_conversions_know_the_parts_of_x_t_and_invert_each_other():
    with jax.enable_x64(True):
        chain, t = Chain(cosine_betas(40)), np.arange(1, 41)
        factor, variance = (v[1:, None] for v in composed(chain.betas))
        rng = np.random.default_rng(1)
        x0, eps = (jnp.asarray(rng.normal(size=(40, 3))) for _ in range(2))
        x = factor * x0 + np.sqrt(variance) * eps
        v = factor * eps - np.sqrt(variance) * x0
        for found, expected in (
            (denoiser_from_noise(chain, eps, x, t), x0),
            (denoiser_from_v(chain, v, x, t), x0),
            (denoiser_from_denoiser(chain, x0, x, t), x0),
            (noise_from_denoiser(chain, x0, x, t), eps),
            (v_from_denoiser(chain, x0, x, t), v),
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)
        for there, back in ((noise_from_denoiser, denoiser_from_noise), (v_from_denoiser, denoiser_from_v)):
            np.testing.assert_allclose(back(chain, there(chain, eps, x, t), x, t), eps, rtol=1e-8, atol=1e-10)


@each_sde
def test_the_tables_are_those_of_the_ancestral_sampler_on_the_sde(sde):
    times = np.linspace(sde.t_max, sde.t_min, 51)
    chain, table = chain_of(sde, times[::-1]), Ancestral().update(sde, times)
    for ours, theirs in (
        (chain.from_x, table.a),
        (chain.from_x0, table.b[:, 0]),
        (np.exp(0.5 * chain.log_small), table.c),
    ):
        np.testing.assert_allclose(ours[:0:-1], theirs, rtol=1e-10)


CHAIN = Chain([0.1, 0.2])


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Chain([0.1, 1.0]), "between 0 and 1, not 1: cap it"),
        (lambda: Chain([0.0, 0.1]), "between 0 and 1, not 0"),
        (lambda: Chain([0.1, np.nan]), "between 0 and 1, not nan"),
        (lambda: Chain([]), "at least one step"),
        (lambda: Chain(0.1), "must be"),
        (lambda: linear_betas(0), "linear_betas: steps must be at least 1, not 0"),
        (lambda: cosine_betas(-1), "cosine_betas: steps must be at least 1, not -1"),
        (lambda: chain_of(VE(), [0.1, 0.2]), "such as VP or CosineVP, not VE"),
        (lambda: chain_of(SubVP(), [0.1, 0.2]), "not SubVP"),
        (lambda: chain_of(VP(), [0.2, 0.1]), "increasing"),
        (lambda: chain_of(VP(), []), "increasing"),
        (lambda: chain_of(VP(), [1e-4, 0.2]), "within the SDE's"),
        (lambda: chain_of(VP(), [0.1, 1.1]), "within the SDE's"),
        (lambda: CHAIN.jump(jnp.zeros((1, 1)), 0), "from 1 to 2"),
        (lambda: CHAIN.forward(jnp.zeros((1, 1)), jnp.array([3])), "from 1 to 2"),
        (lambda: CHAIN.posterior(jnp.zeros((1, 1)), jnp.zeros((1, 1)), 0.5), "an integer from 1 to 2"),
    ],
)
def test_bad_input_is_told_in_a_line(act, message):
    with pytest.raises(ValueError, match=message) as error:
        act()
    assert "\n" not in str(error.value)
