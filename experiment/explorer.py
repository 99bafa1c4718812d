"""Write the explorer, one page of figures to drag and click: python -m experiment.explorer --out=explorer.html

Its data are a figure-eight of 64 Gaussians, so all that it shows is exact, computed in the browser. It opens from disk,
loads nothing and needs no server; docs/explorer/index.html is this page.

    python -m experiment.explorer --out=explorer.html --workdir=runs/mixture

puts the learned field, paths and densities of a run on two numbers before them, its network computed in the page too.
"""

import experiment.command_line.start  # noqa: F401
from experiment import cli
from experiment.cli import flags


def define_flags() -> None:
    """Define the flags, only where this is the command: sample.py and evaluate.py have flags of the same names."""
    flags.DEFINE_string("out", "explorer.html", "The page's file.")
    flags.DEFINE_string(
        "workdir",
        "",
        "A run on vectors of 2 numbers, whose learned field the page shows beside the exact one. Default: none.",
    )
    flags.DEFINE_string("data", "", "Where the run's data lie now. Default: where they were when it was trained.")
    flags.DEFINE_string("cache", "", "Where prepared data are kept now. Default: the run's config.data.cache.")


def main() -> int:
    from experiment.report.explorer.write import write_explorer

    values = flags.FLAGS
    print(*write_explorer(values.out, values.workdir, values.data, values.cache), sep="\n")
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run_app(main)
