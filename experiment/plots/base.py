"""The figures, each a function from numbers to the bytes of a PNG, all in one look.

The ground is white, so that they read on a dark page too; the colours are Okabe and Ito's, which colour-blind readers
tell apart too. matplotlib's Agg canvas draws them, without pyplot and its global state.
"""

import importlib.util
import io
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from experiment.plots.images import Array, Box, Picture, tile
from experiment.plots.limits import Limits, common_limit, common_ranges

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
WIDE, NARROW = 8.2, 4.2  # inches: of a page, and of a telephone, where the same points are larger
SCATTER_POINTS = 4000  # more only blacken the picture


def png(draw: Callable[[Figure], None], width: float, height: float) -> Picture:
    """Make a figure of this many inches, let `draw` fill it, and return its PNG."""
    with matplotlib.rc_context(cast(Any, STYLE)):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return Picture(buffer.getvalue())


def box_of(axes: Axes, left: float = 0.0, top: float = 0.0, right: float = 1.0, bottom: float = 1.0) -> Box:
    """Where a part of the axes, in shares of its width and height from the upper left, is on the drawn figure."""
    extent, height = axes.get_window_extent(), axes.figure.bbox.height
    x, y = extent.x0 + left * extent.width, height - extent.y1 + top * extent.height
    return round(x), round(y), round((right - left) * extent.width), round((bottom - top) * extent.height)


def literal(text: str) -> str:
    """The text as it is, where matplotlib would take what stands between two dollars for mathematics."""
    return text.replace("$", r"\$")


def show_image(axes: Axes, image: Array) -> None:
    """Draw an image (h, w, c) of 0..255, c = 3 in colour, otherwise the first channel in grey; pixels stay sharp."""
    shown = image if image.shape[-1] == 3 else image[..., 0]
    axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def scatter(
    sets: Mapping[str, Array],
    limit: float | None = None,
    columns: int = 2,
    *,
    square: bool = True,
    outline: Array | None = None,
) -> Picture:
    """Draw the first two coordinates of point clouds {name: (n, d)}, each in its panel, all on the same axes.

    The axes go to ± limit, by default to the limit that holds all of the clouds but a few outliers; without `square`,
    each coordinate has a range of its own. outline: (k, 2), a closed curve, dashed behind the points.
    """
    limits: Limits = limit or (common_limit if square else common_ranges)(sets.values())
    columns = min(len(sets), columns)
    rows = math.ceil(len(sets) / columns)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (name, points), colour in zip(panels, sets.items(), (INK, *cycle(len(sets) - 1)), strict=False):
            draw_cloud(axes, points, limits, colour)
            if outline is not None:
                axes.plot(*np.concatenate([outline, outline[:1]]).T, "--", color=FLOOR, lw=1.1, zorder=1)
            axes.set(title=name, xlabel="x₁", ylabel="x₂")
        for axes in panels[len(sets) :]:
            axes.set_visible(False)

    return png(draw, 4.1 * columns, 4.2 * rows)


def draw_cloud(axes: Axes, points: Array, limits: Limits, colour: str) -> None:
    shown = np.asarray(points)[:SCATTER_POINTS]
    second = shown[:, 1] if shown.shape[1] > 1 else np.zeros(len(shown))
    size = min(8.0, max(2.2, 110 / math.sqrt(len(shown))))
    axes.plot(shown[:, 0], second, ".", ms=size, mew=0, alpha=0.6, color=colour)
    if isinstance(limits, tuple):
        axes.set(xlim=limits[0], ylim=limits[1])
        axes.set_box_aspect(1)
    else:
        axes.set(xlim=(-limits, limits), ylim=(-limits, limits), aspect="equal")


def panels_in_a_row(figure: Any, columns: int) -> list[Axes]:
    return list(figure.subplots(1, columns, squeeze=False)[0])


def cycle(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def line_style(i: int) -> dict[str, Any]:
    """The colour and marker of the i-th line of a panel."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": "osD^vPX*"[i % 8]}


Line = tuple[Array, Array]  # x, y


def lines(
    panels: Mapping[str, Mapping[str, Line]],
    xlabel: str,
    ylabel: str = "",
    *,
    markers: bool = False,
    logx: bool = False,
    logy: bool = False,
) -> Picture:
    """Draw a panel for each entry {title: {label: (x, y)}}, side by side, each with axes of its own."""

    def draw(figure: Figure) -> None:
        for axes, (title, named) in zip(panels_in_a_row(figure, len(panels)), panels.items(), strict=True):
            for i, (label, (x, y)) in enumerate(named.items()):
                style = line_style(i) if markers else {"color": COLOURS[i % len(COLOURS)]}
                axes.plot(x, y, lw=1.6, ms=5, label=label, **style)
            axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
            axes.set(xscale="log" if logx else "linear", yscale="log" if logy else "linear")
            if len(named) > 1:
                axes.legend(fontsize=8.5)

    return png(draw, 3.6 * max(len(panels), 1.4), 3.1)


def histograms(sets: Mapping[str, Array], x: Array, density: Array, xlabel: str, bins: int = 60) -> Picture:
    """Draw a histogram for each set of numbers {title: (n,)}, over the range of x, and the exact density there."""
    ends = (float(x[0]), float(x[-1]))

    def draw(figure: Figure) -> None:
        panels, colours = panels_in_a_row(figure, len(sets)), cycle(len(sets))
        for axes, (title, values), colour in zip(panels, sets.items(), colours, strict=True):
            axes.hist(values, bins=bins, range=ends, density=True, color=colour, alpha=0.55, label="samples")
            axes.plot(x, density, color=INK, lw=1.4, label="exact density")
            axes.set(title=title, xlabel=xlabel, ylabel="density")
        figure.legend(*figure.axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5)

    return png(draw, 3.6 * max(len(sets), 1.4), 3.3)


def bars(heights: Mapping[str, float], xlabel: str, ylabel: str, *, expected: float, error: float) -> Picture:
    """Draw a bar for each entry, and the exact expectation as a line in a band of ± 2 standard errors."""
    low, high = expected - 2 * error, expected + 2 * error

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.bar(list(heights), list(heights.values()), 0.6, color=COLOURS[0], alpha=0.8)
        axes.axhspan(low, high, color=FLOOR, alpha=0.35, lw=0, label="± 2 standard errors")
        axes.axhline(expected, color=INK, lw=1.2, ls="--", label="exact")
        axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 1.35 * max(*heights.values(), expected)))
        axes.grid(axis="x", visible=False)
        axes.legend(fontsize=8.5, ncols=2)

    return png(draw, 5.0, 3.1)


def captioned_images(rows: Mapping[str, Array], captions: Mapping[str, list[str]]) -> Picture:
    """Draw a row of images for each entry {title: uint8 (k, h, w, c)}, with a caption below every image."""
    columns = max(len(images) for images in rows.values())

    def draw(figure: Figure) -> None:
        parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
        for part, (title, images) in zip(parts, rows.items(), strict=True):
            part.suptitle(title, x=0.01, ha="left", fontsize=9.5)
            for axes, image, caption in zip(panels_in_a_row(part, columns), images, captions[title], strict=True):
                show_image(axes, image)
                axes.set_xlabel(caption, fontsize=9, labelpad=2)

    return png(draw, 0.95 * columns, 1.35 * len(rows))


def image_rows(rows: Mapping[str, Array]) -> Picture:
    """Draw a labelled row for each {label: images uint8 (k, h, w, c)}, equally many in each."""
    images = np.concatenate(list(rows.values()))
    columns = len(images) // len(rows)
    pitch = images.shape[1] + 1

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        show_image(axes, tile(images, columns, ground=255))
        axes.set(yticks=[pitch * (row + 0.5) for row in range(len(rows))], yticklabels=list(rows))
        axes.tick_params(length=0)
        axes.set_anchor("E")

    return png(draw, 6.8 + 0.085 * max(map(len, rows)), 0.1 + 6.5 / columns * len(rows))


def measured(panels: Mapping[str, Mapping[str, tuple[float, float]]]) -> Picture:
    """Draw a panel for each {title: {name: (value, standard error)}}, on an axis from 0.

    Each value has ± 2 standard errors, and the first one also a band of them.
    """

    def draw(figure: Figure) -> None:
        every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, named) in zip(every, panels.items(), strict=True):
            values, errors = np.array(list(named.values())).T
            axes.axvspan(values[0] - 2 * errors[0], values[0] + 2 * errors[0], color=FLOOR, alpha=0.35, lw=0)
            for i, colour in enumerate((INK, *[COLOURS[0]] * (len(named) - 1))):
                axes.errorbar(values[i], i, xerr=2 * errors[i], fmt="o", ms=4.5, lw=1.4, capsize=2.5, color=colour)
            axes.set(xlabel=title, yticks=range(len(named)), yticklabels=list(named), ylim=(len(named) - 0.5, -0.5))
            axes.set_xlim(0, 1.1 * float((values + 2 * errors).max()))

    return png(draw, 1.3 + 2.2 * len(panels), 1.0 + 0.28 * max(map(len, panels.values())))


def ellipses(
    clouds: Mapping[str, Array], gaussians: Mapping[str, tuple[Array, Array]], xlabel: str, ylabel: str
) -> Picture:
    """Draw a panel for each {title: points (n, 2)}, and over them the Gaussians {label: (mean, covariance)}.

    A Gaussian is drawn as its ellipse at 2 standard deviations.
    """
    circle = np.stack([np.cos(angle := np.linspace(0, 2 * np.pi, 200)), np.sin(angle)])

    def outline(mean: Array, covariance: Array) -> Array:
        return np.asarray(mean)[:, None] + 2 * np.linalg.cholesky(covariance) @ circle

    outlines = {label: outline(*parameters) for label, parameters in gaussians.items()}

    def draw(figure: Figure) -> None:
        every = figure.subplots(1, len(clouds), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (title, points) in zip(every, clouds.items(), strict=True):
            shown = np.asarray(points)[:SCATTER_POINTS]
            axes.plot(shown[:, 0], shown[:, 1], ".", ms=2.2, mew=0, alpha=0.6, color=COLOURS[0])
            for ellipse, style in zip(outlines.values(), ("-", "--", ":"), strict=False):
                axes.plot(*ellipse, style, color=INK, lw=1.4)
            axes.set(title=title, xlabel=xlabel, aspect="equal")
        every[0].set_ylabel(ylabel)
        lines = every[0].get_lines()[1:]
        figure.legend(lines, list(outlines), loc="outside lower center", ncols=len(lines), fontsize=8.5)

    return png(draw, 3.2 * max(len(clouds), 1.4), 3.7)


def _live_slider(frames: Mapping[str, Picture], description: str) -> Any:
    """A slider over the frames, as wide as there is room, with the frame's whole name beside it and the frame below."""
    import ipywidgets  # only an extra installs it
    from IPython.display import display

    # The slider's own read-out is 80 pixels wide and cuts what is longer: "log SNR = -1." for -1.8.
    chosen = ipywidgets.SelectionSlider(options=list(frames), description=description, readout=False)
    chosen.layout, chosen.style.description_width = ipywidgets.Layout(flex="1 1 auto", width="auto"), "initial"
    width = f"{max(map(len, frames)) + 2}ch"
    name = ipywidgets.Label(next(iter(frames)), layout=ipywidgets.Layout(flex="0 0 auto", width=width))
    ipywidgets.dlink((chosen, "value"), (name, "value"))
    row = ipywidgets.HBox([chosen, name], layout=ipywidgets.Layout(max_width="44rem"))
    shown = ipywidgets.interactive_output(lambda frame: display(frames[frame]), {"frame": chosen})
    return ipywidgets.VBox([row, shown])


def slider(frames: Mapping[str, Picture], description: str, columns: int = 4) -> Picture:
    """Lay the frames side by side, to read without a kernel.

    In a notebook with ipywidgets a slider over the frames is shown above.
    """
    if importlib.util.find_spec("ipywidgets") and importlib.util.find_spec("IPython"):
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython() is not None:
            display(_live_slider(frames, description))
    images = np.stack([matplotlib.image.imread(io.BytesIO(frame))[..., :3] for frame in frames.values()])
    board = tile((255 * images).astype(np.uint8), min(columns, len(images)), gap=0, ground=255)
    buffer = io.BytesIO()
    # 64 colours take a third of the bytes, in notebooks that are committed.
    Image.fromarray(board).quantize(64).save(buffer, format="png", optimize=True)
    return Picture(buffer.getvalue())
