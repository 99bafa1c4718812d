"""Exact targets that tests share: the same shapes throughout, so that they share compiled code too."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib import SDE, VE, VP, ExactScore, GaussianMixture, SubVP
from sde_lib.batch import per_row
from sde_lib.pytree import register_dataclass
from sde_lib.sde import CosineVP, RectifiedFlow

SDES = [VP(), SubVP(), VE()]
SDE_IDS = ["VP", "SubVP", "VE"]
ALL_SDES = [*SDES, CosineVP(), RectifiedFlow()]
ALL_SDE_IDS = [*SDE_IDS, "CosineVP", "RectifiedFlow"]


def random_mixture(seed: int, d: int, components: int = 3, spread: float = 1.0) -> GaussianMixture:
    """A mixture with full covariances, eigenvalues about 0.1 to 1."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(components, 3.0))
    factors = rng.normal(size=(components, d, d))
    covariances = 0.1 * np.eye(d) + 0.2 * factors @ factors.transpose(0, 2, 1) / d
    return GaussianMixture(weights, spread * rng.normal(size=(components, d)), covariances)


def two_peaks(weight: float = 0.8, distance: float = 2.0, std: float = 0.25, d: int = 2) -> GaussianMixture:
    """Two isotropic peaks, on the first axis."""
    means = np.outer([-distance / 2, distance / 2], np.eye(d)[0])
    return GaussianMixture([weight, 1 - weight], means, np.broadcast_to(std**2 * np.eye(d), (2, d, d)))


def normal(std: float = 0.5, d: int = 2, mean: float = 0.0) -> GaussianMixture:
    """N(mean, std² I), written with two components so that it compiles with `two_peaks`."""
    return GaussianMixture([0.5, 0.5], np.full((2, d), mean), np.broadcast_to(std**2 * np.eye(d), (2, d, d)))


@register_dataclass
@dataclass(frozen=True)
class ToldScore:
    """The exact score of data from N(cond, std² I), a mean that only its condition tells."""

    sde: SDE
    std: float = 0.5

    def __call__(self, x, t, cond=None, *, key=None):
        alpha, sigma = per_row(self.sde.alpha(t), x), per_row(self.sde.sigma(t), x)
        return -(x - alpha * cond) / ((self.std * alpha) ** 2 + sigma**2)


class CountingScore:
    """The score of `normal()` under VP that reports each of its calls from inside the compiled sampler."""

    sde = VP()
    calls: ClassVar[list[int]] = []

    def __call__(self, x, t, cond=None):
        jax.debug.callback(lambda: self.calls.append(1))
        return ExactScore(normal(), self.sde)(x, t)


jax.tree_util.register_pytree_node(CountingScore, lambda s: ((), None), lambda *_: CountingScore())


def calls_of(run) -> tuple[int, int]:
    """(calls of the score as counted, nfe of the result) of run(score)."""
    CountingScore.calls.clear()
    nfe = run(CountingScore()).nfe
    jax.effects_barrier()
    return len(CountingScore.calls), nfe


@register_dataclass
@dataclass(frozen=True)
class ClassScore:
    """The exact score of Gaussians with independent entries, one for each class; the last is that of "nothing".

    cond (n,) is the class; None is nothing. It reports the rows of each of its calls from inside a compiled sampler.
    """

    sde: SDE
    means: jax.Array
    stds: jax.Array
    rows: ClassVar[list[int]] = []

    def __call__(self, x, t, cond=None):
        n = x.shape[0]
        jax.debug.callback(lambda: self.rows.append(n))
        cond = jnp.full(n, len(self.means) - 1) if cond is None else cond
        alpha, sigma = per_row(self.sde.alpha(t), x), per_row(self.sde.sigma(t), x)
        mean, std = (jnp.asarray(v)[cond].astype(x.dtype) for v in (self.means, self.stds))
        return -(x - alpha * mean) / ((alpha * std) ** 2 + sigma**2)

    def calls_of(self, run):
        """(the network calls for each of the rows asked for, as counted; the result) of run()."""
        self.rows.clear()
        result = run()
        jax.block_until_ready(result)
        jax.effects_barrier()
        return sum(self.rows), result


def class_score(sde: SDE, d: int = 1) -> ClassScore:
    """Two classes N(1, 1/4), N(-1, 1/9) and nothing, N(0, 1), in every entry."""
    ones = np.ones((1, d))
    return ClassScore(sde, np.array([[1.0], [-1.0], [0.0]]) * ones, np.array([[0.5], [1 / 3], [1.0]]) * ones)
