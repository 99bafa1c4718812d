"""Each method of `Observed` beside the exact posterior: python benchmarks/posteriors.py [--json=FILE] [--markdown=FILE]

* On Gaussian data no number is from samples: the distribution of the ODE's and the SDE's result, in the limit of many
  steps, by the recursion of `gaussian_law` through the method's own score; its KL divergence from the exact posterior
  in nats, and its variances over the exact ones.
* On a mixture, draws: the total variation between their modes' weights and the exact posterior's.

Takes about five minutes on two CPU cores.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib import VP, ExactScore, GaussianMixture, sample
from sde_lib.inverse import (
    Assimilation,
    Jensen,
    Linear,
    MomentMatching,
    Observed,
    Projection,
    Proximal,
    PseudoInverse,
)
from sde_lib.samplers import DPMSolverPP2M, SDEDPMSolverPP2M, gaussian_law

SDE = VP(t_min=1e-6)  # sigma(t_min) is 0.0003, below every noise here
STEPS = 4000
COLLAPSED = 1e-6  # of a variance over the exact one, below which rounding decides the divergence

METHODS = {
    "MomentMatching": lambda entries: MomentMatching(entries),
    "PseudoInverse": lambda _: PseudoInverse(),
    "Assimilation": lambda _: Assimilation(),
    "Jensen": lambda _: Jensen(),
    "Proximal(1)": lambda _: Proximal(1.0),
    "Proximal(10)": lambda _: Proximal(10.0),
    "Projection": lambda _: Projection(),
}

PLANE = (np.array([0.3, -0.2]), 0.5 * np.array([[1.0, 0.8], [0.8, 1.0]]))
FACTOR = np.random.default_rng(5).normal(size=(5, 5))
FIVE = (np.array([0.5, -1.0, 0.2, 0.0, 0.7]), 0.1 * np.eye(5) + 0.2 * FACTOR @ FACTOR.T)
THREE = np.array([[1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0, 0.0], [0.3, 0.0, -0.2, 0.8, 0.4]])

OBSERVATIONS: dict[str, tuple[Any, np.ndarray, list[float], float]] = {
    "one of two seen, noise 0.3": (PLANE, np.array([[1.0, 0.0]]), [1.0], 0.3),
    "one of two seen, noise 0.05": (PLANE, np.array([[1.0, 0.0]]), [1.0], 0.05),
    "the mean of two, noise 0.1": (PLANE, np.array([[0.5, 0.5]]), [1.0], 0.1),
    "three of five, noise 0.2": (FIVE, THREE, [1.0, -0.5, 0.3], 0.2),
}

MIXTURE = GaussianMixture(
    [0.3, 0.4, 0.3],
    [[-1.2, 0.6], [0.9, 0.9], [0.3, -1.1]],
    [[[0.10, 0.03], [0.03, 0.06]], [[0.05, -0.02], [-0.02, 0.12]], [[0.15, 0.0], [0.0, 0.04]]],
)
SEEN: dict[str, tuple[np.ndarray, list[float], float]] = {
    "one seen, noise 0.5": (np.array([[1.0, 0.0]]), [0.0], 0.5),
    "one seen, noise 0.1": (np.array([[1.0, 0.0]]), [0.5], 0.1),
    "the mean of two, noise 0.1": (np.array([[0.5, 0.5]]), [-0.3], 0.1),
}
DRAWS = 8192
SAMPLERS = {"ODE": DPMSolverPP2M, "SDE": SDEDPMSolverPP2M}


def divergence(
    mean: np.ndarray, covariance: np.ndarray, other: np.ndarray, exact: np.ndarray
) -> tuple[float | None, float]:
    """The divergence KL(N(mean, covariance) || N(other, exact)), and the smallest variance over the exact one.

    The divergence is None where rounding would decide it.
    """
    root = np.linalg.cholesky(exact)
    white = np.linalg.solve(root, np.linalg.solve(root, covariance).T)
    values = np.linalg.eigvalsh((white + white.T) / 2)
    off = np.linalg.solve(root, other - mean)
    if values.min() < COLLAPSED:
        return None, float(values.min())
    return float(0.5 * (np.sum(values - 1 - np.log(values)) + off @ off)), float(values.min())


def on_gaussian(case: str) -> dict[str, Any]:
    """Compute the law of each method's result by the ODE and the SDE, beside the exact posterior."""
    (mean, covariance), matrix, y, noise = OBSERVATIONS[case]
    data = GaussianMixture([1.0], mean[None], covariance[None])
    posterior, _ = data.observe(Linear(matrix), y, noise)
    m, c = np.asarray(posterior.means[0], float), np.asarray(posterior.covariances[0], float)
    alpha, sigma = float(SDE.alpha(SDE.t_min)), float(SDE.sigma(SDE.t_min))
    exact = alpha**2 * c + sigma**2 * np.eye(len(m))
    found: dict[str, Any] = {}
    for name, method in METHODS.items():
        made = method(len(matrix))
        score_fn = Observed(ExactScore(data, SDE), Linear(matrix), noise, made)
        found[name] = {"jvps": made.jvps}
        for by, sampler in SAMPLERS.items():
            law = gaussian_law(
                sampler(steps=STEPS, denoise=False), score_fn, m, c, cond={"y": np.array([y]), "cond": None}
            )
            kl, smallest = divergence(*law, alpha * m, exact)
            ratios = (np.diag(law[1]) / np.diag(exact)).tolist()
            found[name][by] = {"kl": kl, "smallest": smallest, "variances": ratios}
    return found


def on_mixture(case: str) -> dict[str, Any]:
    """Draw from each method, and from the exact posterior, and compare the weights of the modes."""
    matrix, y, noise = SEEN[case]
    posterior, log_evidence = MIXTURE.observe(Linear(matrix), y, noise)
    weights = np.exp(np.asarray(posterior.log_weights, float))
    sde, rows = VP(), {"y": jnp.broadcast_to(jnp.asarray(y, jnp.float32), (DRAWS, len(y))), "cond": None}
    scores = {name: Observed(ExactScore(MIXTURE, sde), Linear(matrix), noise, f(1)) for name, f in METHODS.items()}
    found: dict[str, Any] = {"weights": weights.tolist(), "log_evidence": log_evidence}
    for name, score_fn in {"exact": ExactScore(posterior, sde), **scores}.items():
        found[name] = {}
        for by, sampler in SAMPLERS.items():
            given = None if name == "exact" else rows
            x = sample(sampler(steps=400), score_fn, jax.random.key(0), DRAWS, (2,), cond=given).x
            modes = np.asarray(MIXTURE.posterior(x), float).mean(axis=0)
            found[name][by] = float(0.5 * np.abs(modes - weights).sum())
    return found


def markdown(found: dict[str, Any]) -> str:
    """The tables of the results."""
    lines = []
    for case, methods in found["gaussian"].items():
        lines += [f"**{case}**", "", "| method | ODE: KL, nats | variances over exact | SDE: KL, nats | variances |"]
        lines.append("|---|---|---|---|---|")
        for name, row in methods.items():
            cells = [name]
            for by in SAMPLERS:
                kl = row[by]["kl"]
                cells.append("collapsed" if kl is None else f"{kl:.3g}" if kl > 1e-6 else "< 1e-6")
                cells.append(", ".join(f"{ratio:.2f}" for ratio in row[by]["variances"]))
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    cases = list(found["mixture"])
    lines += ["| method | " + " | ".join(f"{case}: ODE, SDE" for case in cases) + " |", "|---" * (len(cases) + 1) + "|"]
    for name in ("exact", *METHODS):
        cells = [", ".join(f"{found['mixture'][case][name][by]:.3f}" for by in SAMPLERS) for case in cases]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--markdown")
    given = parser.parse_args()
    found = {
        "gaussian": {case: on_gaussian(case) for case in OBSERVATIONS},
        "mixture": {case: on_mixture(case) for case in SEEN},
    }
    print(markdown(found))
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n")
    if given.markdown:
        Path(given.markdown).write_text(markdown(found))


if __name__ == "__main__":
    main()
