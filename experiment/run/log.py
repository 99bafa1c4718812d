"""The log of a run, metrics.jsonl and TensorBoard events, and where the user has it a tracking service's.

A resumed run's log is the uninterrupted one's.
"""

import io
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

from experiment.common.errors import UserError, shown
from experiment.common.files import write_text
from experiment.run.tracking import Tracking

METRICS, EVENTS, DAMAGED = "metrics.jsonl", "tensorboard", ".damaged"


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl: step, loss, grad_norm, lr, images_per_second; now and then held_out_loss.

    Left out are a line cut short, and what else is no row.
    """
    return _rows(Path(workdir) / METRICS)[0]


def count_damaged(workdir: str | Path) -> int:
    """Count the whole lines of metrics.jsonl that are no rows."""
    return _rows(Path(workdir) / METRICS)[1]


def _rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read the rows, and count the whole lines that are none."""
    text = path.read_text(errors="replace") if path.is_file() else ""
    *lines, last = map(_row, text.split("\n"))  # the last is empty, or was cut short when its process was stopped
    return [row for row in (*lines, last) if row], lines.count(None)


def _is_number(value: Any) -> bool:
    return isinstance(value, float | None) or (isinstance(value, int) and abs(value) < 2**63)


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    numbers = isinstance(row, dict) and all(map(_is_number, row.values()))
    return row if numbers and row.get("step") is not None else None


def last_rate(workdir: str | Path) -> float | None:
    """The examples for each second that training logged last; None where it logged none."""
    rates = (row.get("images_per_second") for row in reversed(read_metrics(workdir)))
    return next((float(rate) for rate in rates if isinstance(rate, int | float) and 0 < rate < math.inf), None)


class RunLog:
    """The open log, to append rows to.

    Opening it at step k drops the rows that an interrupted process logged after the checkpoint of step k; a tracking
    service keeps these, and they are not logged there again.

    tracker: the service, config.train.log.
    """

    def __init__(self, workdir: Path, step: int, tracker: str = ""):
        from tensorboardX import SummaryWriter

        self._tracking = Tracking(tracker, workdir)
        path = workdir / METRICS
        rows, damaged = _rows(path)
        if damaged:
            kept = path.with_name(METRICS + DAMAGED)
            shutil.copyfile(path, kept)
            print(
                f"{shown(str(path))} has {damaged} damaged line(s), left out: it is kept as {kept.name}",
                file=sys.stderr,
            )
        self._tracked = step if self._tracking.is_new else max((row["step"] for row in rows), default=0)
        rows = [row for row in rows if row["step"] <= step]
        for row in rows if self._tracking.is_new else ():
            self._tracking.write(row)
        write_text(workdir / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = open(workdir / METRICS, "a")
        if (workdir / EVENTS).exists() and not (workdir / EVENTS).is_dir():
            raise UserError(f"{workdir / EVENTS} is a file, where TensorBoard's events go: move it away")
        self._events = SummaryWriter(str(workdir / EVENTS), purge_step=step + 1 if step else None)

    def write(self, row: dict[str, float]) -> None:
        """Append one row, at row["step"]."""
        if row["step"] > self._tracked:
            self._tracking.write(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(f"train/{name}", value, int(row["step"]))

    def show_config(self, config: Any, step: int) -> None:
        """Write the whole config, as a text for TensorBoard."""
        lines = json.dumps(config.to_dict(), indent=2).splitlines()
        self._events.add_text("config", "".join(f"    {line}\n" for line in lines), step)
        self._tracking.config(config)

    def show_samples(self, png: bytes, step: int) -> None:
        """Write a picture of samples; metrics.jsonl has none."""
        import numpy as np
        from PIL import Image

        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        self._events.add_image("samples", pixels, step, dataformats="HWC")
        if step >= self._tracked:
            self._tracking.picture(pixels, step)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._file.close()
        self._events.close()
        self._tracking.close(failed=kind is not None)
