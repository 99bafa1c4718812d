import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VE, VP, NetworkScore, RawEpsilonPrediction, reschedule
from tests.oracles import ToldScore


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


def test_the_range_is_the_one_that_both_know():
    inner, outer = VP(t_min=0.01), VE()
    sde = reschedule(ToldScore(inner), outer).sde
    np.testing.assert_allclose(sde.log_snr(sde.t_min), inner.log_snr(0.01), rtol=1e-9)  # VE reaches less noise
    np.testing.assert_allclose(sde.t_max, 1.0 if outer.log_snr(1.0) > inner.log_snr(1.0) else sde.t_max)
    low = max(inner.log_snr(1.0), outer.log_snr(1.0))
    np.testing.assert_allclose(sde.log_snr(sde.t_max), low, rtol=1e-9)
    with pytest.raises(ValueError, match="no log SNR in common; choose other constants"):
        reschedule(ToldScore(VE(sigma_min=20.0)), VP(t_max=0.1))
