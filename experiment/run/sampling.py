"""The drawing of samples from a run, a batch at a time, with their classes and what they cost."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import jax
import numpy as np

from experiment.common.errors import UserError
from experiment.common.progress import Work, duration, progress
from experiment.devices.memory import check_fits
from experiment.devices.sharding import mesh_here, round_up
from sde_lib import sample
from sde_lib.samplers import watched

Array = np.ndarray

GUESSED_CALLS = 100  # of a solver that chooses its own steps, where a time is to be told before it is known
GUESSED_SECONDS = 1e-3  # of a score call for one sample, where the training told none


@dataclass(frozen=True)
class Draws:
    """Samples that were drawn, and what they cost.

    Args:
        x: (n, *shape), in the model's space.
        nfe: score calls per sample, the mean over the samples: an adaptive solver may take another number of steps for
            each batch.
        batch_seconds: wall time of each batch, with compilation in the first.
        labels: (n,) the classes; None where the network is not told any. cond: what it is told, whatever that is.
        data: as the data are: uint8 images (n, h, w, c), 0..255, or floats in their units; None where nobody asked.
        path: that of the first m samples in the model's space, (frames, m, *shape), the last frame being they, and the
            frames' times; None where nobody asked.
    """

    x: Array
    nfe: float
    batch_seconds: list[float]
    labels: Array | None = None
    data: Array | None = None
    cond: Any = None
    path: tuple[Array, Array] | None = None


def draw(
    run: Any,
    sampler: Any,
    key: jax.Array,
    n: int,
    batch_size: int,
    description: str,
    cond: Any = None,
    *,
    frames: int = 0,
    shown: int = 0,
) -> Draws:
    """Draw n samples of the run's score; sample i depends on (key, i) alone.

    cond: a pytree of arrays with n rows, for a conditional network. frames: of the path, which is kept of the first
    `shown` samples. Raises UserError where an adaptive solver gives up, and for samples that are not finite.
    """
    batch_size, total, found, seconds = min(batch_size, n), 0.0, [], []
    paths, times = [], np.zeros(0)
    with progress(n, description, seconds=expected_seconds(run, sampler, n)) as work:
        work.note("compiling")
        for first in range(0, n, batch_size):
            start, kept = perf_counter(), min(batch_size, n - first)
            drawn = draw_rows(run, sampler, key, first, kept, batch_size, description, cond, work, frames)
            if first < shown and drawn.path is not None:
                paths.append(drawn.path[:, : shown - first])
                times = drawn.times
            found.append(drawn.x)
            seconds.append(perf_counter() - start)
            total += kept * drawn.nfe
    labels = cond if run.config.model.condition == "label" else None
    path = (np.concatenate(paths, axis=1), times) if paths else None
    return Draws(np.concatenate(found), total / n, seconds, labels, cond=cond, path=path)


class Rows(NamedTuple):
    """Some samples x (n, *shape) in the model's space, their NFE, and their path (frames, n, *shape) with its times."""

    x: Array
    nfe: float
    path: Array | None
    times: Array


def draw_rows(
    run: Any,
    sampler: Any,
    key: jax.Array,
    first: int,
    kept: int,
    batch_size: int,
    description: str,
    cond: Any,
    work: Work,
    frames: int = 0,
) -> Rows:
    """Draw a batch of samples from `first` on, and keep the first `kept` of them.

    work: of all samples, which is told how far it is. frames: of the path; 0 for none. Raises UserError as `draw` does.
    """
    before = work.done
    with watched(partial(_tell, work, before, kept)):
        result = draw_batch(run, sampler, key, first, batch_size, cond, frames)
    x = np.asarray(result.x)[:kept]
    if not np.isfinite(x).all():
        raise UserError(
            f"{description} drew samples that are not finite: train longer, or give it more steps (config.sample.steps)"
        )
    work.note("")
    work.at(before + kept)
    path = np.asarray(result.path)[:, :kept] if frames else None
    return Rows(x, float(result.nfe), path, np.asarray(result.times) if frames else np.zeros(0))


def _tell(work: Work, before: float, kept: int, done: int, calls: int) -> None:
    work.note("")
    work.at(before + kept * done / calls)


def draw_batch(run: Any, sampler: Any, key: jax.Array, first: int, size: int, cond: Any = None, frames: int = 0) -> Any:
    """Draw the samples first .. first + size - 1. A last batch is drawn whole too, so that one shape is compiled.

    The batch is split over the run's devices; where they do not divide it, more samples are drawn, and dropped.
    """
    drawn = round_up(size, mesh_here())
    cond = jax.tree.map(lambda rows: padded(rows[first : first + drawn], drawn), cond)
    with solver_remedy():
        taken = run.flow_map if hasattr(sampler, "takes") else run.score_fn
        result = sample(sampler, taken, key, drawn, tuple(run.shape), cond=cond, first=first, frames=frames)
        jax.block_until_ready(result.x)
    if drawn == size:
        return result
    return result._replace(x=result.x[:size], path=None if result.path is None else result.path[:, :size])


def padded(rows: Array, size: int) -> Array:
    """Repeat the last row to make `size` of them."""
    return rows[np.minimum(np.arange(size), len(rows) - 1)]


def class_labels(run: Any, n: int, seed: int, chosen: Sequence[int] | None = None) -> Array | None:
    """The classes (n,) of n samples for a class-conditional network; None for another.

    They are the chosen ones in turn, or drawn in the proportions of the training data; that of sample i depends on
    (seed, i) alone. Raises UserError for chosen classes that the network does not know.
    """
    if run.config.model.condition != "label":
        if chosen:
            raise UserError(
                "--label: this run's network is not told classes: leave it out, or train with "
                "--config.model.condition=label"
            )
        return None
    if chosen:
        wrong = [label for label in chosen if not 0 <= label < run.num_classes]
        if wrong:
            raise UserError(
                f"--label is {wrong[0]}: this run's classes are 0 to {run.num_classes - 1}; choose of these"
            )
        return np.resize(np.asarray(chosen, np.int32), n)
    ends = np.cumsum(run.class_counts)
    places = np.random.RandomState(seed).randint(ends[-1], size=n)
    return np.searchsorted(ends, places, side="right").astype(np.int32)


def as_data(scaling: Any, x: Array) -> Array:
    """Samples in the model's space as the data are: uint8 images (n, h, w, c), 0..255, or floats in their units."""
    found = np.asarray(scaling.to_data(x))
    return scaling.to_uint8(found) if scaling.levels else found


def check_samples_fit(n: int, shape: Sequence[int], sets: int = 1) -> None:
    """Raises UserError where `sets` times n samples of this shape, and what is made of them, do not fit into memory."""
    entries = n * int(np.prod(shape, dtype=object)) * sets
    what = f"{n:,} samples" + (f" of {sets:,} seeds and samplers" if sets > 1 else "")
    check_fits(BYTES_FOR_AN_ENTRY * entries, what, "give a smaller --n")


BYTES_FOR_AN_ENTRY = 16  # the batches and their whole in float32, the levels, and as much again while they are written


def expected_seconds(run: Any, sampler: Any, n: int) -> float:
    """About how long n samples will take, by the speed of the run's training."""
    calls = getattr(run.score_fn, "calls", 1)  # of the network, for one of the score
    return n * calls * score_calls(sampler) * seconds_per_call(run)


def seconds_per_call(run: Any) -> float:
    """About how long a score call takes for one sample, by the speed of the run's training, or a guess."""
    return getattr(run, "seconds_per_call", None) or GUESSED_SECONDS


def told(run: Any, seconds: float) -> str:
    """The end of a command's first line: how long it will take, as far as that is known."""
    known = getattr(run, "seconds_per_call", None) is not None
    return f"; about {duration(seconds)}" if known else "; the first part tells how long it will take"


def score_calls(sampler: Any) -> int:
    """The score calls of a sample, or a guess for a solver that chooses its own steps."""
    try:
        return int(sampler.nfe)
    except (AttributeError, TypeError):
        return GUESSED_CALLS


@contextlib.contextmanager
def solver_remedy() -> Iterator[None]:
    """Turn the error of an adaptive solve that gave up into a UserError with the remedy."""
    try:
        yield
    except RuntimeError as error:
        if "the score is not a finite number" in str(error):
            raise UserError(str(error)) from error
        if "max_steps" not in str(error):
            raise
        raise UserError(
            f"{error}. The training command with a larger --config.sample.rtol and --config.sample.atol "
            "(of samplers; config.eval's are the likelihood's) notes them for this run; "
            "sample.py also takes --steps for fixed steps"
        ) from error


def picture_of(scaling: Any, data: Array) -> bytes:
    """A PNG of samples as `as_data` gives them: a cloud of vectors, the lines of series, a grid of all else."""
    from experiment import plots

    if data.ndim == 2:
        return plots.scatter({"samples": data}, square=scaling.units is None)
    if data.ndim == 3:
        from experiment.plots.examples import grid

        return grid(data)
    return plots.image_grid(plots.pictures(data if scaling.levels else scaling.to_uint8(data)))


def pictured(scaling: Any, x: Array) -> Array:
    """What a picture shows of data that are no vectors: uint8 grey values, or a series as it is."""
    return x if x.ndim == 3 else scaling.to_uint8(x)
