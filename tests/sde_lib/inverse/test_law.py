"""What the methods sample: the exact law of the ODE's and the SDE's result on Gaussian data, and what they cost."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VP, ExactScore, GaussianMixture, log_prob, sample
from sde_lib.inverse import (
    Assimilation,
    Jensen,
    Linear,
    Mask,
    MomentMatching,
    Observed,
    Projection,
    Proximal,
    PseudoInverse,
)
from sde_lib.pytree import register_dataclass
from sde_lib.samplers import DPMSolverPP2M, Heun, ProbabilityFlow, SDEDPMSolverPP2M, gaussian_law
from sde_lib.sde import SDE
from tests.oracles import ALL_SDE_IDS, ALL_SDES, normal

MEAN, COVARIANCE = np.array([0.3, -0.2]), 0.5 * np.array([[1.0, 0.8], [0.8, 1.0]])
DATA = GaussianMixture([1.0], MEAN[None], COVARIANCE[None])


def law_and_posterior(sampler, sde, matrix, noise, method):
    """(mean, covariance) of the result and of the exact posterior's x_t at t_min, for y = 1."""
    y = np.ones(len(matrix))
    posterior, _ = DATA.observe(Linear(matrix), y, noise)
    m, c = np.asarray(posterior.means[0], float), np.asarray(posterior.covariances[0], float)
    score_fn = Observed(ExactScore(DATA, sde), Linear(matrix), noise, method)
    law = gaussian_law(sampler, score_fn, m, c, cond={"y": y[None], "cond": None})
    alpha, sigma = float(sde.alpha(sde.t_min)), float(sde.sigma(sde.t_min))
    return law, (alpha * m, alpha**2 * c + sigma**2 * np.eye(2))


def kl(law, other):
    excess = np.linalg.solve(other[1], law[1])
    off = other[0] - law[0]
    return 0.5 * (np.trace(excess) - 2 - np.linalg.slogdet(excess)[1] + off @ np.linalg.solve(other[1], off))


@pytest.mark.parametrize("sampler", [DPMSolverPP2M, SDEDPMSolverPP2M])
@pytest.mark.parametrize("sde", ALL_SDES, ids=ALL_SDE_IDS)
def test_moment_matching_samples_the_exact_posterior_of_gaussians(sde, sampler):
    matrix, noise = np.array([[1.0, 0.3], [-0.4, 0.8]]), np.array([0.2, 0.6])
    law = law_and_posterior(sampler(steps=1000, denoise=False), sde, matrix, noise, MomentMatching(2))
    assert kl(*law) < 1e-6


# KL in nats by the ODE and the SDE, of an integration of the moments' equations by other code; None where the ODE's
# law collapses, so that rounding decides.
ONE, HALF = np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])
PUBLISHED = [
    (PseudoInverse(), [(ONE, 0.3, 0.136, 0.0355), (ONE, 0.05, 0.572, 0.0318), (HALF, 0.1, 0.0076, 0.000186)]),
    (Assimilation(1e-2), [(ONE, 0.3, 1.21, 0.162), (ONE, 0.05, None, 0.143), (HALF, 0.1, None, 0.1115)]),
    (Jensen(), [(ONE, 0.3, 1.94, 0.177), (ONE, 0.05, None, 0.149), (HALF, 0.1, None, 0.113)]),
    (Proximal(1.0), [(ONE, 0.3, 0.271, 0.0947), (ONE, 0.05, 0.441, 0.166), (HALF, 0.1, 0.0018, 0.000174)]),
    (Proximal(10.0), [(ONE, 0.3, 0.827, 1.16), (ONE, 0.05, 3.61, 3.55), (HALF, 0.1, 2.25, 2.97)]),
]


@pytest.mark.parametrize(("method", "rows"), PUBLISHED, ids=lambda v: type(v).__name__)
def test_what_an_approximate_method_samples_is_known(method, rows):
    for matrix, noise, by_ode, by_sde in rows:
        for sampler, expected in ((DPMSolverPP2M, by_ode), (SDEDPMSolverPP2M, by_sde)):
            if expected is not None:
                found = law_and_posterior(sampler(steps=2000, denoise=False), VP(t_min=1e-6), matrix, noise, method)
                np.testing.assert_allclose(kl(*found), expected, rtol=0.02)


@pytest.mark.parametrize("method", [PseudoInverse(), Jensen(), Proximal(), Projection()], ids=repr)
def test_no_method_moves_with_the_number_of_steps(method):
    """What it samples with twice the steps is what it samples: no strength is counted in steps."""
    laws = [
        [
            kl(*law_and_posterior(sampler(steps=n, denoise=False), VP(t_min=1e-4), ONE, 0.3, method))
            for sampler in (DPMSolverPP2M, SDEDPMSolverPP2M)
        ]
        for n in (250, 500)
    ]
    np.testing.assert_allclose(laws[1], laws[0], rtol=0.3, atol=1e-4)


@jax.custom_jvp
def counted(x):
    jax.debug.callback(lambda: CountingPrior.counts.append("call"))
    return -x


@counted.defjvp
def _counted_jvp(primals, tangents):
    # The callback depends on the tangent, so that it goes where the products are taken.
    jax.debug.callback(lambda _: CountingPrior.counts.append("jvp"), tangents[0])
    return counted(primals[0]), -tangents[0]


@register_dataclass
@dataclass(frozen=True)
class CountingPrior:
    """The score of N(0, I) under VP, which reports its calls and its derivative products from inside."""

    sde: SDE
    counts: ClassVar[list[str]] = []

    def __call__(self, x, t, cond=None):
        return counted(x)


@pytest.mark.parametrize("sampler", [SDEDPMSolverPP2M(steps=7), Heun(steps=4), ProbabilityFlow(rtol=1e-2, atol=1e-2)])
@pytest.mark.parametrize("method", [MomentMatching(3), PseudoInverse(), Proximal()], ids=lambda m: type(m).__name__)
def test_calls_and_products_are_what_counters_inside_count(sampler, method):
    score_fn = Observed(CountingPrior(VP()), Mask(np.array([True, False])), 0.3, method)
    CountingPrior.counts.clear()
    result = sample(sampler, score_fn, jax.random.key(0), 3, (2,), cond={"y": jnp.ones((3, 2)), "cond": None})
    jax.block_until_ready(result.x)
    jax.effects_barrier()
    assert (result.nfe, result.jvps) == (CountingPrior.counts.count("call"), CountingPrior.counts.count("jvp"))
    assert result.jvps == method.jvps * result.nfe


def test_the_likelihood_of_an_observed_score_is_refused_unless_asked_for_by_name():
    score_fn, cond = Observed(ExactScore(normal(), VP()), Mask(np.ones(2)), 0.3), {"y": jnp.ones((1, 2)), "cond": None}
    with pytest.raises(ValueError, match="guided=True"):
        log_prob(score_fn, jnp.ones((1, 2)), cond=cond)
