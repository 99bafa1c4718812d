"""What the files of a run tell of it, read to be set beside other runs: its config, its stage, its figures, its cost.

A file that is not there is a gap, and so is one that is broken, of which a note tells.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from experiment.build.objects import abstract_network
from experiment.common.errors import UserError, one_line, shown
from experiment.common.files import read_regular
from experiment.config import flatten
from experiment.report.figures import (
    FidFigures,
    Figures,
    FoundLikelihood,
    read_fid,
    read_likelihood,
    read_report,
)
from experiment.run.directory import DataShape, RunDirectory
from experiment.run.load import read_config
from experiment.run.log import METRICS, count_damaged, read_metrics
from experiment.training.sweep_runs import FILE as SWEEP
from experiment.training.sweep_runs import read_sweep

R = TypeVar("R")
REPORT = Path("report") / "report.json"
MOST_BYTES = 2**28  # of it

# The values of the config by which data are the same, and their model's space, in which distances are taken.
OF_DATA = ("name", "path", "crop", "size", "centered", "simulations")


@dataclass(frozen=True)
class ComparedRun:
    """A run as its files have it.

    values: of its config, by dotted name; of a sweep's run that is not begun, what it was to be. data: None before it
    is begun. step: of its newest checkpoint; steps: those it is to train, None where the data settle them. seconds: of
    its logged updates. notes: what is missing or stale; faults: what is broken.
    """

    name: str
    path: Path
    values: dict[str, Any]
    data: DataShape | None = None
    step: int = 0
    steps: int | None = None
    parameters: int | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    figures: Figures | None = None
    likelihoods: list[FoundLikelihood] = field(default_factory=list)
    fid: list[FidFigures] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def has_report(self) -> bool:
        """Whether there is a report, broken as it may be."""
        return (self.path / REPORT).exists()

    @property
    def finished(self) -> bool:
        """Whether it has been trained to its last step."""
        return self.steps is not None and self.step >= self.steps

    @property
    def data_name(self) -> str:
        """What its data are called."""
        return str(self.figures.dataset.name if self.figures else self.values["data.path"] or self.values["data.name"])

    def data_key(self) -> tuple[Any, ...]:
        """Equal for runs of the same data in the same space."""
        name = "" if self.values["data.path"] else self.values["data.name"]  # it is not used beside a path
        return (name, *(self.values[f"data.{key}"] for key in OF_DATA[1:]))

    def last(self, key: str) -> float | None:
        """The value that was logged last under this key; None where there is none that is finite."""
        found = (row[key] for row in reversed(self.rows) if row.get(key) is not None)
        value = next(found, None)
        return None if value is None or not math.isfinite(value) else float(value)


def expand(given: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """The run directories that are meant: a sweep's folder stands for its runs.

    Yields:
        A run's directory, and its values where a sweep knows them.

    Raises UserError for a folder that is neither a run nor a sweep.
    """
    for path in given:
        if (path / SWEEP).is_file():
            base, runs = read_sweep(path)
            for name, values in runs.items():
                yield path / name, {**flatten(base), **values}
        elif (path / "config.json").is_file():
            yield path, None
        else:
            kind = "has neither config.json nor sweep.json" if path.is_dir() else "is no folder"
            raise UserError(f"{path} {kind}: give directories of runs, or a sweep's folder")


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    resolved = [path.resolve().parts for path in paths]
    for parts in range(1, max(map(len, resolved), default=1) + 1):
        names = ["/".join(one[-parts:]) for one in resolved]
        if len(set(names)) == len(names):
            break
    return names


def read_run(path: Path, name: str, planned: Mapping[str, Any] | None = None) -> ComparedRun:
    """Read what the run's files tell. planned: its config's values as its sweep has them.

    Raises UserError where its config cannot be read: then nothing is known of it.
    """
    directory, notes, faults = RunDirectory(path), list[str](), list[str]()
    if planned is not None and not directory.config_path.exists():
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in planned.items()}
        return ComparedRun(name, path, values, steps=planned["train.steps"], notes=["not begun"])
    config, data = read_config(directory)
    step = (directory.checkpoints.steps() or [0])[-1]
    parameters = _noted(faults, "its network", lambda: _parameters(config, data))
    rows = _noted(faults, METRICS, lambda: read_metrics(path)) or []
    damaged = _noted(faults, METRICS, lambda: count_damaged(path)) if rows else 0
    if damaged:
        faults.append(f"{METRICS} has {damaged} damaged line(s), left out")
    rates = [float(row["images_per_second"]) for row in rows if _is_rate(row.get("images_per_second"))]
    found = _read(faults, path / REPORT, path, read_report)
    figures, of_report = found or (None, None)
    likelihoods = [of_report] if of_report else []
    for file in sorted((path / "likelihood").glob("*.json")):
        likelihoods += [it for it in [_read(faults, file, path, read_likelihood)] if it]
    fid = _read(faults, path / "fid" / "fid.json", path, read_fid) or []
    if step < config.train.steps:
        notes.insert(0, f"not finished, step {step:,} of {config.train.steps:,}" if step else "no checkpoint yet")
    notes += _stages(path, step, figures, likelihoods)
    return ComparedRun(
        name=name,
        path=path,
        values=flatten(config),
        data=data,
        step=step,
        steps=config.train.steps,
        parameters=parameters,
        images_per_second=float(np.median(rates)) if rates else None,
        seconds=_seconds(rows, config.train.batch_size),
        rows=rows,
        figures=figures,
        likelihoods=likelihoods,
        fid=fid,
        notes=notes,
        faults=faults,
    )


def _stages(path: Path, step: int, figures: Figures | None, likelihoods: Sequence[FoundLikelihood]) -> list[str]:
    """What is to be said of an evaluation that is missing, or of another step than the newest checkpoint's."""
    stale = {f"report of step {figures.checkpoint_step:,}": figures.checkpoint_step} if figures else {}
    stale |= {f"{it.file} of step {it.step:,}": it.step for it in likelihoods}
    missing = [] if (path / REPORT).exists() else ["not evaluated"]
    return missing + [f"{what}, trained to {step:,} since" for what, its in stale.items() if its != step]


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


def _seconds(rows: Sequence[Mapping[str, Any]], batch_size: int) -> float | None:
    """The seconds of the updates that the rows are of; None where one of them has no rate."""
    total, before = 0.0, 0
    for row in rows:
        if not _is_rate(row.get("images_per_second")):
            return None
        total += (row["step"] - before) * batch_size / row["images_per_second"]
        before = row["step"]
    return total if rows else None


def _parameters(config: Any, data: DataShape) -> int:
    _, weights = abstract_network(config, data)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))


def _noted(faults: list[str], what: str, read: Callable[[], R]) -> R | None:
    """What read() returns; None where it cannot be read, which joins the faults."""
    try:
        return read()
    except (UserError, OSError) as error:
        faults.append(f"{what} cannot be read ({one_line(error)})")
        return None


def _read(faults: list[str], file: Path, path: Path, read: Callable[[str, Any], R]) -> R | None:
    """What `read` makes of the JSON file; None where there is none, and where it is broken."""
    if not file.exists():
        return None
    name = file.relative_to(path).as_posix()
    try:
        return read(name, json.loads(read_regular(file, MOST_BYTES)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"no {error.args[0]}" if isinstance(error, KeyError) else one_line(error, 80)
        faults.append(f"{shown(name)} is broken ({reason}), left out")
        return None
