"""Draw samples from a run.

    python sample.py --workdir=runs/digits --sampler=ddim --n=64
        [--steps=50] [--eta=1] [--grid=karras] [--renoise=1] [--seed=0] [--out=DIR]
        [--label=3 | --prompt="a thick seven" | --cond=FILE.npz]
        [--guidance=2] [--guidance_interval=LO,HI] [--guide=RUN] [--gif]

Writes samples.npz and grid.png to WORKDIR/samples/SAMPLER/, or to DIR; with --gif path.gif too.
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
RENOISE = flags.DEFINE_float(
    "renoise", None, "Of flow_map: noise drawn anew between its jumps, from 0 to 1. Default: 0."
)
LABEL = flags.DEFINE_list(
    "label", None, "The class to draw, or several in turn, as in --label=3,7. Default: all, as often as in the data."
)
PROMPT = flags.DEFINE_multi_string(
    "prompt", None, "What to draw, as in --prompt='a thick seven'; given several times, in turn."
)
COND = flags.DEFINE_string(
    "cond",
    None,
    "An .npz with cond: (m,), or (n, m) with a row for each sample; with embeddings and their mask; or with "
    "observations (k, m), k independent ones of every sample.",
)
GUIDANCE = flags.DEFINE_float(
    "guidance",
    None,
    "The scale of guidance by the condition: 1 is none, 2 goes as far again past the unconditional score.",
)
GUIDANCE_INTERVAL = flags.DEFINE_list(
    "guidance_interval",
    None,
    "The log SNR within which there is guidance, as in --guidance_interval=-5,5. Default: all.",
)
GUIDE = flags.DEFINE_string(
    "guide", None, "A run of the same data whose score is guided past, instead of without condition."
)
SEED = flags.DEFINE_integer("seed", 0, "Sample i depends on (seed, i) alone; 0 to 2^32 - 1.")
GIF = flags.DEFINE_bool(
    "gif", False, "Write path.gif too, the way from noise to the first samples: images in a grid, or points of a plane."
)
OUT = flags.DEFINE_string("out", None, "Folder for samples.npz and grid.png. Default: WORKDIR/samples/SAMPLER.")


def main() -> int:
    from experiment.build.samplers import sampler_list

    if SAMPLER.value == "list":
        print(sampler_list())
        return 0

    from experiment.run.guidance import Guidance, interval
    from experiment.run.samples import draw_to_files

    settings = {"steps": STEPS.value, "eta": ETA.value, "grid": GRID.value, "renoise": RENOISE.value}
    told = {"label": cli.whole_numbers("label", LABEL.value), "prompt": PROMPT.value, "cond": COND.value}
    guidance = Guidance(GUIDANCE.value, interval(GUIDANCE_INTERVAL.value), GUIDE.value)
    given = {"seed": SEED.value, "out": OUT.value, "gif": GIF.value, "guidance": guidance, **told, **settings}
    print(draw_to_files(WORKDIR.value, SAMPLER.value, N.value, **given))
    return 0


if __name__ == "__main__":
    cli.run_app(main)
