"""The report's own figures: denoising strips, quality over samplers and over NFE, the loss. Their look is that of
`experiment.plots.base`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiment.plots.base import (
    COLOURS,
    FLOOR,
    INK,
    Array,
    common_limit,
    cycle,
    draw_cloud,
    line_style,
    panels_in_a_row,
    png,
    show_image,
    tile,
)


def denoising_strip(frames: Array, times: Sequence[tuple[float, float]]) -> bytes:
    """From noise to sample: a column for each frame, labelled with its t and its ratio of noise to signal, sigma/alpha.

    frames: images (k, n, h, w, c) in [-1, 1], a row for each sample; or points (k, n, d).
    """
    images = frames.ndim == 5
    titles = [f"t = {t:.3g}\nσ/α = {ratio:.3g}" for t, ratio in times]

    def draw(figure: Figure) -> None:
        for axes, frame, title in zip(panels_in_a_row(figure, len(frames)), frames, titles, strict=True):
            if images:
                show_image(axes, tile(np.clip((frame + 1) * 127.5, 0, 255).astype(np.uint8), 1))
            else:
                draw_cloud(axes, frame, limit, COLOURS[0])
                axes.set(xticks=[], yticks=[])
            axes.set_title(title, fontsize=8.5)

    limit = 0.0 if images else common_limit(frames)
    height = (frames.shape[1] * (frames.shape[2] + 1) + 1) / (frames.shape[3] + 2) if images else 1.0
    return png(draw, 1.02 * len(frames) + 0.2, 0.95 * height + 0.55)


def quality_bars(
    samplers: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Mapping[str, Any]], floors: Mapping[str, Any]
) -> bytes:
    """A panel for each metric, a bar for each sampler: mean, sd over seeds, every seed; the floor is a line in a band
    of ± 2 sd.
    """

    def draw(figure: Figure) -> None:
        columns = min(len(metrics), 2)
        panels = figure.subplots(math.ceil(len(metrics) / columns), columns, squeeze=False).ravel()
        for axes, (name, metric) in zip(panels, metrics.items(), strict=False):
            _panel(axes, {s: d["metrics"][name] for s, d in samplers.items()}, floors[name], metric["origin"])
            axes.set_xticks(
                range(len(samplers)), [f"{s}\n{d['nfe']:,.0f} NFE" for s, d in samplers.items()], fontsize=9
            )
            axes.set_ylabel(metric["label"])
        for axes in panels[len(metrics) :]:
            axes.set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        figure.legend(once.values(), once.keys(), loc="outside upper center", ncols=4, fontsize=9)

    return png(draw, 8.2, 0.5 + 2.7 * math.ceil(len(metrics) / 2))


def _panel(axes: Axes, values: Mapping[str, Mapping[str, Any]], floor: Mapping[str, Any], origin: float) -> None:
    places = np.arange(len(values))
    means = [v["mean"] if v["mean"] is not None else np.nan for v in values.values()]
    axes.bar(places, np.subtract(means, origin), 0.55, bottom=origin, color=cycle(len(values)), alpha=0.8)
    for place, v in zip(places, values.values(), strict=True):
        seeds = [s for s in v["values"] if s is not None]
        axes.plot(place + np.linspace(-0.12, 0.12, len(seeds)), seeds, "o", ms=3.5, color=INK, mew=0, label="each seed")
        if v["sd"] is not None:
            axes.errorbar(place, v["mean"], v["sd"], color=INK, capsize=5, lw=1.3, label="± 1 sd over seeds")
    mean, sd = floor["mean"], floor["sd"] or 0.0
    axes.axhspan(mean - 2 * sd, mean + 2 * sd, color=FLOOR, alpha=0.3, lw=0, label="floor ± 2 sd")
    axes.axhline(mean, color=INK, lw=1.2, ls="--", label="noise floor: data against data")
    axes.grid(axis="x", visible=False)
    axes.axhline(origin, color=FLOOR, lw=0.8)


def quality_curves(
    curves: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]], floors: Mapping[str, Any]
) -> bytes:
    """A panel for each metric over NFE, logarithmic where the metric allows: a line for each sampler, the floor as a
    band of ± 2 sd.
    """

    def draw(figure: Figure) -> None:
        columns = min(len(metrics), 2)
        panels = figure.subplots(math.ceil(len(metrics) / columns), columns, squeeze=False).ravel()
        for axes, (name, metric) in zip(panels, metrics.items(), strict=False):
            low = []
            for i, (sampler, curve) in enumerate(curves.items()):
                nfe = [point["nfe"] for point in curve["points"]]
                values = [point["metrics"][name] for point in curve["points"]]
                means, sds = ([v[key] if v[key] is not None else np.nan for v in values] for key in ("mean", "sd"))
                style = {**line_style(i), "ls": ("-", "--", ":")[i // len(COLOURS) % 3]}
                axes.errorbar(nfe, means, np.nan_to_num(sds), lw=1.3, ms=4, capsize=2, label=sampler, **style)
                low += means
            mean, sd = floors[name]["mean"], floors[name]["sd"] or 0.0
            axes.axhspan(mean - 2 * sd, mean + 2 * sd, color=FLOOR, alpha=0.3, lw=0, label="noise floor ± 2 sd")
            axes.set(xscale="log", xlabel="score calls per sample (NFE)", ylabel=metric["label"])
            if min(*low, mean - 2 * sd) > 0:
                axes.set_yscale("log")
        for axes in panels[len(metrics) :]:
            axes.set_visible(False)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=9)

    return png(draw, 8.2, 0.6 + 0.2 * math.ceil(len(curves) / 5) + 2.8 * math.ceil(len(metrics) / 2))


def exact_curves(exact: Mapping[str, Any]) -> bytes:
    """Strong error over NFE with the exact score and with the run's, and the score's own as a line; on a Gaussian, the
    exact KL.
    """
    panels = {"discretisation": "strong error (rms distance)", "kl": "exact KL(sampler || data), nats"}
    shown = {
        key: label
        for key, label in panels.items()
        if any(row[key] is not None for rows in exact["samplers"].values() for row in rows)
    }

    def draw(figure: Figure) -> None:
        for axes, (key, label) in zip(panels_in_a_row(figure, len(shown)), shown.items(), strict=True):
            for i, (name, rows) in enumerate(exact["samplers"].items()):
                known = [row for row in rows if row[key] is not None]
                if known:
                    nfe = [row["nfe"] for row in known]
                    axes.loglog(nfe, [row[key] for row in known], lw=1.3, ms=4, label=name, **line_style(i))
                    if key == "discretisation":
                        axes.loglog(nfe, [row["total"] for row in known], lw=1.3, ms=4, ls="--", **line_style(i))
            if key == "discretisation" and exact["score_error"] > 0:
                axes.axhline(exact["score_error"], color=INK, lw=1.2, ls=":", label="score error")
            axes.set(xlabel="score calls per sample (NFE)", ylabel=label)
        entries = {text: h for axes in figure.axes for h, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=5, fontsize=9)

    return png(draw, 4.1 * max(len(shown), 1.4), 3.7)


def loss_curve(rows: Sequence[Mapping[str, float]]) -> bytes:
    """Training loss over steps from rows {"step", "loss"}: as logged, and its running median."""
    steps, loss = (np.array([row[key] for row in rows], float) for key in ("step", "loss"))
    width = max(1, len(loss) // 20) | 1
    padded = np.pad(loss, width // 2, mode="edge")
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(steps, loss, color=COLOURS[5], lw=0.8, label="as logged")
        axes.plot(steps, smooth, color=COLOURS[0], lw=1.8, label=f"running median of {width}")
        axes.set(xlabel="training step", ylabel="loss", ylim=_robust_range(loss))
        if loss.min() > 0 and smooth.max() / smooth.min() > 20:
            axes.set(yscale="log")
            axes.autoscale(axis="y")
        axes.legend()

    return png(draw, 8.2, 3.0)


def _robust_range(values: Array) -> tuple[float, float]:
    """Of the values but for the highest hundredth, with a margin: the first steps would flatten the rest."""
    low, high = float(values.min()), float(np.quantile(values, 0.99))
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin
