"""Set runs side by side: what differs in their configs, their quality with floors, likelihood, losses and cost.

    python -m experiment.compare RUN RUN .. --out=DIR
    python -m experiment.compare SWEEP [--out=DIR]

A sweep's folder stands for its runs. Writes compare.html, compare.csv, compare.json and loss.png to DIR, which of one
sweep alone is its own folder. Only files of the runs are read: evaluate them first, with evaluate.py.
"""

import experiment.command_line.start  # noqa: F401
from experiment import cli
from experiment.cli import flags


def define_flags() -> None:
    """Define the flags, only where this is the command: sample.py and evaluate.py have flags of the same names."""
    flags.DEFINE_string("out", None, "Folder for the files. Default: the sweep's, where one alone is given.")


def main(*runs: str) -> int:
    from experiment.report.compare import compare_runs

    print(*compare_runs(runs, flags.FLAGS.out), sep="\n")
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run_app(main, positional=("RUN ..",))
