"""Twisted SMC against the exact posterior and evidence of a mixture, whose modes' weights no score wrapper has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VP, ExactScore, GaussianMixture, sample
from sde_lib.inverse import Jensen, Linear, Mask, MomentMatching, Observed, PseudoInverse, TwistedSMC
from sde_lib.samplers import EulerMaruyama

DATA = GaussianMixture(
    [0.3, 0.4, 0.3],
    [[-1.2, 0.6], [0.9, 0.9], [0.3, -1.1]],
    [[[0.10, 0.03], [0.03, 0.06]], [[0.05, -0.02], [-0.02, 0.12]], [[0.15, 0.0], [0.0, 0.04]]],
)
PRIOR, N = ExactScore(DATA, VP()), 256
CASES = {
    "by a mask": (Mask(np.array([True, False])), [0.5, np.nan], 0.1, MomentMatching(1)),
    "the mean": (Linear(np.array([[0.5, 0.5]], np.float32)), [0.2], 0.3, Jensen()),
    "both": (Linear(np.array([[1.0, 0.2], [0.3, 0.8]], np.float32)), [0.3, 0.1], 0.4, PseudoInverse()),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_of_modes_moments_and_evidence_are_the_exact_ones(case):
    operator, y, noise, method = CASES[case]
    posterior, log_evidence = DATA.observe(operator, y, noise)
    rows = {"y": jnp.broadcast_to(jnp.asarray(y, jnp.float32), (N, len(y))), "cond": None}
    got = sample(TwistedSMC(200, 64), Observed(PRIOR, operator, noise, method), jax.random.key(0), N, (2,), cond=rows)
    ratio = np.exp(np.asarray(got.log_evidence, float) - log_evidence)
    se = ratio.std() / np.sqrt(N)
    assert se < 0.02
    assert abs(ratio.mean() - 1) < 3 * se + 0.02  # the steps' own error
    responsibility = np.asarray(DATA.posterior(got.x), float)
    exact = np.asarray(DATA.posterior(posterior.sample(jax.random.key(1), 20_000)), float)
    x = np.asarray(posterior.sample(jax.random.key(2), 20_000))
    for drawn, true in ((responsibility, exact), (np.asarray(got.x), x)):
        assert (np.abs(drawn.mean(0) - true.mean(0)) < 4.5 * true.std(0) / np.sqrt(N) + 0.01).all()
        np.testing.assert_allclose(drawn.std(0), true.std(0), rtol=0.2, atol=0.01)


def test_the_error_of_a_population_falls_as_one_over_the_root_of_its_particles():
    """Of the weights of modes, over 64 populations of 16 and of 64 particles each."""
    operator, y, noise, method = CASES["the mean"]
    posterior, _ = DATA.observe(operator, y, noise)
    exact = np.asarray(DATA.posterior(posterior.sample(jax.random.key(1), 20_000)), float).mean(0)
    rows, errors = {"y": jnp.full((64, 1), y[0]), "cond": None}, []
    for particles in (16, 64):
        sampler = TwistedSMC(40, particles, keep=True)
        got = sample(sampler, Observed(PRIOR, operator, noise, method), jax.random.key(0), 64, (2,), cond=rows)
        modes = np.asarray(DATA.posterior(got.particles.reshape(-1, 2))).reshape(64, particles, 3)
        weights = np.einsum("nk,nkm->nm", np.exp(got.log_weights), modes)
        errors.append(np.sqrt(np.mean((weights - exact) ** 2)))
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.25)


def test_a_population_does_not_know_its_batch():
    operator, _, noise, method = CASES["the mean"]
    score_fn, sampler = Observed(PRIOR, operator, noise, method), TwistedSMC(5, 4, keep=True)
    rows = {"y": jnp.linspace(-1, 1, 6)[:, None], "cond": None}
    whole = sample(sampler, score_fn, jax.random.key(0), 6, (2,), cond=rows)
    parts = sample(sampler, score_fn, jax.random.key(0), 6, (2,), cond=rows, batch_size=3)
    np.testing.assert_allclose(parts.x, whole.x, atol=2e-3)  # products of matrices round by their rows
    np.testing.assert_allclose(parts.log_evidence, whole.log_evidence, atol=1e-2)
    np.testing.assert_allclose(parts.ess, whole.ess, rtol=1e-2)
    np.testing.assert_allclose(parts.particles, whole.particles, atol=2e-3)
    assert (whole.nfe, whole.jvps) == (6 * 4, 6 * 4)


@pytest.mark.parametrize(
    ("sampler", "score_fn", "said"),
    [
        (TwistedSMC(5, 4), PRIOR, "give an Observed"),
        (TwistedSMC(5, 4), Observed(PRIOR, Mask(np.ones(2)), 0.0), "above 0"),
        (TwistedSMC(5, 4), Observed(PRIOR, Linear(np.ones((1025, 2), np.float32)), 1.0), "at most 1,024"),
        (TwistedSMC(5, 4), Observed(PRIOR, Linear(np.full((1, 2), 1e20, np.float32)), 0.1), "no particle is left"),
    ],
)
def test_what_has_no_weights_is_refused(sampler, score_fn, said):
    m = score_fn.operator(jnp.ones((1, 2))).shape[1] if isinstance(score_fn, Observed) else 2
    with pytest.raises(ValueError, match=said):
        sample(sampler, score_fn, jax.random.key(0), 2, (2,), cond={"y": jnp.ones((2, m)), "cond": None})


def test_another_sampler_has_no_evidence():
    assert sample(EulerMaruyama(steps=2), PRIOR, jax.random.key(0), 2, (2,)).log_evidence is None
