"""Two variational bounds of a run on held-out data: of its SDE's model, and of a discrete chain's with its network.

A batch of examples becomes arrays, which are kept; the arrays of all batches become figures, lines and pictures.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from experiment.common.errors import UserError
from experiment.evaluation.results import BoundResult, ChainResult, LikelihoodResult
from sde_lib import (
    VP,
    Chain,
    CosineVP,
    NoiseOfScore,
    ReverseChain,
    chain_of,
    elbo,
    fixed_large,
    fixed_small,
    host_sde,
    reschedule,
    vlb,
)

Array = np.ndarray

TIMES = 64  # noise levels for each example of the SDE's bound
DRAWS = 128  # steps for each example of a chain that has more of them
VLB_TERMS = ("prior", "reconstruction", "diffusion")
ELBO_TERMS = {"prior": "prior matching", "denoising": "denoising KLs", "reconstruction": "discretised reconstruction"}
OF_VLB = "the model that the reverse SDE samples from, bounded: its likelihood is no worse than this."
OF_ELBO = (
    "the discrete chain's model, which ancestral sampling of as many steps draws from: its likelihood is no "
    "worse than this."
)

PICTURES = BOUND_PICTURE, ELBO_PICTURE = "bound_over_log_snr.png", "elbo_over_steps.png"

VARIANCES: dict[str, Any] = {"fixed_small": fixed_small, "fixed_large": fixed_large}


def _even_in_t(sde: Any, steps: int) -> Array:
    return np.linspace(sde.t_max, sde.t_min, steps)[::-1]


def _even_in_log_snr(sde: Any, steps: int) -> Array:
    return sde.time_of_log_snr(np.linspace(sde.log_snr(sde.t_max), sde.log_snr(sde.t_min), steps))[::-1]


# The SDE whose chain it is, the run's own for None, and how its times are spaced. Linear betas are VP's at even times,
# Nichol and Dhariwal's those of CosineVP, to first order in the step; the network's score is carried there by log SNR
# (sde_lib.rescheduling).
BETAS: dict[str, tuple[Any, Callable[[Any, int], Array]]] = {
    "sde": (None, _even_in_t),
    "linear": (VP(t_min=1e-6), _even_in_t),
    "cosine": (CosineVP(t_min=1e-6), _even_in_t),
    "log_snr": (VP(t_min=1e-6), _even_in_log_snr),
}


def kind_of(run: Any) -> str:
    """What data without levels are called."""
    return "vectors" if len(run.shape) == 1 else "floats"


def check_chain(run: Any, betas: str) -> None:
    """Raises UserError for a run of which there is no such chain."""
    if run.scaling.levels is None:
        raise UserError(
            f"--chain is for data with levels, and {run.dataset.name} holds {kind_of(run)}: leave it out; --bound "
            "takes them too"
        )
    sde = host_sde(run.score_fn.sde)
    if BETAS[betas][0] is None and abs(sde.alpha(sde.t_max) ** 2 + sde.sigma(sde.t_max) ** 2 - 1) > 1e-9:
        raise UserError(
            f"--betas={betas} is for an SDE with alpha² + sigma² = 1, which {type(sde).__name__} is not: take "
            "another --betas, "
            f"{', '.join(name for name, (other, _) in BETAS.items() if other is not None)}, matched by log SNR"
        )


def chain_of_run(score_fn: Any, steps: int, betas: str) -> tuple[Chain, Array, Any]:
    """Build a chain of so many steps for the score, by a name of BETAS.

    Returns:
        The chain, within the log SNRs that the score knows; its times; the score under the SDE of these times.
    """
    sde, spaced = BETAS[betas]
    score_fn = score_fn if sde is None else reschedule(score_fn, sde)
    own = host_sde(score_fn.sde)
    times = spaced(own, steps)
    return chain_of(own, times), times, score_fn


def vlb_batch(run: Any, x: Any, cond: Any, key: Any, first: int) -> dict[str, Array]:
    """The terms of the SDE's bound, (n,) in nats, for x in the model's space, and its integrand, (n, TIMES)."""
    levels = run.scaling.levels
    centres = None if levels is None else run.scaling.to_model(np.arange(levels))
    found = vlb(run.score_fn, x, key, times=TIMES, centres=centres, first=first, cond=cond)
    return {
        name: np.asarray(value, np.float64) for name, value in found._asdict().items() if name not in ("nats", "nfe")
    }


def elbo_batch(
    run: Any,
    x: Any,
    cond: Any,
    key: Any,
    first: int,
    steps: int,
    betas: str,
    variance: str,
    most: int = DRAWS,
) -> dict[str, Array]:
    """The terms of the chain's bound, (n,) in nats, and what its denoising term consists of, all named elbo_...

    most: the number of steps beyond which that many, an even number, are drawn for each example.
    """
    chain, times, score_fn = chain_of_run(run.score_fn, steps, betas)
    model = ReverseChain(NoiseOfScore(score_fn, times, cond), log_variance=VARIANCES[variance])
    draws = most if steps - 1 > most else None
    found = elbo(model, chain, x, key, bin_width=run.scaling.bin_width, first=first, draws=draws)
    arrays = found._asdict()
    if draws is not None:
        arrays["draws_variance"] = found.draws_variance()
    return {f"elbo_{name}": np.asarray(value, np.float64) for name, value in arrays.items() if name != "nats"}


def bound_result(arrays: dict[str, Array], convert: Callable[[Array], Array], per_unit: float) -> BoundResult | None:
    """The figures of the SDE's bound; None where the arrays do not hold it."""
    if "diffusion" not in arrays:
        return None
    of_times = arrays["per_time"].std(axis=1, ddof=1) * np.ptp(arrays["log_snr"]) / math.sqrt(TIMES)
    return BoundResult(
        **_of_terms({name: arrays[name] for name in VLB_TERMS}, convert, per_unit),
        se_times_at_most=per_unit * float(np.sqrt(np.mean(of_times**2) / len(of_times))),
        times=TIMES,
        of=OF_VLB,
    )


def chain_result(
    arrays: dict[str, Array], settings: Any, convert: Callable[[Array], Array], per_unit: float
) -> ChainResult | None:
    """The figures of the chain's bound; None where the arrays do not hold it."""
    if "elbo_denoising" not in arrays:
        return None
    variance = arrays.get("elbo_draws_variance")
    return ChainResult(
        **_of_terms({name: arrays[f"elbo_{name}"] for name in ELBO_TERMS}, convert, per_unit),
        se_draws=None if variance is None else per_unit * float(np.sqrt(np.mean(variance) / len(variance))),
        steps=settings.chain,
        draws=None if variance is None else arrays["elbo_steps"].shape[1],
        betas=settings.betas,
        variance=settings.variance,
        of=OF_ELBO,
    )


def _of_terms(terms: dict[str, Array], convert: Callable[[Array], Array], per_unit: float) -> dict[str, Any]:
    values = convert(-np.sum(list(terms.values()), axis=0))
    return {
        "mean": float(values.mean()),
        "se_images": float(values.std(ddof=1) / math.sqrt(len(values))),
        **{name: per_unit * float(term.mean()) for name, term in terms.items()},
    }


def table_line(name: str, value: float | None, unit: str, digits: int = 4) -> str:
    """A line of the table of `evaluate.py --likelihood`."""
    return f"  {name:44s} {'unknown' if value is None else f'{value:.{digits}f} {unit}'}"


def bound_lines(found: LikelihoodResult) -> list[str]:
    """The bounds for a terminal; none where there are none."""
    unit, bound, chain = found.unit, found.bound, found.chain
    lines = []
    if bound:
        lines += [
            f"variational bound of the SDE's model: {bound.mean:.4f} {unit}",
            table_line("standard error over examples", bound.se_images, unit),
            table_line(f"  of it from {bound.times} times, at most", bound.se_times_at_most, unit),
            *(table_line(f"term: {name}", getattr(bound, name), unit) for name in VLB_TERMS),
        ]
    if chain:
        what = f"{chain.steps:,} steps, betas {chain.betas}, {chain.variance}"
        lines += [
            f"variational bound (ELBO) of the discrete chain's model, {what}: {chain.mean:.4f} {unit}",
            table_line("standard error over examples", chain.se_images, unit),
        ]
        if chain.draws:
            drawn = f"  of it from {chain.draws} of {chain.steps - 1:,} steps for each"
            lines.append(table_line(drawn, chain.se_draws, unit))
        lines += [table_line(f"term: {name}", getattr(chain, term), unit) for term, name in ELBO_TERMS.items()]
    return lines


def pictures(arrays: dict[str, Array], settings: Any, unit: str, convert: Callable[[Array], Array]) -> dict[str, bytes]:
    """{file name: PNG} of the bounds that the arrays hold."""
    from experiment.plots import likelihood as plots

    drawn = {}
    if "per_time" in arrays:
        drawn[BOUND_PICTURE] = plots.bound_over_log_snr(arrays["log_snr"], arrays["per_time"])
    if "elbo_steps" in arrays:
        steps, nats, weights = (arrays[f"elbo_{name}"].ravel() for name in ("steps", "step_nats", "weights"))
        step, kl, se = kls_over_steps(settings.chain, steps, nats, weights)
        terms = {name: float(convert(-arrays[f"elbo_{name}"].mean())) for name in ELBO_TERMS}
        drawn[ELBO_PICTURE] = plots.elbo_over_steps(settings.chain, step, convert(-kl), convert(-se), terms, unit)
    return drawn


def kls_over_steps(
    chain: int, steps: Array, nats: Array, weights: Array, parts: int = 60
) -> tuple[Array, Array, Array]:
    """Average the KLs of a chain's steps in parts of 2..T, even in log t as far as steps can be divided.

    Returns:
        In each part the mean step, the mean KL of a step in nats, and its standard error.
    """
    edges = np.unique(np.round(np.geomspace(2, chain + 1, parts + 1)))
    part = np.digitize(steps, edges) - 1
    seen = np.unique(part)

    def summed(values: Array) -> Array:
        return np.bincount(part, weights * values, minlength=len(edges))

    total = np.maximum(summed(np.ones(len(nats))), 1e-300)
    mean = summed(nats) / total
    se = np.sqrt(np.bincount(part, (weights * (nats - mean[part])) ** 2, minlength=len(edges))) / total
    return (summed(steps) / total)[seen], mean[seen], se[seen]
