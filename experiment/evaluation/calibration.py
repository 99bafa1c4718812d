"""Calibration of samples given a condition: where the truth of each held-out pair stands among draws.

For pairs (x, c) of the data, and draws of p(x | c) that are exact, the rank of each coordinate of x among as many draws
given its c is uniform (simulation-based calibration, Talts et al. 2018, arXiv:1804.06788, theorem 1), and so x lies in
central intervals as often as they say. Draws that are too narrow put truths at the ends, too wide ones in the middle,
and biased ones on a side. A posterior that ignores c passes too: this is beside the likelihood, not in its place.
"""

import math
from typing import Any

import jax
import numpy as np
from scipy.special import chdtrc

from experiment.build.conditions import condition_kind
from experiment.data.dataset import some_of
from experiment.evaluation.results import Calibration
from experiment.run.conditions import conditions_of, take
from experiment.run.sampling import as_data, draw, expected_seconds
from models import Vector

Array = np.ndarray

DRAWS = 79  # of each condition: the truth has one of 80 ranks, and the levels below are whole numbers of them
LEVELS = (0.5, 0.8, 0.9, 0.95)
MOST = 1000  # held-out pairs
BINS = (20, 10, 5, 4, 2)  # of the 80 ranks; the chi-square wants five pairs in each
IN_A_BIN = 5
_CALIBRATION = 102  # the purpose that the seed's randomness is split into


def ranks_of(truths: Array, draws: Array, seed: int = 0) -> Array:
    """Count the draws (n, k, d) below each coordinate of the truths (n, d): (n, d), 0 to k.

    Equal values, as of whole numbers, are put in an order at random.
    """
    below = np.sum(draws < truths[:, None], axis=1)
    equal = np.sum(draws == truths[:, None], axis=1)
    return below + np.random.RandomState(seed).randint(equal + 1)


def bins_of(n: int, draws: int) -> int | None:
    """How many bins the chi-square test puts n ranks 0..draws into; None for fewer ranks than it needs."""
    return next((bins for bins in BINS if (draws + 1) % bins == 0 and n >= IN_A_BIN * bins), None)


def uniformity(ranks: Array, draws: int) -> Array:
    """Compute by Pearson's chi-square test the p-value (d,) of each column of ranks (n, d), uniform on 0..draws.

    NaN for fewer ranks than the test needs.
    """
    n, places = len(ranks), draws + 1
    bins = bins_of(n, draws)
    if bins is None:
        return np.full(ranks.shape[1], math.nan)
    counts = np.stack([np.bincount(column * bins // places, minlength=bins) for column in ranks.T])
    return chdtrc(bins - 1, np.sum((counts - n / bins) ** 2, axis=1) / (n / bins))


def adjusted(p: Array) -> Array:
    """Raise p-values (d,) for their being the d tests of one claim, by the step-down rule of Holm 1979.

    Where all d claims hold, the least of these is below 0.05 in at most 5 % of cases, however the tests depend on each
    other. NaN stays NaN, and counts for no test.
    """
    p = np.asarray(p, np.float64)
    found = np.full(p.shape, math.nan)
    order = np.argsort(p)[: np.sum(~np.isnan(p))]  # NaN comes last
    found[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return found


def coverage(ranks: Array, draws: int, level: float) -> Array:
    """Compute the share (d,) of truths in the central interval that holds `level` of exact draws."""
    outside = (draws + 1) * (1 - level) / 2  # ranks at either end
    return np.mean((ranks >= outside - 1e-9) & (ranks <= draws - outside + 1e-9), axis=0)


def calibrated(run: Any) -> bool:
    """Tell whether the run has this part: its data are vectors, and it is told a vector of each."""
    return len(run.shape) == 1 and isinstance(condition_kind(run.config, run.dataset), Vector)


def pairs(run: Any, n: int) -> int:
    """How many held-out pairs are drawn for, of n that are wanted."""
    return min(n, MOST, len(run.dataset.test))


def calibration_seconds(run: Any, sampler: Any, n: int) -> float:
    """About how long it takes."""
    return expected_seconds(run, sampler, pairs(run, n) * DRAWS) if calibrated(run) else 0.0


def calibration(run: Any, name: str, sampler: Any, n: int, batch_size: int, seed: int) -> tuple[Calibration, Array]:
    """Draw for n held-out pairs, or fewer, and rank them.

    Returns:
        What is told of the ranks, and the ranks (n, d).
    """
    n, test = pairs(run, n), run.dataset.test
    chosen = some_of(n, len(test))
    cond = take(conditions_of(run, test, chosen), np.repeat(np.arange(n), DRAWS))
    key = jax.random.fold_in(jax.random.key(seed), _CALIBRATION)
    drawn = draw(run, sampler, key, n * DRAWS, batch_size, f"calibration of {name}", cond)
    ranks = ranks_of(test.x[chosen], as_data(run.scaling, drawn.x).reshape(n, DRAWS, -1), seed)
    return summary(name, ranks, DRAWS), ranks


def summary(name: str, ranks: Array, draws: int) -> Calibration:
    """What is told of ranks (n, d)."""
    n = len(ranks)
    return Calibration(
        sampler=name,
        n=n,
        draws=draws,
        p=uniformity(ranks, draws).tolist(),
        coverage={f"{level:g}": coverage(ranks, draws, level).tolist() for level in LEVELS},
        se={f"{level:g}": math.sqrt(level * (1 - level) / n) for level in LEVELS},
    )
