"""The posterior network of benchmarks/sbi.py: a map, an ensemble of networks for what it leaves, and its draws.

The linear regression of theta by x is taken off (experiment/data/whitening.py), and the network of configs/sbi.py is
trained on what is left, MEMBERS times, from other weights and without another tenth of the pairs, whose loss says which
of a member's averaged weights to keep; the untrained network, which is the regression's own Gaussian, is among the
choices. Where the prior has walls, that Gaussian is cut by them, and the network is told how near they are
(experiment/data/prior_walls.py). The mean of the members' outputs is the score, and samples that the prior does not
allow are drawn again. Nothing is chosen by a reference.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.sbi_references import Array, in_support
from configs import sbi
from experiment.build.objects import build_network, build_optimizer, build_score
from experiment.common.errors import UserError
from experiment.common.files import write_npz
from experiment.config import whole_config
from experiment.data.dataset import Dataset, Split
from experiment.data.prior_walls import PriorWalls, WalledScore, prior_walls
from experiment.data.simulators import SIMULATORS, Simulator, simulations
from experiment.data.whitening import Whitening, fit_whitening
from experiment.training.trainer import averaged, ema_decay
from sde_lib import NetworkScore, denoising_score_matching, likelihood_weighting, log_prob, sample, uniform_log_snr
from sde_lib.samplers import DPMSolverPP2M

MEMBERS, PARTS = 3, 10  # member k does without part k of the pairs
CHECK_EVERY, PATIENCE = 250, 8  # updates between held-out losses, and so many without a better one end the training
DRAWS = 8  # of time and noise for each held-out pair
SAMPLER, ROWS = DPMSolverPP2M(steps=32), 2000  # ROWS: drawn at once
MOST_ROUNDS = 50  # of drawing again what lies outside of the prior's support
TOLERANCE = 1e-5  # of the likelihood's solve, relative and absolute


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
            allowed = in_support(self.simulator, theta)
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
