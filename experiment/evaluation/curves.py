"""Quality over NFE: each sampler at several budgets of score calls, from one checkpoint, seeds and x_T shared."""

from collections.abc import Sequence

from experiment.evaluation.results import Curve, CurvePoint

INSIDE = 2.0  # floor standard deviations: the half-width of the floor's band


def quality_curve(points: Sequence[CurvePoint], metrics: Sequence[str]) -> Curve:
    """The curve through a sampler's points, which lie by rising NFE, with where it enters the band of each metric."""
    return Curve(list(points), {metric: nfe_inside(points, metric) for metric in metrics})


def nfe_inside(points: Sequence[CurvePoint], metric: str) -> float | None:
    """The NFE from which on the mean over seeds stays within the floor's mean + 2 sd, at every larger budget too.

    None where it does not at the largest one.
    """
    first = None
    for point in reversed(points):
        excess = point.metrics[metric].excess
        if excess is None or excess > INSIDE:
            break
        first = point.nfe
    return first
