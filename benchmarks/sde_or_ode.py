"""The choice between SDE and ODE, which depends on where in log SNR the score is wrong.

    python benchmarks/sde_or_ode.py [--picture=FILE]

Prints the exact KL(the result's distribution || the data's at t_min) in nats for N(0.4, 0.25) under VP, without
samples: with the exact score the discretisation error is left, with many steps the score error. The noise e = -sigma s
of the exact score is given a bias of 0.3 early (lambda = log(alpha/sigma) in [-3, -1]) or late (in [1.5, 3.5]), a bias
of 0.1 throughout, or a scale of 0.98.

The reverse SDE forgets early errors, while the ODE carries them to the end; the SDE's larger pull amplifies late errors
(Cao et al. 2023, arXiv:2306.02063).
"""

import argparse
from dataclasses import replace

import numpy as np

from sde_lib import VP
from sde_lib.samplers import (
    DDIM,
    DPMSolverPP2M,
    LinearSampler,
    SDEDPMSolverPP1,
    SDEDPMSolverPP2M,
    UniformLogSNR,
    gaussian_kl,
    pulse,
)

MEAN, COVARIANCE = [0.4], [[0.25]]
SAMPLERS: dict[str, LinearSampler] = {  # all at the same times, even in log SNR
    "ODE, order 1 (ddim)": DDIM(grid=UniformLogSNR()),
    "ODE, order 2 (dpmpp_2m)": DPMSolverPP2M(grid=UniformLogSNR()),
    "eta = 0.5, order 2": SDEDPMSolverPP2M(eta=0.5, grid=UniformLogSNR()),
    "SDE, order 1 (sde_dpmpp_1)": SDEDPMSolverPP1(grid=UniformLogSNR()),
    "SDE, order 2 (sde_dpmpp_2m)": SDEDPMSolverPP2M(grid=UniformLogSNR()),
}
STEPS = np.unique(np.geomspace(8, 1024, 22).astype(int))
LINES = (("#0072B2", "--"), ("#0072B2", "-"), ("#009E73", "-"), ("#D55E00", "--"), ("#D55E00", "-"))
ERRORS = {
    "exact score": lambda half_log_snr: (1.0, 0.0),
    "wrong early": pulse(-3.0, -1.0, 0.3),
    "wrong late": pulse(1.5, 3.5, 0.3),
    "bias 0.1 throughout": lambda half_log_snr: (1.0, 0.1),
    "scale 0.98": lambda half_log_snr: (0.98, 0.0),
}


def kl(sampler: LinearSampler, steps: int, error) -> float:
    return gaussian_kl(replace(sampler, steps=steps), VP(), MEAN, COVARIANCE, error=error)


def draw(path: str) -> None:
    """Draw the KL over steps, a panel for the exact score and for each pulse."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), dpi=150, layout="constrained", facecolor="white")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, name in zip(panels, ("exact score", "wrong early", "wrong late"), strict=True):
        for (label, sampler), (colour, line) in zip(SAMPLERS.items(), LINES, strict=True):
            axes.loglog(STEPS, [kl(sampler, int(n), ERRORS[name]) for n in STEPS], color=colour, ls=line, label=label)
        axes.set(title=name, xlabel="steps = NFE", ylim=(1e-9, 3))
        axes.grid(color="#c9ced6", lw=0.5)
    panels[0].set_ylabel("KL(sampler || data), nats")
    entries = panels[0].get_legend_handles_labels()
    figure.legend(*entries, loc="outside upper center", ncols=5, frameon=False, fontsize=8.5)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", help="draw KL over steps to this PNG")
    args = parser.parse_args()
    print(f"| KL at 512 steps | {' | '.join(ERRORS)} |\n{'|---' * (1 + len(ERRORS))}|")
    for name, sampler in SAMPLERS.items():
        print(f"| {name} | {' | '.join(f'{kl(sampler, 512, error):.1e}' for error in ERRORS.values())} |")
    if args.picture:
        draw(args.picture)


if __name__ == "__main__":
    main()
