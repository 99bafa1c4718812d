"""The path from noise to sample as a strip: a column for each frame, and where on the picture each is."""

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiment.plots.base import COLOURS, Array, box_of, draw_cloud, png, show_image
from experiment.plots.examples import draw_series, series_limits
from experiment.plots.images import PlacedPicture, pictures, tile
from experiment.plots.limits import common_limit


def denoising_strip(
    frames: Array, times: Sequence[tuple[float, float]], reach: float = 1.0, *, narrow: bool = False
) -> PlacedPicture:
    """From noise to sample: a column for each frame, labelled with its t and its noise-to-signal ratio, sigma/alpha.

    frames: (k, n, *shape), a row for each sample; points (k, n, d) become a cloud in each column. reach: of pictures,
    the value that is white, its negative being black. narrow: the columns in two rows, the second one below the first;
    series stay in one. The picture's places are, for each frame, those of its samples, or of its cloud.
    """
    titles = [f"t = {t:.3g}\nσ/α = {ratio:.3g}" for t, ratio in times]
    if frames.ndim == 4:
        return _strip_of_series(frames, titles)
    images, rows = frames.ndim > 4, 2 if narrow else 1
    grey = np.clip((frames / reach + 1) * 127.5, 0, 255).astype(np.uint8) if images else frames
    boards = [tile(pictures(frame), 1) if images else frame for frame in grey]
    columns = math.ceil(len(boards) / rows)
    drawn: list[Axes] = []

    def draw(figure: Figure) -> None:
        cast(Any, figure.get_layout_engine()).set(h_pad=0.09)  # the upper line of the titles is cut by less
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, board, title in zip(panels, boards, titles, strict=False):
            if images:
                show_image(axes, board)
            else:
                draw_cloud(axes, board, limit, COLOURS[0])
                axes.set(xticks=[], yticks=[])
            axes.set_title(title, fontsize=8.5)
            drawn.append(axes)
        for axes in panels[len(frames) :]:
            axes.set_visible(False)

    limit = 0.0 if images else common_limit(frames)
    height = boards[0].shape[0] / boards[0].shape[1] if images else 1.0
    picture = png(draw, 1.02 * columns + 0.2, rows * (0.95 * height + 0.65))
    if not images:
        return PlacedPicture(picture, [[box_of(axes)] for axes in drawn])
    height, width = boards[0].shape[:2]
    pitch = (height - 1) // frames.shape[1]  # of an image and the gap below it
    parts = [
        {"left": 1 / width, "right": 1 - 1 / width, "top": (1 + i * pitch) / height, "bottom": (i + 1) * pitch / height}
        for i in range(frames.shape[1])
    ]
    return PlacedPicture(picture, [[box_of(axes, **part) for part in parts] for axes in drawn])


def _strip_of_series(frames: Array, titles: Sequence[str]) -> PlacedPicture:
    """The strip of series (k, n, l, c)."""
    drawn: list[list[Axes]] = []

    def draw(figure: Figure) -> None:
        rows = figure.subplots(frames.shape[1], len(frames), sharey=True, squeeze=False)
        for column, (frame, title) in enumerate(zip(frames, titles, strict=True)):
            for axes, series in zip(rows[:, column], frame, strict=True):
                draw_series(axes, series, limits)
            rows[0, column].set_title(title, fontsize=8.5)
            drawn.append(list(rows[:, column]))

    limits = series_limits(frames.reshape(-1, *frames.shape[2:]))
    picture = png(draw, 1.02 * len(frames) + 0.2, 0.7 * frames.shape[1] + 0.55)
    return PlacedPicture(picture, [[box_of(axes) for axes in column] for column in drawn])
