"""The log of a run, metrics.jsonl and TensorBoard events. A resumed run's log is the uninterrupted one's."""

import json
from pathlib import Path
from typing import Any

from experiment.files import write_text

METRICS = "metrics.jsonl"


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl: step, loss, grad_norm, lr, images_per_second. A line cut short is left out."""
    path = Path(workdir) / METRICS
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def last_rate(workdir: str | Path) -> float | None:
    """The examples for each second that training logged last; None where it logged none."""
    rows = read_metrics(workdir)
    rate = rows[-1].get("images_per_second") if rows and isinstance(rows[-1], dict) else None
    return float(rate) if isinstance(rate, int | float) and 0 < rate < float("inf") else None


class RunLog:
    """The open log, to append rows to.

    Opening it at step k drops the rows that an interrupted process logged after the checkpoint of step k.
    """

    def __init__(self, workdir: Path, step: int):
        from tensorboardX import SummaryWriter

        rows = [row for row in read_metrics(workdir) if row["step"] <= step]
        write_text(workdir / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = open(workdir / METRICS, "a")
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, row: dict[str, float]) -> None:
        """Append one row, at row["step"]."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(f"train/{name}", value, int(row["step"]))

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._events.close()
