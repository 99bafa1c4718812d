"""Several independent observations of one example, told to a run whose network was trained on single ones."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from experiment.common.errors import UserError
from experiment.run.conditions import DROP_REMEDY, kind_of_run
from experiment.run.guidance import Guidance
from experiment.run.sampling import draw
from models import Vector

DRAWS = 2000  # given each observation, and given none: their covariances weigh the scores
MOST_NUMBERS = 100  # of an example: its covariance is estimated by these draws
_OBSERVATIONS = 103  # the purpose that the seed's randomness is split into


def together(run: Any, sampler: Any, told: Any, guidance: Guidance, seed: int) -> Any:
    """The run with its score given all observations of a sample, where `told` has several, (n, m, size), for each.

    The score is `IndependentObservations`; its covariances are those of draws given each observation alone, and given
    none, by the same sampler.

    Raises UserError for guidance beside it, for examples that are no short vectors, for a network that does not know
    what it says without a condition, and where an observation tells less than nothing.
    """
    kind = kind_of_run(run)
    if not isinstance(kind, Vector) or np.ndim(told) != 3:
        return run
    if guidance.scale is not None:
        raise UserError("--guidance: of several observations the score is weighed already; leave it out")
    if len(run.shape) != 1 or run.shape[0] > MOST_NUMBERS:
        raise UserError(
            f"observations: examples of shape {tuple(run.shape)} are no vectors of at most {MOST_NUMBERS} numbers, "
            "whose covariance several observations need; give one observation, as cond"
        )
    if not run.config.train.cond_dropout:
        raise UserError(
            "observations: this run was trained without dropping conditions, so its network does not know the prior, "
            f"which several observations need: {DROP_REMEDY}, or give one observation, as cond"
        )
    from sde_lib import IndependentObservations

    each = [*told[0], kind.nothing()]
    rows = np.repeat(np.asarray(each, np.float32), DRAWS, axis=0)
    key = jax.random.fold_in(jax.random.key(seed), _OBSERVATIONS)
    x = draw(run, sampler, key, len(rows), run.config.sample.batch_size, "draws given each observation", rows).x
    covariances = np.stack([np.cov(part.T).reshape(len(part.T), -1) for part in np.split(x, len(each))])
    try:
        score_fn = IndependentObservations(
            run.score_fn, len(each) - 1, kind.nothing(), covariances[:-1], covariances[-1]
        )
    except ValueError as error:
        raise UserError(f"observations: {error}; train longer, or give one observation, as cond") from error
    return replace(run, score_fn=score_fn)
