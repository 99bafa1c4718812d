"""Simulators with known posteriors: parameters theta from a prior, and x from a simulator at theta.

Five tasks of the benchmark sbibm (Lueckmann et al. 2021, arXiv:2101.04653). As a data set the vectors are theta and
each one's condition is its x, so that a conditional score of theta is that of the posterior p(theta | x).

Each task also tells the logarithm of its likelihood, up to a constant of x, and the support of its prior; where the
posterior has a closed form it draws from it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiment.common.errors import UserError
from experiment.data.dataset import Dataset, fixed_split
from experiment.data.units import Units

SIMULATION_SEED = 2101
MOST_ROUNDS = 100  # of proposals, each as many as the samples wanted

Key = jax.Array
Sampler = Callable[[Key, jax.Array, int], jax.Array]


@dataclass(frozen=True)
class Simulator:
    """A prior of theta (d,), and the distribution of x (m,) given theta.

    prior: (key, n) -> (n, d). log_prior: theta -> log p(theta) inside the support, up to a constant.
    simulate: (key, theta (n, d)) -> x (n, m). log_likelihood: (theta, x) -> log p(x | theta), up to a function of x;
    None where it has no gradient everywhere. support: the prior's lowest and highest values of each parameter, None for
    all of R^d. posterior: (key, x, n) -> (n, d), exact samples, where there is a way. log_posterior: (theta (n, d), x)
    -> log p(theta | x) (n,), with its constant, where that is known. draws: how many independent draws of equal length
    x consists of.
    """

    prior: Callable[[Key, int], jax.Array]
    simulate: Callable[[Key, jax.Array], jax.Array]
    log_prior: Callable[[jax.Array], jax.Array] = lambda theta: jnp.zeros(())
    log_likelihood: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    support: tuple[np.ndarray, np.ndarray] | None = None
    posterior: Sampler | None = None
    log_posterior: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    draws: int = 1


def box(size: int, half: float) -> tuple[np.ndarray, np.ndarray]:
    """The support [-half, half]^size."""
    return np.full(size, -half), np.full(size, half)


def _uniform(size: int, half: float) -> Callable[[Key, int], jax.Array]:
    return lambda key, n: jax.random.uniform(key, (n, size), minval=-half, maxval=half)


def _accepted(propose: Callable[[Key, int], tuple[jax.Array, jax.Array]], key: Key, n: int) -> jax.Array:
    """Draw n rows of those that `propose`, (key, n) -> (rows, accepted), accepts.

    Raises UserError where next to nothing is accepted.
    """
    kept, found = [], 0
    for i in range(MOST_ROUNDS):
        rows, good = propose(jax.random.fold_in(key, i), n)
        kept.append(np.asarray(rows)[np.asarray(good)])
        found += len(kept[-1])
        if found >= n:
            return jnp.asarray(np.concatenate(kept)[:n])
    raise UserError(
        f"the posterior: {found} of {MOST_ROUNDS * n} proposals lie in the prior's support; give an x that the"
        " simulator can produce"
    )


# two_moons


MOON_RADIUS, MOON_SPREAD, MOON_CENTRE = 0.1, 0.01, 0.25
MOON_SUPPORT = box(2, 1.0)


def _crescent(key: Key, n: int) -> jax.Array:
    """The noise of two_moons, (n, 2): a half circle around (0.25, 0)."""
    keys = jax.random.split(key)
    a = jax.random.uniform(keys[0], (n,), minval=-jnp.pi / 2, maxval=jnp.pi / 2)
    r = MOON_RADIUS + MOON_SPREAD * jax.random.normal(keys[1], (n,))
    return jnp.stack([r * jnp.cos(a) + MOON_CENTRE, r * jnp.sin(a)], axis=1)


def _simulate_moons(key: Key, theta: jax.Array) -> jax.Array:
    total, difference = theta[:, 0] + theta[:, 1], theta[:, 1] - theta[:, 0]
    return _crescent(key, len(theta)) + jnp.stack([-jnp.abs(total), difference], axis=1) / np.sqrt(2)


def _posterior_moons(key: Key, x: jax.Array, n: int) -> jax.Array:
    """Two crescents, one for each sign of theta_1 + theta_2, cut at the prior's walls.

    x less the noise is (-|theta_1 + theta_2|, theta_2 - theta_1)/sqrt(2), a map whose Jacobian is 1 on either side.
    """

    def propose(key: Key, n: int) -> tuple[jax.Array, jax.Array]:
        key_noise, key_sign = jax.random.split(key)
        rest = np.sqrt(2) * (x[None] - _crescent(key_noise, n))
        total = jnp.where(jax.random.bernoulli(key_sign, shape=(n,)), 1, -1) * rest[:, 0]
        theta = jnp.stack([total - rest[:, 1], total + rest[:, 1]], axis=1) / 2
        return theta, (rest[:, 0] <= 0) & jnp.all(jnp.abs(theta) <= 1, axis=1)

    return _accepted(propose, key, n)


# gaussian_linear


LINEAR_SIZE, LINEAR_VARIANCE = 10, 0.1  # of the prior and of the noise


def _normal_linear(key: Key, n: int) -> jax.Array:
    return np.sqrt(LINEAR_VARIANCE) * jax.random.normal(key, (n, LINEAR_SIZE))


def _posterior_linear(key: Key, x: jax.Array, n: int) -> jax.Array:
    """The posterior N(x/2, 0.05 I)."""
    return x[None] / 2 + np.sqrt(LINEAR_VARIANCE / 2) * jax.random.normal(key, (n, LINEAR_SIZE))


def _log_posterior_linear(theta: jax.Array, x: jax.Array) -> jax.Array:
    variance = LINEAR_VARIANCE / 2
    off = theta - x[None] / 2
    return -0.5 * jnp.sum(off**2, axis=1) / variance - 0.5 * LINEAR_SIZE * np.log(2 * np.pi * variance)


# gaussian_mixture


MIXTURE_SUPPORT = box(2, 10.0)
MIXTURE_STDS = np.array([1.0, 0.1])  # of two components with equal weights


def _either_normal(key: Key, mean: jax.Array) -> jax.Array:
    key_which, key_noise = jax.random.split(key)
    std = jnp.asarray(MIXTURE_STDS)[jax.random.randint(key_which, mean.shape[:1], 0, 2)]
    return mean + std[:, None] * jax.random.normal(key_noise, mean.shape)


def _log_either_normal(theta: jax.Array, x: jax.Array) -> jax.Array:
    exponent = -0.5 * jnp.sum((x - theta) ** 2) / MIXTURE_STDS**2
    return jax.nn.logsumexp(exponent - 2 * np.log(MIXTURE_STDS))


def _posterior_mixture(key: Key, x: jax.Array, n: int) -> jax.Array:
    """The same two Gaussians around x, cut at the prior's walls."""

    def propose(key: Key, n: int) -> tuple[jax.Array, jax.Array]:
        theta = _either_normal(key, jnp.broadcast_to(x[None], (n, 2)))
        return theta, jnp.all(jnp.abs(theta) <= 10, axis=1)

    return _accepted(propose, key, n)


# slcp: simple likelihood, complex posterior


SLCP_SUPPORT = box(5, 3.0)
SLCP_DRAWS, SLCP_JITTER = 4, 1e-6


def _slcp_root(theta: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The Cholesky factor's entries l11, l21, l22 of the covariance S at theta (..., 5)."""
    s1, s2, rho = theta[..., 2] ** 2, theta[..., 3] ** 2, jnp.tanh(theta[..., 4])
    variance = s1**2 + SLCP_JITTER
    first = jnp.sqrt(variance)
    # 1 - rho² = 1/cosh², and S22 - l21² without the difference of nearly equal numbers.
    left = SLCP_JITTER + s2**2 * (SLCP_JITTER + (s1 / jnp.cosh(theta[..., 4])) ** 2) / variance
    return first, rho * s1 * s2 / first, jnp.sqrt(left)


def _simulate_slcp(key: Key, theta: jax.Array) -> jax.Array:
    first, mixed, second = (entry[:, None] for entry in _slcp_root(theta))
    z = jax.random.normal(key, (len(theta), SLCP_DRAWS, 2))
    noise = jnp.stack([first * z[..., 0], mixed * z[..., 0] + second * z[..., 1]], axis=-1)
    return (theta[:, None, :2] + noise).reshape(len(theta), 2 * SLCP_DRAWS)


def _log_slcp(theta: jax.Array, x: jax.Array) -> jax.Array:
    first, mixed, second = _slcp_root(theta)
    off = x.reshape(SLCP_DRAWS, 2) - theta[None, :2]
    z1 = off[:, 0] / first
    z2 = (off[:, 1] - mixed * z1) / second
    return -0.5 * jnp.sum(z1**2 + z2**2) - SLCP_DRAWS * jnp.log(first * second)


# bernoulli_glm: spikes of a neuron that a stimulus drives through a filter of nine weights, beside an offset

GLM_BINS, GLM_FILTER = 100, 9


def glm_stimulus() -> np.ndarray:
    """The stimulus (100,) of bernoulli_glm: the benchmark drew it once, from a stream that numpy keeps (NEP 19)."""
    return np.random.RandomState(42).standard_normal(GLM_BINS)


def glm_design() -> np.ndarray:
    """The design matrix (100, 10): ones, and the stimulus 0 to 8 bins ago, zero before it began."""
    stimulus = glm_stimulus()
    lagged = [np.concatenate([np.zeros(lag), stimulus[: GLM_BINS - lag]]) for lag in range(GLM_FILTER)]
    return np.stack([np.ones(GLM_BINS), *lagged], axis=1)


def glm_precision() -> np.ndarray:
    """The prior's precision matrix (10, 10): 1/2 for the offset, and smooth filters, FᵀF."""
    difference = np.eye(GLM_FILTER) - np.eye(GLM_FILTER, k=-1)
    smooth = difference @ difference + np.diag(np.sqrt(np.arange(GLM_FILTER) / GLM_FILTER))
    precision = np.zeros((1 + GLM_FILTER, 1 + GLM_FILTER))
    precision[0, 0], precision[1:, 1:] = 0.5, smooth.T @ smooth
    return precision


def _normal_glm(key: Key, n: int) -> jax.Array:
    root = np.linalg.cholesky(np.linalg.inv(glm_precision()))
    return jax.random.normal(key, (n, len(root))) @ jnp.asarray(root.T, jnp.float32)


def _simulate_glm(key: Key, theta: jax.Array) -> jax.Array:
    """Draw y_k ~ Bernoulli(sigmoid(design theta)), and return what the posterior depends on, designᵀ y.

    Its first entry is the number of spikes, the others are the spikes' correlation with the stimulus.
    """
    design = jnp.asarray(glm_design(), jnp.float32)
    spikes = jax.random.bernoulli(key, jax.nn.sigmoid(theta @ design.T))
    return spikes.astype(jnp.float32) @ design


def _log_glm(theta: jax.Array, x: jax.Array) -> jax.Array:
    return x @ theta - jnp.sum(jax.nn.softplus(jnp.asarray(glm_design(), theta.dtype) @ theta))


SIMULATORS = {
    "two_moons": Simulator(_uniform(2, 1.0), _simulate_moons, support=MOON_SUPPORT, posterior=_posterior_moons),
    "gaussian_linear": Simulator(
        _normal_linear,
        lambda key, theta: theta + _normal_linear(key, len(theta)),
        lambda theta: -0.5 * jnp.sum(theta**2) / LINEAR_VARIANCE,
        lambda theta, x: -0.5 * jnp.sum((x - theta) ** 2) / LINEAR_VARIANCE,
        posterior=_posterior_linear,
        log_posterior=_log_posterior_linear,
    ),
    "gaussian_mixture": Simulator(
        _uniform(2, 10.0),
        _either_normal,
        log_likelihood=_log_either_normal,
        support=MIXTURE_SUPPORT,
        posterior=_posterior_mixture,
    ),
    "slcp": Simulator(
        _uniform(5, 3.0), _simulate_slcp, log_likelihood=_log_slcp, support=SLCP_SUPPORT, draws=SLCP_DRAWS
    ),
    "bernoulli_glm": Simulator(
        _normal_glm,
        _simulate_glm,
        lambda theta: -0.5 * theta @ jnp.asarray(glm_precision(), theta.dtype) @ theta,
        _log_glm,
    ),
}


def simulations(name: str, count: int, seed: int = SIMULATION_SEED) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` pairs of the task `name`: theta (count, d) and x (count, m), float32."""
    simulator = SIMULATORS[name]
    key_prior, key_noise = jax.random.split(jax.random.key(seed))
    theta = simulator.prior(key_prior, count)
    return np.asarray(theta, np.float32), np.asarray(simulator.simulate(key_noise, theta), np.float32)


def load_simulations(name: str, count: int) -> Dataset:
    """Draw `count` simulations as a data set: the vectors are theta, told x. A tenth of them is held out.

    Raises UserError for fewer than two.
    """
    theta, x = simulations(name, count)
    train, test = fixed_split(theta, None, f"data.simulations={count}", vectors=x)
    units, cond_units = Units.of(train.x), Units.of(np.asarray(train.vectors))
    return Dataset(name, train, test, levels=None, units=units, cond_units=cond_units)
