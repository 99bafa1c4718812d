"""A run with an average of the weights that was never tracked, rebuilt from another run's snapshots (EDM2's post-hoc
EMA).

    python -m experiment.reconstruct_ema --workdir=RUN --sigma_rel=0.08 --out=NEW [--step=...]

RUN was trained with config.train.power_ema, say (0.05, 0.1). NEW is a run directory that sample.py and evaluate.py take
like any other; it holds the average alone and cannot be trained further.
"""

from pathlib import Path
from typing import Any

from absl import flags

from experiment import cli
from experiment.config import load_config, save_config
from experiment.errors import UserError
from experiment.run.checkpoint import Damaged
from experiment.run.directory import RunDirectory
from experiment.run.load import read_config, weights_like
from experiment.training.trainer import width_name
from sde_lib.ema import reconstruct


def reconstructed(workdir: str | Path, sigma_rel: float, step: int | None = None) -> tuple[Any, int]:
    """(the weights' average of relative width sigma_rel at `step`, that step), by default at the last snapshot's.

    Raises UserError for a run without snapshots, or with damaged ones, and for a width or step out of range.
    """
    directory = RunDirectory(workdir)
    config, data = read_config(directory)
    steps = directory.snapshots.steps()
    if not steps:
        remedy = "train with --config.train.power_ema=0.05,0.1 --config.train.snapshot_every=1000"
        raise UserError(f"run directory {workdir} has no snapshots of its weights' averages: {remedy}")
    weights = weights_like(config, data)
    like = {"power_ema": {width_name(width): weights for width in config.train.power_ema}}
    try:
        read = {at: directory.snapshots.read(at, like)[0]["power_ema"] for at in steps}
    except Damaged as error:
        raise UserError(
            f"a snapshot in {directory.snapshots.directory} is damaged ({error}): restore it, or remove its folder"
        ) from None
    at = steps[-1] if step is None else step
    snapshots = [
        (k, width, averages[width_name(width)]) for k, averages in read.items() for width in config.train.power_ema
    ]
    try:
        return reconstruct(snapshots, at, sigma_rel), at
    except ValueError as error:
        raise UserError(str(error)) from None


def write_run(workdir: str | Path, out: str | Path, sigma_rel: float, step: int | None = None) -> Path:
    """The run `out` with that average as its weights. Raises UserError where `out` has checkpoints already."""
    source, target = RunDirectory(workdir), RunDirectory(out)
    if target.checkpoints.steps():
        raise UserError(f"{target.path} has checkpoints already: choose another --out")
    params, at = reconstructed(workdir, sigma_rel, step)
    config, beside = load_config(source.config_path)
    with target.lock():
        target.checkpoints.save({"ema": params, "step": at}, {})
        save_config(target.config_path, config, **beside, reconstructed={"sigma_rel": sigma_rel, "step": at})
    return target.path


def main() -> int:
    given = flags.FLAGS
    if given.out is None or given.sigma_rel is None:
        raise UserError("give --sigma_rel=0.08, say, and --out=NEW, the run directory to write")
    print(write_run(given.workdir, given.out, given.sigma_rel, given.step))
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/digits", "The run whose snapshots to use.")
    flags.DEFINE_string("out", None, "The run directory to write.")
    flags.DEFINE_float("sigma_rel", None, "The average's relative width, above 0 and below 0.288.")
    flags.DEFINE_integer("step", None, "The step to average up to. Default: the last snapshot's.")
    cli.run_app(main)
