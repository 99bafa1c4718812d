"""Held-out digits restored from what is seen of them, and how well each method's draws are calibrated.

    python benchmarks/restore.py [--workdir=runs/digits] [--only=methods,operators] [--n=100] [--all=297] [--draws=15]
        [--steps=100] [--json=FILE]

Trains configs/digits.py into WORKDIR where it is not trained yet. `methods`: the first n held-out digits, the left half
seen, by each method. `operators`: all of them by the default method, from the left half, from 2 x 2 means of blocks of
4 x 4, and from a blur. The noise is 1.7 of the 17 levels, 0.2 in the model's space. A part goes over its own rows of
the file.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from configs import digits
from experiment.build.samplers import make_sampler
from experiment.common.files import write_json
from experiment.common.provenance import provenance
from experiment.evaluation.restoration import calibration_of, restore_examples
from experiment.evaluation.results import plain
from experiment.evaluation.seen import Asked, see
from experiment.report.restoration import GRID, SAMPLER
from experiment.run.load import load_run
from experiment.training.loop import train
from sde_lib.inverse import Assimilation, Jensen, MomentMatching, Proximal, PseudoInverse

NOISE = 1.7  # levels
METHODS = {
    "MomentMatching(1)": MomentMatching(1),
    "MomentMatching(2)": MomentMatching(2),
    "PseudoInverse": PseudoInverse(),
    "Assimilation": Assimilation(),
    "Jensen": Jensen(),
    "Proximal": Proximal(),
}
OPERATORS = {"mask": Asked(), "downsample": Asked(factor=4), "blur": Asked(width=1.0)}


def restored(run: Any, operator: str, method: Any, n: int, draws: int, steps: int, eta: float | None = None) -> Any:
    """One row: the figures, their errors and the cost."""
    seen = see(operator, OPERATORS[operator], tuple(run.shape), run.scaling)
    sampler = make_sampler(SAMPLER, run.config, steps=steps, grid=GRID, eta=eta)
    found = restore_examples(run, seen, NOISE, method, sampler, n=n, draws=draws)
    figures = calibration_of(found, seen, run.scaling)
    cost = {"nfe": found.nfe, "jvps": found.jvps, "seconds": round(found.seconds, 1)}
    row = {"seen": seen.words, "method": repr(method), "n": len(found.index), "draws": draws, "steps": steps}
    print(f"{operator}, {row['method']}: {plain(figures)}", flush=True)
    return plain({**row, **vars(figures), **cost})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits"))
    parser.add_argument("--only", default="methods,operators")
    parser.add_argument("--names", default=",".join(METHODS))
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--all", type=int, default=297)
    parser.add_argument("--draws", type=int, default=15)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/restore.json"))
    args = parser.parse_args()
    if not (args.workdir / "config.json").is_file():
        train(digits.get_config(), args.workdir)
    run, parts = load_run(args.workdir), args.only.split(",")
    found: dict[str, Any] = json.loads(args.json.read_text()) if args.json.is_file() else {}

    def keep(part: str, name: str, row: Any) -> None:
        found.setdefault(part, {})[name] = row
        write_json(args.json, {**found, "noise": NOISE, "step": run.step, **provenance()})

    if "methods" in parts:
        for name in args.names.split(","):
            keep("methods", name, restored(run, "mask", METHODS[name], args.n, args.draws, args.steps))
    if "operators" in parts:
        for name in OPERATORS:
            keep("operators", name, restored(run, name, MomentMatching(), args.all, args.draws, args.steps))


if __name__ == "__main__":
    main()
