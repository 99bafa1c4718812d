"""The losses of several runs in one picture."""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiment.plots.base import COLOURS, NARROW, WIDE, Array, Line, literal, png

SHOWN_BY_NAME = 20  # more lines are told apart by their shade alone
STYLES = ("-", "--", ":", "-.")


def running_median(values: Array, width: int) -> Array:
    """The median of each value with its neighbours, `width` of them in all, an odd number; the ends are repeated."""
    padded = np.pad(values, width // 2, mode="edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1))


def loss_curves(
    training: Mapping[str, Line], held_out: Mapping[str, Line] | None = None, *, narrow: bool = False
) -> bytes:
    """Draw the training loss of each run {name: (steps, loss)} as a running median, and below the held-out losses.

    A run has the same colour and dashes in both panels. The second panel is left out where nothing was logged.
    """
    panels = {"training loss, running median": {name: (s, _smooth(y)) for name, (s, y) in training.items()}}
    if held_out:
        panels["held-out loss of the averaged weights"] = dict(held_out)
    names = list(dict.fromkeys([*training, *(held_out or {})]))
    styles = {name: _style(i, len(names)) for i, name in enumerate(names)}
    longest = max(map(len, names), default=0)
    columns = max(1, min(4, int((NARROW if narrow else WIDE) * 13 / (longest + 6))))
    legend_rows = math.ceil(len(names) / columns) if len(names) <= SHOWN_BY_NAME else 0

    def draw(figure: Figure) -> None:
        every = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for axes, (title, named) in zip(every, panels.items(), strict=True):
            for name, (steps, loss) in named.items():
                marker = {"marker": "o", "ms": 3.5} if len(steps) < 12 else {}
                axes.plot(steps, loss, lw=1.5, label=literal(name), **styles[name], **marker)
            axes.set(title=title)
            values = np.concatenate([loss for _, loss in named.values()])
            if values.min() > 0 and np.quantile(values, 0.98) / values.min() > 10:
                axes.set(yscale="log")
        every[-1].set_xlabel("training step")
        if legend_rows:
            handles = [matplotlib.lines.Line2D([], [], lw=1.5, **styles[name]) for name in names]
            labels = [literal(name) for name in names]
            figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)

    return png(draw, NARROW if narrow else WIDE, 2.7 * len(panels) + 0.19 * legend_rows + 0.2)


def _smooth(loss: Array) -> Array:
    return running_median(loss, max(1, len(loss) // 20) | 1)


def _style(i: int, count: int) -> dict[str, Any]:
    if count <= SHOWN_BY_NAME:
        return {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i // len(COLOURS) % len(STYLES)]}
    return {"color": matplotlib.colormaps["viridis"](i / (count - 1) * 0.92)}
