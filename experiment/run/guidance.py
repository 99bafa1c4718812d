"""Guidance of a run's samples: past what the network says without the condition, or past another run's score."""

import math
from dataclasses import dataclass, replace
from typing import Any

from experiment.common.errors import UserError
from experiment.run.conditions import DROP_REMEDY, kind_of_run


@dataclass(frozen=True)
class Guidance:
    """What a user asks for: a scale g, 1 for no guidance, within an interval of log SNR, past `guide`, another run."""

    scale: float | None = None
    interval: tuple[float, float] | None = None
    guide: str | None = None

    def check(self) -> None:
        """Raises UserError for an interval or a guide without a scale, and for numbers that cannot be."""
        for name, given in (("guidance_interval", self.interval), ("guide", self.guide)):
            if given is not None and self.scale is None:
                raise UserError(f"--{name} goes with --guidance: add it, as in --guidance=2")
        if self.scale is not None and not math.isfinite(self.scale):
            raise UserError(f"--guidance is {self.scale:g}: give a number, such as 2; 1 is no guidance")
        if self.interval is not None and not self.interval[0] < self.interval[1]:
            low, high = self.interval
            raise UserError(
                f"--guidance_interval={low:g},{high:g} holds no log SNR: give the lower end first, as in "
                "--guidance_interval=-5,5"
            )


def interval(texts: list[str] | None) -> tuple[float, float] | None:
    """The two ends of --guidance_interval. Raises UserError for anything else."""
    if texts is None:
        return None
    try:
        low, high = map(float, texts)
    except ValueError:
        low = high = math.nan
    if math.isnan(low) or math.isnan(high):
        raise UserError(
            f"--guidance_interval={','.join(texts)[:80]}: give two ends in log SNR, as in --guidance_interval=-5,5"
        )
    return low, high


def guided(run: Any, asked: Guidance) -> Any:
    """The run with its score guided.

    Raises UserError where the network does not know what it says without its condition, and for a guide that is no
    score of the same data under the same SDE.
    """
    asked.check()
    if asked.scale is None:
        return run
    guide, kind = None if asked.guide is None else _guide(run, asked.guide), kind_of_run(run)
    if guide is None and kind is None:
        raise UserError(
            "--guidance: this run's network is told nothing that could guide it: leave it out, train with "
            "--config.model.condition, or give another run as --guide"
        )
    if guide is None and not run.config.train.cond_dropout:
        raise UserError(
            "--guidance: this run was trained without dropping conditions, so its network does not know what all "
            f"samples are like: {DROP_REMEDY}, or give another run as --guide"
        )
    if asked.scale == 1:
        return run
    from sde_lib.guidance import Autoguidance, ClassifierFree

    low, high = asked.interval or (-math.inf, math.inf)
    if guide is not None:
        return replace(run, score_fn=Autoguidance(run.score_fn, guide.score_fn, asked.scale, low, high))
    assert kind is not None
    return replace(run, score_fn=ClassifierFree(run.score_fn, asked.scale, kind.nothing(), low, high))


def _guide(run: Any, workdir: str) -> Any:
    """The run that guides. Raises UserError where it is of other data, another SDE, or told something else."""
    from experiment.run.load import load_run

    try:
        guide = load_run(workdir)
    except UserError as error:
        raise UserError(f"--guide: {error}") from None
    facts = {
        "has examples of another shape": (tuple(guide.shape), tuple(run.shape)),
        "has another SDE": (repr(guide.score_fn.sde), repr(run.score_fn.sde)),
        "has images of other levels": ((guide.levels, guide.scaling.centered), (run.levels, run.scaling.centered)),
        "is told another condition": (kind_of_run(guide), kind_of_run(run)),
    }
    for what, (theirs, ours) in facts.items():
        if theirs != ours:
            raise UserError(f"--guide={workdir} {what}, {theirs} and not {ours}: give a run that agrees in it")
    units = guide.data_shape.units, run.data_shape.units
    if units[0] is not None and units[1] is not None and not units[0].near(units[1]):
        raise UserError(f"--guide={workdir} was trained on data of other units: give a run of the same data")
    return guide
