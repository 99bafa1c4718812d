"""Train a run, or go on with it: the same command again resumes, bit for bit.

    python train.py --config=configs/digits.py --workdir=runs/digits --config.train.steps=4000
    python train.py --config=configs/toys.py --config.data.name=checkerboard --workdir=runs/checkerboard

Writes the run directory: config.json, checkpoints/, metrics.jsonl and tensorboard/.
"""

from collections.abc import Iterable
from typing import Any

import experiment.command_line.start  # noqa: F401
from experiment import cli
from experiment.cli import flags

WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "The run directory.")


def main(config: Any, given: Iterable[str]) -> int:
    from experiment.training.loop import train

    return train(config, WORKDIR.value, given=given)


if __name__ == "__main__":
    cli.run_app(main, config="configs/digits.py")
