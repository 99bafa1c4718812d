import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VE, VP, ExactScore, NetworkScore, RawEpsilonPrediction, reschedule
from tests.oracles import ToldScore, random_mixture


def test_the_inner_score_is_told_its_condition_and_its_key():
    def told(params, x, c_noise, cond, key):
        return cond + jax.random.normal(key, x.shape)

    cond, key = jnp.arange(8.0).reshape(4, 2), jax.random.key(3)
    found = reschedule(NetworkScore(told, {}, VP(), RawEpsilonPrediction()), VE())(jnp.ones((4, 2)), 0.4, cond, key=key)
    # The predicted noise is that of either SDE: -sigma s.
    np.testing.assert_allclose(-VE().sigma(0.4) * found, cond + jax.random.normal(key, (4, 2)), rtol=1e-4)
    # A score that takes no key gets none.
    cond = jnp.full((3, 2), 2.0)
    found = reschedule(ToldScore(VP()), VE())(cond + 0.3, 0.4, cond)
    np.testing.assert_allclose(found, -0.3 / (0.25 + VE().sigma(0.4) ** 2) * np.ones((3, 2)), rtol=1e-3)


@pytest.mark.parametrize("inner, outer", [(VP(t_min=0.01), VE()), (VE(sigma_min=0.1), VP(t_min=1e-5))])
def test_the_range_is_the_one_that_both_know(inner, outer):
    # Less noise than the first time of the score, or more than its last one, it was never told.
    sde = reschedule(ToldScore(inner), outer).sde
    assert inner.log_snr(inner.t_min) < outer.log_snr(outer.t_min)
    np.testing.assert_allclose(sde.log_snr(sde.t_min), inner.log_snr(inner.t_min), rtol=1e-9)
    low = max(inner.log_snr(inner.t_max), outer.log_snr(outer.t_max))
    np.testing.assert_allclose(sde.log_snr(sde.t_max), low, rtol=1e-9)


def test_ranges_with_nothing_in_common_are_refused():
    with pytest.raises(ValueError, match="no log SNR in common; choose other constants"):
        reschedule(ToldScore(VE(sigma_min=20.0)), VP(t_max=0.1))


def test_under_jit_and_for_derivatives_it_is_the_same():
    x, t = jnp.array([[0.3, -0.1]]), 0.4

    def score(beta_max):
        return reschedule(ExactScore(random_mixture(0, 2), VP(beta_max=beta_max)), VE())(x, t)

    np.testing.assert_allclose(jax.jit(score)(15.0), score(15.0), rtol=1e-4)
    # The same data under VE have one score, whatever the constants of the SDE that the inner one was given for.
    exact = ExactScore(random_mixture(0, 2), VE())(x, t)
    np.testing.assert_allclose(jax.jit(score)(15.0), exact, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(score))(15.0), 0.0, atol=1e-4 * np.abs(exact).max())
    made = jax.jit(lambda beta_max: reschedule(ToldScore(VP(beta_max=beta_max, t_min=0.01)), VE()).sde.t_min)
    np.testing.assert_allclose(made(20.0), reschedule(ToldScore(VP(t_min=0.01)), VE()).sde.t_min, rtol=1e-4)
