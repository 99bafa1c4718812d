"""Write the explorer, one page of figures to drag and click: python -m experiment.explorer --out=explorer.html

Its data are a figure-eight of 64 Gaussians, so all that it shows is exact, computed in the browser. It opens from disk,
loads nothing and needs no server; docs/explorer/index.html is this page.
"""

import experiment.command_line.start  # noqa: F401
from experiment import cli
from experiment.cli import flags


def define_flags() -> None:
    """Define the flags, only where this is the command: sample.py and evaluate.py have flags of the same names."""
    flags.DEFINE_string("out", "explorer.html", "The page's file.")


def main() -> int:
    from experiment.report.explorer.write import write_explorer

    print(*write_explorer(flags.FLAGS.out), sep="\n")
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run_app(main)
