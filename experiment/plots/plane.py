"""The figures of the plane and of paths, in the look of `base.py`: score fields, maps, walkers, basins."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiment.plots.base import COLOURS, FLOOR, INK, Array, Line, Picture, cycle, panels_in_a_row, png


def _root(vectors: Array) -> Array:
    """Shorten each vector to the root of its length, so that long ones do not hide short ones."""
    return vectors / np.sqrt(np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))


def field(at: Array, score: Array, points: Array, log_density: Array) -> Picture:
    """Draw scores (n, 2) at points (n, 2) as arrows, over samples (m, 2) coloured by their log-density in nats.

    An arrow is as long as the root of its score's length.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shown = axes.scatter(points[:, 0], points[:, 1], c=log_density, s=5, cmap="viridis", lw=0)
        axes.quiver(*at.T, *_root(score).T, color=INK, alpha=0.75, width=0.0028, scale=70)
        axes.set(xlabel="x₁", ylabel="x₂", aspect="equal", title="score (arrows), samples by log-density")
        figure.colorbar(shown, ax=axes, label="log p, nats", shrink=0.8)

    return png(draw, 6.0, 4.9)


def field_3d(at: Array, score: Array, points: Array, log_density: Array) -> Picture:
    """Draw the picture of `field` in three dimensions, from two sides."""
    limit = 1.1 * float(np.abs(np.concatenate([at, points])).max())

    def draw(figure: Figure) -> None:
        for i, side in enumerate((-60, 30)):
            axes: Any = figure.add_subplot(1, 2, i + 1, projection="3d", azim=side, elev=18)
            shown = axes.scatter(*points.T, c=log_density, s=4, cmap="viridis", lw=0)
            arrows = _root(score)
            length = 0.25 * limit / np.abs(arrows).max()
            axes.quiver(*at.T, *arrows.T, color=INK, alpha=0.6, lw=0.7, length=length)
            axes.set(xlabel="x₁", ylabel="x₂", zlabel="x₃")
            axes.set(xlim=(-limit, limit), ylim=(-limit, limit), zlim=(-limit, limit))
            axes.set_box_aspect(None, zoom=0.82)
        figure.colorbar(shown, ax=figure.axes, label="log p, nats", shrink=0.6)

    return png(draw, 9.0, 4.2)


def compasses(at: Array, vectors: Mapping[str, Array], points: Array, title: str) -> Picture:
    """Draw fields {label: (n, 2)} at points (n, 2), one over the other, on faint samples (m, 2).

    The longest arrow has the same length in every picture.
    """
    limit = 1.08 * float(np.abs(at).max())

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(*points.T, ".", ms=3, mew=0, color=FLOOR, alpha=0.7, zorder=0)
        longest = max(float(np.linalg.norm(_root(field), axis=1).max()) for field in vectors.values())
        colours, widths = (INK, COLOURS[1], COLOURS[5]), (0.0055, 0.0028, 0.0028)
        for (label, field), colour, width in zip(vectors.items(), colours, widths, strict=False):
            axes.quiver(*at.T, *_root(field).T, color=colour, width=width, scale=14 * longest, label=label)
        axes.set(xlabel="x₁", ylabel="x₂", aspect="equal", title=title, xlim=(-limit, limit), ylim=(-limit, limit))
        if len(vectors) > 1:
            figure.legend(loc="outside lower center", ncols=len(vectors), fontsize=9)

    return png(draw, 4.6, 4.6 + 0.3 * (len(vectors) > 1))


def tracks(path: Array, points: Array, title: str) -> Picture:
    """Draw paths (frames, n, 2) of walkers, with a circle at each start and a dot at each end, on faint samples."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(*points.T, ".", ms=2.2, mew=0, color=FLOOR, alpha=0.6, zorder=0)
        for i, track in enumerate(np.moveaxis(path, 1, 0)):
            colour = COLOURS[i % len(COLOURS)]
            axes.plot(*track.T, lw=0.9, color=colour, alpha=0.8)
            axes.plot(*track[0], "o", ms=5, mfc="white", mec=colour)
            axes.plot(*track[-1], "o", ms=5, color=colour)
        axes.set(xlabel="x₁", ylabel="x₂", aspect="equal", title=title)

    return png(draw, 4.6, 4.6)


def maps(panels: Mapping[str, Array], x: Array, label: str, lowest: float | None = None) -> Picture:
    """Draw functions on the plane {title: (n, n)} in colours, each with a bar of its own.

    The first index is that of x₁; the grid is the square x times x. Values below `lowest` are drawn as `lowest`.
    """
    floor = -np.inf if lowest is None else lowest

    def draw(figure: Figure) -> None:
        for axes, (title, values) in zip(panels_in_a_row(figure, len(panels)), panels.items(), strict=True):
            shown = axes.pcolormesh(x, x, np.maximum(values.T, floor), cmap="viridis", rasterized=True)
            axes.set(xlabel="x₁", ylabel="x₂", aspect="equal", title=title)
            axes.grid(False)
            clipped = values.min() < floor
            figure.colorbar(shown, ax=axes, label=label, shrink=0.8, extend="min" if clipped else "neither")

    return png(draw, 4.3 * len(panels), 3.6)


def basins(maps: Mapping[str, Array], limit: float, points: Array) -> Picture:
    """Draw a panel for each {title: labels (m, m)} in one colour for each label, with the samples faint.

    labels[i, j] is that of the start at row i in x₂ and column j in x₁ of the square of half side `limit` about 0.
    """

    def draw(figure: Figure) -> None:
        for axes, (title, labels) in zip(panels_in_a_row(figure, len(maps)), maps.items(), strict=True):
            colours = np.array([matplotlib.colors.to_rgb(colour) for colour in cycle(int(labels.max()) + 1)])
            extent = (-limit, limit, -limit, limit)
            axes.imshow(0.45 + 0.55 * colours[labels], origin="lower", extent=extent, interpolation="nearest")
            axes.plot(*points.T, ".", ms=2.2, mew=0, color=INK, alpha=0.7)
            axes.set(title=title, xlabel="x₁ of the start", ylabel="x₂ of the start")
            axes.grid(False)

    return png(draw, 4.3 * len(maps), 4.4)


def strands(paths: Mapping[str, Line], at: Array, density: Array, xlabel: str, ylabel: str) -> Picture:
    """Draw a panel for each {title: (x (frames,), path (frames, n))} of walkers on the line.

    Behind them lies the density (len(at), frames) of their distribution, in grey.
    """

    def draw(figure: Figure) -> None:
        for axes, (title, (x, path)) in zip(panels_in_a_row(figure, len(paths)), paths.items(), strict=True):
            grey = np.sqrt(density)
            axes.pcolormesh(x, at, grey, cmap="Greys", vmax=2 * float(grey.max()), shading="gouraud")
            for i, strand in enumerate(path.T):
                axes.plot(x, strand, lw=0.9, color=COLOURS[i % len(COLOURS)])
            axes.set(title=title, xlabel=xlabel, ylabel=ylabel, ylim=(float(at[0]), float(at[-1])))
            axes.grid(False)

    return png(draw, 4.3 * len(paths), 3.6)
