"""The directory of one run: what lies in it, who may write it, and which config it belongs to."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.config import FREE_ON_RESUME, differences, load_config, save_config
from experiment.errors import UserError
from experiment.files import lock_file, user_path
from experiment.provenance import provenance
from experiment.run.checkpoint import Checkpoints


@dataclass(frozen=True)
class DataShape:
    """The facts about the data that building a network needs, as config.json keeps them."""

    shape: tuple[int, ...]
    levels: int | None
    num_classes: int


class RunDirectory:
    """The files of one run: config.json, checkpoints/, snapshots/ (of power_ema), metrics.jsonl, tensorboard/."""

    def __init__(self, workdir: str | Path, keep: int = 1):
        self.path = user_path(workdir, "run directory")
        self.config_path = self.path / "config.json"
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep)
        self.snapshots = Checkpoints(self.path / "snapshots", keep=sys.maxsize)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for this process. Raises UserError when another does; a lock dies with its process."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"cannot write the run directory {self.path} ({error.strerror}): choose another --workdir"
            ) from None
        try:
            try:
                lock_file(file, self.path)
            except BlockingIOError:
                owner = os.read(file, 32).decode(errors="replace").strip() or "unknown"
                raise UserError(
                    f"another process (pid {owner}) is training in {self.path}: wait for it, stop it, or choose "
                    "another --workdir"
                ) from None
            except OSError as error:
                raise UserError(
                    f"cannot lock the run directory {self.path} ({error.strerror}): choose another --workdir"
                ) from None
            os.ftruncate(file, 0)
            os.write(file, str(os.getpid()).encode())
            yield
        finally:
            os.close(file)

    def check_belongs(self, config: Any) -> None:
        """Check that the directory's checkpoints, if any, are of this config. Raises UserError with the difference."""
        steps = self.checkpoints.steps()
        if not steps:  # nothing was trained, so there is nothing to mix up
            return
        if not self.config_path.exists():
            raise UserError(
                f"{self.path} has checkpoints but no config.json: restore it, or train into another --workdir"
            )
        changed = differences(load_config(self.config_path)[0], config, FREE_ON_RESUME)
        if changed:
            raise UserError(
                f"run directory {self.path} belongs to another config: {'; '.join(changed)};"
                " undo the change to go on with this run, or train into another --workdir"
            )

    def write_config(self, config: Any, data: DataShape) -> None:
        """Write config.json: the config, the data's shape, the provenance; the run's earlier ones stay listed."""
        origin = provenance()
        earlier: list[Any] = []
        if self.config_path.exists() and self.checkpoints.steps():
            beside = load_config(self.config_path)[1]
            earlier = [
                p for p in [*beside.get("earlier_provenance", []), beside.get("provenance")] if p and p != origin
            ]
        save_config(self.config_path, config, data_shape=vars(data), provenance=origin, earlier_provenance=earlier)
