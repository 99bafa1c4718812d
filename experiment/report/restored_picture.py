"""The picture of restored examples: images and volumes as such, series and vectors as lines."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiment.evaluation.restoration import Restored
from experiment.evaluation.seen import Seen
from experiment.plots.images import legend, pictures
from experiment.plots.restoration import Lines, Map, restored_images, restored_lines
from experiment.report.document import Figure

Array = np.ndarray

FILE = "examples.png"
SHOWN, DRAWS_SHOWN, LINES_SHOWN = 6, 3, 4  # examples, draws of each; examples drawn as lines
HIDDEN = 96  # the grey of what a mask hides


def picture_of(run: Any, seen: Seen, found: Restored, arrays: Mapping[str, Array]) -> Figure:
    """Draw some examples. arrays: draws, mean, sd, y, and, if known, truth and index, in the units of the data."""
    shape, n, held_out = tuple(run.shape), len(found.y), "truth" in arrays
    shown = min(SHOWN, n)
    rows = np.arange(shown) * n // shown if held_out else np.arange(shown)  # of all: files often lie class by class
    few = {name: arrays[name][rows] for name in ("draws", "mean", "sd", "truth", "y") if name in arrays}
    what = "Held-out examples, not selected" if held_out else "The first observations"
    if len(shape) < 3:
        titles = [f"held-out example {arrays['index'][i]}" if held_out else f"observation {i}" for i in rows]
        channel = ", the first channel" if len(shape) == 2 and shape[-1] > 1 else ""
        caption = f"{what}{channel}: five draws of each."
        lines = _lines(seen, few, found.residuals[rows])
        return Figure(FILE, "examples", caption, restored_lines(lines, titles[:LINES_SHOWN]))
    unit = "levels" if run.scaling.levels is not None else "standard deviations of the data"
    both = "standard deviation (sd) and truth - mean are" if "truth" in few else "standard deviation (sd) is"
    caption = f"{what}. The draws' {both} in {unit}; the residual is y - A(draw 1), over the noise{legend(shape)}."
    return Figure(FILE, "examples", caption, restored_images(_columns(run, seen, few, found.residuals[rows])))


def _columns(run: Any, seen: Seen, few: Mapping[str, Array], residuals: Array) -> dict[str, Array | Map]:
    shape, scaling = tuple(run.shape), run.scaling
    unit = 1.0 if scaling.levels is not None else scaling.affine(shape)[1]
    sd = _flat(few["sd"] / unit)
    on_grid = few["y"].ndim == len(shape) + 1
    columns: dict[str, Array | Map] = {}
    if on_grid:
        grey, entries = _grey(scaling, few["y"]), seen.operator.entries()
        columns["observed"] = pictures(grey if entries is None else np.where(np.asarray(entries), grey, HIDDEN))
    for i in range(min(DRAWS_SHOWN, few["draws"].shape[1])):
        columns[f"draw {i + 1}"] = pictures(_grey(scaling, few["draws"][:, i]))
    columns["mean"] = pictures(_grey(scaling, few["mean"]))
    if "truth" in few:
        columns["truth"] = pictures(_grey(scaling, few["truth"]))
    columns["sd"] = Map(sd, float(sd.max()) or 1.0)
    if "truth" in few:
        wrong = _flat((few["truth"] - few["mean"]) / unit)
        columns["truth - mean"] = Map(wrong, float(np.abs(wrong).max()) or 1.0, signed=True)
    if on_grid and np.isfinite(residuals).all():
        columns["residual"] = Map(_flat(residuals[:, 0]), 3.0, signed=True)
    return columns


def _grey(scaling: Any, x: Array) -> Array:
    """Grey values, uint8, of data in their units, levels among them that lie between and beyond the whole ones."""
    return scaling.to_uint8(x if scaling.levels is None else np.clip(x, 0, scaling.levels - 1)).astype(np.uint8)


def _flat(x: Array) -> Array:
    """One number for each place, (n, h, w): the mean over channels; of a volume the middle slice."""
    x = x.mean(axis=-1)
    return x if x.ndim == 3 else x[:, x.shape[1] // 2]


def _lines(seen: Seen, few: Mapping[str, Array], residuals: Array) -> Lines:
    """Vectors as they are, and of series the first channel."""
    series, entries, y = few["mean"].ndim == 3, seen.operator.entries(), few["y"]

    def first(x: Array) -> Array:
        return x[..., 0] if series else x

    truth, draws = first(few["truth"]) if "truth" in few else None, first(few["draws"])
    if entries is not None:
        chosen = first(np.asarray(entries))
        return Lines(truth, draws, first(y)[:, chosen], np.flatnonzero(chosen), first(residuals)[:, :, chosen])
    if series and y.ndim == 3:
        block = draws.shape[2] / y.shape[1]
        return Lines(truth, draws, first(y), (np.arange(y.shape[1]) + 0.5) * block - 0.5, first(residuals))
    return Lines(truth, draws, None, None, residuals)  # what a matrix gives lies at no place
