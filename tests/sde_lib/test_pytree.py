import jax
import jax.numpy as jnp
import pytest

from sde_lib import (
    VP,
    Chain,
    DiagonalGaussian,
    EDMPreconditioning,
    ExactScore,
    LearnedLogSNR,
    LossSecondMoment,
    NetworkScore,
    Uncertainty,
    linear_betas,
    power_law_field,
    reschedule,
    sigma2_weighting,
)
from tests.oracles import random_mixture

NETWORK = NetworkScore(jnp.multiply, {"w": jnp.ones((300, 300)), "b": [jnp.ones(300)] * 40}, VP(), EDMPreconditioning())


@pytest.mark.parametrize(
    "value",
    [
        NETWORK,
        reschedule(NETWORK, VP(beta_max=15.0)),
        ExactScore(random_mixture(0, 30), VP()),
        DiagonalGaussian(jnp.zeros((64, 64)), jnp.ones((64, 64))),
        power_law_field((64, 64)),
        Chain(linear_betas(1000)),
        LossSecondMoment.init(),
        LearnedLogSNR.init(),
        Uncertainty.init(sigma2_weighting),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_holds_arrays_shows_in_a_line_or_two(value):
    assert len(repr(value)) < 450 and "\n" not in repr(value)
    assert repr(value).startswith(type(value).__name__)


def test_numbers_show_as_they_are():
    assert repr(VP()) == "VP(t_min=0.001, t_max=1.0, beta_min=0.1, beta_max=20.0)"
    assert repr(VP(beta_max=jnp.float32(8.0))).endswith("beta_max=8.0)")
    assert "<41 arrays of 102,000 numbers>" in repr(NETWORK)
    seen = []
    jax.jit(lambda sde: seen.append(repr(sde)) or sde.t_min)(VP())  # a traced constant has no value
    assert seen == ["VP(t_min=float32[], t_max=float32[], beta_min=float32[], beta_max=float32[])"]
    assert eval(repr(VP(t_min=0.01))) == VP(t_min=0.01)
