"""Each method of `Observed` beside the exact posterior: python benchmarks/posteriors.py [--json=FILE] [--markdown=FILE]

Without a flag:

* On Gaussian data no number is from samples: the distribution of the ODE's and the SDE's result, in the limit of many
  steps, by the recursion of `gaussian_law` through the method's own score; its KL divergence from the exact posterior
  in nats, and its variances over the exact ones.
* On a mixture, draws: the total variation between their modes' weights and the exact posterior's.

Takes about five minutes on two CPU cores. With a flag, that part alone:

* `--particles`: twisted SMC's evidence, and the error of its populations' weights of modes, by their size.
* `--split`: split Gibbs' weights of modes, by its distance rho.
* `--field`: a blurred field of 1000 x 1000 pixels, by moment matching, beside Wiener's posterior.
* `--cost`: the CPU time of a step in network calls, with the network of `configs/digits.py`.

The parts of an existing --json file that are not measured anew stay in it.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import digits
from experiment.build.objects import build_network, build_score
from experiment.config import whole_config
from experiment.data.load import load_dataset
from sde_lib import VP, ExactScore, GaussianMixture, StationaryGaussianField, power_law_field, sample
from sde_lib.distributions import IsotropicGaussian
from sde_lib.inverse import (
    Assimilation,
    Convolve,
    Jensen,
    Linear,
    Mask,
    MomentMatching,
    Observed,
    Projection,
    Proximal,
    PseudoInverse,
    SplitGibbs,
    TwistedSMC,
)
from sde_lib.samplers import DPMSolverPP2M, SDEDPMSolverPP2M, Table, UniformLogSNR, gaussian_law
from sde_lib.sde import SDE as Process

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


def modes_of(posterior: GaussianMixture) -> np.ndarray:
    """The mean responsibilities of the mixture's components over the posterior."""
    return np.asarray(MIXTURE.posterior(posterior.sample(jax.random.key(7), 200_000)), float).mean(axis=0)


def on_particles(case: str, runs: int = 64) -> dict[str, Any]:
    """Run populations of twisted SMC, and compare the evidence and the weights of modes of each with the exact."""
    matrix, y, noise = SEEN[case]
    posterior, log_evidence = MIXTURE.observe(Linear(matrix), y, noise)
    exact = modes_of(posterior)
    score_fn = Observed(ExactScore(MIXTURE, VP()), Linear(matrix), noise, MomentMatching(1))
    rows = {"y": jnp.broadcast_to(jnp.asarray(y, jnp.float32), (runs, len(y))), "cond": None}
    found: dict[str, Any] = {"exact": exact.tolist(), "rms": {}, "bias": {}}
    for particles in (4, 16, 64, 256, 1024):
        sampler = TwistedSMC(steps=100, particles=particles, keep=True)
        # In parts: the posteriors of all particles at once are large.
        got = sample(sampler, score_fn, jax.random.key(particles), runs, (2,), cond=rows, batch_size=16)
        assert got.particles is not None and got.log_weights is not None
        modes = np.asarray(MIXTURE.posterior(got.particles.reshape(-1, 2)), float).reshape(runs, particles, -1)
        weights = np.einsum("nk,nkm->nm", np.exp(np.asarray(got.log_weights, float)), modes)
        found["rms"][str(particles)] = float(np.sqrt(np.mean((weights - exact) ** 2)))
        found["bias"][str(particles)] = np.abs(weights.mean(0) - exact).max()
    got = sample(TwistedSMC(steps=400, particles=64), score_fn, jax.random.key(0), runs, (2,), cond=rows)
    ratios = np.exp(np.asarray(got.log_evidence, float) - log_evidence)
    found["evidence"] = {"ratio": ratios.mean(), "standard error": ratios.std(ddof=1) / np.sqrt(runs)}
    return found


def on_split(case: str, draws: int = 2048) -> dict[str, Any]:
    """Draw from split Gibbs at several rho: how far the modes' weights are from the exact, and from rho's own."""
    matrix, y, noise = SEEN[case]
    exact, rows = modes_of(MIXTURE.observe(Linear(matrix), y, noise)[0]), len(y)
    score_fn = Observed(ExactScore(MIXTURE, VP()), Linear(matrix), noise)
    cond = {"y": jnp.broadcast_to(jnp.asarray(y, jnp.float32), (draws, rows)), "cond": None}
    found = {}
    for rho in (1.0, 0.5, 0.3, 0.2):
        more = noise**2 * np.eye(rows) + rho**2 * matrix @ matrix.T
        own = modes_of(MIXTURE.observe(Linear(matrix), y, more)[0])
        x = sample(SplitGibbs(steps=200, rho=rho), score_fn, jax.random.key(0), draws, (2,), cond=cond).x
        drawn = np.asarray(MIXTURE.posterior(x), float).mean(axis=0)
        found[str(rho)] = {"exact": 0.5 * np.abs(drawn - exact).sum(), "own": 0.5 * np.abs(drawn - own).sum()}
    return found


@dataclass(frozen=True)
class Noiseless(SDEDPMSolverPP2M):
    """The mean of what the SDE's sampler draws with a score affine in x: its table without the noise."""

    def update(self, sde: Process, times: Any) -> Table:
        return super().update(sde, times)._replace(c=None)


def on_field(side: int = 1000, steps: int = 100, noise: float = 0.1, width: float = 2.0) -> dict[str, Any]:
    """Deblur a field by moment matching with one iteration, and compare mean and spread with Wiener's posterior."""
    sde, field, shape = VP(), power_law_field((side, side)), (side, side)
    place = np.arange(-8, 9)
    kernel = np.exp(-0.5 * np.hypot(place[:, None], place) ** 2 / width**2)
    blur = Convolve((kernel / kernel.sum()).astype(np.float32))
    truth = field.sample(jax.random.key(0), 1)
    y = blur(truth) + noise * jax.random.normal(jax.random.key(1), truth.shape)
    posterior = field.observe(blur, y[0], noise)[0].at(sde, sde.t_min)

    def mean(method: MomentMatching) -> float:
        """How far the sampler's mean is from Wiener's, root mean square over root mean square."""
        x = sample(
            Noiseless(steps=steps, grid=UniformLogSNR()),
            Observed(ExactScore(field, sde), blur, noise, method),
            jax.random.key(2),
            1,
            shape,
            cond={"y": y, "cond": None},
            prior=IsotropicGaussian(shape, 1e-9),  # the mean of x at t_max
        ).x[0]
        return float(jnp.linalg.norm(x - posterior.mean) / jnp.linalg.norm(posterior.mean))

    start, draws = time.perf_counter(), 2
    found: dict[str, Any] = {"side": side, "steps": steps, "mean": mean(MomentMatching(1, near=field))}
    score_fn = Observed(ExactScore(field, sde), blur, noise, MomentMatching(1, near=field))
    rows, sampler = {"y": jnp.repeat(y, draws, axis=0), "cond": None}, SDEDPMSolverPP2M(steps, UniformLogSNR())
    got = sample(sampler, score_fn, jax.random.key(3), draws, shape, cond=rows, batch_size=1)
    power = np.mean(np.abs(np.fft.rfft2(np.asarray(got.x - posterior.mean[None]), norm="ortho")) ** 2, axis=0)
    ratios = (power / np.asarray(posterior.spectrum)).ravel()
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)).ravel()
    bins = np.array_split(np.argsort(frequency), 20)
    found["seconds"] = time.perf_counter() - start
    found |= {"nfe": got.nfe, "jvps": got.jvps, "draws": draws}
    found["spread"] = [float(ratios[part].mean()) for part in bins]
    found["frequencies"] = [float(frequency[part].max()) for part in bins]
    # What the iterations need without the field, and with one whose spectrum is that of a few draws.
    x = field.sample(jax.random.key(4), 4)
    like = StationaryGaussianField(shape, jnp.mean(jnp.abs(jnp.fft.rfft2(x, norm="ortho")) ** 2, axis=0))
    found["mean without"] = {str(k): mean(MomentMatching(k)) for k in (1, 16)}
    found["mean with four draws' spectrum"] = {str(k): mean(MomentMatching(k, near=like)) for k in (1, 2, 4)}
    return found


def on_cost(n: int = 64, steps: int = 6, repeats: int = 7) -> dict[str, float]:
    """Measure a step of each method in CPU time over that of a step without an observation, with random weights."""
    config, dataset = whole_config(digits.get_config()), load_dataset("digits")
    score_fn, shape = build_score(config, *build_network(config, dataset)), tuple(dataset.shape)
    seen = np.zeros(shape)
    seen[:, : shape[1] // 2] = 1
    rows = {"y": jnp.zeros((n, *shape)), "cond": None}
    given = {
        "none": None,
        "MomentMatching(1)": MomentMatching(1),
        "MomentMatching(2)": MomentMatching(2),
        "PseudoInverse()": PseudoInverse(),
        "Proximal()": Proximal(),
    }
    spent: dict[str, list[float]] = {name: [] for name in given}
    for repeat in range(repeats + 1):
        for name, method in given.items():
            score = score_fn if method is None else Observed(score_fn, Mask(seen), 0.2, method)
            start = time.process_time()
            cond = None if method is None else rows
            done = sample(SDEDPMSolverPP2M(steps), score, jax.random.key(0), n, shape, cond=cond)
            jax.block_until_ready(done.x)
            if repeat:  # the first compiles
                spent[name].append(time.process_time() - start)
    plain = np.array(spent["none"])
    return {name: float(np.median(np.array(values) / plain)) for name, values in spent.items()}


PARTS = {
    "particles": lambda: {case: on_particles(case) for case in SEEN},
    "split": lambda: {case: on_split(case) for case in SEEN},
    "field": on_field,
    "cost": on_cost,
}


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
    parser.add_argument("--markdown", help="of the tables, which are made without a flag")
    for part in PARTS:
        parser.add_argument(f"--{part}", action="store_true")
    given = parser.parse_args()
    found = json.loads(Path(given.json).read_text()) if given.json and Path(given.json).exists() else {}
    asked = {part: measure for part, measure in PARTS.items() if getattr(given, part)}
    for part, measure in asked.items():
        found[part] = measure()
        print(part, json.dumps(found[part], indent=1))
    if not asked:
        found["gaussian"] = {case: on_gaussian(case) for case in OBSERVATIONS}
        found["mixture"] = {case: on_mixture(case) for case in SEEN}
        print(markdown(found))
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n")
    if given.markdown and not asked:
        Path(given.markdown).write_text(markdown(found))


if __name__ == "__main__":
    main()
