"""The law of guidance: what the ODE and the SDE sample under a guided score, exactly, on Gaussians.

    python benchmarks/guidance.py [--out=DIR] [--steps=1000] [--particles=20000]

p(x | c) = N(1, 1/4), p(x) = N(0, 1). For five scales, two intervals of sigma/alpha and five SDEs it prints the tilted
distribution p(x | c)^g p(x)^(1-g), the closed forms of the ODE and of the SDE, and the largest distance from them of
what DPM-Solver++(2M) and SDE-DPM-Solver++(2M) draw, by `gaussian_law` of the guided score itself: no samples. Then the
composition of n observations: the posterior, the naive sum of scores (wrong), and the corrected score. Last, the
weighted sampler on --particles particles, from samples, with the standard error over 8 keys.

--out writes guidance.json and guidance.png there.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib import (
    SDE,
    VE,
    VP,
    ClassifierFree,
    CosineVP,
    FunctionScore,
    IndependentObservations,
    RectifiedFlow,
    SubVP,
    sample,
)
from sde_lib.samplers import DPMSolverPP2M, SDEDPMSolverPP2M, WeightedSDE, gaussian_law

FIRST, OTHER = (1.0, 0.25), (0.0, 1.0)
SCALES = (1.5, 2.0, 3.0, 5.0, 8.0)
INTERVALS = ((0.3, 3.0), (1.0, 10.0))  # of sigma/alpha, at scale 3
SDES: dict[str, SDE] = {  # over ranges so wide that they begin in all noise and end in none, to about 1e-4
    "VP": VP(beta_max=40.0, t_min=1e-5),
    "sub-VP": SubVP(beta_max=40.0, t_min=1e-4),
    "VE": VE(sigma_min=1e-3, sigma_max=1e4),
    "cosine VP": CosineVP(t_min=1e-5, t_max=0.9999),
    "rectified flow": RectifiedFlow(t_min=1e-4, t_max=1 - 1e-5),
}
DEFAULTS: dict[str, SDE] = {"VP": VP(), "sub-VP": SubVP(), "VE": VE(), "rectified flow": RectifiedFlow()}


def gaussian_scores(sde: SDE) -> FunctionScore:
    """The score of N(m, v) with cond = (m, v) in each row."""

    def score(x, t, cond):
        return -(x - sde.alpha(t) * cond[:, :1]) / (sde.alpha(t) ** 2 * cond[:, 1:] + sde.sigma(t) ** 2)

    return FunctionScore(score, sde)


def closed_form(kind: str, g: float, low: float = 0.0, high: float = np.inf) -> tuple[float, float]:
    """The mean and variance under guidance from infinite noise, with u = (sigma/alpha)² and the scale g(u).

    ODE:  mean = int ½ b A^(-½) du,  var = lim u/A          SDE:  mean = int b/A du,  var = int A^(-2) du
    d log A/du = g/(v1 + u) + (1 - g)/(v0 + u),  A(0) = 1   b = g m1/(v1 + u) + (1 - g) m0/(v0 + u)
    """
    (m1, v1), (m0, v0) = FIRST, OTHER
    z, w = np.polynomial.legendre.leggauss(20)
    ends = np.sort([*np.linspace(-40, 60, 101), *[2 * np.log(e) for e in (low, high) if 0 < e < np.inf]])
    middle, half = 0.5 * (ends[1:] + ends[:-1]), 0.5 * np.diff(ends)
    u = np.exp(middle[:, None] + half[:, None] * z).ravel()
    du = u * (half[:, None] * w).ravel()

    def log_a(u):
        def ratio(u):
            return np.log1p(u / v1) - np.log1p(u / v0)

        return np.log1p(u / v1) + (g - 1) * (ratio(np.clip(u, low**2, high**2)) - ratio(low**2))

    scale = np.where((u >= low**2) & (u <= high**2), g, 1.0)
    b = scale * m1 / (v1 + u) + (1 - scale) * m0 / (v0 + u)
    if kind == "ode":
        return float(np.sum(0.5 * b * np.exp(-0.5 * log_a(u)) * du)), float(np.exp(np.log(1e24) - log_a(1e24)))
    return float(np.sum(b * np.exp(-log_a(u)) * du)), float(np.sum(np.exp(-2 * log_a(u)) * du))


def tilted(g: float) -> tuple[float, float]:
    """The mean and variance of p(x | c)^g p(x)^(1-g)."""
    (m1, v1), (m0, v0) = FIRST, OTHER
    precision = g / v1 + (1 - g) / v0
    return (g * m1 / v1 + (1 - g) * m0 / v0) / precision, 1 / precision


def law_of(sde: SDE, kind: str, steps: int, g: float, low: float = 0.0, high: float = np.inf) -> tuple[float, float]:
    """The mean and variance that the sampler draws, exactly."""
    ends = {} if low == 0 else {"low": -2 * np.log(high), "high": -2 * np.log(low)}
    guided = ClassifierFree(gaussian_scores(sde), g, np.array(OTHER), **ends)
    sampler = DPMSolverPP2M(steps=steps) if kind == "ode" else SDEDPMSolverPP2M(steps=steps)
    mean, covariance = gaussian_law(sampler, guided, [FIRST[0]], [[FIRST[1]]], cond=np.array([FIRST]))
    return float(mean[0]), float(covariance[0, 0])


def laws(steps: int) -> list[dict]:
    """A row for each scale and interval."""
    rows = []
    for g, low, high in [*[(g, 0.0, np.inf) for g in SCALES], *[(3.0, *interval) for interval in INTERVALS]]:
        row = {"scale": g, "interval": None if low == 0 else [low, high], "tilted": tilted(g)}
        for kind in ("ode", "sde"):
            exact = closed_form(kind, g, low, high)
            found = {name: law_of(sde, kind, steps, g, low, high) for name, sde in SDES.items()}
            row[kind] = {"closed_form": exact, "drawn": found, "error": _largest(found, exact)}
            short = {name: law_of(sde, kind, steps, g, low, high) for name, sde in DEFAULTS.items()}
            row[kind]["error_over_default_ranges"] = _largest(short, exact)
        rows.append(row)
    return rows


def _largest(found: dict[str, tuple[float, float]], exact: tuple[float, float]) -> float:
    return float(max(np.abs(np.subtract(law, exact)).max() for law in found.values()))


def composition(steps: int) -> list[dict]:
    """n observations, all 1: prior N(0, 1), likelihood N(theta, 1)."""
    sde, rows = SDES["VP"], []
    each, prior = (0.5, 0.5), np.array(OTHER)
    samplers = {"ode": DPMSolverPP2M(steps=steps), "sde": SDEDPMSolverPP2M(steps=steps)}
    for n in (2, 5, 10):
        cond = np.tile(np.array(each), (1, n, 1))
        naive = IndependentObservations(gaussian_scores(sde), n, prior)
        right = IndependentObservations(gaussian_scores(sde), n, prior, np.full((n, 1, 1), 0.5), np.ones((1, 1)))
        row = {"observations": n, "posterior": (n / (n + 1), 1 / (n + 1))}
        for name, score_fn in (("naive", naive), ("corrected", right)):
            for kind, sampler in samplers.items():
                mean, covariance = gaussian_law(sampler, score_fn, [0.0], [[1.0]], cond=cond)
                row[f"{name}, {kind}"] = (float(mean[0]), float(covariance[0, 0]))
        rows.append(row)
    return rows


def weighted(n: int, keys: int = 8) -> list[dict]:
    """The weighted sampler's mean and variance, with their standard deviations over keys."""
    rows, cond = [], jnp.tile(jnp.array([FIRST]), (n, 1))
    for g in (2.0, 5.0):
        guided = ClassifierFree(gaussian_scores(VP()), g, np.array(OTHER))
        runs = [sample(WeightedSDE(), guided, jax.random.key(k), n, (1,), cond=cond) for k in range(keys)]
        moments = np.array([(float(r.x.mean()), float(r.x.var())) for r in runs])
        row = {"scale": g, "tilted": tilted(g), "mean": moments.mean(0).tolist(), "std": moments.std(0).tolist()}
        rows.append({**row, "least_ess": float(min(r.ess.min() for r in runs))})
    return rows


def draw(path: Path) -> None:
    """Draw the variance and the mean over the scale: tilted, by the ODE, by the SDE."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained", facecolor="white")
    scales = np.linspace(1, 8, 71)
    lines = {
        "tilted distribution": ("#000000", "-", [tilted(g) for g in scales]),
        "SDE": ("#D55E00", "-", [closed_form("sde", g) for g in scales]),
        "ODE": ("#0072B2", "-", [closed_form("ode", g) for g in scales]),
        "ODE, guided in sigma/alpha 0.3 to 3": ("#0072B2", "--", [closed_form("ode", g, 0.3, 3.0) for g in scales]),
    }
    for axes, which, title in zip(figure.subplots(1, 2), (0, 1), ("mean", "variance"), strict=True):
        for label, (color, style, moments) in lines.items():
            axes.plot(scales, [m[which] for m in moments], color=color, linestyle=style, label=label)
        axes.set(xlabel="guidance scale g", title=title)
        axes.grid(alpha=0.3)
    axes.set_yscale("log")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a folder for guidance.json and guidance.png")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--particles", type=int, default=20_000)
    arguments = parser.parse_args()
    result = {"steps": arguments.steps, "laws": laws(arguments.steps), "composition": composition(arguments.steps)}
    pair = "{:.4f}, {:.6f}".format
    print("| g | in sigma/alpha | tilted: mean, variance | ODE | SDE | largest error, ODE | SDE |\n|" + "---|" * 7)
    for row in result["laws"]:
        where = "all" if row["interval"] is None else "{} to {}".format(*row["interval"])
        forms = [pair(*row["tilted"]), *[pair(*row[kind]["closed_form"]) for kind in ("ode", "sde")]]
        errors = [f"{row[kind]['error']:.1e}" for kind in ("ode", "sde")]
        print("|", " | ".join([f"{row['scale']:g}", where, *forms, *errors]), "|")
    names = ("posterior", "naive, ode", "naive, sde", "corrected, ode", "corrected, sde")
    print("\n| n | posterior | naive ODE (wrong) | naive SDE (wrong) | corrected ODE | corrected SDE |\n|" + "---|" * 6)
    for row in result["composition"]:
        print("|", " | ".join([str(row["observations"]), *[pair(*row[name]) for name in names]]), "|")
    result["weighted"] = weighted(arguments.particles)
    print("\n| g | tilted | weighted sampler | standard deviation over keys | least effective size |\n|" + "---|" * 5)
    for row in result["weighted"]:
        cells = [pair(*row[name]) for name in ("tilted", "mean", "std")]
        print("|", " | ".join([f"{row['scale']:g}", *cells, f"{row['least_ess']:.0f}"]), "|")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "guidance.json").write_text(json.dumps(result, indent=1) + "\n")
        draw(arguments.out / "guidance.png")


if __name__ == "__main__":
    main()
