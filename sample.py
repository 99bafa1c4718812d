"""Draw samples from a run.

    python sample.py --workdir=runs/digits --sampler=ddim --n=64
        [--steps=50] [--eta=1] [--grid=karras] [--seed=0] [--out=DIR]

Writes samples.npz and grid.png to WORKDIR/samples/SAMPLER/, or to DIR.
"""

import experiment.command_line.start  # noqa: F401
from experiment import cli
from experiment.cli import flags

WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "The run directory.")
SAMPLER = flags.DEFINE_string("sampler", "pc", "A sampler by name; --sampler=list shows them all.")
N = flags.DEFINE_integer("n", 64, "How many samples.")
STEPS = flags.DEFINE_integer("steps", None, "Steps of the sampler. Default: the run's own setting.")
ETA = flags.DEFINE_float("eta", None, "How much noise: 0 is the ODE, 1 the reverse SDE. Default: the sampler's own.")
GRID = flags.DEFINE_string(
    "grid", None, "Where the steps are: t, log_snr, karras, quadratic, flow. Default: the sampler's own."
)
SEED = flags.DEFINE_integer("seed", 0, "Sample i depends on (seed, i) alone.")
OUT = flags.DEFINE_string("out", None, "Folder for samples.npz and grid.png. Default: WORKDIR/samples/SAMPLER.")


def main() -> int:
    from experiment.sampling import draw_to_files

    settings = {"steps": STEPS.value, "eta": ETA.value, "grid": GRID.value}
    print(draw_to_files(WORKDIR.value, SAMPLER.value, N.value, seed=SEED.value, out=OUT.value, **settings))
    return 0


if __name__ == "__main__":
    cli.run_app(main)
