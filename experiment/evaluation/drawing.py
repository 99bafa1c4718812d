"""Drawing for an evaluation: the samples of every seed with their cost, and the path of the first ones."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from experiment.evaluation.images import release
from experiment.evaluation.points import Point
from experiment.evaluation.settings import Settings
from experiment.run.conditions import conditions
from experiment.run.sampling import Draws, draw, draw_batch

Array = np.ndarray

STRIP_IMAGES, STRIP_POINTS, STRIP_FRAMES = 5, 512, 9


@dataclass(frozen=True)
class Drawn:
    """The samples that a point drew, and what those of one seed cost.

    samples: of each seed (n, d), quantised, flat, in the model's space. levels: of the first seed, as the data are.
    seconds: without compilation, which took about compile_seconds more.
    """

    point: Point
    samples: list[Array]
    levels: Array
    nfe: float
    seconds: float
    compile_seconds: float


@dataclass(frozen=True)
class Strip:
    """The path of the first samples: frames (k, n, *shape) at unit variance, and (t, sigma/alpha) of each frame."""

    frames: Array
    times: list[tuple[float, float]]


def sample_key(seed: int) -> jax.Array:
    """The key of a seed's samples, the same for every sampler."""
    return jax.random.key(seed)


def flat_points(run: Any, levels: Array) -> Array:
    """Examples (n, d) in float64: levels at their bins' centres in the model's space, or the vectors themselves."""
    return np.asarray(run.scaling.to_model(levels), np.float64).reshape(len(levels), -1)


class FlatPoints:
    """The examples of a split as `flat_points` gives them, those that are asked for: a large set is never in memory."""

    def __init__(self, run: Any, levels: Array):
        self._run, self._levels = run, levels

    def __len__(self) -> int:
        return len(self._levels)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""
        return len(self), int(np.prod(self._levels.shape[1:]))

    def __getitem__(self, rows: slice | Array) -> Array:
        taken = flat_points(self._run, self._levels[rows])
        release(self._levels)
        return taken


def draw_seed(run: Any, description: str, sampler: Any, seed: int, n: int, batch_size: int) -> Draws:
    """Draw a seed's n samples."""
    return draw(run, sampler, sample_key(seed), n, batch_size, description, conditions(run, n, seed))


def draw_point(run: Any, point: Point, settings: Settings) -> Drawn:
    """Draw the samples of every seed, and time them.

    The first batch compiles: it counts as much as the median of the later ones, and its excess is the compilation.
    Raises UserError for samples that are not finite, and where an adaptive solver gives up.
    """
    n, batch_size = settings.n, settings.batch_size
    found = []
    for i in range(settings.seeds):
        description = f"{point}, seed {i + 1}/{settings.seeds}"
        found.append(draw_seed(run, description, point.sampler, settings.seed + i, n, batch_size))
    seconds = [time for draws in found for time in draws.batch_seconds]
    if len(seconds) == 1:  # the only batch compiled: draw it once more, for the time alone
        again = draw_seed(run, f"{point}, timing", point.sampler, settings.seed, n, batch_size)
        seconds += again.batch_seconds
    first, later = seconds[0], float(np.median(seconds[1:]))
    levels = [np.asarray(run.scaling.to_data(draws.x)) for draws in found]
    return Drawn(
        point=point,
        samples=[flat_points(run, of_seed) for of_seed in levels],
        levels=levels[0],
        nfe=float(np.mean([draws.nfe for draws in found])),
        seconds=later * math.ceil(n / min(batch_size, n)),
        compile_seconds=max(first - later, 0.0),
    )


def draw_strip(run: Any, sampler: Any, seed: int) -> Strip:
    """Draw the path of the first samples, each frame scaled to unit variance: x_t/sqrt(alpha² + sigma²)."""
    count = STRIP_POINTS if len(run.shape) == 1 else STRIP_IMAGES
    cond = conditions(run, count, seed)
    result = draw_batch(run, sampler, sample_key(seed), 0, count, cond, frames=STRIP_FRAMES)
    sde = run.score_fn.sde
    alpha, sigma = (np.array([float(f(t)) for t in result.times]) for f in (sde.alpha, sde.sigma))
    path = np.asarray(result.path)
    scale = np.sqrt(alpha**2 + sigma**2).reshape(-1, *[1] * (path.ndim - 1))
    times = [(float(t), float(s / a)) for t, s, a in zip(result.times, sigma, alpha, strict=True)]
    return Strip(path / scale, times)
