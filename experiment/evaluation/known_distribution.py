"""Evaluation against a known distribution: the steps' error and the score's own, without a noise floor.

On data with a known distribution (`Dataset.distribution`) the exact score is known too, and with it what a sampler
would draw if the network were perfect:

* discretisation error: the sampler with the exact score against a fine solution with the exact score, from the same
x_T;
* score error: a fine solution with the run's score against that one;
* their sum as it is: the run's samples against the fine solution with the exact score.

These are strong errors, root mean squares of |x - x'|, of samplers that draw no noise. Where the distribution is a
Gaussian the exact KL of every linear sampler is known (`sde_lib.gaussian_kl`), of those that draw noise too, and what
it would be with a score that is wrong at high or at low noise only. What is measured on samples, log-density and mode
weights, are metrics like others, with their floors.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiment.common.errors import UserError
from experiment.evaluation.drawing import Drawn
from experiment.evaluation.metrics import Metric
from experiment.evaluation.results import ExactResult, ExactRow
from sde_lib import ExactScore, GaussianMixture, ProbabilityFlow, sample
from sde_lib.samplers import LinearSampler, UniPC, gaussian_kl, pulse, table_of

Array = np.ndarray

FINE = UniPC(steps=1000)  # order 4: its own error is below float32's rounding
FINE_STEPS = 512  # at which the KL is all score error
EARLY, LATE = pulse(-3.0, -1.0, 0.3), pulse(1.5, 3.5, 0.3)  # errors of the noise prediction over log(alpha/sigma)
NODES = 40

MEANING = (
    "Root mean square distance, from the same latents, to a fine solution with the exact score. Discretisation: of "
    "the sampler with the exact score. Score: of a fine solution with the run's score. Total: of the run's samples. "
    "Only for samplers that draw no noise. On a Gaussian the KL of the sampler's distribution is exact: with the exact "
    "score at its own steps, and at 512 steps with a noise prediction that is off by 0.3 early, at log(alpha/sigma) in "
    "[-3, -1], or late, in [1.5, 3.5]."
)


def with_exact_score(run: Any) -> Any:
    """The run with its data's exact score instead of its network. Raises UserError where that is not known."""
    if run.dataset.distribution is None:
        from experiment.data.toys import DISTRIBUTIONS

        known = ", ".join(DISTRIBUTIONS)
        raise UserError(f"--exact_score: the distribution of {run.dataset.name} is not known; it is of {known}")
    return replace(run, score_fn=ExactScore(run.dataset.distribution, run.score_fn.sde))


def exact_metrics(distribution: GaussianMixture | None) -> dict[str, Metric]:
    """Metrics of samples against the distribution itself; none where it is not known."""
    if distribution is None:
        return {}
    metrics = {"nll_gap": _log_density_gap(distribution)}
    if len(distribution.means) > 1:
        metrics["mode_weights"] = _mode_weights(distribution)
    return metrics


def _log_density_gap(distribution: GaussianMixture) -> Metric:
    exact_entropy = entropy(distribution)

    def gap(_: Array, x: Array) -> float:
        return abs(-float(np.mean(distribution.log_prob(jnp.asarray(x, jnp.float32)))) - exact_entropy)

    meaning = (
        "|E[-log p(x)] - H(p)| over the samples, p their exact density, H its entropy: too wide or too narrow "
        "samples show in it."
    )
    return Metric("log-density gap, nats", meaning, gap)


def _mode_weights(distribution: GaussianMixture) -> Metric:
    weights = np.exp(np.asarray(distribution.log_weights, float))

    def distance(_: Array, x: Array) -> float:
        mode = np.argmax(distribution.posterior(jnp.asarray(x, jnp.float32)), axis=1)
        return float(0.5 * np.abs(np.bincount(mode, minlength=len(weights)) / len(mode) - weights).sum())

    meaning = (
        "Total variation distance between the weights of the distribution's components and their shares of the "
        "samples, each the likeliest's."
    )
    return Metric("mode weights", meaning, distance)


def entropy(distribution: GaussianMixture) -> float:
    """H(p) = -E[log p] in nats, by Gauss and Hermite's quadrature in each component: for few dimensions."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    d = distribution.means.shape[1]
    z = np.stack(np.meshgrid(*[nodes] * d, indexing="ij"), axis=-1).reshape(-1, d)
    grid = np.meshgrid(*[weights / weights.sum()] * d, indexing="ij")
    weight = np.prod(np.stack(grid, axis=-1).reshape(-1, d), axis=1)
    components = zip(
        np.exp(distribution.log_weights), distribution.means, distribution.basis, distribution.variances, strict=True
    )
    total = 0.0
    for w, mean, basis, variances in components:
        x = np.asarray(mean) + (np.sqrt(variances) * z) @ np.asarray(basis).T
        total -= float(w) * float(np.asarray(distribution.log_prob(jnp.asarray(x, jnp.float32)), float) @ weight)
    return total


def exact_errors(run: Any, drawn: Sequence[Drawn], key: jax.Array) -> ExactResult | None:
    """Measure what each point does wrong on data with a known distribution; None where it is not known.

    Of a network that is told a condition it is not: its score is that of a part of the data.

    drawn: each name's points by rising budget; their first samples come from `key`.
    """
    distribution, sde = run.dataset.distribution, run.score_fn.sde
    told = not isinstance(run.score_fn, ExactScore) and run.config.model.condition != "none"
    if distribution is None or told:
        return None
    n, shape = len(drawn[0].samples[0]), tuple(run.shape)
    oracle = ExactScore(distribution, sde)

    def solve(sampler: Any, score_fn: Any) -> Array:
        return np.asarray(sample(sampler, score_fn, key, n, shape).x, float)

    fine = {denoise: solve(replace(FINE, denoise=denoise), oracle) for denoise in (False, True)}

    def row(d: Drawn) -> ExactRow:
        sampler = d.point.sampler
        discretisation = total = None
        if not draws_noise(sampler, sde):
            reference = fine[sampler.denoise]
            discretisation = _rms(solve(sampler, oracle) - reference)
            total = _rms(d.samples[0] - reference)
        return ExactRow(d.nfe, discretisation, total, *_exact_kls(sampler, sde, distribution))

    samplers: dict[str, list[ExactRow]] = {}
    for d in drawn:
        samplers.setdefault(d.point.name, []).append(row(d))
    return ExactResult(MEANING, _rms(solve(FINE, run.score_fn) - fine[False]), samplers)


def draws_noise(sampler: Any, sde: Any) -> bool:
    """Say whether the sampler's result depends on more than x_T."""
    if isinstance(sampler, LinearSampler):
        c = table_of(sampler, sde).c
        return c is not None and bool(np.any(np.asarray(c) > 0))
    return not isinstance(sampler, ProbabilityFlow)


def _exact_kls(
    sampler: Any, sde: Any, distribution: GaussianMixture
) -> tuple[float | None, float | None, float | None]:
    """KL(sampler || data) in nats: with the exact score, and with one that is wrong early or late, at many steps."""
    if not isinstance(sampler, LinearSampler) or len(distribution.means) > 1:
        return None, None, None
    gaussian = np.asarray(distribution.means[0], float), np.asarray(distribution.covariances[0], float)
    fine = replace(sampler, steps=FINE_STEPS)
    early, late = (gaussian_kl(fine, sde, *gaussian, error=error) for error in (EARLY, LATE))
    return gaussian_kl(sampler, sde, *gaussian), early, late


def _rms(difference: Array) -> float:
    return float(np.sqrt(np.mean(np.sum(difference.reshape(len(difference), -1) ** 2, axis=1))))
