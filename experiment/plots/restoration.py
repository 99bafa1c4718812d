"""Restored examples beside what was seen of them and the truth."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from experiment.plots.base import COLOURS, FLOOR, INK, Array, Picture, png, show_image


@dataclass(frozen=True)
class Map:
    """Numbers (n, h, w) to draw in colours: from 0 to the limit, or about 0 to either side where they are signed."""

    values: Array
    limit: float
    signed: bool = False


def restored_images(columns: Mapping[str, Array | Map]) -> Picture:
    """Draw a row for each example and a column for each {title: uint8 (n, h, w, c) or a map}.

    A map's colours are told below its column.
    """
    n = min(len(c.values if isinstance(c, Map) else c) for c in columns.values())

    def draw(figure: Figure) -> None:
        every = figure.subplots(n + 1, len(columns), squeeze=False, height_ratios=[1.0] * n + [0.07])
        for (*panels, last), (title, column) in zip(every.T, columns.items(), strict=True):
            for i, axes in enumerate(panels):
                if isinstance(column, Map):
                    shown = axes.imshow(
                        column.values[i],
                        cmap="RdBu_r" if column.signed else "viridis",
                        vmin=-column.limit if column.signed else 0,
                        vmax=column.limit,
                        interpolation="nearest",
                    )
                    axes.set(xticks=[], yticks=[])
                    axes.grid(False)
                    axes.spines[:].set_visible(False)
                else:
                    show_image(axes, column[i])
            panels[0].set_title(title, fontsize=9)
            if isinstance(column, Map):
                figure.colorbar(shown, cax=last, orientation="horizontal").ax.tick_params(labelsize=7)
            else:
                last.axis("off")

    return png(draw, 1.05 * len(columns), 1.12 * n + 0.7)


@dataclass(frozen=True)
class Lines:
    """Restored vectors or series, one channel of them, and what was seen.

    truth: (n, l), or None. draws: (n, k, l). y: (n, m) seen at `places` (m,), or None where it lies at none. residuals:
    (n, k, m), over the noise.
    """

    truth: Array | None
    draws: Array
    y: Array | None
    places: Array | None
    residuals: Array


def restored_lines(found: Lines, titles: list[str]) -> Picture:
    """Draw a row for each example: its draws, their mean ± 2 sd, truth and observation; beside it the residuals."""
    x, several = np.arange(found.draws.shape[2]), found.draws.shape[2] > 40
    mark, size = ("", 0) if several else ("o", 2.5)

    def draw(figure: Figure) -> None:
        every = figure.subplots(len(titles), 2, squeeze=False, width_ratios=[3, 1])
        for i, (axes, beside) in enumerate(every):
            mean, sd = found.draws[i].mean(axis=0), found.draws[i].std(axis=0, ddof=1)
            axes.fill_between(x, mean - 2 * sd, mean + 2 * sd, color=FLOOR, alpha=0.3, lw=0, label="mean ± 2 sd")
            for j, line in enumerate(found.draws[i, :5]):
                label = "draws" if j == 0 else None
                axes.plot(x, line, lw=0.7, marker=mark, ms=size, color=COLOURS[5], alpha=0.8, label=label)
            axes.plot(x, mean, lw=1.3, color=COLOURS[0], label="mean")
            if found.truth is not None:
                axes.plot(x, found.truth[i], lw=1.3, ls="--", color=INK, label="truth")
            if found.y is not None:
                axes.plot(found.places, found.y[i], "x", ms=4 if several else 6, color=COLOURS[1], label="observation")
            axes.set_title(titles[i], fontsize=9)
            axes.xaxis.get_major_locator().set_params(integer=True)
            left = found.residuals[i].ravel()
            if np.isfinite(left).all():
                beside.hist(left, bins=np.linspace(-4, 4, 25), density=True, color=COLOURS[0], alpha=0.6)
                z = np.linspace(-4, 4, 100)
                beside.plot(z, np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi), color=INK, lw=1.2)
            beside.set(yticks=[])
        every[0, 1].set_title("residual/noise, N(0, 1)", fontsize=9)
        figure.legend(*every[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8.5)

    return png(draw, 8.2, 1.7 * len(titles) + 0.5)
