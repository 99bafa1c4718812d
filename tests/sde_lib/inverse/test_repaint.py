"""RePaint against the exact posterior of what is seen, by the recursion through its own code, and its cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VP, ExactScore, sample
from sde_lib.inverse import Linear, Mask, Observed, RePaint
from sde_lib.inverse.repaint import _run
from sde_lib.samplers import gaussian_law
from tests.oracles import ALL_SDE_IDS, ALL_SDES
from tests.sde_lib.inverse.test_law import COVARIANCE, DATA, MEAN, CountingPrior

FIRST = Mask(np.array([True, False]))
Y = np.array([[1.0, np.nan]])
UNSEEN_MEAN = MEAN[1] + COVARIANCE[0, 1] / COVARIANCE[0, 0] * (1 - MEAN[0])
UNSEEN_VARIANCE = COVARIANCE[1, 1] - COVARIANCE[0, 1] ** 2 / COVARIANCE[0, 0]


def law(sde, steps, loops):
    score_fn = Observed(ExactScore(DATA, sde), FIRST, 0.0)
    return gaussian_law(RePaint(steps, loops), score_fn, MEAN, COVARIANCE, cond={"y": Y, "cond": None})


def test_replacement_alone_is_wrong_and_many_loops_and_steps_tend_to_the_exact_posterior():
    sde = VP(t_min=1e-6)
    means, ratios = zip(
        *((m[1], c[1, 1] / UNSEEN_VARIANCE) for m, c in (law(sde, 400, k) for k in (1, 8, 64))), strict=True
    )
    off = np.abs(np.array(means) - UNSEEN_MEAN)
    assert off[0] > 0.2 and ratios[0] > 1.3  # what an integration by other code gives replacement: 1.31, and more noise
    np.testing.assert_allclose(off[:-1] / off[1:], 8, rtol=0.2)  # as 1/loops
    left = [1 - law(sde, steps, 256)[1][1, 1] / UNSEEN_VARIANCE for steps in (100, 400)]
    np.testing.assert_allclose(left[0] / left[1], 4, rtol=0.15)  # as 1/steps
    assert left[1] < 0.035


@pytest.mark.parametrize("sde", ALL_SDES, ids=ALL_SDE_IDS)
def test_what_is_seen_is_y_at_t_min_and_what_is_not_comes_near(sde):
    mean, covariance = law(sde, 200, 40)
    alpha, sigma = float(sde.alpha(sde.t_min)), float(sde.sigma(sde.t_min))
    np.testing.assert_allclose((mean[0], covariance[0, 0], covariance[0, 1]), (alpha, sigma**2, 0), atol=1e-6)
    np.testing.assert_allclose(mean[1], alpha * UNSEEN_MEAN, atol=0.02)
    np.testing.assert_allclose(covariance[1, 1], alpha**2 * UNSEEN_VARIANCE + sigma**2, rtol=0.1)


def test_samples_have_the_law_and_nothing_compiles_anew():
    n, compiled = 4096, None
    rows = {"y": jnp.broadcast_to(jnp.asarray(Y, jnp.float32), (n, 2)), "cond": None}
    for loops in (1, 5):
        score_fn = Observed(ExactScore(DATA, VP()), FIRST, 0.0)
        x = np.asarray(sample(RePaint(20, loops), score_fn, jax.random.key(0), n, (2,), cond=rows).x, float)
        mean, covariance = law(VP(), 20, loops)
        se = np.sqrt(np.diag(covariance) / n)
        assert (np.abs(x.mean(0) - mean) < 4.5 * se + 0.01).all()  # x at t_max has the mean 0
        np.testing.assert_allclose(np.cov(x.T), covariance, rtol=0.1, atol=1e-3)
        assert compiled in (None, _run._cache_size())
        compiled = _run._cache_size()


def test_its_calls_are_what_a_counter_inside_counts():
    CountingPrior.counts.clear()
    score_fn = Observed(CountingPrior(VP()), FIRST, 0.0)
    result = sample(RePaint(3, 4), score_fn, jax.random.key(0), 2, (2,), cond={"y": jnp.ones((2, 2)), "cond": None})
    jax.block_until_ready(result.x)
    jax.effects_barrier()
    assert (
        (result.nfe, result.jvps) == (12, 0) == (CountingPrior.counts.count("call"), CountingPrior.counts.count("jvp"))
    )


PRIOR = ExactScore(DATA, VP())


@pytest.mark.parametrize(
    ("sampler", "score_fn", "said"),
    [
        (RePaint(2), PRIOR, "give an Observed"),
        (RePaint(2), Observed(PRIOR, FIRST, 0.1), "give a noise of 0"),
        (RePaint(2), Observed(PRIOR, Linear(np.eye(2)), 0.0), "not a Linear"),
    ],
)
def test_what_it_cannot_do_is_refused(sampler, score_fn, said):
    with pytest.raises(ValueError, match=said):
        sample(sampler, score_fn, jax.random.key(0), 1, (2,), cond={"y": jnp.ones((1, 2)), "cond": None})


@pytest.mark.parametrize("settings", [{"steps": 0}, {"loops": 0}])
def test_settings_of_nothing_are_refused(settings):
    with pytest.raises(ValueError, match="at least 1"):
        RePaint(**settings)
