"""From an evaluation to files: report.json, which holds every number with its origin, the PNGs, and report.html, which
holds it all.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from experiment import plots
from experiment.config import load_config
from experiment.evaluation.comparison import QUALITY
from experiment.evaluation.evaluate import Evaluation, plain
from experiment.files import write_bytes, write_json, write_text
from experiment.plots import evaluation as report_plots
from experiment.plots.likelihood import likelihood_histogram
from experiment.provenance import provenance
from experiment.report.page import Figure, html_page
from experiment.run.log import read_metrics

GRID_IMAGES = 64


def write_report(run: Any, evaluation: Evaluation, folder: Path) -> Path:
    """Write report.json, report.html and the PNGs into the folder; returns the path of report.html.

    Each file is replaced as a whole. Raises UserError when the folder cannot be written.
    """
    figures = draw_figures(run, evaluation)
    report = document(run, evaluation.report, figures)
    for figure in figures:
        write_bytes(folder / figure.file, figure.png)
    write_json(folder / "report.json", report)
    write_text(folder / "report.html", html_page(report, figures))
    return folder / "report.html"


def document(run: Any, report: Mapping[str, Any], figures: Sequence[Figure]) -> dict[str, Any]:
    """The whole of report.json: the evaluation, and the config, seed, versions, device and commit that its every figure
    has.
    """
    saved = Path(run.workdir) / "config.json"
    return plain(
        {
            "title": f"Noise Compass: {run.dataset.name}",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "workdir": str(run.workdir),
            "seed": report["protocol"]["seed"],
            **provenance(),
            "trained_with": load_config(saved)[1].get("provenance") if saved.is_file() else None,
            **report,
            "figures": [{"file": f.file, "section": f.section, "caption": f.caption} for f in figures],
            "config": run.config.to_dict(),
        }
    )


def draw_figures(run: Any, evaluation: Evaluation) -> list[Figure]:
    """Every picture, in the order of the page."""
    report, arrays = evaluation.report, evaluation.arrays
    quality = {name: m for name, m in report["metrics"].items() if m["kind"] == QUALITY}
    bars = report_plots.quality_bars(report["samplers"], quality, report["floors"])
    figures = [Figure("quality.png", "quality", "Quality by sampler, beside the noise floor.", bars)]
    if report["curves"]:
        caption = (
            "Quality over score calls per sample: mean ± sd over seeds. In the band this measure cannot tell "
            "it from data."
        )
        figures.append(
            Figure(
                "curves.png",
                "curves",
                caption,
                report_plots.quality_curves(report["curves"], quality, report["floors"]),
            )
        )
    if any(len(rows) > 1 for rows in report["exact"].get("samplers", {}).values()):
        caption = (
            "Solid: with the exact score. Dashed: the run's samples. No noise floor: the latents are the same, "
            "and the KL is exact."
        )
        figures.append(Figure("exact.png", "exact", caption, report_plots.exact_curves(report["exact"])))
    figures += _sample_figures(run, arrays)
    for name, path in arrays["strips"].items():
        caption = f"{name}: x_t along the path, each frame scaled to unit variance, with its noise-to-signal ratio σ/α."
        strip = report_plots.denoising_strip(path, arrays["times"][name])
        figures.append(Figure(f"strip_{name}.png", "strips", caption, strip))
    likelihood = report["likelihood"]
    histogram = likelihood_histogram(
        arrays["likelihood"], likelihood["unit"], likelihood["mean"], likelihood["se_images"]
    )
    caption = f"Held-out likelihood, {likelihood['unit']} of each example."
    figures.append(Figure("likelihood.png", "likelihood", caption, histogram))
    rows = [row for row in read_metrics(run.workdir) if np.isfinite(row.get("loss") or np.nan)]
    if rows:
        figures.append(Figure("loss.png", "training", "Training loss.", report_plots.loss_curve(rows)))
    return figures


def _sample_figures(run: Any, arrays: Mapping[str, Any]) -> list[Figure]:
    sets = {"data": arrays["data"], **arrays["samples"]}
    if run.scaling.levels is None:
        clouds = plots.scatter(sets)
        return [
            Figure("samples.png", "samples", "Data, and the first seed's samples; the first two coordinates.", clouds)
        ]
    captions = {"data": "Data: the first examples of the reference split."}
    return [
        Figure(
            f"samples_{name}.png",
            "samples",
            captions.get(name, f"{name}: the first samples of the first seed, not selected."),
            plots.image_grid(run.scaling.to_uint8(levels[:GRID_IMAGES])),
            width=0.48,
        )
        for name, levels in sets.items()
    ]
