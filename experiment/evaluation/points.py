"""Samplers at budgets of score calls: the points that an evaluation draws, compares and groups by name.

They are one list, and stay one until they are grouped.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiment.build.samplers import at_nfe
from experiment.common.errors import UserError
from experiment.config import check_flag


@dataclass(frozen=True)
class Point:
    """A sampler at a budget of score calls, besides the final denoising; None where it keeps its own steps."""

    name: str
    budget: int | None
    sampler: Any

    def __str__(self) -> str:
        return self.name if self.budget is None else f"{self.name} at {self.budget}"


def points_at(samplers: Mapping[str, Any], budgets: Sequence[int]) -> list[Point]:
    """Each sampler at each budget, the budgets of a name rising; a solver that chooses its own steps is one point.

    Without budgets every sampler is one point, as it is. Raises UserError for a budget that a sampler cannot spend.
    """
    for budget in budgets:
        check_flag("nfe", budget, "sample.steps")
    points = []
    for name, sampler in samplers.items():
        spent = [Point(name, budget, at_nfe(name, sampler, budget)) for budget in sorted(set(budgets))]
        points += [point for point in spent if point.sampler is not None] or [Point(name, None, sampler)]
    if budgets and points and all(point.budget is None for point in points):
        raise UserError(
            f"--nfe: {', '.join(samplers)} choose their own steps: leave it out, or add a sampler of fixed "
            "steps, such as --samplers=ddim"
        )
    return points


def settings_of(sampler: Any) -> dict[str, Any]:
    """The sampler's class and fields; a function or object among them by its name."""
    fields = {f.name: getattr(sampler, f.name) for f in dataclasses.fields(sampler)}
    simple = {
        k: v if isinstance(v, (int, float, str, type(None))) else getattr(v, "__name__", type(v).__name__)
        for k, v in fields.items()
    }
    return {"class": type(sampler).__name__, **simple}


def read_budgets(texts: Sequence[str]) -> list[int]:
    """Numbers from the flag's texts. Raises UserError for one that is none."""
    try:
        return [int(text) for text in texts]
    except ValueError:
        raise UserError(f"--nfe={','.join(texts)[:80]}: give whole numbers, as in --nfe=10,20,50") from None
