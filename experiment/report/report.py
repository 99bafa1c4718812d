"""From an evaluation to files: report.json with every number, the PNGs, and report.html, which holds it all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiment import plots
from experiment.common.files import write_bytes, write_json, write_text
from experiment.evaluation.evaluate import Arrays, Evaluation
from experiment.evaluation.results import QUALITY, Report, Spread
from experiment.plots import evaluation as report_plots
from experiment.plots.examples import grid
from experiment.plots.images import legend
from experiment.plots.likelihood import likelihood_histogram, rank_curves
from experiment.plots.strips import denoising_strip
from experiment.report.document import Figure, Places, document_of
from experiment.report.page import html_page
from experiment.report.tables import plus_minus
from experiment.run.earlier import keep_earlier
from experiment.run.log import read_metrics
from experiment.run.sampling import pictured

GRID_IMAGES = 64


def write_report(run: Any, evaluation: Evaluation, folder: Path) -> tuple[Path, list[str]]:
    """Write report.json, report.html and the PNGs into the folder.

    Each file is replaced as a whole; a report of other settings that lies there is kept beside it.

    Returns:
        The path of report.html, and a line that says where the earlier report is; none where there was none.

    Raises UserError when the folder cannot be written.
    """
    figures = draw_figures(run, evaluation)
    document = document_of(run, evaluation.report, figures)
    content = document.to_json()
    aside = keep_earlier(folder, "report.json", content, _settings_of, _files_of)
    for figure in figures:
        write_bytes(folder / figure.file, figure.png)
    write_json(folder / "report.json", content)
    write_text(folder / "report.html", html_page(document))
    return folder / "report.html", aside


def _settings_of(document: Mapping[str, Any]) -> list[Any]:
    """What two reports of the same settings share."""
    curves = {name: [point["budget"] for point in curve["points"]] for name, curve in document["curves"].items()}
    samplers = {name: sampler["settings"] for name, sampler in document["samplers"].items()}
    points = document.get("guidance", {}).get("points", {})
    scales = {name: [point["scale"] for point in of_kind] for name, of_kind in points.items()}
    return [*(document[key] for key in ("dataset", "checkpoint_step", "score", "protocol")), samplers, curves, scales]


def _files_of(document: Mapping[str, Any]) -> list[str]:
    return ["report.html", *(Path(figure["file"]).name for figure in document["figures"])]


def draw_figures(run: Any, evaluation: Evaluation) -> list[Figure]:
    """Draw every picture, in the order of the page."""
    report, arrays = evaluation.report, evaluation.arrays
    figures = [*_quality_figures(report), *_sample_figures(run, arrays)]
    for name, strip in arrays.strips.items():
        caption = f"{name}: x_t along the path, each frame scaled to unit variance, with its noise-to-signal ratio σ/α."
        reach = 1.0 if run.scaling.levels else 3.0
        drawn = _drawn(f"strip_{name}.png", "strips", caption, denoising_strip, strip.frames, strip.times, reach)
        figures.append(_placed(drawn, "frames", [f"t = {t:.3g}, σ/α = {ratio:.3g}" for t, ratio in strip.times]))
    found = report.likelihood
    values = (arrays.likelihood, found.unit, found.mean, found.se_images)
    caption = f"Held-out likelihood, {found.unit} of each example."
    figures.append(_drawn("likelihood.png", "likelihood", caption, likelihood_histogram, *values))
    if report.calibration is not None:
        given = (arrays.ranks, report.calibration.draws)
        caption = (
            "The share of ranks below, less that of uniform ranks; 95 % of exact curves are in the band at a place."
        )
        figures.append(_drawn("calibration.png", "calibration", caption, rank_curves, *given))
    rows = [row for row in read_metrics(run.workdir) if np.isfinite(row.get("loss") or np.nan)]
    if rows:
        figures.append(_drawn("loss.png", "training", "Training loss.", report_plots.loss_curve, rows))
    return figures


def _drawn(file: str, section: str, caption: str, draw: Callable[..., bytes], *given: Any) -> Figure:
    """The figure with the picture that draw(*given) makes, and its version for a narrow page."""
    return Figure(file, section, caption, draw(*given), narrow=draw(*given, narrow=True))


def _placed(figure: Figure, kind: Literal["bars", "frames"], texts: Sequence[str]) -> Figure:
    """The figure of pictures that know their places, with a text for each."""
    wide, narrow = (getattr(picture, "places", []) for picture in (figure.png, figure.narrow))
    return replace(figure, places=Places(kind, texts, wide, narrow))


def _bar_texts(report: Report) -> list[str]:
    """A sentence for each bar of the quality's picture, in the order of its places."""

    def told(spread: Spread) -> str:
        return plus_minus(spread.mean, spread.sd)

    return [
        f"{name}, {found.nfe:,.0f} NFE: {metric.label} {told(found.metrics[key])}; floor {told(report.floors[key])}"
        for key, metric in report.metrics_of(QUALITY).items()
        for name, found in report.samplers.items()
    ]


def _quality_figures(report: Report) -> list[Figure]:
    quality = report.metrics_of(QUALITY)
    caption = "Quality by sampler, beside the noise floor."
    bars = (report_plots.quality_bars, report.samplers, quality, report.floors)
    figures = [_placed(_drawn("quality.png", "quality", caption, *bars), "bars", _bar_texts(report))]
    if report.curves:
        caption = (
            "Quality over score calls per sample: mean ± sd over seeds. In the band this measure cannot tell "
            "it from data."
        )
        curves = (report_plots.quality_curves, report.curves, quality, report.floors)
        figures.append(_drawn("curves.png", "curves", caption, *curves))
    if report.guidance:
        caption = "Quality and obedience over the scale of guidance, from the same score and the same x_T."
        figures.append(_drawn("guidance.png", "guidance", caption, report_plots.guidance_curves, report.guidance))
    if report.exact and any(len(rows) > 1 for rows in report.exact.samplers.values()):
        caption = (
            "Solid: with the exact score. Dashed: the run's samples. No noise floor: the latents are the same, "
            "and the KL is exact."
        )
        figures.append(_drawn("exact.png", "exact", caption, report_plots.exact_curves, report.exact))
    return figures


def _sample_figures(run: Any, arrays: Arrays) -> list[Figure]:
    sets = {"data": arrays.data, **arrays.samples}
    if arrays.data.ndim == 2:
        caption, square = "Data, and the first seed's samples; the first two coordinates.", run.scaling.units is None
        wide, narrow = plots.scatter(sets, square=square), plots.scatter(sets, columns=1, square=square)
        return [Figure("samples.png", "samples", caption, wide, narrow=narrow)]
    captions = {"data": "Data: the first examples of the reference split"}
    laid_out = legend(arrays.data.shape[1:])
    return [
        Figure(
            f"samples_{name}.png",
            "samples",
            captions.get(name, f"{name}: the first samples of the first seed, not selected") + laid_out + ".",
            grid(pictured(run.scaling, levels[:GRID_IMAGES])),
            width=0.48,
        )
        for name, levels in sets.items()
    ]
