"""Work with a run's latents: python -m experiment.latents --workdir=runs/digits MODE, where MODE is one of these.

--encode                   Write held-out examples to latents.npz: latents (n, *shape), index (n,), and labels for a
                           class-conditional network.
--decode=FILE.npz          Turn latents back into samples: samples.npz and grid.png, as sample.py writes them.
--interpolate=3,17         Draw a path between two held-out examples through their latents: path.npz and path.png.
--typicality [--of=FILE]   Measure how typical each held-out example is, or each of the file's: typicality.json and
                           typicality.png.
"""

import experiment.command_line.start  # noqa: F401
from experiment import cli
from experiment.cli import flags


def define_flags() -> None:
    """Define the flags, only where this is the command: sample.py and evaluate.py have flags of the same names."""
    flags.DEFINE_string("workdir", "runs/digits", "The run directory.")
    flags.DEFINE_bool("encode", False, "Held-out examples to their latents: latents.npz.")
    flags.DEFINE_string("decode", None, "The latents of this .npz back to samples: samples.npz and grid.png.")
    flags.DEFINE_list(
        "interpolate", None, "Two held-out examples by index, with a path between them: path.npz and path.png."
    )
    flags.DEFINE_integer("points", None, "Points of the path, ends included. Default: 9.")
    flags.DEFINE_bool(
        "typicality",
        False,
        "How typical each held-out example is, against the training examples: typicality.json, .png.",
    )
    flags.DEFINE_string("of", None, "With --typicality: the examples of this .npz instead, against the held-out ones.")
    flags.DEFINE_integer("n", None, "Examples. Default: config.eval.likelihood_n.")
    flags.DEFINE_integer("probes", None, "Hutchinson's probes for each example. Default: config.eval.probes.")
    flags.DEFINE_integer("seed", None, "The seed of dequantisation, probes and the choice of examples. Default: 0.")
    flags.DEFINE_string("out", None, "Folder for the files. Default: WORKDIR/latents.")
    flags.DEFINE_string("data", "", "Where the run's data lie now. Default: where they were when it was trained.")
    flags.DEFINE_string("cache", "", "Where prepared data are kept now. Default: the run's config.data.cache.")


def main() -> int:
    from experiment.evaluation.latents import MODES, SETTINGS, latents_of_run

    values = flags.FLAGS
    print(
        latents_of_run(
            values.workdir,
            {name: values[name].value for name in (*MODES, *SETTINGS)},
            values.out,
            data=values.data,
            cache=values.cache,
        )
    )
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run_app(main)
