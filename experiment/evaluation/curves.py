"""Quality over NFE: each sampler at several budgets of score calls, from one checkpoint, seeds and x_T shared."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiment.build.samplers import at_nfe
from experiment.errors import UserError
from experiment.evaluation.comparison import QUALITY

INSIDE = 2.0  # floor standard deviations: the half-width of the floor's band

Place = tuple[str, int]  # a sampler's name and its budget


def budgets(texts: Sequence[str]) -> list[int]:
    """Numbers from the flag's texts. Raises UserError for one that is none."""
    try:
        return [int(text) for text in texts]
    except ValueError:
        raise UserError(f"--nfe={','.join(texts)}: give whole numbers, as in --nfe=10,20,50") from None


def at_budgets(samplers: Mapping[str, Any], budgets: Sequence[int]) -> tuple[dict[str, Any], dict[Place, Any]]:
    """(samplers, each at the largest budget; the same at each smaller one). A solver that chooses its own steps stays
    as it is.

    Raises UserError for a budget that a sampler cannot spend.
    """
    for nfe in budgets:
        if nfe < 1:
            raise UserError(f"--nfe={nfe}: give budgets of at least 1 score call")
    ordered = sorted(set(budgets))
    found = {(name, nfe): at_nfe(name, sampler, nfe) for name, sampler in samplers.items() for nfe in ordered}
    largest = {name: found.get((name, ordered[-1])) if ordered else None for name in samplers}
    at_fewer = {
        (name, nfe): sampler for (name, nfe), sampler in found.items() if sampler is not None and nfe != ordered[-1]
    }
    return {name: largest[name] or sampler for name, sampler in samplers.items()}, at_fewer


def quality_curves(
    found: Mapping[str, Any], of_curves: Mapping[Place, Mapping[str, Any]], largest: int
) -> dict[str, Any]:
    """{sampler: {points: [{budget, nfe, metrics}], inside: {metric: NFE or None}}}, the points by rising NFE.

    inside: the NFE from which on the mean over seeds stays within the floor's mean + 2 sd, at every larger budget too.
    """
    metrics = [name for name, metric in found["metrics"].items() if metric["kind"] == QUALITY]
    curves = {}
    for name, at_largest in found["samplers"].items():
        points = [{"budget": nfe, **point} for (sampler, nfe), point in of_curves.items() if sampler == name]
        points.append(
            {"budget": largest if points else None, "nfe": at_largest["nfe"], "metrics": at_largest["metrics"]}
        )
        curves[name] = {"points": points, "inside": {metric: _inside_from(points, metric) for metric in metrics}}
    return curves


def _inside_from(points: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    first = None
    for point in reversed(points):
        excess = point["metrics"][metric]["excess"]
        if excess is None or excess > INSIDE:
            break
        first = point["nfe"]
    return first
