"""Quality over calls from 1 to 32: python benchmarks/few_steps.py --workdir=RUN [--map=RUN] [--json=FILE]
                                 python benchmarks/few_steps.py --mixture [--json=FILE]

On a run: the sliced Wasserstein-2 distance of 500 samples from 500 training examples, in the model's space, for
samplers on their own grids without a last denoising, for those fitted to the run (`python -m experiment.fit_sampler`),
and for a flow map of the same data (`--map`, a run of train.objective=flow_map); the floor is that of data against
data, 500 and 500 of ten random halves. Two to four minutes on two CPU cores.

On a mixture, the one of benchmarks/flow_map.py with its exact score, over 65,536 latents: the root mean square distance
from the ends of the exact flow map, and KL(samples || data at t_min) by the distances of nearest neighbours, whose
floor is that of exact samples. `fitted` is fitted to the exact score, and the flow map is taught by it, by the
Lagrangian loss; the seconds that each takes are told too. About ten minutes.
"""

import argparse
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.spatial import cKDTree
from scipy.special import digamma

from benchmarks.flow_map import DATA, EXACT, SDE, Toy
from experiment import load_run
from experiment.build.samplers import SAMPLERS as BY_NAME
from experiment.common.errors import UserError
from experiment.evaluation.drawing import flat_points
from experiment.evaluation.metrics import sliced_wasserstein
from experiment.run.fitted import sampler_of
from sde_lib import FlowMapSampler, sample
from sde_lib.samplers import fit_table

CALLS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 32)
SOLVERS = ("ddim", "dpmpp_2m", "unipc", "ipndm", "sde_dpmpp_2m")
SAMPLERS = (*SOLVERS, "fitted")
FITTED_CALLS = CALLS[1:-1]  # of the mixture
N, HALVES = 500, 10
LATENTS, NEIGHBOUR, DRAWS = 65536, 5, 5


def measure(run: Any, name: str, data: np.ndarray, seed: int, **settings: Any) -> dict[int, float]:
    """The distance at each number of calls that the sampler can spend."""
    found = {}
    for calls in CALLS:
        try:
            sampler = sampler_of(run, name, steps=calls, **settings)
            plain = replace(sampler, denoise=False) if sampler.denoise else sampler
            drawn = run.sample(plain, n=N, seed=seed)
        except (UserError, ValueError):  # fewer steps than the method takes, or none fitted for them
            continue
        assert drawn.nfe == calls
        found[calls] = float(f"{sliced_wasserstein(np.asarray(drawn.x).reshape(N, -1), data):.3g}")
    print(
        f"{' '.join([name, *settings]):17}" + "".join(f"{found.get(calls, np.nan):9.4f}" for calls in CALLS), flush=True
    )
    return found


def on_run(workdir: str, flow_map: str | None, seed: int) -> dict[str, Any]:
    """The floor, and the distances of each sampler."""
    run = load_run(workdir)
    train = flat_points(run, run.dataset.train.x)
    rng = np.random.default_rng(seed)
    parts = [rng.permutation(len(train)) for _ in range(HALVES)]
    floors = [sliced_wasserstein(train[part[:N]], train[part[N : 2 * N]]) for part in parts]
    print(
        f"floor {np.mean(floors):.4f} +- {np.std(floors, ddof=1):.4f}\n{'calls':17}" + "".join(f"{c:9}" for c in CALLS)
    )
    data = train[parts[0][:N]]
    rows = {name: measure(run, name, data, seed) for name in SAMPLERS}
    if flow_map:
        jumps = partial(measure, load_run(flow_map), "flow_map", data, seed)
        rows |= {"flow_map": jumps(), "renoised": jumps(renoise=1.0)}
    floor = {"mean": float(np.mean(floors)), "sd": float(np.std(floors, ddof=1))}
    return {"floor": floor, "sliced_w2": rows}


def kl_to_data(x: np.ndarray) -> float:
    """An estimate of KL(the distribution of x || data at t_min) in nats, of points (n, 2).

    Kozachenko & Leonenko 1987: log q(x_i) = digamma(k) - digamma(n) - log(pi r_i²), r_i the distance to the k-th
    nearest of the others.
    """
    radius = cKDTree(x).query(x, NEIGHBOUR + 1)[0][:, -1].astype(float)
    log_q = digamma(NEIGHBOUR) - digamma(len(x)) - np.log(np.pi * np.maximum(radius, 1e-30) ** 2)
    return float(np.mean(log_q - np.asarray(DATA.at(SDE, SDE.t_min).log_prob(x), float)))


def on_mixture() -> dict[str, Any]:
    """The distances and divergences of each method at each number of calls that it can spend, and what it took."""
    key = jax.random.key(0)
    ends = np.asarray(sample(FlowMapSampler(1), EXACT, key, LATENTS, (2,)).x)
    data = DATA.at(SDE, SDE.t_min)
    floors = [kl_to_data(np.asarray(data.sample(jax.random.key(1 + i), LATENTS))) for i in range(DRAWS)]
    print(f"KL floor {np.mean(floors):.4f} +- {np.std(floors, ddof=1):.4f}", flush=True)
    rows: dict[str, dict[int, dict[str, float]]] = {}

    def add(name: str, sampler: Any, of: Any, seconds: float = 0.0) -> None:
        found = sample(sampler, of, key, LATENTS, (2,))
        x, calls = np.asarray(found.x), int(found.nfe)
        row = {"distance": float(np.sqrt(np.mean(np.sum((x - ends) ** 2, axis=1)))), "kl": kl_to_data(x)}
        rows.setdefault(name, {})[calls] = row | ({"seconds": seconds} if seconds else {})
        print(
            f"{name:14} {calls:3} calls  distance {row['distance']:.4f}  KL {row['kl']:.4f}  {seconds:.0f} s",
            flush=True,
        )

    for name in SOLVERS:
        for calls in CALLS:
            solver: Any = BY_NAME[name].sampler
            if calls >= solver.min_steps:
                add(name, replace(solver, denoise=False).at_nfe(calls), EXACT.score)
    for calls in FITTED_CALLS:
        began = time.perf_counter()
        fitted = fit_table(EXACT.score, jax.random.key(9), steps=calls, shape=(2,))
        add("fitted", fitted, EXACT.score, time.perf_counter() - began)
    began = time.perf_counter()
    flow_map = Toy("lagrangian", taught=True).trained()[0]
    seconds = time.perf_counter() - began
    for name, renoise in (("flow_map", 0.0), ("renoised", 1.0)):
        for calls in CALLS[1:] if renoise else CALLS:
            add(name, FlowMapSampler(calls, renoise), flow_map)
    floor = {"mean": float(np.mean(floors)), "sd": float(np.std(floors, ddof=1))}
    return {"kl_floor": floor, "rows": rows, "seconds_of_flow_map": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--workdir", help="a score run")
    where.add_argument("--mixture", action="store_true")
    parser.add_argument("--map", help="a run that learned a flow map of the same data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write every figure to this file")
    args = parser.parse_args()
    results = {"mixture": on_mixture()} if args.mixture else on_run(args.workdir, args.map, args.seed)
    if args.json:
        path = Path(args.json)
        known = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**known, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
