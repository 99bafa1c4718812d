"""The drawing of samples from a run, a batch at a time, and the files that they go to: samples.npz and grid.png."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiment.build.samplers import check_sampler, make_sampler
from experiment.devices.sharding import mesh_here, round_up
from experiment.errors import UserError
from experiment.files import user_path, write_bytes, write_npz
from experiment.run.load import Run, load_run
from sde_lib import sample

Array = np.ndarray


@dataclass(frozen=True)
class Draws:
    """Samples that were drawn, and what they cost.

    Args:
        x: (n, *shape), in the model's space.
        nfe: score calls per sample, the mean over the samples: an adaptive solver may take another number of steps for
            each batch.
        batch_seconds: wall time of each batch, with compilation in the first.
    """

    x: Array
    nfe: float
    batch_seconds: list[float]


def draw(
    run: Any, sampler: Any, key: jax.Array, n: int, batch_size: int, description: str, labels: Array | None = None
) -> Draws:
    """Draw n samples of the run's score; sample i depends on (key, i) alone.

    labels: (n,) classes, for a conditional network.
    """
    batch_size, total, found, seconds = min(batch_size, n), 0, [], []
    with progress(n, description) as bar:
        for first in range(0, n, batch_size):
            start = perf_counter()
            result = draw_batch(run, sampler, key, first, batch_size, labels)
            kept = min(batch_size, n - first)
            found.append(np.asarray(result.x)[:kept])
            seconds.append(perf_counter() - start)
            total += kept * result.nfe
            bar.update(kept)
    return Draws(np.concatenate(found), total / n, seconds)


def draw_batch(
    run: Any, sampler: Any, key: jax.Array, first: int, size: int, labels: Array | None = None, frames: int = 0
) -> Any:
    """Draw the samples first .. first + size - 1. A last batch is drawn whole too, so that one shape is compiled.

    The batch is split over the run's devices; where they do not divide it, more samples are drawn, and dropped.
    """
    drawn = round_up(size, mesh_here())
    cond = None if labels is None else padded(labels[first : first + drawn], drawn)
    with solver_remedy():
        result = sample(sampler, run.score_fn, key, drawn, tuple(run.shape), cond=cond, first=first, frames=frames)
        jax.block_until_ready(result.x)
    if drawn == size:
        return result
    return result._replace(x=result.x[:size], path=None if result.path is None else result.path[:, :size])


def padded(rows: Array, size: int) -> Array:
    """Repeat the last row to make `size` of them."""
    return rows[np.minimum(np.arange(size), len(rows) - 1)]


def class_labels(run: Any, n: int, seed: int) -> Array | None:
    """Draw (n,) classes in the training data's proportions for a class-conditional network; None for another."""
    if not run.config.model.class_conditional:
        return None
    labels = run.dataset.train.labels
    return labels[np.random.RandomState(seed).randint(len(labels), size=n)]


@contextlib.contextmanager
def solver_remedy() -> Iterator[None]:
    """Turn the error of an adaptive solve that gave up into a UserError with the remedy."""
    try:
        yield
    except RuntimeError as error:
        if "max_steps" not in str(error):
            raise
        raise UserError(
            f"{error}. The training command with a larger --config.sample.rtol and --config.sample.atol "
            "(of samplers; config.eval's are the likelihood's) notes them for this run; "
            "sample.py also takes --steps for fixed steps"
        ) from error


def progress(total: int, description: str, unit: str = "sample") -> tqdm:
    """A progress bar with rate and time left; silent where stderr is no terminal."""
    return tqdm(total=total, desc=description, unit=unit, disable=None, dynamic_ncols=True, smoothing=0.1)


def draw_to_files(workdir: str, name: str, n: int, *, seed: int = 0, out: str | None = None, **settings: Any) -> str:
    """Draw n samples of the run into samples/<name>/ (or `out`): samples.npz and grid.png.

    arr_0 of samples.npz is uint8 (n, h, w, c), 0..255, or float32 vectors (n, d). settings: steps, eta, grid, as for
    `make_sampler`. Returns a line that says what was done.

    Raises UserError for an unknown sampler or setting, n below 1, a missing run, or a folder that cannot be written.
    """
    if n < 1:
        raise UserError(f"--n is {n}: give at least 1 sample")
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed is {seed}: give an integer from 0 to 2^32 - 1")
    check_sampler(name)
    run = load_run(workdir)
    sampler = make_sampler(name, run.config, **settings)
    folder = user_path(out, "--out") if out else Path(run.workdir) / "samples" / name
    labels = class_labels(run, n, seed)
    start = perf_counter()
    draws = draw(run, sampler, jax.random.key(seed), n, run.config.sample.batch_size, name, labels)
    seconds = perf_counter() - start
    write_samples(run, draws.x, folder)
    cost = f"{draws.nfe:,.0f} NFE, {seconds:.1f} s with compilation"
    return f"{name}: {n} samples, {cost}, step {run.step}: {folder / 'samples.npz'}"


def write_samples(run: Run, x: Array, folder: Path) -> None:
    """Write samples.npz and grid.png of samples in the model's space."""
    from experiment import plots

    levels = np.asarray(run.scaling.to_data(x))
    images = run.scaling.levels is not None
    points = run.scaling.to_uint8(levels) if images else levels.astype(np.float32)
    picture = plots.image_grid(points[:100]) if images else plots.scatter({"samples": points})
    write_npz(folder / "samples.npz", arr_0=points)
    write_bytes(folder / "grid.png", picture)
