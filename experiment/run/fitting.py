"""Fit samplers of few calls to a run and keep them in its folder, for experiment/run/fitted.py."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import numpy as np

from experiment.common.errors import UserError
from experiment.common.files import check_folder, write_npz
from experiment.common.progress import say_start
from experiment.config import check_flag, check_seed
from experiment.run.conditions import conditions
from experiment.run.fitted import COLUMNS, MODELS, digest
from experiment.run.load import load_run
from sde_lib.samplers import fit_table

BATCH = 64  # latents at once
UPDATES = 20  # at most: more take minutes, and gain a percent or two each


def fit_run(workdir: str, nfe: Sequence[int], latents: int = 256, seed: int = 0) -> str:
    """Fit a sampler for each number of calls and keep it in the run. Returns the lines that say how good they are.

    Raises UserError for a number out of range, and a missing run.
    """
    for calls in nfe:
        check_flag("nfe", calls, "sample.steps", least=1)
    check_flag("latents", latents, least=8)
    check_seed(seed)
    run = load_run(workdir)
    folder = Path(run.workdir) / "fitted"
    check_folder(folder)
    many = "a sampler" if len(nfe) == 1 else f"{len(nfe)} samplers"
    say_start(f"fitting {many} to {run.workdir} at step {run.step}, on {latents} latents; minutes for a network")
    return "\n".join(_fit(run, folder, calls, latents, seed) for calls in sorted(set(nfe)))


def _fit(run: Any, folder: Path, calls: int, latents: int, seed: int) -> str:
    start = perf_counter()
    try:
        fitted = fit_table(
            run.score_fn,
            jax.random.key(seed),
            steps=calls,
            shape=run.shape,
            latents=latents,
            cond=conditions(run, latents, seed),
            iterations=UPDATES,
            batch_size=min(latents, BATCH),
        )
    except ValueError as error:
        raise UserError(
            f"no sampler can be fitted to {run.workdir}: {error}; train on, or take another step"
        ) from error
    model = next(name for name, function in MODELS.items() if function is fitted.model)
    told = {name: np.asarray(getattr(fitted, name)) for name in ("start", "error", "start_error", "latents")}
    arrays = {name: getattr(fitted.table, name) for name in COLUMNS} | told
    arrays |= {"sde": np.asarray(repr(fitted.sde)), "model": np.asarray(model)}
    path = folder / f"steps{calls}.npz"
    write_npz(path, **arrays, step=np.asarray(run.step), score=np.asarray(digest(run.score_fn)))
    return (
        f"{calls} calls: {fitted.error:.4g} from the fine solution, rms over {latents - fitted.latents} latents that "
        f"were held out; {fitted.start_error:.4g} by the best method it starts from ({fitted.start.partition('(')[0]});"
        f" {perf_counter() - start:.0f} s: {path}"
    )
