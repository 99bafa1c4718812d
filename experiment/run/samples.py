"""Samples of a run as files: samples.npz, in the layout that the ADM evaluation suite reads, and grid.png."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from experiment.build.samplers import check_sampler, make_sampler
from experiment.config import check_flag, check_seed
from experiment.files import check_folder, user_path, write_bytes, write_npz
from experiment.progress import say_start
from experiment.run.conditions import Asked, arrays_of, conditions, kind_of_run
from experiment.run.guidance import Guidance, guided
from experiment.run.load import load_run
from experiment.sampling import as_data, check_samples_fit, draw, expected_seconds, picture_of, told

Array = np.ndarray


def draw_to_files(
    workdir: str,
    name: str,
    n: int,
    *,
    seed: int = 0,
    label: Sequence[int] | None = None,
    prompt: Sequence[str] | None = None,
    cond: str | None = None,
    guidance: Guidance | None = None,
    out: str | None = None,
    **settings: Any,
) -> str:
    """Draw n samples of the run into samples/<name>/ (or `out`): samples.npz and grid.png.

    arr_0 of samples.npz is uint8 (n, h, w, c), 0..255, or floats in the data's units. What a conditional network was
    told is beside it: arr_1, the classes, int (n,); cond (n, m); prompts, strings (n,); or embeddings and mask. label,
    prompt, cond: what to draw, in turn, or a file that says it; without them it is as `conditions` has it.
    guidance: of the score.
    settings: steps, eta, grid, as for `make_sampler`. Returns a line that says what was done.

    Raises UserError for an unknown sampler or setting, a number out of range or beyond memory, a missing run, a class
    that it does not have, a folder that cannot be written, and samples that are not finite.
    """
    import jax

    check_flag("n", n, least=1)
    check_seed(seed)
    check_flag("steps", settings.get("steps"), "sample.steps")
    check_sampler(name)
    folder = user_path(out, "--out") if out else user_path(workdir, "run directory") / "samples" / name
    run = guided(load_run(workdir), guidance or Guidance())
    sampler = make_sampler(name, run.config, **settings)
    check_samples_fit(n, run.shape)
    rows = conditions(run, n, seed, Asked(label, prompt, cond))
    check_folder(folder)
    seconds = expected_seconds(run, sampler, n)
    say_start(f"{name}: {n:,} samples of {run.workdir} at step {run.step}{told(run, seconds)}")
    start = perf_counter()
    draws = draw(run, sampler, jax.random.key(seed), n, run.config.sample.batch_size, name, rows)
    seconds = perf_counter() - start
    write_samples(run, draws.x, folder, arrays_of(kind_of_run(run), rows, labels="arr_1"))
    cost = f"{draws.nfe:,.0f} NFE, {seconds:.1f} s with compilation"
    return f"{name}: {n} samples, {cost}, step {run.step}: {folder / 'samples.npz'}"


def write_samples(run: Any, x: Array, folder: Path, beside: Mapping[str, Array] | None = None) -> None:
    """Write samples.npz and grid.png of samples in the model's space; beside: other arrays for the former."""
    points = as_data(run.scaling, x)
    picture = picture_of(run.scaling, points if points.ndim == 2 else points[:100])
    write_npz(folder / "samples.npz", arr_0=points, **(beside or {}))
    write_bytes(folder / "grid.png", picture)
