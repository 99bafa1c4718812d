"""Sample: python sample.py --workdir=runs/digits --sampler=pc --n=64 [--steps=500] [--seed=0] [--out=DIR]."""

from absl import flags

from experiment import cli

WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "The run directory.")
SAMPLER = flags.DEFINE_string("sampler", "pc", "A sampler by name: em, pc, ode.")
N = flags.DEFINE_integer("n", 64, "How many samples.")
STEPS = flags.DEFINE_integer("steps", None, "Steps of the sampler. Default: the run's own setting.")
SEED = flags.DEFINE_integer("seed", 0, "Sample i depends on (seed, i) alone.")
OUT = flags.DEFINE_string("out", None, "Folder for samples.npz and grid.png. Default: WORKDIR/samples/SAMPLER.")


def main() -> int:
    from experiment.sampling import draw_to_files

    print(draw_to_files(WORKDIR.value, SAMPLER.value, N.value, STEPS.value, SEED.value, OUT.value))
    return 0


if __name__ == "__main__":
    cli.run_app(main)
