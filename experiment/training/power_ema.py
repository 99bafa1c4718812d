"""An average of the weights that was never tracked, rebuilt from a run's snapshots and written as a run of its own.

Karras et al. 2024, arXiv:2312.02696, section 3 and appendix C.
"""

import shutil
from pathlib import Path
from typing import Any

from experiment.build.objects import abstract_network
from experiment.common.errors import UserError
from experiment.config import load_config, save_config
from experiment.run.checkpoint import Damaged
from experiment.run.directory import RunDirectory
from experiment.run.load import read_config, weights_like
from experiment.training.trainer import width_name
from sde_lib import reconstruct_ema


def reconstructed(workdir: str | Path, sigma_rel: float, step: int | None = None) -> tuple[Any, int]:
    """Rebuild the weights' average of relative width sigma_rel at `step`, by default at the last snapshot's step.

    Returns:
        average: the averaged weights.
        step: the step that they are averaged up to.

    Raises UserError for a run without snapshots, or with damaged ones, and for a width or step out of range.
    """
    directory = RunDirectory(workdir)
    config, data = read_config(directory)
    steps = directory.snapshots.steps()
    if not steps:
        remedy = "train with --config.train.power_ema=0.05,0.1 --config.train.snapshot_every=1000"
        raise UserError(f"run directory {workdir} has no snapshots of its weights' averages: {remedy}")
    weights = weights_like(config, abstract_network(config, data)[1])
    like = {"power_ema": {width_name(width): weights for width in config.train.power_ema}}
    try:
        read = {at: directory.snapshots.read(at, like)[0]["power_ema"] for at in steps}
    except Damaged as error:
        raise UserError(
            f"a snapshot in {directory.snapshots.directory} is damaged ({error}): restore it, or remove its folder"
        ) from None
    at = steps[-1] if step is None else step
    widths = config.train.power_ema
    snapshots = [(k, width, averages[width_name(width)]) for k, averages in read.items() for width in widths]
    try:
        return reconstruct_ema(snapshots, at, sigma_rel), at
    except ValueError as error:
        raise UserError(str(error)) from None


def write_reconstruction(workdir: str | Path, out: str | Path, sigma_rel: float, step: int | None = None) -> Path:
    """Write the run `out` with that average as its weights. Raises UserError where `out` has checkpoints already."""
    source, target = RunDirectory(workdir), RunDirectory(out)
    if target.checkpoints.steps():
        raise UserError(f"{target.path} has checkpoints already: choose another --out")
    params, at = reconstructed(workdir, sigma_rel, step)
    config, beside = load_config(source.config_path)
    with target.lock():
        target.checkpoints.save({"ema": params, "step": at}, {})
        if source.gaussian_path.exists():
            shutil.copyfile(source.gaussian_path, target.gaussian_path)
        save_config(target.config_path, config, **beside, reconstructed={"sigma_rel": sigma_rel, "step": at})
    return target.path
