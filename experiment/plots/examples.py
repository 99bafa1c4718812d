"""Examples on axes: series as lines, everything else as `images.pictures` lays it out."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiment.plots.base import COLOURS, Array, Picture, png, show_image
from experiment.plots.images import LINES, image_grid, pictures

PANELS, ROWS = 36, 8  # of a grid of series, of one channel and of several

Limits = tuple[Array, Array]  # of each channel


def series_limits(series: Array) -> Limits:
    """The range of each channel of series (n, l, c), but for a few outliers, with a margin."""
    shown = np.asarray(series, float)[..., :LINES].reshape(-1, min(series.shape[-1], LINES))
    low, high = np.quantile(shown, [0.001, 0.999], axis=0)
    margin = np.where(high > low, 0.08 * (high - low), 1.0)
    return low - margin, high + margin


def draw_series(axes: Axes, series: Array, limits: Limits) -> None:
    """Draw a series (l, c) without ticks: a line for each channel, whose own range is the height of the panel."""
    low, high = limits
    for line, colour in zip(((series[:, :LINES] - low) / (high - low)).T, COLOURS, strict=False):
        axes.plot(line, lw=1.0, color=colour)
    axes.set(xticks=[], yticks=[], ylim=(0, 1))


def show_example(axes: Axes, example: Array, limits: Limits | None = None) -> None:
    """Draw one example on the axes, without ticks: a series within `limits`, or a picture."""
    if limits is not None:
        draw_series(axes, example, limits)
    else:
        show_image(axes, pictures(example[None])[0])


def grid(examples: Array, columns: int | None = None) -> Picture:
    """Draw a grid of examples: `image_grid` of pictures, or panels of series, whose axes are in the data's units."""
    if examples.ndim == 3:
        return _series_grid(examples)
    return image_grid(pictures(examples), columns)


def _series_grid(series: Array) -> Picture:
    """One channel: a square of panels. Several: a row for each series, a column for each channel."""
    several = series.shape[-1] > 1
    series = series[: ROWS if several else PANELS, :, :LINES]
    columns = series.shape[-1] if several else max(1, math.ceil(math.sqrt(len(series))))
    rows = len(series) if several else math.ceil(len(series) / columns)
    lines = np.moveaxis(series, -1, 1).reshape(-1, series.shape[1])
    low, high = series_limits(series)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(rows, columns, sharex=True, sharey="col", squeeze=False).ravel()
        for i, (axes, line) in enumerate(zip(panels, lines, strict=False)):
            channel = i % columns if several else 0
            axes.plot(line, lw=1.0, color=COLOURS[channel])
            axes.set_ylim(low[channel], high[channel])
            axes.tick_params(labelsize=7)
            if several and i < columns:
                axes.set_title(f"channel {channel}", fontsize=9)
        for axes in panels[len(lines) :]:
            axes.set_visible(False)

    return png(draw, 0.4 + (3.2 if several else 1.5) * columns, 0.4 + 1.1 * rows)
