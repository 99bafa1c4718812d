"""The whole of `experiment.compare`: from the directories of runs to compare.html, compare.csv and compare.json."""

import csv
import io
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from experiment.common.errors import UserError
from experiment.common.files import check_folder, user_path, write_bytes, write_json, write_text
from experiment.common.provenance import git_commit
from experiment.evaluation.curves import INSIDE
from experiment.evaluation.results import plain
from experiment.evaluation.text import WIDTH, fitted
from experiment.plots.training import loss_curves
from experiment.report.comparison import (
    Group,
    config_table,
    cost_table,
    csv_rows,
    differing,
    fid_table,
    groups,
    likelihood_table,
    notes_on,
    quality_table,
    run_json,
)
from experiment.report.document import Figure
from experiment.report.page import facts_table, figure_of, head_of, page_of, table_of
from experiment.report.runs import ComparedRun, expand, read_run, short_names
from experiment.report.tables import Row
from experiment.run.earlier import keep_earlier
from experiment.training.sweep_runs import FILE as SWEEP

FILES = ("compare.html", "compare.csv", "loss.png")


def compare_runs(given: Sequence[str], out: str | None = None) -> list[str]:
    """Set runs side by side.

    given: directories of runs, or of sweeps, which stand for their runs. out: the folder of the files; None for that of
    the sweep where one alone is given.

    Returns:
        The tables as lines for a terminal, what there is to note, and at last the path of compare.html.

    Raises UserError for what is neither a run nor a sweep, and where no run can be read. A broken file of a run is told
    on stderr, and is a gap.
    """
    paths = [user_path(text, "RUN") for text in given]
    found = {path.resolve(): (path, values) for path, values in expand(paths)}  # each run once
    if not out and not (len(paths) == 1 and (paths[0] / SWEEP).is_file()):
        raise UserError("--out is missing: give the folder for compare.html, as in --out=compared")
    folder = user_path(out, "--out") if out else paths[0]
    check_folder(folder)
    runs, left_out = _read_all(list(found.values()))
    notes = [*notes_on(runs), *left_out]
    keys = differing(runs)
    document = plain(
        {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "git_commit": git_commit(),
            "differing": keys,
            "runs": [run_json(run, keys) for run in runs],
            "notes": notes,
        }
    )
    figure = _losses(runs)
    aside = keep_earlier(folder, "compare.json", document, _identity, lambda _: FILES)
    if figure:
        write_bytes(folder / figure.file, figure.png)
    write_text(folder / "compare.csv", _csv(list(csv_rows(runs, keys))))
    write_json(folder / "compare.json", document)
    write_text(folder / "compare.html", _page(runs, notes, document, figure))
    return [*_lines(runs, notes), *aside, str(folder / "compare.html")]


def _identity(document: Mapping[str, Any]) -> list[str]:
    return sorted(run["workdir"] for run in document["runs"])


def _read_all(found: Sequence[tuple[Path, dict[str, Any] | None]]) -> tuple[list[ComparedRun], list[str]]:
    """The runs that can be read, and a line for each that cannot. What is broken is said on stderr too."""
    runs, left_out = [], []
    names = short_names([path for path, _ in found])
    for (path, values), name in zip(found, names, strict=True):
        try:
            run = read_run(path, name, values)
        except UserError as error:
            left_out.append(f"{name}: left out: {error}")
            print(left_out[-1], file=sys.stderr)
            continue
        runs.append(run)
        for fault in run.faults:
            print(f"{name}: {fault}", file=sys.stderr)
    if not runs:
        raise UserError("none of the runs can be read: restore a config.json, or give other runs")
    return runs, left_out


def _losses(runs: Sequence[ComparedRun]) -> Figure | None:
    """The picture of all losses; None where no run has logged one."""

    def curve(run: ComparedRun, key: str) -> tuple[np.ndarray, np.ndarray]:
        rows = [row for row in run.rows if isinstance(row.get(key), int | float) and np.isfinite(row[key])]
        return np.array([row["step"] for row in rows], float), np.array([row[key] for row in rows], float)

    curves = {key: {run.name: curve(run, key) for run in runs} for key in ("loss", "held_out_loss")}
    training, held_out = ({name: c for name, c in of_key.items() if len(c[0])} for of_key in curves.values())
    if not training:
        return None
    caption = "The loss of each run over its steps."
    wide, narrow = loss_curves(training, held_out), loss_curves(training, held_out, narrow=True)
    return Figure("loss.png", "losses", caption, wide, width=0.75, narrow=narrow)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows under the names of all their columns; what a run does not have is empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _lines(runs: Sequence[ComparedRun], notes: Sequence[str]) -> list[str]:
    """The tables for a terminal, and the notes. The first table numbers the runs, the others name the numbers."""
    numbers = {run.name: f"{i}" for i, run in enumerate(runs, 1)}
    header, rows = config_table(runs)
    named = {number: f"{number}  {name}" for name, number in numbers.items()}
    by_run = header[0] == "run"
    head = [["run", *header[1:]] if by_run else ["key", *(numbers[name] for name in header[1:])]]
    first = [[named[numbers[row.name]] if by_run else row.name, *(c.text for c in row.cells)] for row in rows]
    lines = fitted(head + first) if first else []
    lines += [] if by_run and first else ["", *named.values()]
    others = [quality_table(group, short=True) for group in _evaluated(runs)]
    others += [likelihood_table(runs, short=True), fid_table(runs), cost_table(runs)]
    for header, rows in others:
        if rows:
            cells = [[numbers.get(row.name, row.name), *(cell.text for cell in row.cells)] for row in rows]
            lines += ["", *fitted([header, *cells])]
    return [*lines, "", *(textwrap.fill(note, WIDTH, subsequent_indent="  ") for note in notes)]


def _evaluated(runs: Sequence[ComparedRun]) -> list[Group]:
    return [group for group in groups(runs) if group.figures]


def _page(runs: Sequence[ComparedRun], notes: Sequence[str], document: Mapping[str, Any], figure: Figure | None) -> str:
    data = ", ".join(dict.fromkeys(run.data_name for run in runs))
    finished, evaluated = sum(run.finished for run in runs), sum(run.figures is not None for run in runs)
    title = f"{len(runs)} runs of {data}"
    facts = f"{finished} of {len(runs)} are trained to their last step, {evaluated} evaluated."
    boxed = f'<div class="note">{"".join(f"<p>{escape(note)}</p>" for note in notes)}</div>' if notes else ""
    header, rows = config_table(runs)
    alike = len(header) == 1 or not rows
    sections = [
        (
            "What differs",
            "<p>Their configs are the same.</p>"
            if alike
            else table_of("The keys of the config whose values are not the same in all runs.", header, rows),
        ),
        ("Quality", "".join(map(_quality, _evaluated(runs))) or "<p>None of the runs is evaluated yet.</p>"),
        ("FID", _optional(fid_table(runs), "Of the rows of each run's fid.json.")),
        (
            "Likelihood of held-out data",
            table_of("± standard error over the examples. Of the ODE's model.", *likelihood_table(runs))
            if any(run.likelihoods for run in runs)
            else "",
        ),
        ("Losses", f'<div class="pictures">{figure_of(figure)}</div>' if figure else ""),
        ("Cost", table_of(COST, *cost_table(runs))),
        ("Where these numbers come from", _origin(runs, document)),
    ]
    head = head_of(title, document["date"], document["git_commit"], facts, boxed)
    return page_of(title, f"<style>body {{ max-width: 80rem; }}</style>{head}", sections)  # for wide tables


COST = (
    "Steps that are saved, of those asked for. Images (examples) a second: the median over the log. Seconds: of the "
    "logged updates, without compilation, saving and previews. Loss: the last one logged, a mean over the steps since "
    "the one before. Held-out loss: the last one, of the averaged weights."
)


def _optional(table: tuple[list[str], list[Row]], caption: str) -> str:
    return table_of(caption, *table) if table[1] else ""


def _quality(group: Group) -> str:
    assert group.figures is not None
    protocol = group.figures.protocol
    caption = (
        f"{group.data}: {protocol.get('n')} samples for each sampler and seed, {protocol.get('seeds')} seed(s). Mean ± "
        f"standard deviation over seeds. Smaller is better; coloured: more than {INSIDE:g} floor standard deviations "
        "above the floor, which is real data against real data. NFE: network calls per sample."
    )
    return table_of(caption, *quality_table(group))


def _origin(runs: Sequence[ComparedRun], document: Mapping[str, Any]) -> str:
    facts = {"command": document["command"], "git commit": document["git_commit"]}
    return facts_table(facts | {run.name: str(run.path) for run in runs})
