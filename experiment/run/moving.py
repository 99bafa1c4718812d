"""The path of a run's samples as a moving picture, beside the samples."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiment import plots
from experiment.common.errors import UserError
from experiment.common.files import write_bytes
from experiment.devices.memory import check_fits
from experiment.plots.limits import common_limit, common_ranges
from experiment.plots.moving import MOST_IMAGES, MOST_POINTS, Moving, moving_grid, moving_points
from experiment.run.sampling import as_data

Array = np.ndarray

FRAMES = 32
GIF = "path.gif"


@dataclass(frozen=True)
class Kept:
    """How much of the paths is kept while samples are drawn: `frames` frames of the first `shown` samples."""

    frames: int
    shown: int


def path_to_keep(run: Any, sampler: Any, n: int) -> Kept:
    """Say what of the path a moving picture of n samples needs.

    Raises UserError for data that have no such picture, and for a path beyond memory.
    """
    shape = tuple(run.shape)
    if shape != (2,) and len(shape) != 3:
        kinds = {1: f"vectors of {shape[0]}", 2: "series"}
        raise UserError(
            f"--gif draws images and points of a plane, and this run's samples are {kinds.get(len(shape), 'volumes')}: "
            "leave it out"
        )
    steps = getattr(sampler, "steps", None)
    frames = FRAMES if steps is None else min(FRAMES, steps + 1)
    drawn = min(n, run.config.sample.batch_size) * math.prod(shape)
    check_fits(4 * (frames + 2) * drawn, f"the path of {n:,} samples", "leave out --gif, or give a smaller --n")
    return Kept(frames, min(n, MOST_POINTS if shape == (2,) else MOST_IMAGES))


def frames_as_data(run: Any, path: Array, times: Array) -> tuple[Array, list[str]]:
    """The path (k, n, *shape) of the model's space as the data are, and a caption for each frame.

    A frame is x_t/sqrt(alpha² + sigma²), so that noise of any SDE is as wide as data; the last one is the samples.
    """
    sde = run.score_fn.sde
    alpha, sigma = (np.array([float(f(t)) for t in times]) for f in (sde.alpha, sde.sigma))
    scale = np.sqrt(alpha**2 + sigma**2)
    scale[-1] = 1.0
    captions = [f"t = {t:.3g}    noise / signal = {s / a:.3g}" for t, s, a in zip(times, sigma, alpha, strict=True)]
    return np.stack([as_data(run.scaling, x / size) for x, size in zip(path, scale, strict=True)]), captions


def moving_picture(run: Any, path: Array, times: Array) -> Moving:
    """Draw the path (k, n, *shape) in k frames: images as a grid, points of a plane on axes that stay."""
    frames, captions = frames_as_data(run, path, times)
    if frames.ndim == 3:
        square = run.scaling.units is None
        return moving_points(frames, captions, common_limit(frames) if square else common_ranges(frames))
    grey = [plots.pictures(frame if run.scaling.levels else run.scaling.to_uint8(frame)) for frame in frames]
    return moving_grid(np.stack(grey), captions)


def write_moving(run: Any, path: Array, times: Array, folder: Path) -> tuple[dict[str, Any], str]:
    """Write the moving picture into the folder.

    Returns:
        What settings.json says of it, and a line for the user.
    """
    found = moving_picture(run, path, times)
    write_bytes(folder / GIF, found.gif)
    facts = {"file": GIF, "bytes": len(found.gif), "samples": found.shown, "t": [float(times[i]) for i in found.frames]}
    line = f"{folder / GIF}: {len(found.frames)} frames of {found.shown} samples, {len(found.gif) / 1000:,.0f} kB"
    return facts, line
