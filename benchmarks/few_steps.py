"""Quality over score calls from 1 to 32: python benchmarks/few_steps.py --workdir=RUN [--map=RUN] [--json=FILE]

The sliced Wasserstein-2 distance of 500 samples from 500 training examples, in the model's space, for samplers on their
own grids without a last denoising, for those fitted to the run (`python -m experiment.fit_sampler`), and for a flow map
of the same data (`--map`, a run of train.objective=flow_map); the floor is that of data against data, 500 and 500 of
ten random halves. Two to four minutes on two CPU cores.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiment import load_run
from experiment.common.errors import UserError
from experiment.evaluation.drawing import flat_points
from experiment.evaluation.metrics import sliced_wasserstein
from experiment.run.fitted import sampler_of

CALLS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 32)
SAMPLERS = ("ddim", "dpmpp_2m", "unipc", "ipndm", "sde_dpmpp_2m", "fitted")
N, HALVES = 500, 10


def measure(run: Any, name: str, data: np.ndarray, seed: int) -> dict[int, float]:
    """The distance at each number of calls that the sampler can spend."""
    found = {}
    for calls in CALLS:
        try:
            sampler = sampler_of(run, name, steps=calls)
            plain = replace(sampler, denoise=False) if sampler.denoise else sampler
            drawn = run.sample(plain, n=N, seed=seed)
        except (UserError, ValueError):  # fewer steps than the method takes, or none fitted for them
            continue
        assert drawn.nfe == calls
        found[calls] = float(f"{sliced_wasserstein(np.asarray(drawn.x).reshape(N, -1), data):.3g}")
    print(f"{name:14}" + "".join(f"{found.get(calls, np.nan):9.4f}" for calls in CALLS), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="a score run")
    parser.add_argument("--map", help="a run that learned a flow map of the same data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write every figure to this file")
    args = parser.parse_args()
    run = load_run(args.workdir)
    train = flat_points(run, run.dataset.train.x)
    rng = np.random.default_rng(args.seed)
    parts = [rng.permutation(len(train)) for _ in range(HALVES)]
    floors = [sliced_wasserstein(train[part[:N]], train[part[N : 2 * N]]) for part in parts]
    print(
        f"floor {np.mean(floors):.4f} +- {np.std(floors, ddof=1):.4f}\n{'calls':14}" + "".join(f"{c:9}" for c in CALLS)
    )
    data = train[parts[0][:N]]
    rows = {name: measure(run, name, data, args.seed) for name in SAMPLERS}
    if args.map:
        rows["flow_map"] = measure(load_run(args.map), "flow_map", data, args.seed)
    if args.json:
        floor = {"mean": float(np.mean(floors)), "sd": float(np.std(floors, ddof=1))}
        Path(args.json).write_text(json.dumps({"floor": floor, "sliced_w2": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
