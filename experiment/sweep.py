"""Train many runs from one config: every point of a grid, or a list of them.

    python -m experiment.sweep --config=configs/digits.py --workdir=sweeps/lr
        --set train.lr=1e-3,2e-3 --set sde.name=vp,ve
        [--config.train.steps=2000] [--runs=FILE] [--at_once=4] [--slurm=FILE]

Each run is trained by train.py, in WORKDIR/NAME/, whose name tells the keys that are its own. The same command again
goes on: finished runs are left as they are, the others resume from their newest checkpoint. python -m
experiment.compare WORKDIR sets them side by side.
"""

import os

import experiment.command_line.start  # noqa: F401
from experiment import cli
from experiment.cli import flags


def define_flags() -> None:
    """Define the flags, only where this is the command: sample.py and evaluate.py have flags of the same names."""
    flags.DEFINE_string("workdir", "", "The folder of the sweep: its runs, their logs and sweep.json; to be given.")
    flags.DEFINE_multi_string(
        "set",
        [],
        "A key and its values, KEY=V1,V2; given several times, every combination. A value with a comma stands in "
        "brackets or quotes, as in --set 'model.channel_mults=(1,2),(1,2,2)'.",
    )
    flags.DEFINE_string(
        "runs", None, "A file with one run a line, as in: train.lr=1e-3 sde.name=ve; with --set, each with the grid."
    )
    flags.DEFINE_integer("at_once", 1, "Runs that are trained at once.")
    flags.DEFINE_string("slurm", None, "Write a script for SLURM's sbatch, with one job for each run, and stop.")


def main(config, given) -> int:  # type: ignore[no-untyped-def]
    environment = dict(os.environ)
    os.environ["JAX_PLATFORMS"] = "cpu"  # this process only looks at the data; the devices are for the runs
    from experiment.training.sweep import sweep

    values = flags.FLAGS
    listed, at_once, slurm = values.runs, values.at_once, values.slurm
    return sweep(
        config, given, values.workdir, values.set, listed=listed, at_once=at_once, slurm=slurm, environment=environment
    )


if __name__ == "__main__":
    define_flags()
    cli.run_app(main, config="configs/digits.py")
