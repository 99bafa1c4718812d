"""C2ST of posteriors against an outside benchmark: python benchmarks/sbi.py --task=slcp --reference=FILE --workdir=DIR.

The task's simulator draws --simulations pairs of parameters theta and observations x, to which sbi_posterior.py fits a
network. --reference is an .npz with observation_1, posterior_1, .., or the wheel of sbibm 1.1.0, of which nothing is
imported. The weights are kept in the workdir, and used again by a command with the same pairs, map and config.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sbi_posterior import CHECK_EVERY, Posterior, fitted
from benchmarks.sbi_references import Array, Reference, references
from configs import sbi
from experiment.cli import convolutions_on_all_cores, mistakes_in_one_line
from experiment.common.errors import UserError
from experiment.config import check_flag
from experiment.data.simulators import SIMULATORS, simulations
from experiment.evaluation.c2st import c2st
from experiment.evaluation.calibration import adjusted, bins_of, ranks_of, uniformity

PAIRS, RANKED = 1000, 19  # of the calibration: pairs, and draws for each
LEVEL = 0.05  # below it the ranks are called not uniform
FRESH_SEED, PAIRS_SEED = 77, 78  # of observations and pairs that were not trained on; pairs anew have the next seeds
KL_SEED = 79  # of the exact draws that the likelihood is measured at


def divergence(exact: Array, samples: Array) -> float:
    """Compute KL(exact || samples) of Gaussians with their moments, in nats: about d (d + 3)/2n too large."""
    (mean, covariance), (other, wide) = ((x.mean(axis=0), np.cov(x.T)) for x in (exact, samples))
    off, inverse = mean - other, np.linalg.inv(wide)
    logs = np.linalg.slogdet(wide)[1] - np.linalg.slogdet(covariance)[1]
    return float(0.5 * (np.trace(inverse @ covariance) - len(off) + off @ inverse @ off + logs))


def exact_kl(posterior: Posterior, x: Array, n: int, key: jax.Array) -> tuple[float, float]:
    """Estimate KL(exact || network) of the posteriors at x in nats, and its standard error, by n exact draws.

    With u the exact log-density less the network's, KL = E u, and E e^-u = 1 as both densities have the integral 1, so
    that u + e^-u - 1, which is never negative and about u²/2, has the mean of u and far less noise.
    """
    simulator, observed = posterior.simulator, jnp.asarray(x, jnp.float32)
    theta = simulator.posterior(key, observed, n)
    exact = np.asarray(simulator.log_posterior(theta, observed), np.float64)
    u = exact - posterior.log_prob(np.asarray(theta), np.tile(x, (n, 1)))
    each = u + np.exp(-u) - 1
    return float(each.mean()), float(each.std(ddof=1) / np.sqrt(n))


def compared(
    posterior: Posterior, known: list[Reference], n: int | None, kl_draws: int | None, name: str
) -> list[dict[str, float]]:
    """C2ST, the divergence of the Gaussians, and by `kl_draws` that of the whole posterior, at each observation."""
    found = []
    for i, (x, reference) in enumerate(known):
        exact = np.asarray(reference[:n], np.float64)
        samples = posterior.draw(np.tile(x, (len(exact), 1)), jax.random.key(i))
        found.append({"c2st": c2st(exact, samples), "gaussian_kl": divergence(exact, samples)})
        told = f"C2ST {found[-1]['c2st']:.4f}, KL of their Gaussians {found[-1]['gaussian_kl']:.4f}"
        print(f"{name} {i + 1}: {told}, {len(samples):,} against as many", flush=True)
        if kl_draws:
            kl, error = exact_kl(posterior, x, kl_draws, jax.random.key(KL_SEED + i))
            found[-1].update(kl=kl, kl_standard_error=error, kl_draws=kl_draws)
            print(f"{name} {i + 1}: KL(exact || network) {kl:.4f} +- {error:.4f} nats, {kl_draws:,} draws", flush=True)
    return found


def held_out(task: str, count: int, n: int) -> list[Reference]:
    """Observations of the simulator that were not trained on, with exact samples of their posteriors."""
    exact = SIMULATORS[task].posterior
    if exact is None:
        raise UserError(f"--held_out: {task} has no exact samples of its posterior; leave it out")
    xs = simulations(task, count, FRESH_SEED)[1]
    return [(x, np.asarray(exact(jax.random.key(i), jnp.asarray(x), n))) for i, x in enumerate(xs)]


def calibrated(posterior: Posterior, task: str, seed: int) -> dict[str, Any]:
    """The p-value of each parameter, that the ranks of new truths among draws at their x are uniform.

    Beside it the one that is raised for there being as many tests as parameters: the least of these is the verdict.
    """
    theta, x = simulations(task, PAIRS, seed)
    draws = posterior.draw(np.repeat(x, RANKED, axis=0), jax.random.key(seed))
    p = uniformity(ranks_of(theta, draws.reshape(PAIRS, RANKED, -1)), RANKED)
    raised, bins = adjusted(p), bins_of(PAIRS, RANKED)
    print(f"ranks at {PAIRS:,} new observations of seed {seed}, {RANKED} draws at each, {bins} bins:")
    for name, values in (("p", p), ("by Holm's rule", raised)):
        print(f"  {name:15}{', '.join(f'{value:.3f}' for value in values)}")
    verdict = "not uniform" if raised.min() < LEVEL else "uniform as far as this tells"
    print(f"  all parameters: p {raised.min():.3f}, {verdict} (level {LEVEL:g})", flush=True)
    measured = {"p": p.tolist(), "p_holm": raised.tolist()}
    return {**measured, "observations": PAIRS, "draws": RANKED, "bins": bins, "seed": seed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=SIMULATORS)
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--reference", required=True, type=Path)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--observations", type=int, help="how many, from the first; by default all there are")
    parser.add_argument("--n", type=int, help="samples of each; by default as many as the reference has")
    parser.add_argument("--steps", type=int, help="of training at most; by default the config's own")
    parser.add_argument("--held_out", type=int, help="so many observations of the simulator's own too")
    parser.add_argument(
        "--calibration", type=int, nargs="?", const=1, help="ranks of truths among draws too; so many times anew"
    )
    parser.add_argument("--kl", type=int, help="divergence from the exact posterior too, by so many draws of each")
    parser.add_argument("--json", type=Path, help="results to add the task's to")
    given = parser.parse_args()
    convolutions_on_all_cores()  # as the commands do
    with mistakes_in_one_line():
        measure(given)


def measure(given: argparse.Namespace) -> None:
    """Fit, draw and score what the flags name."""
    check_flag("simulations", given.simulations, "data.simulations", least=1000)  # few held-out ones choose nothing
    for name, least in (("observations", 1), ("n", 10), ("held_out", 1), ("calibration", 1), ("kl", 2)):
        check_flag(name, getattr(given, name), least=least)
    check_flag("steps", given.steps, "train.steps", least=CHECK_EVERY)
    if given.kl and SIMULATORS[given.task].log_posterior is None:
        raise UserError(f"--kl: the density of {given.task}'s posterior is not known; leave it out")
    known = references(given.reference, given.task)[: given.observations]
    given.workdir.mkdir(parents=True, exist_ok=True)
    posterior = fitted(given.task, given.simulations, given.steps, given.workdir)
    updates = given.steps or sbi.get_config().train.steps
    result: dict[str, Any] = {"simulations": given.simulations, "most_updates": updates}
    if given.calibration:
        result["ranks"] = [calibrated(posterior, given.task, PAIRS_SEED + k) for k in range(given.calibration)]
    if given.held_out:
        own = held_out(given.task, given.held_out, given.n or len(known[0][1]))
        result["held_out"] = compared(posterior, own, None, given.kl, "held-out observation")
    result["observations"] = compared(posterior, known, given.n, given.kl, "observation")
    scores = [found["c2st"] for found in result["observations"]]
    result["mean"] = float(np.mean(scores))
    path = given.json or given.workdir / "c2st.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**earlier, given.task: result}, indent=1, sort_keys=True) + "\n")
    print(f"mean C2ST {np.mean(scores):.3f} over {len(scores)} observations")


if __name__ == "__main__":
    main()
