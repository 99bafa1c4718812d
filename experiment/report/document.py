"""The contents of report.json and report.html: the evaluation, its pictures, and where its numbers come from."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from experiment.common.provenance import provenance
from experiment.config import load_config
from experiment.evaluation.results import Report, plain
from experiment.plots.images import Box


@dataclass(frozen=True)
class Places:
    """What the page's script tells of a picture: of its bars, or of the frames of a path.

    texts: of each bar or frame. wide, narrow: where it is on the picture, and on that of a narrow page.
    """

    kind: Literal["bars", "frames"]
    texts: Sequence[str]
    wide: list[list[Box]]
    narrow: list[list[Box]]


@dataclass(frozen=True)
class Figure:
    """A picture of the report: `section` is where it stands, `width` its share of the page's width.

    narrow: the same for a page as wide as a telephone's; None where `png` can be read there too.
    """

    file: str
    section: str
    caption: str
    png: bytes
    width: float = 1.0
    narrow: bytes | None = None
    places: Places | None = None


@dataclass(frozen=True)
class Document:
    """A report with its pictures, and the command, config, versions, device and commit that its every number has.

    origin: as `provenance` gives it. trained_with: the same of the training; None where the run has no record of it.
    """

    title: str
    date: str
    command: str
    workdir: str
    origin: dict[str, Any]
    trained_with: dict[str, Any] | None
    report: Report
    figures: Sequence[Figure]
    config: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The whole of report.json, in JSON's values."""
        return plain(
            {
                "title": self.title,
                "date": self.date,
                "command": self.command,
                "workdir": self.workdir,
                "seed": self.report.protocol.seed,
                **self.origin,
                "trained_with": self.trained_with,
                **self.report.to_json(),
                "figures": [{"file": f.file, "section": f.section, "caption": f.caption} for f in self.figures],
                "config": self.config,
            }
        )


def document_of(run: Any, report: Report, figures: Sequence[Figure]) -> Document:
    """Put the report of a run together with where its numbers come from."""
    saved = Path(run.workdir) / "config.json"
    return Document(
        title=f"Noise Compass: {run.dataset.name}",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        workdir=str(run.workdir),
        origin=provenance(),
        trained_with=load_config(saved)[1].get("provenance") if saved.is_file() else None,
        report=report,
        figures=figures,
        config=run.config.to_dict(),
    )
