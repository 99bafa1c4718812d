"""Drawing for an evaluation: the samples of every seed with their cost, and the path of the first ones."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiment.common.progress import progress
from experiment.devices.hosts import Place
from experiment.evaluation.images import release
from experiment.evaluation.points import Point
from experiment.evaluation.settings import Settings
from experiment.run.conditions import arrays_of, conditions, kind_of_run
from experiment.run.guidance import Guidance
from experiment.run.samples import asked_for, parts_of
from experiment.run.sampling import draw, draw_batch, expected_seconds
from experiment.run.shards import Shards

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


@dataclass(frozen=True)
class Kept:
    """Where an evaluation keeps what it has drawn, so that a killed one goes on, and which of its processes this is."""

    folder: Path
    place: Place


class Examples(NamedTuple):
    """Samples as levels, or as vectors in the user's units, their NFE, and the seconds of each batch."""

    data: Array
    nfe: float
    batch_seconds: list[float]


def draw_examples(
    run: Any,
    description: str,
    sampler: Any,
    seed: int,
    n: int,
    batch_size: int,
    cond: Any,
    kept: Kept | None = None,
    guidance: Guidance | None = None,
) -> Examples:
    """Draw a seed's n samples.

    kept: where they are kept, in parts that are whole or absent. guidance: the score's, where it has one.
    """
    if kept is None:
        draws = draw(run, sampler, sample_key(seed), n, batch_size, description, cond)
        return Examples(np.asarray(run.scaling.to_data(draws.x)), draws.nfe, draws.batch_seconds)
    found = list(in_parts(run, description, sampler, seed, n, batch_size, cond, kept, guidance).read())
    nfe = float(np.average([float(part["nfe"]) for part in found], weights=[len(part["x"]) for part in found]))
    return Examples(np.concatenate([part["x"] for part in found]), nfe, [float(part["seconds"]) for part in found])


def in_parts(
    run: Any,
    description: str,
    sampler: Any,
    seed: int,
    n: int,
    batch_size: int,
    cond: Any,
    kept: Kept,
    guidance: Guidance | None = None,
) -> Shards:
    """Draw what is missing of a seed's samples, or this process's share of it."""
    asked = asked_for(run, sampler, n, seed, arrays_of(kind_of_run(run), cond, labels="arr_1"), guidance)
    with progress(n, description, seconds=expected_seconds(run, sampler, n)) as work:
        work.note("compiling")
        size = min(batch_size, n)
        parts = parts_of(kept.folder, run, sampler, description, asked, size, cond, work, stored=run.scaling.to_data)
        parts.fill(kept.place)
    return parts


def draw_point(run: Any, point: Point, settings: Settings, kept: Kept | None = None) -> Drawn:
    """Draw the samples of every seed, and time them.

    The first batch compiles: it counts as much as the median of the later ones, and its excess is the compilation.
    Raises UserError for samples that are not finite, and where an adaptive solver gives up.
    """
    n, batch_size = settings.n, settings.batch_size
    found = []
    for i in range(settings.seeds):
        description, seed = f"{point}, seed {i + 1}/{settings.seeds}", settings.seed + i
        cond = conditions(run, n, seed)
        found.append(draw_examples(run, description, point.sampler, seed, n, batch_size, cond, kept))
    seconds = [time for draws in found for time in draws.batch_seconds]
    if len(seconds) == 1:  # the only batch compiled, perhaps in a process that is gone: it is drawn once more for time
        cond = conditions(run, n, settings.seed)
        for _ in range(2 if kept else 1):
            again = draw_examples(run, f"{point}, timing", point.sampler, settings.seed, n, batch_size, cond)
        seconds += again.batch_seconds
    first, later = seconds[0], float(np.median(seconds[1:]))
    levels = [draws.data for draws in found]
    return Drawn(
        point=point,
        samples=[flat_points(run, of_seed) for of_seed in levels],
        levels=levels[0],
        nfe=float(np.mean([draws.nfe for draws in found])),
        seconds=later * math.ceil(n / min(batch_size, n)),
        compile_seconds=max(first - later, 0.0),
    )


def draw_share(run: Any, point: Point, settings: Settings, kept: Kept) -> None:
    """Draw this process's share of the samples of every seed."""
    for seed in range(settings.seed, settings.seed + settings.seeds):
        cond = conditions(run, settings.n, seed)
        in_parts(run, f"{point}, seed {seed}", point.sampler, seed, settings.n, settings.batch_size, cond, kept)


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
