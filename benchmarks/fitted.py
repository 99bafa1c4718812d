"""Strong errors of fitted samplers on exact mixtures: python benchmarks/fitted.py [--json=FILE]

Two mixtures in two dimensions, of four components with full covariances, under VP. For each number of calls the best
of fifteen methods and grids, and the fit, are measured on 65,536 latents that the fit has not seen: the root mean
square distance from the fine solution, and the mean distance. The fit is made anew on other latents (another seed), and
on 256 of them.

A few latents on the border between two modes end at the wrong one, and decide the root mean square: `sets` are the
least and the largest that one and the same table has over sixteen sets of 4,096 latents.

Takes three to five minutes on two CPU cores.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sde_lib import VP, ExactScore, GaussianMixture
from sde_lib.samplers import (
    DEIS,
    IPNDM,
    DPMSolverPP2M,
    DPMSolverPP3M,
    FlowTime,
    LinearSampler,
    Quadratic,
    UniformLogSNR,
    UniPC,
    fit_table,
    sample,
)

CALLS = (4, 5, 8, 12)
LATENTS, TESTED, SETS = 2048, 65536, 16
METHODS = (IPNDM(), DEIS(), DPMSolverPP2M(), UniPC(order=2), UniPC())
GRIDS = (Quadratic(), FlowTime(), UniformLogSNR())
FINE = DPMSolverPP3M(steps=600)


def mixture(seed: int) -> GaussianMixture:
    """Four components with full covariances of eigenvalues from about 0.02 to 0.5."""
    rng = np.random.default_rng(seed)
    factors = 0.3 * rng.normal(size=(4, 2, 2))
    covariances = factors @ factors.transpose(0, 2, 1) + 0.02 * np.eye(2)
    return GaussianMixture(rng.dirichlet(np.full(4, 3.0)), rng.normal(size=(4, 2)), covariances)


def unfitted(calls: int) -> list[LinearSampler]:
    """Each of the methods on each of the grids."""
    return [replace(method, steps=calls, grid=grid) for method in METHODS for grid in GRIDS]


def rms(distances: np.ndarray) -> float:
    """The root mean square."""
    return float(np.sqrt(np.mean(distances**2)))


def measure(data: GaussianMixture) -> list[dict[str, Any]]:
    """The errors at each number of calls."""
    score_fn = ExactScore(data, VP())
    fine = sample(FINE, score_fn, jax.random.key(99), TESTED, (2,)).x

    def distances(sampler: LinearSampler) -> np.ndarray:
        x = sample(sampler, score_fn, jax.random.key(99), TESTED, (2,)).x
        return np.linalg.norm(np.asarray(x - fine, float), axis=1)

    def fit(seed: int, latents: int) -> np.ndarray:
        return distances(fit_table(score_fn, jax.random.key(seed), steps=calls, shape=(2,), latents=latents))

    rows = []
    for calls in CALLS:
        best, name = min((rms(distances(method)), repr(method)) for method in unfitted(calls))
        fits = {"fitted": fit(0, LATENTS), "another_seed": fit(1, LATENTS), "on_256": fit(2, 256)}
        sets = [rms(some) for some in np.split(fits["fitted"], SETS)]
        row = {"calls": calls, "best": best, "method": name, **{kind: rms(found) for kind, found in fits.items()}}
        row |= {f"mean_{kind}": float(found.mean()) for kind, found in fits.items()}
        row |= {"sets": [min(sets), max(sets)], "ratio": row["fitted"] / best}
        rows.append(row)
        told = {key: float(f"{value:.3g}") for key, value in row.items() if isinstance(value, float)}
        print(
            f"{name.partition('(')[0]:14} {calls:3} calls  {told}  sets {min(sets):.3g} to {max(sets):.3g}", flush=True
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    given = parser.parse_args()
    results = {f"mixture {seed}": measure(mixture(seed)) for seed in (0, 1)}
    if given.json:
        Path(given.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
