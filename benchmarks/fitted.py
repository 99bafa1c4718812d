"""Strong errors of fitted samplers on exact mixtures: python benchmarks/fitted.py [--json=FILE]

Two mixtures in two dimensions, of four components with full covariances, under VP. For each number of calls the best
of fifteen methods and grids, and the fit, are measured on 4,096 latents that the fit has not seen: the root
mean square distance from the fine solution. The fit is made anew on other latents (another seed), and on 256 of them.

Takes two to four minutes on two CPU cores.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
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
LATENTS, TESTED = 2048, 4096
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


def measure(data: GaussianMixture) -> list[dict[str, Any]]:
    """The errors at each number of calls."""
    score_fn = ExactScore(data, VP())
    fine = sample(FINE, score_fn, jax.random.key(99), TESTED, (2,)).x

    def error(sampler: LinearSampler) -> float:
        x = sample(sampler, score_fn, jax.random.key(99), TESTED, (2,)).x
        return float(jnp.sqrt(jnp.mean(jnp.sum((x - fine) ** 2, axis=1))))

    def fit(seed: int, latents: int) -> float:
        return error(fit_table(score_fn, jax.random.key(seed), steps=calls, shape=(2,), latents=latents))

    rows = []
    for calls in CALLS:
        best, name = min((error(method), repr(method)) for method in unfitted(calls))
        fits = {"fitted": fit(0, LATENTS), "another_seed": fit(1, LATENTS), "on_256": fit(2, 256)}
        ratio = fits["fitted"] / best
        rows.append({"calls": calls, "best": best, "method": name, **fits, "ratio": ratio})
        print(f"{calls:3} calls  {best:.5f} {name.partition('(')[0]:14} fitted {fits}  ratio {ratio:.3f}", flush=True)
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
