"""The figures in the JSON files of a run, report.json, those of likelihood/ and fid.json, as records.

A file that is not as it was written raises TypeError, ValueError, KeyError or AttributeError.
"""

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

from experiment.common.errors import shown
from experiment.evaluation.results import (
    QUALITY,
    DataDescription,
    Floor,
    LikelihoodResult,
    MetricDescription,
    Value,
)

R = TypeVar("R")


@dataclass(frozen=True)
class SamplerFigures:
    """What a report says of a sampler: its cost for the samples of one seed, and its metrics by name."""

    nfe: float
    seconds: float
    metrics: dict[str, Value]


@dataclass(frozen=True)
class Figures:
    """What a report says of quality: at which step, by which protocol, with the floors. metrics: those of quality."""

    checkpoint_step: int
    score: str
    dataset: DataDescription
    protocol: dict[str, Any]
    metrics: dict[str, MetricDescription]
    floors: dict[str, Floor]
    samplers: dict[str, SamplerFigures]


@dataclass(frozen=True)
class FoundLikelihood:
    """A likelihood of held-out data, the file that holds it, and the step of the weights."""

    file: str
    step: int
    result: LikelihoodResult


@dataclass(frozen=True)
class FidFigures:
    """A row of fid.json."""

    sampler: str
    nfe: float
    n: int
    fid: float
    kid: float
    kid_sd: float
    precision: float
    recall: float
    reference: str
    checkpoint_step: int


def record(cls: type[R], found: Any) -> R:
    """Make a record of those keys that it has. Raises TypeError, ValueError or KeyError for what it cannot be."""
    hints, values = typing.get_type_hints(cls), {}
    for it in dataclasses.fields(cls):  # type: ignore[arg-type]
        if it.name not in found and it.default is not dataclasses.MISSING:
            continue
        value, hint = found[it.name], hints[it.name]
        wanted = [kind for kind in (typing.get_args(hint) or (hint,)) if kind in (int, float, str, bool, type(None))]
        if wanted and hint in (int, float, str, bool, float | None, int | None, str | None):
            right = any(type(value) is kind or (kind is float and type(value) is int) for kind in wanted)
            if not right:
                raise ValueError(f"{it.name} is {shown(value)}")
        values[it.name] = value
    return cls(**values)


def read_report(name: str, found: Any) -> tuple[Figures, FoundLikelihood]:
    """Read the quality and the likelihood that report.json holds."""
    step = found["checkpoint_step"]
    if type(step) is not int:
        raise ValueError(f"checkpoint_step is {shown(step)}")
    metrics = {key: record(MetricDescription, it) for key, it in found["metrics"].items()}
    metrics = {key: metric for key, metric in metrics.items() if metric.kind == QUALITY}
    samplers = {
        key: SamplerFigures(
            float(it["nfe"]), float(it["seconds"]), {of: record(Value, it["metrics"][of]) for of in metrics}
        )
        for key, it in found["samplers"].items()
    }
    figures = Figures(
        checkpoint_step=step,
        score=str(found["score"]),
        dataset=record(DataDescription, found["dataset"]),
        protocol=dict(found["protocol"]),
        metrics=metrics,
        floors={key: record(Floor, found["floors"][key]) for key in metrics},
        samplers=samplers,
    )
    return figures, FoundLikelihood(name, step, _likelihood(found["likelihood"]))


def read_likelihood(name: str, found: Any) -> FoundLikelihood:
    """Read a file of likelihood/."""
    if type(found["step"]) is not int:
        raise ValueError(f"step is {shown(found['step'])}")
    return FoundLikelihood(name, found["step"], _likelihood(found))


def _likelihood(found: Any) -> LikelihoodResult:
    # The bounds are of other models, and are not compared.
    return record(LikelihoodResult, {key: it for key, it in found.items() if key not in ("bound", "chain")})


def read_fid(name: str, found: Any) -> list[FidFigures]:
    """Read the rows of fid.json."""
    rows = []
    for row in found:
        reference, network = row["reference"], row["network"]
        told = f"{reference['images']:,} images of {reference['name']} ({reference['split']})"
        rows.append(record(FidFigures, {**row, "reference": told, "checkpoint_step": network["checkpoint_step"]}))
    return rows
