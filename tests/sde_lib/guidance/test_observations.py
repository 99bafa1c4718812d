"""Several observations: the corrected score's law is the posterior, the naive sum's is not."""

import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VE, VP, FunctionScore, IndependentObservations, log_prob
from sde_lib.batch import per_row
from sde_lib.samplers import DPMSolverPP2M, SDEDPMSolverPP2M, gaussian_law

SAMPLERS = {"ode": DPMSolverPP2M(steps=1000), "sde": SDEDPMSolverPP2M(steps=1000)}
NAIVE = {  # its mean and variance in closed form, for prior N(0, 1), likelihood N(theta, 1), all observations 1
    2: {"ode": (0.8116, 0.25), "sde": (0.75, 0.29167)},
    5: {"ode": (1.1667, 0.03125), "sde": (0.96875, 0.11089)},
    10: {"ode": (1.1727, 0.00098), "sde": (0.9990, 0.05263)},
}


def one_observation(sde):
    """The score of p(theta | x) = N(x/2, 1/2) for prior N(0, 1) and likelihood N(theta, 1); NaN is no observation."""

    def score(x, t, cond=None):
        alpha, sigma = per_row(sde.alpha(t), x), per_row(sde.sigma(t), x)
        cond = jnp.full((x.shape[0], 1), jnp.nan) if cond is None else cond
        nothing = jnp.isnan(cond)
        mean, variance = jnp.where(nothing, 0.0, cond / 2), jnp.where(nothing, 1.0, 0.5)
        return -(x - alpha * mean) / (alpha**2 * variance + sigma**2)

    return FunctionScore(score, sde)


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("m", NAIVE)
@pytest.mark.parametrize("sde", [VP(beta_max=40.0, t_min=1e-5), VE(1e-3, 1e4)], ids=["VP", "VE"])
def test_the_corrected_score_samples_the_posterior_and_the_naive_sum_does_not(sde, kind, m):
    score_fn, cond = one_observation(sde), np.ones((1, m, 1))
    posterior = (m / (m + 1), 1 / (m + 1))
    naive = IndependentObservations(score_fn, m, np.array([np.nan]))
    mean, covariance = gaussian_law(SAMPLERS[kind], naive, [0.0], [[1.0]], cond=cond)
    np.testing.assert_allclose((mean[0], covariance[0, 0]), NAIVE[m][kind], atol=1e-3)
    assert abs(covariance[0, 0] - posterior[1]) > 0.03
    right = IndependentObservations(score_fn, m, None, np.full((m, 1, 1), 0.5), np.ones((1, 1)))
    mean, covariance = gaussian_law(SAMPLERS[kind], right, [0.0], [[1.0]], cond=cond)
    np.testing.assert_allclose((mean[0], covariance[0, 0]), posterior, atol=1e-3)


def test_the_corrected_score_is_exact_in_any_directions_and_times():
    """Prior N(0, S), x_j = A_j theta + noise: the score of the diffused posterior itself, with a time for each row."""
    rng, sde, d, m = np.random.default_rng(0), VP(), 3, 4
    prior = np.array([[1.0, 0.3, 0.0], [0.3, 0.8, 0.2], [0.0, 0.2, 0.5]])
    maps, seen = rng.normal(size=(m, 2, d)), rng.normal(size=(m, 2))
    precisions = np.linalg.inv(prior) + maps.transpose(0, 2, 1) @ maps / 0.3
    each = np.linalg.inv(precisions)
    means = np.einsum("mij,mjk,mk->mi", each, maps.transpose(0, 2, 1), seen) / 0.3
    table_c, table_m = jnp.asarray([*each, prior]), jnp.asarray([*means, np.zeros(d)])

    def score(x, t, cond):
        a, s = (jnp.broadcast_to(f(t), x.shape[:1])[:, None, None] for f in (sde.alpha, sde.sigma))
        spread = a**2 * table_c[cond] + s**2 * jnp.eye(d)[None]
        return -jnp.linalg.solve(spread, (x - a[..., 0] * table_m[cond])[..., None])[..., 0]

    x, t = jnp.asarray(rng.normal(size=(5, d)), jnp.float32), jnp.asarray([0.05, 0.2, 0.4, 0.7, 1.0])
    cond = np.broadcast_to(np.arange(m), (5, m))
    both = IndependentObservations(FunctionScore(score, sde), m, m, each, prior)
    whole_precision = np.linalg.inv(prior) + (maps.transpose(0, 2, 1) @ maps / 0.3).sum(axis=0)
    covariance = np.linalg.inv(whole_precision)
    mean = covariance @ np.einsum("mji,mj->i", maps, seen) / 0.3
    for i in range(5):
        a, s = float(sde.alpha(t[i])), float(sde.sigma(t[i]))
        exact = -np.linalg.solve(a**2 * covariance + s**2 * np.eye(d), np.asarray(x[i]) - a * mean)
        np.testing.assert_allclose(both(x, t, cond)[i], exact, rtol=2e-4, atol=1e-4)
        np.testing.assert_allclose(both(x, t[i], cond)[i], exact, rtol=2e-4, atol=1e-4)
    assert both.calls == m + 1


def test_mistakes_are_told_in_a_line():
    score_fn = one_observation(VP())
    for run, words in (
        (lambda: IndependentObservations(score_fn, 2, None, np.ones((2, 1, 1))), "or neither"),
        (lambda: IndependentObservations(score_fn, 2, None, np.ones((2, 1, 1)), np.ones((1, 1)) * 0.4), "narrower"),
        (lambda: IndependentObservations(score_fn, 2, None, np.ones((3, 1, 1)), np.ones((1, 1))), "must be"),
        (lambda: IndependentObservations(score_fn, 2)(jnp.zeros((3, 1)), 0.5, np.ones((3, 4, 1))), "cond must be"),
        (lambda: IndependentObservations(score_fn, 2)(jnp.zeros((3, 1)), 0.5), "give cond"),
        (lambda: log_prob(IndependentObservations(score_fn, 2), jnp.zeros((1, 1)), cond=np.ones((1, 2, 1))), "guided"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            run()
        assert "\n" not in str(error.value)
