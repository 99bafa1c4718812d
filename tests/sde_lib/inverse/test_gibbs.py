"""Split Gibbs against the posterior that it has at each distance of its halves, and its cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VE, VP, ExactScore, FunctionScore, sample
from sde_lib.inverse import Linear, Mask, Observed, Operator, Proximal, SplitGibbs
from sde_lib.inverse.gibbs import _run
from sde_lib.samplers import DPMSolverPP2M, SDEDPMSolverPP2M, gaussian_law
from tests.sde_lib.inverse.test_law import COVARIANCE, DATA, MEAN, CountingPrior
from tests.sde_lib.inverse.test_twisted import DATA as MIXTURE

ROTATED, EACH = np.array([[1.0, 0.4], [-0.3, 2.0]]), np.array([0.3, 0.1])
ONE = np.array([[1.0, 0.0]])


@pytest.mark.parametrize(("matrix", "noise"), [(ROTATED, EACH), (ONE, 0.0)], ids=["a noise for each", "no noise"])
def test_its_law_is_the_posterior_of_more_noise(matrix, noise):
    """By the recursion through its own code, no samples: the posterior of the noise covariance R + rho² A A'."""
    sde, rho, y = VP(t_min=1e-6), 0.5, np.ones(len(matrix))
    more = np.diag(np.broadcast_to(noise, len(y)) ** 2) + rho**2 * matrix @ matrix.T
    posterior, _ = DATA.observe(Linear(matrix), y, more)
    sampler = SplitGibbs(40, rho, start=rho, sampler=SDEDPMSolverPP2M(steps=1000))
    score_fn = Observed(ExactScore(DATA, sde), Linear(matrix), noise)
    mean, covariance = gaussian_law(sampler, score_fn, MEAN, COVARIANCE, cond={"y": y[None], "cond": None})
    np.testing.assert_allclose(mean, posterior.means[0], atol=1e-6)
    np.testing.assert_allclose(covariance, posterior.covariances[0], atol=1e-6)


def test_weights_of_modes_tend_to_the_exact_as_rho_falls():
    """Each rho has those of its own posterior, and these tend to the exact."""
    n, y, noise = 4096, 0.2, 0.3
    matrix = np.array([[0.5, 0.5]], np.float32)
    rows = {"y": jnp.full((n, 1), y), "cond": None}
    exact = np.exp(np.asarray(MIXTURE.observe(Linear(matrix), [y], noise)[0].log_weights, float))
    off = []
    for rho in (1.0, 0.4):
        own, _ = MIXTURE.observe(Linear(matrix), [y], [[noise**2 + rho**2 / 2]])
        sampler = SplitGibbs(80, rho, sampler=SDEDPMSolverPP2M(steps=15))
        x = sample(sampler, Observed(PRIOR, Linear(matrix), noise), jax.random.key(0), n, (2,), cond=rows).x
        drawn = np.asarray(MIXTURE.posterior(x), float).mean(0)
        np.testing.assert_allclose(drawn, np.exp(np.asarray(own.log_weights, float)), atol=0.03)
        np.testing.assert_allclose(np.asarray(x).mean(0), own.mean(), atol=0.05)
        np.testing.assert_allclose(np.asarray(x).std(0), np.sqrt(np.diag(own.covariance())), atol=0.05)
        off.append(0.5 * np.abs(drawn - exact).sum())
    assert off[1] < 0.1 < 0.13 < off[0]


PRIOR = ExactScore(MIXTURE, VP())
SEEN = Mask(np.array([True, False]))


def drawn(score_fn, n=7, **kwargs):
    rows = {"y": jnp.linspace(-1, 1, 2 * n).reshape(n, 2), "cond": None}
    sampler = SplitGibbs(3, 0.3, sampler=SDEDPMSolverPP2M(steps=4))
    return sample(sampler, score_fn, jax.random.key(0), n, (2,), cond=rows, **kwargs)


def test_a_sample_does_not_know_its_batch_and_what_is_not_seen_has_no_effect():
    score_fn = Observed(FunctionScore(lambda x, t: jnp.sin(3 * x) - x, VP()), SEEN, np.array([0.2, 0.7]))
    whole = drawn(score_fn).x
    np.testing.assert_allclose(drawn(score_fn, batch_size=3).x, whole, rtol=1e-5, atol=1e-5)
    rows = {"y": jnp.linspace(-1, 1, 14).reshape(7, 2).at[:, 1].set(jnp.nan), "cond": None}
    again = sample(
        SplitGibbs(3, 0.3, sampler=SDEDPMSolverPP2M(steps=4)), score_fn, jax.random.key(0), 7, (2,), cond=rows
    )
    np.testing.assert_array_equal(again.x, whole)


def test_its_calls_are_what_a_counter_inside_counts_and_nothing_compiles_anew():
    CountingPrior.counts.clear()
    result = drawn(Observed(CountingPrior(VP()), SEEN, 0.2))
    compiled = _run._cache_size()
    jax.block_until_ready(result.x)
    jax.effects_barrier()
    assert (
        (result.nfe, result.jvps) == (16, 0) == (CountingPrior.counts.count("call"), CountingPrior.counts.count("jvp"))
    )
    rows = {"y": jnp.ones((7, 2)), "cond": None}
    another = SplitGibbs(3, 0.2, start=2.0, sampler=SDEDPMSolverPP2M(steps=4))
    other = Observed(CountingPrior(VP(0.2, 15.0)), Mask(np.array([False, True])), 0.4)
    sample(another, other, jax.random.key(1), 7, (2,), cond=rows)
    assert _run._cache_size() == compiled


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SplitGibbs(0), "at least 1"),
        (lambda: SplitGibbs(3, 0.0), "positive"),
        (lambda: SplitGibbs(3, sampler=SDEDPMSolverPP2M(steps=4, denoise=True)), "without denoise"),
        (lambda: sample(SplitGibbs(3), PRIOR, jax.random.key(0), 2, (2,)), "give an Observed"),
        (lambda: drawn(Observed(PRIOR, Operator(lambda x: x**2), 0.1)), "not linear"),
        (lambda: drawn(Observed(PRIOR, SEEN, 0.1), frames=2), "leave out frames"),
        (lambda: drawn(Observed(ExactScore(MIXTURE, VE(sigma_min=0.4)), SEEN, 0.1)), "rho must lie between"),
    ],
)
def test_what_it_cannot_do_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_sampler_of_the_ode_is_refused():
    sampler = SplitGibbs(3, 0.3, sampler=DPMSolverPP2M(steps=4))
    with pytest.raises(ValueError, match="give a sampler of the SDE"):
        sample(
            sampler, Observed(PRIOR, SEEN, 0.1, Proximal()), jax.random.key(0), 2, (2,), cond={"y": jnp.ones((2, 2))}
        )
