"""Fit samplers of few calls to a run: python -m experiment.fit_sampler --workdir=runs/digits --nfe=4,6,8

Times and weights of each are fitted until its samples end where the ODE's fine solution ends, from the same latents.
The network stays as it is. They are kept in WORKDIR/fitted/; sample.py draws by them as --sampler=fitted --steps=8, and
evaluate.py as --samplers=fitted --nfe=4,6,8.
"""

import experiment.command_line.start  # noqa: F401
from experiment import cli
from experiment.cli import flags


def define_flags() -> None:
    """Define the flags, only where this is the command: sample.py and evaluate.py have flags of the same names."""
    flags.DEFINE_string("workdir", "runs/digits", "The run directory.")
    flags.DEFINE_list("nfe", ["8"], "Score calls of each sampler, as in --nfe=4,6,8.")
    flags.DEFINE_integer("latents", 256, "Latents to fit to; a quarter is held out, to measure by.")
    flags.DEFINE_integer("seed", 0, "The seed of the latents; 0 to 2^32 - 1.")


def main() -> int:
    from experiment.run.fitting import fit_run

    values = flags.FLAGS
    print(fit_run(values.workdir, cli.whole_numbers("nfe", values.nfe) or [], values.latents, values.seed))
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run_app(main)
