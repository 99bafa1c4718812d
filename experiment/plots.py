"""The figures, each a function from numbers to the bytes of a PNG. One look: white ground, so that they read on a dark page too.

Okabe and Ito's colours, told apart by colour-blind readers too. Drawn by matplotlib's Agg canvas, without pyplot and its global state.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Array = np.ndarray

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, FAINT, FLOOR = "#22262b", "#c9ced6", "#8a919c"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FLOOR,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
DPI = 150
SCATTER_POINTS = 4000  # more only blacken the picture


def png(draw: Callable[[Figure], None], width: float, height: float) -> bytes:
    """The figure, of so many inches, after draw(figure)."""
    with matplotlib.rc_context(cast(Any, STYLE)):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()


def show_image(axes: Axes, image: Array) -> None:
    """An image (h, w, c) of 0..255, one or three channels (two: the first; four: without the last), its pixels unblurred."""
    axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def tile(images: Array, columns: int, gap: int = 1, ground: int = 96) -> Array:
    """Images (n, h, w, c) side by side, `columns` to a row, on a grey ground: (H, W, c)."""
    n, h, w, c = images.shape
    rows = math.ceil(n / columns)
    board = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, c), ground, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        board[top : top + h, left : left + w] = image
    return board


def image_grid(images: Array, columns: int | None = None) -> bytes:
    """A plain picture of images uint8 (n, h, w, c), pixels magnified by a whole number to about 800 across."""
    columns = columns or min(len(images), max(1, math.ceil(math.sqrt(len(images)))))
    board = tile(images, columns)
    scale = max(1, 800 // board.shape[1])
    board = board.repeat(scale, axis=0).repeat(scale, axis=1)[..., : 3 if board.shape[-1] >= 3 else 1]
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, np.broadcast_to(board, (*board.shape[:2], 3)), format="png")
    return buffer.getvalue()


def scatter(sets: Mapping[str, Array]) -> bytes:
    """Point clouds {name: (n, d)}, each in its panel, all on the same axes: the first two coordinates."""
    limit, columns = common_limit(sets.values()), min(len(sets), 2)
    rows = math.ceil(len(sets) / columns)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (name, points), colour in zip(panels, sets.items(), (INK, *_cycle(len(sets) - 1)), strict=False):
            draw_cloud(axes, points, limit, colour)
            axes.set(title=name, xlabel="x₁", ylabel="x₂")
        for axes in panels[len(sets) :]:
            axes.set_visible(False)

    return png(draw, 4.1 * columns, 4.2 * rows)


def draw_cloud(axes: Axes, points: Array, limit: float, colour: str) -> None:
    shown = np.asarray(points)[:SCATTER_POINTS]
    second = shown[:, 1] if shown.shape[1] > 1 else np.zeros(len(shown))
    axes.plot(shown[:, 0], second, ".", ms=min(8.0, max(2.2, 110 / math.sqrt(len(shown)))), mew=0, alpha=0.6, color=colour)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")


def common_limit(clouds: Any) -> float:
    """Half the side of a square about 0 that holds all but a few outliers of each cloud."""
    return max(1.15 * float(np.quantile(np.abs(np.asarray(points)[:, :2]), 0.998)) for points in clouds)


def panels_in_a_row(figure: Any, columns: int) -> list[Axes]:
    return list(figure.subplots(1, columns, squeeze=False)[0])


def _cycle(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


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


def quality_bars(samplers: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Mapping[str, Any]], floors: Mapping[str, Any]) -> bytes:
    """A panel for each metric, a bar for each sampler: mean, sd over seeds, every seed; the floor is a line in a band of ± 2 sd."""

    def draw(figure: Figure) -> None:
        columns = min(len(metrics), 2)
        panels = figure.subplots(math.ceil(len(metrics) / columns), columns, squeeze=False).ravel()
        for axes, (name, metric) in zip(panels, metrics.items(), strict=False):
            _panel(axes, {s: d["metrics"][name] for s, d in samplers.items()}, floors[name], metric["origin"])
            axes.set_xticks(range(len(samplers)), [f"{s}\n{d['nfe']:,.0f} NFE" for s, d in samplers.items()], fontsize=9)
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
    axes.bar(places, np.subtract(means, origin), 0.55, bottom=origin, color=_cycle(len(values)), alpha=0.8)
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


def quality_curves(curves: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]], floors: Mapping[str, Any]) -> bytes:
    """A panel for each metric over NFE, logarithmic where the metric allows: a line for each sampler, the floor as a band of ± 2 sd."""

    def draw(figure: Figure) -> None:
        columns = min(len(metrics), 2)
        panels = figure.subplots(math.ceil(len(metrics) / columns), columns, squeeze=False).ravel()
        for axes, (name, metric) in zip(panels, metrics.items(), strict=False):
            low = []
            for i, (sampler, curve) in enumerate(curves.items()):
                nfe = [point["nfe"] for point in curve["points"]]
                values = [point["metrics"][name] for point in curve["points"]]
                means, sds = ([v[key] if v[key] is not None else np.nan for v in values] for key in ("mean", "sd"))
                style = {**_style(i), "ls": ("-", "--", ":")[i // len(COLOURS) % 3]}
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


def _style(i: int) -> dict[str, Any]:
    """Of the i-th sampler's line."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": "osD^vPX*"[i % 8]}


def exact_curves(exact: Mapping[str, Any]) -> bytes:
    """Strong error over NFE with the exact score and with the run's, and the score's own as a line; on a Gaussian, the exact KL."""
    panels = {"discretisation": "strong error (rms distance)", "kl": "exact KL(sampler || data), nats"}
    shown = {
        key: label for key, label in panels.items() if any(row[key] is not None for rows in exact["samplers"].values() for row in rows)
    }

    def draw(figure: Figure) -> None:
        for axes, (key, label) in zip(panels_in_a_row(figure, len(shown)), shown.items(), strict=True):
            for i, (name, rows) in enumerate(exact["samplers"].items()):
                known = [row for row in rows if row[key] is not None]
                if known:
                    nfe = [row["nfe"] for row in known]
                    axes.loglog(nfe, [row[key] for row in known], lw=1.3, ms=4, label=name, **_style(i))
                    if key == "discretisation":
                        axes.loglog(nfe, [row["total"] for row in known], lw=1.3, ms=4, ls="--", **_style(i))
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
