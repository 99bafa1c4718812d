"""Evaluation against a law that is known: what the steps do wrong, and what the score does, without a noise floor.

On data with a known law (`Dataset.law`) the exact score is known too, and with it what a sampler would draw if the
network were perfect:

* discretisation error: the sampler with the exact score against a fine solution with the exact score, from the same
x_T;
* score error: a fine solution with the run's score against that one;
* their sum as it is: the run's samples against the fine solution with the exact score.

These are strong errors, root mean squares of |x - x'|, of samplers that draw no noise. Where the law is a Gaussian the
exact KL of every linear sampler is known (`sde_lib.gaussian_kl`), of those that draw noise too, and what it would be
with a score that is wrong at high or at low noise only. What is measured on samples, log-density and mode weights, are
metrics like others, with their floors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiment.errors import UserError
from experiment.evaluation.metrics import Metric
from sde_lib import ExactScore, GaussianMixture, ProbabilityFlow, sample
from sde_lib.samplers import LinearSampler, UniPC, gaussian_kl, pulse, table_of

Array = np.ndarray

FINE = UniPC(steps=1000)  # order 4: its own error is below float32's rounding
FINE_STEPS = 512  # at which the KL is all score error
SCORE_ERRORS = {"early": pulse(-3.0, -1.0, 0.3), "late": pulse(1.5, 3.5, 0.3)}
NODES = 40

MEANING = (
    "Root mean square distance, from the same latents, to a fine solution with the exact score. Discretisation: of "
    "the sampler with the"
    " exact score. Score: of a fine solution with the run's score. Total: of the run's samples. Only for samplers "
    "that draw no noise."
    " On a Gaussian the KL of the sampler's law is exact: with the exact score at its own steps, and at 512 steps "
    "with a noise prediction"
    " that is off by 0.3 early, at log(alpha/sigma) in [-3, -1], or late, in [1.5, 3.5]."
)


class Drawn(NamedTuple):
    """A sampler at one budget: its score calls, and its samples (n, d) of the first seed."""

    sampler: Any
    nfe: float
    points: Array


def with_exact_score(run: Any) -> Any:
    """The run with its data's exact score instead of its network. Raises UserError where that is not known."""
    if run.dataset.law is None:
        from experiment.data.toys import LAWS

        raise UserError(f"--exact_score: the law of {run.dataset.name} is not known; it is of {', '.join(LAWS)}")
    return replace(run, score_fn=ExactScore(run.dataset.law, run.score_fn.sde))


def exact_metrics(law: GaussianMixture | None) -> dict[str, Metric]:
    """Metrics of samples against the law itself; none where it is not known."""
    if law is None:
        return {}
    metrics = {"nll_gap": _log_density_gap(law)}
    if len(law.means) > 1:
        metrics["mode_weights"] = _mode_weights(law)
    return metrics


def _log_density_gap(law: GaussianMixture) -> Metric:
    entropy_of_law = entropy(law)

    def gap(_: Array, x: Array) -> float:
        return abs(-float(np.mean(law.log_prob(jnp.asarray(x, jnp.float32)))) - entropy_of_law)

    meaning = (
        "|E[-log p(x)] - H(p)| over the samples, p their exact density, H its entropy: too wide or too narrow "
        "samples show in it."
    )
    return Metric("log-density gap, nats", meaning, gap)


def _mode_weights(law: GaussianMixture) -> Metric:
    weights = np.exp(np.asarray(law.log_weights, float))

    def distance(_: Array, x: Array) -> float:
        mode = np.argmax(law.posterior(jnp.asarray(x, jnp.float32)), axis=1)
        return float(0.5 * np.abs(np.bincount(mode, minlength=len(weights)) / len(mode) - weights).sum())

    meaning = (
        "Total variation distance between the weights of the law's components and their shares of the samples, "
        "each the likeliest's."
    )
    return Metric("mode weights", meaning, distance)


def entropy(law: GaussianMixture) -> float:
    """H(p) = -E[log p] in nats, by Gauss and Hermite's quadrature in each component: for few dimensions."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    d = law.means.shape[1]
    z = np.stack(np.meshgrid(*[nodes] * d, indexing="ij"), axis=-1).reshape(-1, d)
    weight = np.prod(
        np.stack(np.meshgrid(*[weights / weights.sum()] * d, indexing="ij"), axis=-1).reshape(-1, d), axis=1
    )
    total = 0.0
    for w, mean, basis, variances in zip(np.exp(law.log_weights), law.means, law.basis, law.variances, strict=True):
        x = np.asarray(mean) + (np.sqrt(variances) * z) @ np.asarray(basis).T
        total -= float(w) * float(np.asarray(law.log_prob(jnp.asarray(x, jnp.float32)), float) @ weight)
    return total


def against_the_law(run: Any, drawn: Mapping[str, Sequence[Drawn]], key: jax.Array) -> dict[str, Any]:
    """{meaning, score_error, samplers: {name: [{nfe, discretisation, total, kl, kl_early, kl_late}]}}; {} where the law
    is not known.

    drawn: of each sampler every budget, from `key`. What a sampler does not have is None.
    """
    law, sde = run.dataset.law, run.score_fn.sde
    if law is None:
        return {}
    n, shape = len(next(iter(drawn.values()))[0].points), tuple(run.shape)
    oracle = ExactScore(law, sde)

    def solve(sampler: Any, score_fn: Any) -> Array:
        return np.asarray(sample(sampler, score_fn, key, n, shape).x, float)

    fine = {denoise: solve(replace(FINE, denoise=denoise), oracle) for denoise in (False, True)}

    def row(d: Drawn) -> dict[str, Any]:
        found: dict[str, Any] = {"nfe": d.nfe, "discretisation": None, "total": None}
        if not draws_noise(d.sampler, sde):
            reference = fine[d.sampler.denoise]
            found |= {"discretisation": _rms(solve(d.sampler, oracle) - reference), "total": _rms(d.points - reference)}
        return found | _exact_kl(d.sampler, sde, law)

    return {
        "meaning": MEANING,
        "score_error": _rms(solve(FINE, run.score_fn) - fine[False]),
        "samplers": {name: [row(d) for d in rows] for name, rows in drawn.items()},
    }


def draws_noise(sampler: Any, sde: Any) -> bool:
    """Whether the result depends on more than x_T."""
    if isinstance(sampler, LinearSampler):
        c = table_of(sampler, sde).c
        return c is not None and bool(np.any(np.asarray(c) > 0))
    return not isinstance(sampler, ProbabilityFlow)


def _exact_kl(sampler: Any, sde: Any, law: GaussianMixture) -> dict[str, float | None]:
    if not isinstance(sampler, LinearSampler) or len(law.means) > 1:
        return {"kl": None, **{f"kl_{when}": None for when in SCORE_ERRORS}}
    gaussian = np.asarray(law.means[0], float), np.asarray(law.covariances[0], float)
    fine = replace(sampler, steps=FINE_STEPS)
    of_score = {f"kl_{when}": gaussian_kl(fine, sde, *gaussian, error=error) for when, error in SCORE_ERRORS.items()}
    return {"kl": gaussian_kl(sampler, sde, *gaussian), **of_score}


def _rms(difference: Array) -> float:
    return float(np.sqrt(np.mean(np.sum(difference.reshape(len(difference), -1) ** 2, axis=1))))
