"""The report's numbers as text: with their spread, to the digits that it leaves them, in rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiment.evaluation.comparison import QUALITY
from experiment.evaluation.curves import INSIDE
from experiment.evaluation.text import aligned, number


def plus_minus(value: Mapping[str, Any]) -> str:
    """ "mean ± sd", both to the sd's second digit; the mean alone where there is no sd."""
    mean, sd = value["mean"], value["sd"]
    if mean is None or not sd:
        return number(mean)
    places = int(np.clip(1 - np.floor(np.log10(sd)), 0, 8))
    return f"{round(mean, places) + 0.0:.{places}f} ± {sd:.{places}f}"  # + 0.0: no "-0.000"


def outside(value: Mapping[str, Any], kind: str) -> bool:
    """Whether the mean lies more than 2 floor standard deviations above the floor's mean; of memorisation, above or
    below.
    """
    excess = value["excess"]
    return excess is not None and (excess if kind == QUALITY else abs(excess)) > INSIDE


def text_table(report: Mapping[str, Any]) -> str:
    """The report in a few lines for a terminal: a row for each sampler, one for the floor, and the likelihood."""
    header, rows = table_rows(report, QUALITY)
    lines = aligned([header, *[[name, *(text for text, _ in row)] for name, row in rows]])
    if report["exact"]:
        lines += ["", *aligned(exact_rows(report["exact"])), score_error_line(report["exact"]), ""]
    return "\n".join([*lines, *curve_lines(report), likelihood_line(report["likelihood"]), *report["notes"]])


EXACT_COLUMNS = {
    "discretisation": "discretisation error",
    "total": "total error",
    "kl": "KL, exact score",
    "kl_early": "KL, wrong early",
    "kl_late": "KL, wrong late",
}


def exact_rows(exact: Mapping[str, Any]) -> list[list[str]]:
    """The header, and a row for each sampler and budget, of what is known without a noise floor; columns without a
    value are left out.
    """
    points = [(name, point) for name, rows in exact["samplers"].items() for point in rows]
    columns = {key: label for key, label in EXACT_COLUMNS.items() if any(point[key] is not None for _, point in points)}
    known = [(name, point) for name, point in points if any(point[key] is not None for key in columns)]
    rows = [
        [name, f"{p['nfe']:,.0f}", *("–" if p[key] is None else f"{p[key]:.1e}" for key in columns)]
        for name, p in known
    ]
    return [["sampler", "NFE", *columns.values()], *rows]


def score_error_line(exact: Mapping[str, Any]) -> str:
    """What no number of steps takes away."""
    return f"score error, of a fine solution of the ODE: {exact['score_error']:.1e}"


def curve_lines(report: Mapping[str, Any]) -> list[str]:
    """For each sampler of the curves, from which NFE it is inside the floor's band, by metric; none without curves."""
    lines = []
    for name, curve in report["curves"].items():
        most = curve["points"][-1]["nfe"]
        parts = [
            f"{report['metrics'][metric]['label']} "
            f"{f'from {nfe:,.0f}' if nfe is not None else f'not up to {most:,.0f}'}"
            for metric, nfe in curve["inside"].items()
        ]
        lines.append(f"{name}, NFE from which it is within the floor's mean + {INSIDE:g} sd: {', '.join(parts)}")
    return lines


def likelihood_line(likelihood: Mapping[str, Any]) -> str:
    """The held-out likelihood with both standard errors and its NFE, in a sentence."""
    value = {"mean": likelihood["mean"], "sd": likelihood["se_images"]}
    probes = likelihood["se_probes"]
    of_probes = f"{probes:.2g}" if probes is not None else "unknown, with one probe,"
    return (
        f"held-out likelihood of the ODE: {plus_minus(value)} {likelihood['unit']}"
        f" (± standard error over {likelihood['n']:,} examples; {of_probes} over probes), {likelihood['nfe']:,.0f} NFE"
    )


def table_rows(report: Mapping[str, Any], kind: str) -> tuple[list[str], list[tuple[str, list[tuple[str, bool]]]]]:
    """(header, [(row name, [(cell, outside its floor), ...]), ...]) of the metrics of that kind; the last row is the
    floor.
    """
    metrics = [name for name, m in report["metrics"].items() if m["kind"] == kind]
    costs = ["NFE", "seconds"] if kind == QUALITY else []
    header = ["sampler", *costs, *(report["metrics"][m]["label"] for m in metrics)]
    rows = []
    for name, d in report["samplers"].items():
        cost = [(f"{d['nfe']:,.0f}", False), (number(d["seconds"]), False)][: len(costs)]
        rows.append((name, cost + [(plus_minus(d["metrics"][m]), outside(d["metrics"][m], kind)) for m in metrics]))
    rows.append(
        ("noise floor", [("", False)] * len(costs) + [(plus_minus(report["floors"][m]), False) for m in metrics])
    )
    return header, rows
