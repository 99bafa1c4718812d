"""Restore held-out examples, or what you observed, from a part, a blur or any linear view, by a run's score.

    python -m experiment.restore --workdir=runs/digits --operator=mask --noise=1.7
        [--seen=left|box|random|FILE] [--method=moment_matching] [--draws=15] [--n=40]
        [--sampler=sde_dpmpp_2m] [--steps=100] [--particles=64] [--seed=0] [--out=DIR]
    python -m experiment.restore --workdir=runs/digits --operator=downsample --factor=4 --noise=1.7
    python -m experiment.restore --workdir=runs/digits --operator=blur --width=1 --noise=1.7
    python -m experiment.restore --workdir=runs/digits --matrix=FILE.npz --noise=1.7
    python -m experiment.restore --workdir=runs/digits --observed=FILE.npz --seen=left --noise=1.7
        [--label=3 | --prompt="a thick seven" | --cond=FILE.npz]

Writes WORKDIR/restore/OPERATOR/: restored.npz, restore.json, examples.png and restore.html.

--noise is in the levels of the data, or in the units of data without levels: of images of 256 levels --noise=25.5 is
what papers on images in [-1, 1] call 0.2, and of the digits' 17 levels --noise=1.7.
"""

import experiment.command_line.start  # noqa: F401
from experiment import cli
from experiment.cli import flags


def define_flags() -> None:
    """Define the flags, only where this is the command: sample.py and evaluate.py have flags of the same names."""
    flags.DEFINE_string("workdir", "runs/digits", "The run directory.")
    flags.DEFINE_string(
        "operator",
        None,
        "What is seen: mask, downsample, blur, denoise, colour or matrix; --operator=list shows them. Default: mask.",
    )
    flags.DEFINE_float(
        "noise", None, "The standard deviation of the observation's noise, in the data's levels or units; to be given."
    )
    flags.DEFINE_string(
        "seen",
        None,
        "With --operator=mask, what is seen: left (the left half), box (all around one), random, or a mask's .png, "
        ".npz or .npy. Default: left.",
    )
    flags.DEFINE_float("share", None, "With --seen=random: the share of the places that is seen. Default: 0.5.")
    flags.DEFINE_integer("factor", None, "With --operator=downsample: the side of a block. Default: 4.")
    flags.DEFINE_float("width", None, "With --operator=blur: the Gaussian's width in places. Default: 1.")
    flags.DEFINE_string(
        "matrix", None, "The .npz or .npy of a matrix (m, entries of an example): y = matrix x, x in the data's units."
    )
    flags.DEFINE_string("method", "moment_matching", "A method by name; --method=list shows them all.")
    flags.DEFINE_integer(
        "iterations",
        None,
        "Of moment_matching: each costs a derivative product. Default: 1; a blur of smooth fields wants more.",
    )
    flags.DEFINE_string(
        "observed",
        None,
        "Your own observations instead of held-out examples: an .npz with y (n, *seen), or one, in the data's levels "
        "or units; or a picture.",
    )
    flags.DEFINE_list("label", None, "With --observed: the class of each, in turn.")
    flags.DEFINE_multi_string("prompt", None, "With --observed: what each is, in turn.")
    flags.DEFINE_string("cond", None, "With --observed: an .npz with cond, a row for each, or with embeddings.")
    flags.DEFINE_integer("draws", 15, "Draws for each example.")
    flags.DEFINE_integer("n", 40, "Held-out examples, the same ones each time, or observations, the first ones.")
    flags.DEFINE_string("sampler", None, "A sampler by name, as of sample.py. Default: sde_dpmpp_2m.")
    flags.DEFINE_integer("steps", None, "Steps of the sampler. Default: 100; the run's own with --sampler.")
    flags.DEFINE_float("eta", None, "How much noise: 0 is the ODE, 1 the reverse SDE. Default: the sampler's own.")
    flags.DEFINE_string("grid", None, "Where the steps are, as of sample.py. Default: log_snr.")
    flags.DEFINE_integer(
        "particles", None, "Draw each by so many weighted particles: twisted SMC, which has the weights of modes."
    )
    flags.DEFINE_integer("seed", 0, "The seed of noise, draws and a random mask; 0 to 2^32 - 1.")
    flags.DEFINE_string("out", None, "Folder for the files. Default: WORKDIR/restore/OPERATOR.")
    flags.DEFINE_string("data", "", "Where the run's data lie now. Default: where they were when it was trained.")
    flags.DEFINE_string("cache", "", "Where prepared data are kept now. Default: the run's config.data.cache.")


def main() -> int:
    from experiment.report.restoration import SETTINGS, restore_run

    values = flags.FLAGS
    given = {name: values[name].value for name in SETTINGS}
    given["label"] = cli.whole_numbers("label", given["label"])
    print(*restore_run(values.workdir, given, values.out, values.data, values.cache), sep="\n")
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run_app(main)
