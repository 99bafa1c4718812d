"""Drawing for an evaluation: the samples of every seed with their cost, and the path of the first ones."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiment.common.progress import progress
from experiment.data.stored import release
from experiment.devices.hosts import Place
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


@dataclass(frozen=True)
class Wanted:
    """A seed's n samples: by which run and sampler, told what, and guided how, where the run's score is."""

    run: Any
    sampler: Any
    name: str
    seed: int
    n: int
    batch_size: int
    cond: Any
    guidance: Guidance | None = None


def draw_examples(wanted: Wanted, kept: Kept | None = None) -> Examples:
    """Draw samples. kept: where they are kept, in parts that are whole or absent."""
    run, to_data = wanted.run, wanted.run.scaling.to_data
    if kept is None:
        key = sample_key(wanted.seed)
        draws = draw(run, wanted.sampler, key, wanted.n, wanted.batch_size, wanted.name, wanted.cond)
        return Examples(np.asarray(to_data(draws.x)), draws.nfe, draws.batch_seconds)
    found = list(in_parts(wanted, kept, to_data).read())
    nfe = float(np.average([float(part["nfe"]) for part in found], weights=[len(part["x"]) for part in found]))
    return Examples(np.concatenate([part["x"] for part in found]), nfe, [float(part["seconds"]) for part in found])


def in_parts(wanted: Wanted, kept: Kept, stored: Callable[[Array], Any] | None = None) -> Shards:
    """Draw what is missing of samples, or this process's share of it. stored: as for `parts_of`."""
    run, sampler, n = wanted.run, wanted.sampler, wanted.n
    beside = arrays_of(kind_of_run(run), wanted.cond, labels="arr_1")
    asked = asked_for(run, sampler, n, wanted.seed, beside, wanted.guidance)
    with progress(n, wanted.name, seconds=expected_seconds(run, sampler, n)) as work:
        work.note("compiling")
        size = min(wanted.batch_size, n)
        parts = parts_of(kept.folder, run, sampler, wanted.name, asked, size, wanted.cond, work, stored=stored)
        parts.fill(kept.place)
    return parts


def _wanted(run: Any, point: Point, settings: Settings, seed: int) -> Wanted:
    """The samples of the seed that is so many after the settings' first one."""
    name, number = f"{point}, seed {seed + 1}/{settings.seeds}", settings.seed + seed
    cond = conditions(run, settings.n, number)
    return Wanted(run, point.sampler, name, number, settings.n, settings.batch_size, cond)


def draw_point(run: Any, point: Point, settings: Settings, kept: Kept | None = None) -> Drawn:
    """Draw the samples of every seed, and time them.

    The first batch compiles: it counts as much as the median of the later ones, and its excess is the compilation.
    Raises UserError for samples that are not finite, and where an adaptive solver gives up.
    """
    n, batch_size = settings.n, settings.batch_size
    found = [draw_examples(_wanted(run, point, settings, i), kept) for i in range(settings.seeds)]
    seconds = [time for draws in found for time in draws.batch_seconds]
    if len(seconds) == 1:  # the only batch compiled, perhaps in a process that is gone: it is drawn once more for time
        timing = replace(_wanted(run, point, settings, 0), name=f"{point}, timing")
        for _ in range(2 if kept else 1):
            again = draw_examples(timing)
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
    for seed in range(settings.seeds):
        in_parts(_wanted(run, point, settings, seed), kept, run.scaling.to_data)


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
