"""Several observations of a run: the law of its samples is the posterior given all, in closed form on Gaussians."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.config import check_config
from experiment.data.units import StandardizedScore, Units
from experiment.run.directory import DataShape
from experiment.run.load import Run
from sde_lib import VP, FunctionScore
from sde_lib.batch import per_row
from sde_lib.samplers import DPMSolverPP2M

UNITS = Units(np.array([5.0]), np.array([2.0]))  # of the observations
SEEN = np.array([[1.0], [0.2], [-2.1], [2.5]])
SAMPLER = DPMSolverPP2M(steps=60)


def run_of(dropout: float = 0.1, shape: Any = (1,), variance: float = 0.5) -> Run:
    """theta ~ N(0, 1) and x ~ N(theta, 1), so that theta given x is N(x/2, 1/2); x in the user's units is 5 + 2 x."""
    sde = VP(beta_max=40.0, t_min=1e-4)

    def score(x: Any, t: Any, cond: Any = None) -> Any:
        alpha, sigma = per_row(sde.alpha(t), x), per_row(sde.sigma(t), x)
        nothing = jnp.isnan(cond)
        mean, spread = jnp.where(nothing, 0.0, cond / 2), jnp.where(nothing, 1.0, variance)
        return -(x - alpha * mean) / (alpha**2 * spread + sigma**2)

    config = check_config({"model": {"condition": "vector"}, "train": {"cond_dropout": dropout}})
    facts = DataShape(shape, None, 0, cond_mean=(5.0,), cond_std=(2.0,))
    return Run(Path("here"), config, StandardizedScore(FunctionScore(score, sde), None, UNITS), 1, facts)  # type: ignore[arg-type]


@pytest.mark.parametrize("m", [1, 4])
def test_samples_are_of_the_posterior_given_all(m: int) -> None:
    draws = run_of().sample(SAMPLER, 4000, cond={"observations": 5 + 2 * SEEN[:m]})
    assert draws.nfe == SAMPLER.nfe * (m + 1 if m > 1 else 1)
    assert draws.x.mean() == pytest.approx(SEEN[:m].sum() / (m + 1), abs=0.05)
    assert draws.x.var() == pytest.approx(1 / (m + 1), rel=0.12)  # the naive sum of scores has 0.09 of four, not 0.2


def test_what_several_observations_need() -> None:
    several = {"observations": 5 + 2 * SEEN}
    for run, given, words in (
        (run_of(dropout=0.0), {}, "trained without dropping conditions"),
        (run_of(shape=(2, 2, 1)), {}, "no vectors of at most 100 numbers"),
        (run_of(), {"guidance": 2.0}, "--guidance: of several observations"),
        (run_of(variance=1.5), {}, "narrower than prior_covariance"),
    ):
        with pytest.raises(UserError, match=words):
            run.sample(SAMPLER, 10, cond=several, **given)
