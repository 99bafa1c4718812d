"""Held-out digits restored from what is seen of them, and how well each method's draws are calibrated.

    python benchmarks/restore.py [--workdir=runs/digits] [--operators=mask] [--methods=moment_matching,proximal]
        [--n=100] [--draws=15] [--steps=100] [--json=FILE]

Trains configs/digits.py into WORKDIR where it is not trained yet. n held-out digits are seen through each
operator, and drawn by each method: the left half, the 2 x 2 means of blocks of 4 x 4, a blur of width 1. The noise is
1.7 of the 17 levels, 0.2 in the model's space. A row goes over the one of the same operator, method and n in the file.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from configs import digits
from experiment.build.methods import METHODS, make_method
from experiment.build.samplers import make_sampler
from experiment.common.files import write_json
from experiment.common.provenance import provenance
from experiment.evaluation.restoration import calibration_of, restore_examples
from experiment.evaluation.results import plain
from experiment.evaluation.seen import Asked, see
from experiment.report.restoration import GRID, SAMPLER, figure_lines
from experiment.run.load import load_run
from experiment.training.loop import train

NOISE = 1.7  # levels
OPERATORS = {"mask": Asked(), "downsample": Asked(factor=4), "blur": Asked(width=1.0)}


def method_of(name: str) -> Any:
    """The method of this name; moment_matching_2 has two iterations."""
    iterations = name.removeprefix("moment_matching_")
    return make_method("moment_matching", int(iterations)) if iterations != name else make_method(name)


def restored(run: Any, operator: str, method: str, args: Any) -> dict[str, Any]:
    """The figures of a row, their errors and the cost."""
    seen = see(operator, OPERATORS[operator], tuple(run.shape), run.scaling)
    sampler = make_sampler(SAMPLER, run.config, steps=args.steps, grid=GRID)
    found = restore_examples(run, seen, NOISE, method_of(method), sampler, n=args.n, draws=args.draws)
    figures = calibration_of(found, seen, run.scaling)
    print(f"{operator}, {method}, {len(found.y)} digits, {found.seconds:.0f} s", *figure_lines(figures), sep="\n  ")
    row = {"operator": operator, "seen": seen.words, "method": method, "n": len(found.y), "draws": args.draws}
    cost = {"steps": args.steps, "nfe": found.nfe, "jvps": found.jvps, "seconds": round(found.seconds, 1)}
    return plain({**row, **vars(figures), **cost})  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits"))
    parser.add_argument("--operators", default=",".join(OPERATORS))
    parser.add_argument("--methods", default=",".join(["moment_matching_2", *METHODS]))
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--draws", type=int, default=15)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/restore.json"))
    args = parser.parse_args()
    if not (args.workdir / "config.json").is_file():
        train(digits.get_config(), args.workdir)
    run = load_run(args.workdir)
    for operator in args.operators.split(","):
        for method in args.methods.split(","):
            row = restored(run, operator, method, args)
            found = json.loads(args.json.read_text()) if args.json.is_file() else {"rows": []}
            key = [row[name] for name in ("operator", "method", "n", "draws", "steps")]
            others = [
                it for it in found["rows"] if [it[n] for n in ("operator", "method", "n", "draws", "steps")] != key
            ]
            write_json(args.json, {"noise": NOISE, "step": run.step, **provenance(), "rows": [*others, row]})


if __name__ == "__main__":
    main()
