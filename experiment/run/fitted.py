"""Samplers fitted to a run's score, kept in its folder: RUN/fitted/steps8.npz is `--sampler=fitted --steps=8`.

Each file says what it was fitted to: the step, a digest of the score, its SDE, and how far from the fine solution the
fit ends for latents that it has not seen.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from experiment.build.samplers import FITTED, FLOW_MAP, make_sampler
from experiment.common.errors import UserError
from experiment.common.progress import say_start
from experiment.data.npz import read_npz
from sde_lib.conversions import denoiser, noise
from sde_lib.samplers import FittedSampler, Table, Times
from sde_lib.sde import host_sde

Array = np.ndarray

MODELS = {"denoiser": denoiser, "noise": noise}  # what a table's values are
COLUMNS = ("t", "t_next", "a", "b")
KEPT = (*COLUMNS, "sde", "model", "start", "error", "start_error", "latents", "step", "score")


@dataclass(frozen=True, eq=False)
class RunsSampler(FittedSampler):
    """A fitted sampler of a run, which knows the others beside it: at another budget it is the one for that."""

    of: Any = field(kw_only=True, repr=False)  # the run

    def at_nfe(self, nfe: int) -> Self:
        """The run's sampler for so many calls. Raises UserError where none was fitted."""
        return load_fitted(self.of, nfe)  # type: ignore[return-value]


def sampler_of(run: Any, name: str, *, steps: int | None = None, **settings: Any) -> Any:
    """The sampler by its name, with the run's settings and these: the run's own where it is `fitted`.

    Raises UserError as `make_sampler` does, and where no sampler was fitted to the run, or it has no flow map.
    """
    if name == FLOW_MAP:
        run.flow_map  # noqa: B018 - raises where there is none
    if name != FITTED:
        return make_sampler(name, run.config, steps=steps, **settings)
    given = next((flag for flag, value in settings.items() if value is not None), None)
    if given is not None:
        raise UserError(f"--{given}: {FITTED} has no such setting, its times and weights are fitted: leave it out")
    return load_fitted(run, steps)


def load_fitted(run: Any, steps: int | None = None) -> RunsSampler:
    """The sampler fitted to the run for so many steps; without a number the only one, or that of most steps.

    Says so in a line where it was fitted to another score than the run has now. Raises UserError where there is none,
    or none for this SDE.
    """
    folder = Path(run.workdir) / "fitted"
    found = sorted(int(path.stem.removeprefix("steps")) for path in folder.glob("steps*.npz") if _is_ours(path))
    remedy = f"python -m experiment.fit_sampler --workdir={run.workdir} --nfe={steps or 8}"
    if not found:
        raise UserError(f"no sampler was fitted to {run.workdir}: make one by {remedy}")
    if steps is not None and steps not in found:
        known = ", ".join(map(str, found))
        raise UserError(f"fitted: none of {steps} steps, samplers of {known} steps were fitted; make it by {remedy}")
    return _read(run, folder / f"steps{steps or found[-1]}.npz", remedy)


def _is_ours(path: Path) -> bool:
    number = path.stem.removeprefix("steps")
    return number.isascii() and number.isdigit() and len(number) < 9


def _read(run: Any, path: Path, remedy: str) -> RunsSampler:
    arrays = read_npz(path)
    try:
        kept = {name: arrays[name] for name in KEPT}
        t, t_next, a, b = (np.asarray(kept[name], float) for name in COLUMNS)
        table = Table(t, t_next, a, b)
        count = len(table.t)
        whole = {v.shape for v in (t, t_next, a)} == {(count,)} and b.ndim == 2 and len(b) == count
        if not whole or not all(np.isfinite(v).all() for v in (t, t_next, a, b)):
            raise ValueError("its table has other shapes, or numbers that are not finite")
        sampler = RunsSampler(
            steps=count,
            grid=Times((*map(float, table.t), float(table.t_next[-1]))),
            table=table,
            sde=run.score_fn.sde,
            start=str(kept["start"]),
            error=float(kept["error"]),
            start_error=float(kept["start_error"]),
            latents=int(kept["latents"]),
            model=MODELS[str(kept["model"])],
            of=run,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): make it anew by {remedy}") from error
    sde = repr(host_sde(run.score_fn.sde))
    if str(kept["sde"]) != sde:
        raise UserError(f"{path} was fitted on {kept['sde']}, and the run's process is {sde}: make it anew by {remedy}")
    if str(kept["score"]) != digest(run.score_fn):
        say_start(
            f"{path.name} was fitted to another score than this, that of {run.workdir} at step {int(kept['step'])} "
            f"without guidance: it may be far off; fit it anew by {remedy}"
        )
    return sampler


def digest(score_fn: Any) -> str:
    """What stands for the score: equal for equal weights and scales."""
    leaves, structure = jax.tree.flatten(score_fn)
    found = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        array = np.ascontiguousarray(np.asarray(leaf))
        found.update(f"{array.dtype.str} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()[:16]
