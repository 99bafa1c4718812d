"""The order of every sampler that has one, and the exact KL of its distribution, on every SDE with exact scores.

    python benchmarks/order_and_law.py [--json=FILE] [--markdown=FILE]

No number here is from samples:

* KL(the result's distribution || the data's at t_min) on a Gaussian in three dimensions, at 8 to 512 steps. It is by
  the exact recursion of `gaussian_kl`; a Runge-Kutta method is an affine map of the latent there, known from where it
  takes 0 and the axes.
* The order with which the square root of that KL falls, to where signal and noise are equal: over the whole range the
  leading errors of some methods cancel on a Gaussian. The midpoint method's does so under the rectified flow wherever
  it ends: for y' = f y its local error h³ y (f''/24 + f f'/4 + f³/6) is 0 where y² is quadratic in t, and its order
  there is 3.
* The order on a mixture: for samplers without noise that of the distance to a fine solution from the same latents
  (float64); for those with noise the weak order of E[x² - tanh 2x], by the quadrature of `weak_error`.

Predictor-corrector, annealed Langevin and adaptive steps are left out: their error does not vanish with the number of
steps alone.

Takes four to five minutes on two CPU cores.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiment.build.samplers import SAMPLERS
from experiment.evaluation.known_distribution import draws_noise
from sde_lib import VE, VP, CosineVP, ExactScore, GaussianMixture, RectifiedFlow, SubVP
from sde_lib.samplers import (
    EulerMaruyama,
    FlowTime,
    Heun,
    LinearSampler,
    ProbabilityFlow,
    SASolver,
    SDEDPMSolverPP2M,
    UniPC,
    evaluations,
    gaussian_kl,
    weak_error,
)

SDES = {"VP": VP(), "SubVP": SubVP(), "VE": VE(), "CosineVP": CosineVP(), "RectifiedFlow": RectifiedFlow()}
KL_STEPS = (8, 16, 32, 64, 128, 512)
MEAN, COVARIANCE = [0.4, -0.3, 0.8], [[0.4, 0.15, -0.1], [0.15, 0.3, 0.05], [-0.1, 0.05, 0.6]]
LINE = ([0.35, 0.65], [-0.8, 0.9], [0.35, 0.5])
# A fixed number of Langevin steps has no order; churn_min breaks the grid in two.
LEFT_OUT = ("annealed_langevin", "heun_churn")
# The steps that show a fifth order: with fewer it has not settled, with more the error is at rounding.
FIFTH = {"VP": 60, "SubVP": 60, "VE": 120, "CosineVP": 40, "RectifiedFlow": 40}
RUNGE_KUTTA = {"rk_midpoint": 2, "rk_bosh3": 3, "rk_tsit5": 5}  # with their orders


def methods() -> dict[str, Any]:
    """The table's linear samplers by name, some of their settings, and Runge-Kutta at fixed steps."""
    named = {name: n.sampler for name, n in SAMPLERS.items() if name not in LEFT_OUT}
    linear = {name: sampler for name, sampler in named.items() if isinstance(sampler, LinearSampler)}
    more = {
        "em, eta=0": EulerMaruyama(eta=0.0),
        "sde_dpmpp_2m, eta=0.5": SDEDPMSolverPP2M(eta=0.5),
        "sa_solver, predictor=2": SASolver(predictor=2),
        "heun, churn=5, grid": Heun(churn=5.0, grid=FlowTime(1.5, 1.0)),
    }
    return {**linear, **more, **{name: SAMPLERS[name].sampler for name in RUNGE_KUTTA}}


def order_of(name: str, sampler: Any) -> int:
    return RUNGE_KUTTA.get(name) or sampler.convergence


def slope(steps: list[int], errors: list[float]) -> float:
    return float(-np.polyfit(np.log(steps), np.log(np.abs(errors)), 1)[0])


def settled(name: str, sampler: Any) -> int:
    """The number of steps from which on a Gaussian shows the order.

    For a multistep method they must not be too many, for its first steps are of lower order.
    """
    return {3: 64, 4: 128}.get(order_of(name, sampler), 256)


def half(name: str) -> Any:
    """The SDE from t_max to where signal and noise are equal."""
    return replace(SDES[name], t_min=float(SDES[name].time_of_log_snr(0.0)))  # type: ignore[type-var]


def shown_on(sampler: Any, name: str) -> Any:
    """The SDE that shows the order on a mixture.

    Euler-Maruyama's first-order error is proportional to sigma_min² on VE. Tsitouras' error falls faster than in theory
    where the flow is stiff, and is below rounding before it does not: it is measured from t = 0.3 on. SA-Solver's
    second-order error nearly cancels over the whole range, for eta = 1 (it shows almost an order more there).
    """
    larger = {"VE": VE(sigma_min=1.0), "RectifiedFlow": RectifiedFlow(t_min=0.01)}
    if isinstance(sampler, SASolver):
        return half(name)
    if isinstance(sampler, ProbabilityFlow) and isinstance(sampler.solver, diffrax.Tsit5):
        return replace(SDES[name], t_min=0.3)  # type: ignore[type-var]
    return larger.get(name, SDES[name]) if isinstance(sampler, EulerMaruyama) else SDES[name]


def exact_kl(sampler: Any, sde: Any) -> float:
    """Compute KL(the result's distribution || the data's at t_min)."""
    return gaussian_kl(sampler, sde, MEAN, COVARIANCE) if isinstance(sampler, LinearSampler) else flow_kl(sampler, sde)


def flow_kl(flow: ProbabilityFlow, sde: Any) -> float:
    """Compute the same KL of a Runge-Kutta method, in float64: on a Gaussian its result is A x_T + b."""
    with jax.enable_x64(True):
        data = GaussianMixture(np.ones(1), [MEAN], [COVARIANCE])
        latents = jnp.concatenate([jnp.zeros((1, 3)), jnp.eye(3)])
        y = np.asarray(flow.run(ExactScore(data, sde), latents, jax.random.split(jax.random.key(0), 4), None, 0).x)
        start, end = data.at(sde, sde.t_max), data.at(sde, sde.t_min)
        a = (y[1:] - y[0]).T
        mean, covariance = a @ np.asarray(start.means[0]) + y[0], a @ np.asarray(start.covariances[0]) @ a.T
        precision, off = np.linalg.inv(end.covariances[0]), mean - np.asarray(end.means[0])
        excess = np.linalg.eigvals(precision @ covariance).real - 1
        return float(0.5 * (np.sum(excess - np.log1p(excess)) + off @ precision @ off))


def on_gaussian(method: str, sampler: Any, name: str) -> dict:
    """Compute the KL at each number of steps, and the order of its root."""
    fifth = order_of(method, sampler) == 5
    start = FIFTH[name] if fifth else settled(method, sampler)
    steps = [start * k for k in ((1, 2) if fifth else (1, 2, 4))]
    part = shown_on(sampler, name) if fifth else half(name)
    roots = [exact_kl(replace(sampler, steps=n), part) ** 0.5 for n in steps]
    kl = {n: exact_kl(replace(sampler, steps=n), SDES[name]) for n in KL_STEPS}
    return {"order_gaussian": slope(steps, roots), "kl": kl}


def strong_orders(name: str, samplers: dict[str, Any], done: Callable[[], object]) -> dict[str, float]:
    """Measure the orders of the samplers without noise, on a mixture in the plane."""
    with jax.enable_x64(True):
        means, covariances = [[-1.0, 0.2], [0.8, 0.9], [0.3, -1.1]], [s * np.eye(2) for s in (0.1, 0.25, 0.15)]
        data = GaussianMixture([0.3, 0.5, 0.2], means, np.stack(covariances))
        keys = jax.random.split(jax.random.key(0), 16)
        x = data.at(SDES[name], SDES[name].t_max).sample(jax.random.key(1), 16)
        run = lambda sampler, n, sde: replace(sampler, steps=n).run(ExactScore(data, sde), x, keys, None, 0).x  # noqa: E731
        fine, orders = run(UniPC(), 4000, SDES[name]), {}
        for method, sampler in samplers.items():
            steps = {4: [160, 320, 640], 5: [80, 160]}.get(order_of(method, sampler), [80, 160, 320])
            sde = shown_on(sampler, name) if order_of(method, sampler) == 5 else SDES[name]
            target = fine if sde == SDES[name] else run(sampler, 2000, sde)
            errors = [jnp.sqrt(jnp.mean((run(sampler, n, sde) - target) ** 2)) for n in steps]
            orders[method] = slope(steps, [float(error) for error in errors])
            done()
    return orders


def calls_per_step(sampler: Any) -> int:
    """The score calls of one more step.

    Runge-Kutta methods whose last stage is the next step's first have one call beside; it is left out.
    """
    if isinstance(sampler, LinearSampler):
        return sampler.calls_per_step
    return evaluations(sampler, 2) - evaluations(sampler, 1)


def observable(x: np.ndarray) -> np.ndarray:
    return x**2 - np.tanh(2 * x)


def weak_order(sampler: LinearSampler, name: str) -> float:
    """Compute the weak order by quadrature. That of SA-Solver with three calls back shows late."""
    late = isinstance(sampler, SASolver) and sampler.predictor == 3
    steps, nodes = ([320, 640], 4) if late else ([40, 80, 160], 10)
    steps = steps[1:] if isinstance(sampler, SASolver) and not late else steps
    sde = shown_on(sampler, name)
    return slope(steps, [weak_error(replace(sampler, steps=n), sde, *LINE, observable, nodes=nodes) for n in steps])


def measure() -> dict[str, dict]:
    samplers = methods()
    noisy = {name: sampler for name, sampler in samplers.items() if draws_noise(sampler, VP())}
    quiet = {name: sampler for name, sampler in samplers.items() if name not in noisy}
    found: dict[str, dict] = {
        name: {"theory": order_of(name, s), "nfe_per_step": calls_per_step(s), "noise": name in noisy, "sdes": {}}
        for name, s in samplers.items()
    }
    with tqdm(total=2 * len(samplers) * len(SDES), disable=None) as bar:
        for sde in SDES:
            for name, sampler in samplers.items():
                found[name]["sdes"][sde] = on_gaussian(name, sampler, sde)
                bar.update()
            strong = strong_orders(sde, quiet, bar.update)
            for name, sampler in samplers.items():
                found[name]["sdes"][sde]["order_mixture"] = strong[name] if name in strong else weak_order(sampler, sde)
                bar.update(name in noisy)
    return found


def markdown(found: dict[str, dict]) -> str:
    """Write three tables: the orders on every SDE, the KL on VP, and the KL at 128 steps on every SDE."""
    lines = [f"| sampler | theory | {' | '.join(SDES)} |", "|---" * (2 + len(SDES)) + "|"]
    for name, row in found.items():
        orders = [(row["sdes"][s]["order_gaussian"], row["sdes"][s]["order_mixture"]) for s in SDES]
        cells = [f"{of_gaussian:.2f}, {of_mixture:.2f}" for of_gaussian, of_mixture in orders]
        lines.append(f"| `{name}` | {row['theory']}{' weak' if row['noise'] else ''} | {' | '.join(cells)} |")
    lines += ["", f"| sampler | NFE a step | {' | '.join(map(str, KL_STEPS))} |", "|---" * (2 + len(KL_STEPS)) + "|"]
    for name, row in found.items():
        cells = [f"{v:.0e}" for v in row["sdes"]["VP"]["kl"].values()]
        lines.append(f"| `{name}` | {row['nfe_per_step']} | {' | '.join(cells)} |")
    lines += ["", f"| sampler, 128 steps | {' | '.join(SDES)} |", "|---" * (1 + len(SDES)) + "|"]
    for name, row in found.items():
        at_128 = [row["sdes"][s]["kl"][128] for s in SDES]
        lines.append(f"| `{name}` | {' | '.join(f'{v:.1e}' for v in at_128)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write every figure to this file")
    parser.add_argument("--markdown", help="write the tables to this file")
    args = parser.parse_args()
    found = measure()
    text = markdown(found)
    print(text)
    if args.markdown:
        about = (
            "`python benchmarks/order_and_law.py`: orders on a Gaussian, on a mixture; "
            "then the KL in nats on VP at so many steps,\nand on all SDEs at 128.\n\n"
        )
        with open(args.markdown, "w") as file:
            file.write("# Order and law of every linear sampler\n\n" + about + text + "\n")
    if args.json:
        about = {"command": "python benchmarks/order_and_law.py", "jax": jax.__version__}
        with open(args.json, "w") as file:
            json.dump({**about, "samplers": found}, file, indent=1)


if __name__ == "__main__":
    main()
