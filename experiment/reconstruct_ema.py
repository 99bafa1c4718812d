"""Write a run with an average of the weights that was never tracked: the post-hoc EMA of EDM2.

It is rebuilt from another run's snapshots:

    python -m experiment.reconstruct_ema --workdir=RUN --sigma_rel=0.08 --out=NEW [--step=...]

RUN was trained with config.train.power_ema, say (0.05, 0.1). NEW is a run directory that sample.py and evaluate.py take
like any other; it holds the average alone and cannot be trained further.
"""

import experiment.command_line.start  # noqa: F401
from experiment import cli
from experiment.cli import flags
from experiment.common.errors import UserError


def main() -> int:
    given = flags.FLAGS
    if given.out is None or given.sigma_rel is None:
        raise UserError("give --sigma_rel=0.08, say, and --out=NEW, the run directory to write")

    from experiment.training.power_ema import write_reconstruction

    print(write_reconstruction(given.workdir, given.out, given.sigma_rel, given.step))
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/digits", "The run whose snapshots to use.")
    flags.DEFINE_string("out", None, "The run directory to write.")
    flags.DEFINE_float("sigma_rel", None, "The average's relative width, above 0 and below 0.288.")
    flags.DEFINE_integer("step", None, "The step to average up to. Default: the last snapshot's.")
    cli.run_app(main)
