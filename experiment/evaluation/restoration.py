"""Restoration of examples from what is seen of them, by a run's score, and how well it is calibrated.

Each example is seen through an operator and Gaussian noise, y = A(x) + n, and drawn several times given y. Were the
draws from the exact posterior, the truth would be one more of them:

    rmse of the draws' mean = spread sqrt(1 + 1/k),    each rank of the truth among k draws is as likely as another,
    rms of y - A(draw) = noise.

So all three are known, whatever the data, and what is measured beside them says what the restoration is worth. Of a
user's own observations there is no truth: the last alone is measured.
"""

from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiment.common.errors import UserError
from experiment.data.dataset import some_of
from experiment.data.scaling import Scaling
from experiment.evaluation.seen import Seen
from experiment.run.conditions import conditions_of, take
from experiment.run.sampling import check_samples_fit, draw
from sde_lib.inverse import Observed

Array = np.ndarray

CENTRAL = (0.5, 0.75, 0.9)  # shares of a posterior about its middle, whose coverage is told


@dataclass(frozen=True)
class Estimate:
    """A number measured over examples, with its standard error over them; None where there is no telling."""

    value: float | None
    error: float | None


@dataclass(frozen=True)
class Calibration:
    """How well draws agree with truths, over the entries that were asked for.

    Where there are no truths rmse and ratio are None, and coverage is empty.

    rmse: of the draws' mean. spread: the draws' standard deviation, rms over entries. Both in levels, or in standard
    deviations of the data.
    ratio: rmse/(spread sqrt(1 + 1/k)). coverage: how many truths lie in the central share of their posterior, by
    share. residual: rms of y - A(draw) over the noise. All that are no widths are 1, or the share itself, for draws
    from the exact posterior, whatever the number of draws.
    """

    rmse: Estimate | None
    spread: Estimate
    ratio: Estimate | None
    coverage: dict[float, Estimate]
    residual: Estimate


@dataclass(frozen=True)
class Restored:
    """Restored examples, in the model's space.

    y: (n, *seen). draws: (n, k, *shape). residuals: (n, k, *seen), y - A(draw) over the noise; NaN where there is none.
    nfe, jvps: network calls and derivative products for each draw. seconds: with compilation. truth: (n, *shape); None
    where nobody knows it.
    """

    y: Array
    draws: Array
    residuals: Array
    cond: Any
    nfe: float
    jvps: float
    seconds: float
    truth: Array | None = None


def restore_examples(
    run: Any, seen: Seen, noise: float, method: Any, sampler: Any, *, n: int, draws: int, seed: int = 0
) -> Restored:
    """See n held-out examples through the operator and the noise, and draw each so many times given that.

    noise: its standard deviation, in the units of the data. Example i is seen alike for any n.

    Raises UserError where there are no held-out examples, and as `draw_given`.
    """
    if not len(run.dataset.test):
        raise UserError(f"{run.dataset.name} has no held-out examples: train on data with a held-out split")
    index = some_of(n, len(run.dataset.test))
    truth = held_out(run, index, seed)
    told = conditions_of(run, run.dataset.test, index)
    y = look(seen, noise, truth, index, seed)
    return replace(draw_given(run, seen, y, noise, method, sampler, told, draws, seed), truth=truth)


def draw_given(
    run: Any,
    seen: Seen,
    y: Array,
    noise: float,
    method: Any,
    sampler: Any,
    told: Any,
    draws: int,
    seed: int = 0,
) -> Restored:
    """Draw examples given y (n, *seen), which is in the model's space.

    told: what a conditional network is told of each, a pytree with n rows; None for nothing.

    Raises UserError for more than fits into memory, and as `experiment.run.sampling.draw`.
    """
    check_samples_fit(len(y) * draws * getattr(sampler, "particles", 1), run.shape)
    of_model = seen.noise_to_model(noise)
    score_fn = Observed(run.score_fn, seen.operator, of_model, method)
    rows = np.repeat(np.arange(len(y)), draws)
    cond = {"y": y[rows], "cond": take(told, rows)}
    prior_given_y, size = replace(run, score_fn=score_fn), run.config.sample.batch_size
    start = perf_counter()
    try:
        found = draw(prior_given_y, sampler, jax.random.key(seed), len(rows), size, "restore", cond)
    except ValueError as error:
        if not str(error).startswith("TwistedSMC"):
            raise
        raise UserError(str(error)) from error
    seconds, x = perf_counter() - start, found.x.reshape(len(y), draws, *run.shape)
    residuals = np.stack([y - np.asarray(seen.operator(jnp.asarray(x[:, i]))) for i in range(draws)], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        residuals = residuals / np.where(of_model > 0, of_model, np.nan)
    jvps = found.nfe / score_fn.calls * score_fn.jvps
    return Restored(y, x, residuals, told, found.nfe, jvps, seconds)


def held_out(run: Any, index: Array, seed: int) -> Array:
    """The held-out examples of these numbers in the model's space, dequantised where the training was."""
    z = np.asarray(run.scaling.to_model(run.dataset.test.x[index]))
    if run.scaling.levels is None or not run.config.data.dequantize:
        return z
    u = np.stack([_random(seed, i, _BIN).uniform(-0.5, 0.5, z.shape[1:]) for i in index])
    return (z + run.scaling.bin_width * u).astype(np.float32)


def look(seen: Seen, noise: float, truth: Array, index: Array, seed: int) -> Array:
    """What is seen of the truths, with the noise, (n, *seen), in the model's space; entries that a mask hides are 0."""
    y = np.asarray(seen.operator(jnp.asarray(truth)))
    z = np.stack([_random(seed, i, _NOISE).standard_normal(y.shape[1:]) for i in index])
    entries = seen.operator.entries()
    z = z if entries is None else np.where(np.asarray(entries), z, 0)
    return (y + seen.noise_to_model(noise) * z).astype(np.float32)


_BIN, _NOISE = range(2)  # what an example's randomness is for


def _random(seed: int, i: int, purpose: int) -> Any:
    return np.random.default_rng([seed, int(i), purpose])


def calibration_of(restored: Restored, seen: Seen, scaling: Scaling) -> Calibration:
    """Measure the draws against the truths, over the entries that were asked for, and against what was seen.

    Data with levels are measured as levels: where in its bin a number lies is no part of them.
    """
    x, one = whole(scaling, restored.draws).astype(np.float64)[:, :, seen.open], np.ones(len(restored.draws))
    variance = np.mean(x.var(axis=1, ddof=1), axis=1)
    entries = seen.operator.entries()
    left = restored.residuals if entries is None else restored.residuals[:, :, np.asarray(entries)]
    left = np.mean(left.reshape(len(x), -1) ** 2, axis=1)
    spread, residual = root_of_ratio(variance, one), root_of_ratio(left, one)
    if restored.truth is None:
        return Calibration(None, spread, None, {}, residual)
    truth = whole(scaling, restored.truth).astype(np.float64)[:, seen.open]
    wrong = np.mean((x.mean(axis=1) - truth) ** 2, axis=1)
    inside = {share: _mean(np.mean(covered(x, truth, share), axis=1)) for share in CENTRAL}
    rmse, ratio = root_of_ratio(wrong, one), root_of_ratio(wrong, (1 + 1 / x.shape[1]) * variance)
    return Calibration(rmse, spread, ratio, inside, residual)


def whole(scaling: Scaling, z: Array) -> Array:
    """Points of the model's space as levels, uint8; where data have none, as they are."""
    return z if scaling.levels is None else np.asarray(scaling.to_data(z))


def covered(draws: Array, truth: Array, share: float) -> Array:
    """Say how far each truth (n, m) lies in the central share of its k draws (n, k, m): 1 inside, 0 outside.

    Among k draws the truth has one of k + 1 ranks. A rank that the share takes in part counts by that part, so that the
    mean over truths from the same distribution as the draws is the share itself, for any k. Of ties it is the mean.
    """
    k = draws.shape[1]
    ends = np.clip(np.arange(k + 2), (1 - share) / 2 * (k + 1), (1 + share) / 2 * (k + 1))  # what of it lies below
    first, last = (draws < truth[:, None]).sum(axis=1), (draws <= truth[:, None]).sum(axis=1)
    return (ends[last + 1] - ends[first]) / (last + 1 - first)


def _mean(values: Array) -> Estimate:
    return Estimate(float(values.mean()), _error(values - values.mean()))


def root_of_ratio(a: Array, b: Array) -> Estimate:
    """Estimate sqrt(mean a/mean b) of numbers (n,), with its standard error by the delta method."""
    if not np.isfinite(a).all() or b.mean() <= 0:
        return Estimate(None, None)
    ratio = float(np.sqrt(a.mean() / b.mean()))
    if ratio == 0:
        return Estimate(0.0, _error(0 * a))
    return Estimate(ratio, _error(ratio / 2 * (a / a.mean() - b / b.mean())))


def _error(deviations: Array) -> float | None:
    n = len(deviations)
    return float(np.sqrt(np.sum(deviations**2) / (n * (n - 1)))) if n > 1 else None
