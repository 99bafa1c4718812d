"""From an evaluation to files: report.json with every number, the PNGs, and report.html, which holds it all."""

from pathlib import Path
from typing import Any

import numpy as np

from experiment import plots
from experiment.evaluation.evaluate import Arrays, Evaluation
from experiment.evaluation.results import QUALITY, Report
from experiment.files import write_bytes, write_json, write_text
from experiment.plots import evaluation as report_plots
from experiment.plots.likelihood import likelihood_histogram
from experiment.report.document import Figure, document_of
from experiment.report.page import html_page
from experiment.run.log import read_metrics

GRID_IMAGES = 64


def write_report(run: Any, evaluation: Evaluation, folder: Path) -> Path:
    """Write report.json, report.html and the PNGs into the folder; returns the path of report.html.

    Each file is replaced as a whole. Raises UserError when the folder cannot be written.
    """
    figures = draw_figures(run, evaluation)
    document = document_of(run, evaluation.report, figures)
    for figure in figures:
        write_bytes(folder / figure.file, figure.png)
    write_json(folder / "report.json", document.to_json())
    write_text(folder / "report.html", html_page(document))
    return folder / "report.html"


def draw_figures(run: Any, evaluation: Evaluation) -> list[Figure]:
    """Draw every picture, in the order of the page."""
    report, arrays = evaluation.report, evaluation.arrays
    figures = [*_quality_figures(report), *_sample_figures(run, arrays)]
    for name, strip in arrays.strips.items():
        caption = f"{name}: x_t along the path, each frame scaled to unit variance, with its noise-to-signal ratio σ/α."
        picture = report_plots.denoising_strip(strip.frames, strip.times)
        figures.append(Figure(f"strip_{name}.png", "strips", caption, picture))
    found = report.likelihood
    histogram = likelihood_histogram(arrays.likelihood, found.unit, found.mean, found.se_images)
    caption = f"Held-out likelihood, {found.unit} of each example."
    figures.append(Figure("likelihood.png", "likelihood", caption, histogram))
    rows = [row for row in read_metrics(run.workdir) if np.isfinite(row.get("loss") or np.nan)]
    if rows:
        figures.append(Figure("loss.png", "training", "Training loss.", report_plots.loss_curve(rows)))
    return figures


def _quality_figures(report: Report) -> list[Figure]:
    quality = report.metrics_of(QUALITY)
    bars = report_plots.quality_bars(report.samplers, quality, report.floors)
    figures = [Figure("quality.png", "quality", "Quality by sampler, beside the noise floor.", bars)]
    if report.curves:
        caption = (
            "Quality over score calls per sample: mean ± sd over seeds. In the band this measure cannot tell "
            "it from data."
        )
        curves = report_plots.quality_curves(report.curves, quality, report.floors)
        figures.append(Figure("curves.png", "curves", caption, curves))
    if report.exact and any(len(rows) > 1 for rows in report.exact.samplers.values()):
        caption = (
            "Solid: with the exact score. Dashed: the run's samples. No noise floor: the latents are the same, "
            "and the KL is exact."
        )
        figures.append(Figure("exact.png", "exact", caption, report_plots.exact_curves(report.exact)))
    return figures


def _sample_figures(run: Any, arrays: Arrays) -> list[Figure]:
    sets = {"data": arrays.data, **arrays.samples}
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
