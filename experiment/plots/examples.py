"""Examples on axes: series as lines, everything else as `images.pictures` lays it out."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiment.plots.base import COLOURS, Array, Picture, png, show_image
from experiment.plots.images import LINES, image_grid, pictures

PANELS = 36  # of a grid of series, at most


def draw_series(axes: Axes, series: Array, limits: tuple[float, float] | None = None) -> None:
    """Draw a series (l, c): a line for each channel."""
    for channel, colour in zip(np.asarray(series).T[:LINES], COLOURS, strict=False):
        axes.plot(channel, lw=1.0, color=colour)
    if limits:
        axes.set_ylim(*limits)


def series_limits(series: Array) -> tuple[float, float]:
    """The range of all but a few outliers of series (n, l, c), with a margin."""
    shown = np.asarray(series, float)[..., :LINES]
    low, high = np.quantile(shown, [0.001, 0.999])
    margin = 0.08 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def grid(examples: Array, columns: int | None = None) -> Picture:
    """Draw a grid of examples: `image_grid` of pictures, or panels of series with axes in their own units."""
    if examples.ndim == 3:
        return _series_grid(examples[:PANELS], columns)
    return image_grid(pictures(examples), columns)


def _series_grid(series: Array, columns: int | None) -> Picture:
    columns = columns or max(1, math.ceil(math.sqrt(len(series))))
    rows, limits = math.ceil(len(series) / columns), series_limits(series)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, one in zip(panels, series, strict=False):
            draw_series(axes, one, limits)
            axes.tick_params(labelsize=7)
        for axes in panels[len(series) :]:
            axes.set_visible(False)

    return png(draw, 0.4 + 1.5 * columns, 0.3 + 1.1 * rows)


def show_example(axes: Axes, example: Array, limits: tuple[float, float] | None = None) -> None:
    """Draw one example on the axes, without ticks: a picture, or a series within `limits`."""
    if example.ndim == 2:
        draw_series(axes, example, limits)
        axes.set(xticks=[], yticks=[])
    else:
        show_image(axes, pictures(example[None])[0])
