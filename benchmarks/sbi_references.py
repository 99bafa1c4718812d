"""Observations with reference samples of their posteriors, for benchmarks/sbi.py: read, and held to the task."""

import bz2
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiment.common.errors import UserError
from experiment.data.simulators import SIMULATORS, Simulator, simulations

Array = np.ndarray
Reference = tuple[Array, Array]  # an observation (m,), and samples (n, d) of its posterior

MOST_OBSERVATIONS = 100
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
    if not in_support(simulator, samples).all():
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


def in_support(simulator: Simulator, theta: Array) -> Array:
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
