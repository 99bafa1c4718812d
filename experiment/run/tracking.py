"""A run's log where the user has wandb or mlflow: `config.train.log` names one of them, and neither is ever needed.

A run that goes on continues the same run there: its id is kept in the run's directory. Which project, server and
account it is belongs to their own settings, such as WANDB_PROJECT, WANDB_MODE=offline or MLFLOW_TRACKING_URI.
"""

import importlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from experiment.common.errors import UserError, one_line
from experiment.common.files import write_json
from experiment.config import flatten

FILE = "tracking.json"
PROJECT = "noise_compass"  # where the user names none
_AT_ONCE = 50  # parameters in one request to mlflow, whose server takes 100


class Tracker(Protocol):
    """One run of a tracking service; `id` finds it again."""

    id: str

    def config(self, config: Any) -> None: ...
    def write(self, row: Mapping[str, float]) -> None: ...
    def picture(self, pixels: Any, step: int) -> None: ...
    def close(self, failed: bool) -> None: ...


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self, wandb: Any, workdir: Path, earlier: str | None):
        self.id = earlier or secrets.token_hex(4)
        self._wandb = wandb
        project = os.environ.get("WANDB_PROJECT") or PROJECT
        self._run = wandb.init(project=project, name=workdir.name, id=self.id, resume="allow", dir=str(workdir))

    def config(self, config: Any) -> None:
        self._run.config.update(flatten(config), allow_val_change=True)

    def write(self, row: Mapping[str, float]) -> None:
        self._run.log({f"train/{name}": value for name, value in row.items() if name != "step"}, step=int(row["step"]))

    def picture(self, pixels: Any, step: int) -> None:
        self._run.log({"samples": self._wandb.Image(pixels)}, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow:
    """A run of MLflow."""

    def __init__(self, mlflow: Any, workdir: Path, earlier: str | None):
        self._entities, self._client = mlflow.entities, mlflow.MlflowClient()
        if earlier:
            self._client.update_run(earlier, status="RUNNING")
        self.id = earlier or self._created(workdir.name)

    def _created(self, name: str) -> str:
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = self._client.get_experiment_by_name(project)
        where = experiment.experiment_id if experiment else self._client.create_experiment(project)
        return str(self._client.create_run(where, run_name=name).info.run_id)

    def config(self, config: Any) -> None:
        self._client.log_dict(self.id, config.to_dict(), "config.json")
        # A parameter never changes there: what a run that goes on may change is in config.json alone.
        known = self._client.get_run(self.id).data.params
        new = [(key, str(value)[:250]) for key, value in flatten(config).items() if key not in known]
        for first in range(0, len(new), _AT_ONCE):
            some = [self._entities.Param(*pair) for pair in new[first : first + _AT_ONCE]]
            self._client.log_batch(self.id, params=some)

    def write(self, row: Mapping[str, float]) -> None:
        now, step = int(1000 * time.time()), int(row["step"])
        named = [(name, value) for name, value in row.items() if name != "step" and value is not None]
        metrics = [self._entities.Metric(f"train/{name}", value, now, step) for name, value in named]
        self._client.log_batch(self.id, metrics=metrics)

    def picture(self, pixels: Any, step: int) -> None:
        self._client.log_image(self.id, pixels, artifact_file=f"samples/step{step}.png")

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self.id, status="FAILED" if failed else "FINISHED")


# The class, and a name that the package has: a folder that is called like it would be imported too.
TRACKERS: dict[str, tuple[Callable[..., Tracker], str]] = {"wandb": (Wandb, "init"), "mlflow": (MLflow, "MlflowClient")}


def check_tracker(name: str) -> None:
    """Raises UserError where the package that config.train.log names is not there."""
    if name:
        _package(name)


def _package(name: str) -> Any:
    reason = f"no package of that name has {TRACKERS[name][1]}"
    try:
        found = importlib.import_module(name)
    except Exception as error:  # an import of theirs may raise more than ImportError
        found, reason = None, one_line(error)
    if not hasattr(found, TRACKERS[name][1]):
        raise UserError(
            f"config.train.log is {name}, which is not installed ({reason}): pip install {name}, or leave "
            "config.train.log out"
        )
    return found


class Tracking:
    """The run's log at the service of this name, new or continued; of "" nothing is done.

    is_new: whether nothing of the run is there yet. Raises UserError where it cannot be opened. What fails later is
    told once, and training goes on: the run's own log has it all.
    """

    def __init__(self, name: str, workdir: Path):
        self._name, self._tracker, self._told = name, None, False
        self.is_new = False
        if not name:
            return
        package, path = _package(name), workdir / FILE
        ids = _ids(path)
        try:
            self._tracker = TRACKERS[name][0](package, workdir, ids.get(name))
        except Exception as error:  # these packages raise many kinds, also of their own
            raise UserError(
                f"config.train.log is {name}, which cannot be opened ({one_line(error)}): mend its settings, or "
                "leave config.train.log out"
            ) from None
        self.is_new = name not in ids
        write_json(path, {**ids, name: self._tracker.id})

    def config(self, config: Any) -> None:
        """Show the whole config."""
        self._try(lambda tracker: tracker.config(config))

    def write(self, row: Mapping[str, float]) -> None:
        """Log one row, at row["step"]."""
        self._try(lambda tracker: tracker.write(row))

    def picture(self, pixels: Any, step: int) -> None:
        """Show a picture of samples, uint8 (h, w, 3)."""
        self._try(lambda tracker: tracker.picture(pixels, step))

    def close(self, failed: bool = False) -> None:
        """End the run there, until it goes on."""
        self._try(lambda tracker: tracker.close(failed))

    def _try(self, log: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            log(self._tracker)
        except Exception as error:
            if not self._told:
                self._told = True
                line = f"{self._name} does not take the log ({one_line(error)}): training goes on, and metrics.jsonl"
                print(f"{line} has it all", file=sys.stderr)


def _ids(path: Path) -> dict[str, str]:
    """The ids that are kept, by service; none where there is no such file, or a damaged one."""
    try:
        found = json.loads(path.read_text())
        return {name: id_ for name, id_ in found.items() if isinstance(id_, str)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
