"""The report's numbers as text: with their spread, to the digits that it leaves them, in rows."""

import textwrap
from dataclasses import dataclass

import numpy as np

from experiment.evaluation.calibration import adjusted
from experiment.evaluation.curves import INSIDE
from experiment.evaluation.results import (
    QUALITY,
    Calibration,
    ExactResult,
    GuidanceResult,
    LikelihoodResult,
    Report,
)
from experiment.evaluation.text import WIDTH, fitted, number

EXACT_COLUMNS = {
    "discretisation": "discretisation error",
    "total": "total error",
    "kl": "KL, exact score",
    "kl_early": "KL, wrong early",
    "kl_late": "KL, wrong late",
}


@dataclass(frozen=True)
class Cell:
    """A cell's text, and whether its value lies outside the floor's band."""

    text: str
    outside: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table: its name, and its cells."""

    name: str
    cells: list[Cell]
    is_floor: bool = False


def plus_minus(mean: float | None, sd: float | None) -> str:
    """ "mean ± sd", both to the sd's second digit; the mean alone where there is no sd."""
    if mean is None or not sd:
        return number(mean)
    places = int(np.clip(1 - np.floor(np.log10(sd)), 0, 8))
    return f"{round(mean, places) + 0.0:.{places}f} ± {sd:.{places}f}"  # + 0.0: no "-0.000"


def outside(excess: float | None, kind: str) -> bool:
    """Say whether the mean lies more than 2 floor standard deviations above the floor's mean.

    A metric of memorisation is outside below the floor too.
    """
    return excess is not None and (excess if kind == QUALITY else abs(excess)) > INSIDE


def text_table(report: Report) -> str:
    """The report in a few lines for a terminal: a row for each sampler, one for the floor, and the likelihood."""
    header, rows = table_rows(report, QUALITY)
    lines = fitted([header, *[[row.name, *(cell.text for cell in row.cells)] for row in rows]])
    if report.exact:
        lines += ["", *fitted(exact_rows(report.exact)), score_error_line(report.exact), ""]
    if report.guidance:
        header, rows = guidance_rows(report.guidance)
        lines += ["", *fitted([header, *[[row.name, *(cell.text for cell in row.cells)] for row in rows]]), ""]
    of_pairs = [calibration_line(report.calibration)] if report.calibration else []
    told = [*curve_lines(report), likelihood_line(report.likelihood), *of_pairs, *report.notes]
    return "\n".join([*lines, *(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in told)])


def table_rows(report: Report, kind: str) -> tuple[list[str], list[Row]]:
    """Set out the metrics of one kind.

    Returns:
        The header, and a row for each sampler; the last row is the floor.
    """
    metrics = report.metrics_of(kind)
    costs = ["NFE", "seconds"] if kind == QUALITY else []
    header = ["sampler", *costs, *(metric.label for metric in metrics.values())]
    rows = []
    for name, sampler in report.samplers.items():
        cost = [Cell(f"{sampler.nfe:,.0f}"), Cell(number(sampler.seconds))][: len(costs)]
        values = [sampler.metrics[metric] for metric in metrics]
        rows.append(Row(name, cost + [Cell(plus_minus(v.mean, v.sd), outside(v.excess, kind)) for v in values]))
    floors = [report.floors[metric] for metric in metrics]
    of_floors = [Cell(plus_minus(floor.mean, floor.sd)) for floor in floors]
    return header, [*rows, Row("noise floor", [Cell("")] * len(costs) + of_floors, is_floor=True)]


def exact_rows(exact: ExactResult) -> list[list[str]]:
    """The header, and a row for each sampler and budget, of what is known without a noise floor.

    Columns and rows without a value are left out.
    """
    points = [(name, point) for name, rows in exact.samplers.items() for point in rows]
    columns = [column for column in EXACT_COLUMNS if any(getattr(point, column) is not None for _, point in points)]
    rows = []
    for name, point in points:
        values = [getattr(point, column) for column in columns]
        if any(value is not None for value in values):
            cells = ["–" if value is None else f"{value:.1e}" for value in values]
            rows.append([name, f"{point.nfe:,.0f}", *cells])
    return [["sampler", "NFE", *(EXACT_COLUMNS[column] for column in columns)], *rows]


def guidance_rows(found: GuidanceResult) -> tuple[list[str], list[Row]]:
    """Set out quality and obedience over the scale of guidance.

    Returns:
        The header, and a row for each scale; the last row is the floor, and what the classifier finds of the data.
    """

    def share(value: float | None) -> list[Cell]:
        return [] if value is None else [Cell(f"{value:.1%}")]

    header, obeyed = ["guidance"], [] if found.recognised is None else ["obeyed"]
    for kind, method in found.methods.items():
        header += [f"NFE, {kind} ({method})", "sliced Wasserstein-2", *obeyed]
    rows = []
    for points in zip(*found.points.values(), strict=True):
        cells = []
        for point in points:
            distance = Cell(plus_minus(point.distance.mean, point.distance.sd), outside(point.distance.excess, QUALITY))
            cells += [Cell(f"{point.nfe:,.0f}"), distance, *share(point.obeyed)]
        rows.append(Row(f"{points[0].scale:g}", cells))
    floor = [Cell(""), Cell(plus_minus(found.floor.mean, found.floor.sd)), *share(found.recognised)]
    return header, [*rows, Row("data", floor * len(found.methods), is_floor=True)]


def score_error_line(exact: ExactResult) -> str:
    """The error that no number of steps takes away."""
    return f"score error, of a fine solution of the ODE: {exact.score_error:.1e}"


def curve_lines(report: Report) -> list[str]:
    """For each sampler of the curves, from which NFE it is inside the floor's band, by metric; none without curves."""
    lines = []
    for name, curve in report.curves.items():
        most = curve.points[-1].nfe
        parts = [
            f"{report.metrics[metric].label} {f'not up to {most:,.0f}' if nfe is None else f'from {nfe:,.0f}'}"
            for metric, nfe in curve.inside.items()
        ]
        lines.append(f"{name}, NFE from which it is within the floor's mean + {INSIDE:g} sd: {', '.join(parts)}")
    return lines


def likelihood_line(found: LikelihoodResult) -> str:
    """The held-out likelihood with both standard errors and its NFE, in a sentence."""
    of_probes = f"{found.se_probes:.2g}" if found.se_probes is not None else "unknown, with one probe,"
    return (
        f"held-out likelihood of the ODE: {plus_minus(found.mean, found.se_images)} {found.unit}"
        f" (± standard error over {found.n:,} examples; {of_probes} over probes), {found.nfe:,.0f} NFE"
    )


def calibration_line(found: Calibration) -> str:
    """The least p-value of the ranks, and the intervals' coverage over all coordinates, in a sentence."""
    shares = ", ".join(
        f"{float(level):.0%}: {100 * np.mean(values):.1f} ± {100 * found.se[level]:.1f} %"
        for level, values in found.coverage.items()
    )
    least = min(adjusted(np.asarray(found.p)))
    return (
        f"calibration of {found.sampler}, {found.n:,} held-out conditions of {found.draws} draws each: uniform ranks "
        f"have a p of at least {_p(min(found.p))} over {len(found.p)} coordinates, {_p(least)} by Holm's rule for so "
        "many; truths in central intervals "
        f"of {shares} (± standard error of one coordinate)"
    )


def _p(value: float) -> str:
    """A p-value; a dash where there were too few ranks for a test."""
    return number(value if np.isfinite(value) else None, 2)


def calibration_rows(found: Calibration) -> list[list[str]]:
    """The header, and a row for each coordinate: the p-value of its ranks, and the intervals' coverage."""
    levels = list(found.coverage)
    rows = [
        [f"{i + 1}", _p(p), *(f"{found.coverage[level][i]:.1%}" for level in levels)] for i, p in enumerate(found.p)
    ]
    exact = ["exact", "", *(f"{float(level):.1%} ± {found.se[level]:.1%}" for level in levels)]
    return [
        ["coordinate", "p of uniform ranks", *(f"in the central {float(level):.0%}" for level in levels)],
        *rows,
        exact,
    ]
