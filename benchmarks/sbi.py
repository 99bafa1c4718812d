"""C2ST of posteriors against an outside benchmark: python benchmarks/sbi.py --task=slcp --reference=FILE --workdir=DIR.

The task's simulator draws --simulations pairs of parameters theta and observations x. The linear regression of theta
by x is taken off (experiment/data/whitening.py), and the network of configs/sbi.py is trained on what is left,
MEMBERS times, from other weights and without another tenth of the pairs, whose loss says which of a member's averaged
weights to keep; the untrained network, which is the regression's own Gaussian, is among the choices. Where the prior
has walls, that Gaussian is cut by them, and the network is told how near they are (experiment/data/prior_walls.py). The
mean of the members' outputs is the score, and samples that the prior does not allow are drawn again. Nothing is chosen
by the reference.

--reference is an .npz with observation_1, posterior_1, .., or the wheel of sbibm 1.1.0, of which nothing is imported.
The weights are kept in the workdir, and used again by a command with the same pairs, map and config.
"""

import argparse
import bz2
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import sbi
from experiment.build.objects import build_network, build_optimizer, build_score
from experiment.cli import convolutions_on_all_cores, mistakes_in_one_line
from experiment.common.errors import UserError
from experiment.common.files import write_npz
from experiment.config import check_flag, whole_config
from experiment.data.dataset import Dataset, Split
from experiment.data.prior_walls import PriorWalls, WalledScore, prior_walls
from experiment.data.simulators import SIMULATORS, Simulator, simulations
from experiment.data.whitening import Whitening, fit_whitening
from experiment.evaluation.c2st import c2st
from experiment.evaluation.calibration import adjusted, bins_of, ranks_of, uniformity
from experiment.training.trainer import averaged, ema_decay
from sde_lib import NetworkScore, denoising_score_matching, likelihood_weighting, log_prob, sample, uniform_log_snr
from sde_lib.samplers import DPMSolverPP2M

Array = np.ndarray
Reference = tuple[Array, Array]  # an observation (m,), and samples (n, d) of its posterior

MEMBERS, PARTS = 3, 10  # member k does without part k of the pairs
CHECK_EVERY, PATIENCE = 250, 8  # updates between held-out losses, and so many without a better one end the training
DRAWS = 8  # of time and noise for each held-out pair
SAMPLER, ROWS = DPMSolverPP2M(steps=32), 2000  # ROWS: drawn at once
MOST_ROUNDS = 50  # of drawing again what lies outside of the prior's support
MOST_OBSERVATIONS = 100
PAIRS, RANKED = 1000, 19  # of the calibration: pairs, and draws for each
LEVEL = 0.05  # below it the ranks are called not uniform
FRESH_SEED, PAIRS_SEED = 77, 78  # of observations and pairs that were not trained on; pairs anew have the next seeds
KL_SEED = 79  # of the exact draws that the likelihood is measured at
TOLERANCE = 1e-5  # of the likelihood's solve, relative and absolute
MOST_STANDARD_ERRORS = 10.0
LEAST_P = 1e-9


def references(path: Path, task: str) -> list[Reference]:
    """Read the observations and their reference samples from an .npz or from sbibm's wheel.

    Raises UserError where there is none for this task.
    """
    try:
        found = _in_wheel(path, task) if path.suffix == ".whl" else _in_npz(path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"--reference={path} cannot be read ({error}): give an .npz of observation_1, posterior_1, .., or the wheel"
        ) from error
    if not found:
        raise UserError(f"--reference={path} holds no observation of {task}: give the file of this task, or the wheel")
    sizes = {(x.shape, samples.shape[1:]) for x, samples in found}
    theta, x = simulations(task, 2)
    if sizes != {(x.shape[1:], theta.shape[1:])}:
        raise UserError(f"--reference={path} is of another task than {task}: its sizes are {sorted(sizes)}")
    for i, (observed, samples) in enumerate(found):
        if not plausible(SIMULATORS[task], observed, samples):
            raise UserError(
                f"--reference={path} is of another task than {task}: posterior_{i + 1} is not the posterior at its "
                "observation; give the file of this task, or the wheel"
            )
    return found


def plausible(simulator: Simulator, x: Array, samples: Array) -> bool:
    """Tell whether these can be samples (n, d) of the simulator's posterior at x: what is not is so beyond doubt.

    They must lie in the prior's support. Where the likelihood has a gradient, the mean over them of

        d/dtheta_i (f p)/p = f d/dtheta_i log p(theta | x) + df/dtheta_i

    is zero in every coordinate (Stein's identity; f is 1, or vanishes at the prior's walls). Elsewhere each coordinate
    must have the distribution of the exact posterior's, by the test of Kolmogorov and Smirnov.
    """
    theta = jnp.asarray(samples, jnp.float32)
    if not _allowed(simulator, samples).all():
        return False
    log_likelihood = simulator.log_likelihood
    if log_likelihood is None:
        return simulator.posterior is None or _same_law(simulator.posterior, x, samples)
    log_p = jax.grad(lambda theta: log_likelihood(theta, jnp.asarray(x, jnp.float32)) + simulator.log_prior(theta))
    f, slope = jnp.ones_like(theta), jnp.zeros_like(theta)
    if simulator.support is not None:
        low, high = (end[None] for end in simulator.support)
        f, slope = (theta - low) * (high - theta), low + high - 2 * theta
    terms = np.asarray(f * jax.vmap(log_p)(theta) + slope, np.float64)
    return bool(np.all(np.abs(terms.mean(axis=0)) < MOST_STANDARD_ERRORS * terms.std(axis=0) / np.sqrt(len(terms))))


def _same_law(posterior: Callable[..., jax.Array], x: Array, samples: Array) -> bool:
    from scipy.stats import ks_2samp

    try:
        exact = np.asarray(posterior(jax.random.key(0), jnp.asarray(x, jnp.float32), len(samples)))
    except UserError:  # the simulator cannot produce x
        return False
    return all(ks_2samp(a, b).pvalue > LEAST_P for a, b in zip(exact.T, samples.T, strict=True))


def _allowed(simulator: Simulator, theta: Array) -> Array:
    """Which rows of theta (n, d) lie in the prior's support, (n,)."""
    if simulator.support is None:
        return np.ones(len(theta), bool)
    low, high = simulator.support
    return np.all((theta >= low) & (theta <= high), axis=1)


def _in_npz(path: Path) -> list[Reference]:
    with np.load(path) as arrays:
        places = [i for i in range(1, MOST_OBSERVATIONS) if f"posterior_{i}" in arrays]
        return [(np.ravel(arrays[f"observation_{i}"]), arrays[f"posterior_{i}"]) for i in places]


def _in_wheel(path: Path, task: str) -> list[Reference]:
    found = []
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        for i in range(1, MOST_OBSERVATIONS):
            folder = f"sbibm/tasks/{task}/files/num_observation_{i}"
            if f"{folder}/reference_posterior_samples.csv.bz2" not in names:
                break
            observation = _table(wheel.read(f"{folder}/observation.csv"))
            samples = _table(bz2.decompress(wheel.read(f"{folder}/reference_posterior_samples.csv.bz2")))
            found.append((np.ravel(observation), samples))
    return found


def _table(text: bytes) -> Array:
    """The numbers of a CSV file below its line of names, as rows."""
    return np.loadtxt(io.BytesIO(text), delimiter=",", skiprows=1, ndmin=2)


@dataclass(frozen=True)
class MeanNetwork:
    """The mean output of networks whose weights have a leading axis; as a network it is called once."""

    apply: Callable[..., jax.Array]

    def __call__(self, params: Any, x: jax.Array, c_noise: jax.Array, cond: Any = None) -> jax.Array:
        return jnp.mean(jax.vmap(lambda member: self.apply(member, x, c_noise, cond))(params), axis=0)


Score = NetworkScore | WalledScore


class Ensemble:
    """The members' weights while they are trained on z (n, d), told c (n, m); walls: of the prior, if it has any."""

    def __init__(self, config: Any, z: Array, c: Array, walls: PriorWalls | None = None):
        self.config, self.z, self.c, self.walls = config, jnp.asarray(z), jnp.asarray(c), walls
        self.told = np.asarray(c if walls is None else walls.told(self.c))
        split = Split(z, vectors=self.told)
        data = Dataset("residuals", split, split, None)
        made = [build_network(config, data, nnx.Rngs(k)) for k in range(MEMBERS)]
        self.apply = made[0][0]
        self.untrained = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params for _, params in made))
        part = np.arange(len(z)) % PARTS
        counts = np.bincount(part)[:MEMBERS]
        self.seen = jnp.asarray(np.stack([np.flatnonzero(part != k)[: len(z) - counts.max()] for k in range(MEMBERS)]))
        self.held_out = jnp.asarray(np.stack([np.flatnonzero(part == k)[: counts.min()] for k in range(MEMBERS)]))
        self.optimizer = build_optimizer(config)

    def score(self, params: Any) -> Score:
        """The mean score of members with these weights."""
        return self._score(MeanNetwork(self.apply), params)

    def _score(self, apply: Callable[..., jax.Array], params: Any) -> Score:
        network = build_score(self.config, apply, params)
        return network if self.walls is None else WalledScore(network, self.walls)

    def _loss(self, params: Any, rows: jax.Array, key: jax.Array, dropout: bool) -> jax.Array:
        score_fn = self._score(self.apply if dropout else _Without(self.apply), params)
        options = {"weighting": likelihood_weighting, "times": uniform_log_snr}
        return jnp.mean(denoising_score_matching(score_fn, self.z[rows], key, self.c[rows], **options))

    @partial(jax.jit, static_argnums=0)
    def _losses(self, params: Any) -> jax.Array:
        """Each member's loss on the pairs that it does without, always with the same noise."""
        rows = jnp.tile(self.held_out, (1, DRAWS))
        return jax.vmap(lambda p, rows: self._loss(p, rows, jax.random.key(0), False))(params, rows)

    @partial(jax.jit, static_argnums=0)
    def _updates(self, state: Any, key: jax.Array) -> Any:
        batch = self.config.train.batch_size

        def one(params: Any, opt_state: Any, seen: jax.Array, key: jax.Array) -> tuple[Any, Any]:
            key_rows, key_loss = jax.random.split(key)
            rows = seen[jax.random.randint(key_rows, (batch,), 0, len(seen))]
            grad = jax.grad(self._loss)(params, rows, key_loss, True)
            change, opt_state = self.optimizer.update(grad, opt_state, params)
            return jax.tree.map(jnp.add, params, change), opt_state

        def update(state: Any, key: jax.Array) -> tuple[Any, None]:
            params, ema, opt_state, step = state
            params, opt_state = jax.vmap(one)(params, opt_state, self.seen, jax.random.split(key, MEMBERS))
            return (params, averaged(ema, params, ema_decay(self.config.train.ema, step)), opt_state, step + 1), None

        return jax.lax.scan(update, state, jax.random.split(key, CHECK_EVERY))[0]

    def trained(self) -> Any:
        """Each member's averaged weights where its held-out loss is least."""
        params = best = self.untrained
        state = (params, params, jax.vmap(self.optimizer.init)(params), jnp.zeros((), jnp.int32))
        least, at = np.asarray(self._losses(params)), np.zeros(MEMBERS, int)
        for step in range(CHECK_EVERY, self.config.train.steps + 1, CHECK_EVERY):
            state = self._updates(state, jax.random.fold_in(jax.random.key(self.config.seed), step))
            losses = np.asarray(self._losses(state[1]))
            better = losses < least
            best = jax.tree.map(partial(_where, better), state[1], best)
            least, at = np.minimum(losses, least), np.where(better, step, at)
            print(f"step {step}: held-out loss {losses.mean():.4f}, least {least.mean():.4f}", flush=True)
            if step >= at.max() + PATIENCE * CHECK_EVERY:
                break
        print(f"kept the weights of steps {', '.join(map(str, at))}", flush=True)
        return best


@dataclass(frozen=True)
class _Without:
    """The network without dropout, for a loss that hands it a key."""

    apply: Callable[..., jax.Array]

    def __call__(self, params: Any, x: jax.Array, c_noise: jax.Array, cond: Any = None) -> jax.Array:
        return self.apply(params, x, c_noise, cond)


def _where(member: Array, one: jax.Array, other: jax.Array) -> jax.Array:
    """Of each member that is True the one, of others the other."""
    return jnp.where(member.reshape(-1, *[1] * (one.ndim - 1)), one, other)


@dataclass(frozen=True)
class Posterior:
    """The fitted map and score of a task."""

    simulator: Simulator
    whitening: Whitening
    score_fn: Score

    def draw(self, x: Array, key: jax.Array) -> Array:
        """Draw a theta for each row of x (n, m); what the prior does not allow is drawn again."""
        found, missing = np.full((len(x), self.whitening.root.shape[0]), np.nan), np.arange(len(x))
        size = min(ROWS, len(x))
        for i in range(MOST_ROUNDS * -(-len(x) // size)):
            rows = np.resize(missing[:size], size)
            cond, of_round = self.whitening.cond(x[rows]), jax.random.fold_in(key, i)
            z = sample(SAMPLER, self.score_fn, of_round, size, found.shape[1:], cond=cond).x
            theta = self.whitening.to_parameters(np.asarray(z), x[rows])
            allowed = _allowed(self.simulator, theta)
            filled, first = np.unique(rows[allowed], return_index=True)
            found[filled] = theta[allowed][first]
            missing = np.setdiff1d(missing, filled)
            if not len(missing):
                return found
        raise UserError(f"{len(missing)} samples lie outside of the prior's support again and again: train longer")

    def log_prob(self, theta: Array, x: Array) -> Array:
        """Compute the log-density (n,) of theta (n, d) given x (n, m), by the probability-flow ODE.

        What is drawn again at a prior's walls is not taken into account: the little that leaks through them.
        """
        z, cond = self.whitening.to_residual(theta, x), self.whitening.cond(x)
        found = log_prob(self.score_fn, jnp.asarray(z), rtol=TOLERANCE, atol=TOLERANCE, cond=cond)
        return np.asarray(found.nats, np.float64) - np.linalg.slogdet(self.whitening.root)[1]


def fitted(task: str, count: int, steps: int | None, workdir: Path) -> Posterior:
    """Fit the task's map and score, or read the score's weights from the workdir."""
    simulator, config = SIMULATORS[task], sbi.get_config()
    config.data.update(name=task, simulations=count)
    if steps:
        config.train.steps = steps
    config = whole_config(config)
    theta, x = simulations(task, count)
    whitening = fit_whitening(theta, x, simulator.draws)
    z, cond = whitening.to_residual(theta, x), whitening.cond(x)
    walls = None if simulator.support is None else prior_walls(whitening, simulator.support)
    ensemble = Ensemble(config, z, cond, walls)
    settings = json.dumps([config.to_dict(), MEMBERS, PARTS, CHECK_EVERY, PATIENCE], sort_keys=True)
    digest = hashlib.sha256(settings.encode() + z.tobytes() + ensemble.told.tobytes()).hexdigest()
    path = workdir / f"weights_{digest[:12]}.npz"
    leaves, structure = jax.tree.flatten(ensemble.untrained)
    if not path.exists():
        start = time.perf_counter()
        trained = ensemble.trained()
        print(f"trained in {time.perf_counter() - start:.0f} s", flush=True)
        write_npz(path, **{str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(trained))})
    with np.load(path) as saved:
        params = jax.tree.unflatten(structure, [jnp.asarray(saved[str(i)]) for i in range(len(leaves))])
    return Posterior(simulator, whitening, ensemble.score(params))


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
