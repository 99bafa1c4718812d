"""Exact distributions: what every sampler and likelihood is checked against.

A distribution gives `sample(key, n)`, `log_prob(x)` in nats and `score(x)`; those that stay exact under diffusion also
give `at(sde, t)`, the distribution of x_t.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from sde_lib.batch import check_entries, like, points, sum_of_entries
from sde_lib.pytree import register_dataclass
from sde_lib.typing import Array, Scalar

if TYPE_CHECKING:
    from sde_lib.inverse.operators import ObservationOperator
    from sde_lib.sde import SDE  # which imports this module: its prior is a distribution

_HIGHEST = jax.lax.Precision.HIGHEST  # the oracle keeps full float32 on GPU and TPU


class HasScore(Protocol):
    """A distribution with a score: all that Langevin sampling needs."""

    def score(self, x: jax.Array) -> jax.Array:
        """The gradient of the log-density, like x."""
        ...


class Prior(Protocol):
    """A distribution at t_max: `sample` starts from draws of it, and `log_prob` ends in its density."""

    def sample(self, key: jax.Array, n: int) -> jax.Array:
        """Draw n samples, (n, *shape)."""
        ...

    def log_prob(self, x: jax.Array) -> jax.Array:
        """The log-density of each row in nats, (n,)."""
        ...


class Diffusible(Protocol):
    """A distribution that stays exact under diffusion: what `ExactScore` takes."""

    def at(self, sde: "SDE", t: Scalar) -> HasScore:
        """The exact distribution of x_t."""
        ...


@partial(register_dataclass, static=("shape",))
@dataclass(frozen=True)
class IsotropicGaussian:
    """The Gaussian N(0, std² I) over arrays of the given shape."""

    shape: tuple[int, ...]
    std: float | jax.Array

    def sample(self, key: jax.Array, n: int) -> jax.Array:
        """Draw n samples, (n, *shape)."""
        return self.std * jax.random.normal(key, (n, *self.shape))

    def log_prob(self, x: jax.Array) -> jax.Array:
        """The log-density log N(x; 0, std² I) in nats, (n,)."""
        x = points(x)
        check_entries(self, x, self.shape)
        flat = x.reshape(x.shape[0], -1)
        std = jnp.asarray(self.std, x.dtype)
        return -0.5 * jnp.sum((flat / std) ** 2, 1) - flat.shape[1] * (jnp.log(std) + 0.5 * np.log(2 * np.pi))

    def score(self, x: jax.Array) -> jax.Array:
        """The score -x/std²."""
        z = points(x)
        check_entries(self, z, self.shape)
        return like(-z / jnp.asarray(self.std, z.dtype) ** 2, x)


@register_dataclass
@dataclass(frozen=True)
class DiagonalGaussian:
    """The Gaussian N(mean, diag(std²)) over arrays like mean.

    With the data's moments, `at(sde, sde.t_max)` is a closer prior than the SDE's own.

    mean, std: arrays of one shape.
    """

    mean: Array
    std: Array

    def sample(self, key: jax.Array, n: int) -> jax.Array:
        """Draw n samples, (n, *shape)."""
        return jax.random.normal(key, (n, *self.mean.shape)) * self.std[None] + self.mean[None]

    def log_prob(self, x: jax.Array) -> jax.Array:
        """The sum over entries of log N(x; mean, std²) in nats, (n,)."""
        x = points(x)
        check_entries(self, x, self.mean.shape)
        std = jnp.asarray(self.std, x.dtype)[None]
        z = (x - jnp.asarray(self.mean, x.dtype)[None]) / std
        return -sum_of_entries(0.5 * z**2 + jnp.log(std) + 0.5 * np.log(2 * np.pi))

    def score(self, x: jax.Array) -> jax.Array:
        """The score -(x - mean)/std²."""
        z = points(x)
        check_entries(self, z, self.mean.shape)
        return like(-(z - jnp.asarray(self.mean, z.dtype)[None]) / jnp.asarray(self.std, z.dtype)[None] ** 2, x)

    def at(self, sde: "SDE", t: Scalar) -> "DiagonalGaussian":
        """The exact distribution of x_t: mean alpha m, variance alpha² std² + sigma²."""
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return DiagonalGaussian(alpha * self.mean, (alpha**2 * self.std**2 + sigma**2) ** 0.5)

    def kl(self, other: IsotropicGaussian) -> jax.Array:
        """The divergence KL(self || N(0, other.std² I)) in nats, for an `IsotropicGaussian`."""
        ratio = (self.std / other.std) ** 2
        return 0.5 * jnp.sum(ratio - 1 - jnp.log(ratio) + (self.mean / other.std) ** 2)


@partial(register_dataclass, static=("log_density",))
@dataclass(frozen=True)
class Density:
    """A density known up to a constant, from its logarithm: the score is the gradient of that.

    `log_density(x)` takes one point of any shape and returns a scalar in nats.
    """

    log_density: Callable[[jax.Array], jax.Array]

    def log_prob(self, x: jax.Array) -> jax.Array:
        """The log-density of each row, up to the constant, (n,)."""
        return jax.vmap(self.log_density)(points(x))

    def score(self, x: jax.Array) -> jax.Array:
        """The gradient of the log-density, like x."""
        return like(jax.vmap(jax.grad(self.log_density))(points(x)), x)


@jax.tree_util.register_pytree_node_class
class GaussianMixture:
    """A mixture sum_k w_k N(m_k, S_k) in d dimensions, with full covariances, exact under every linear SDE.

    Args:
        weights: (k,), positive, sum 1.
        means: (k, d).
        covariances: (k, d, d), symmetric and positive semi-definite.

    Each covariance is kept as its eigenbasis and its variances along it: diffusion then only moves the variances, to
    alpha² v + sigma². Points may have any shape with d entries, such as images.
    """

    def __init__(self, weights: npt.ArrayLike, means: npt.ArrayLike, covariances: npt.ArrayLike):
        weights, means, covariances = (1.0 * jnp.asarray(a) for a in (weights, means, covariances))
        if means.ndim != 2 or weights.shape != means.shape[:1] or covariances.shape != (*means.shape, means.shape[1]):
            raise ValueError(
                "GaussianMixture takes weights (k,), means (k, d) and covariances (k, d, d), "
                f"not {weights.shape}, {means.shape} and {covariances.shape}"
            )
        traced = any(isinstance(a, jax.core.Tracer) for a in (weights, covariances))
        if traced:
            variances, basis = jnp.linalg.eigh(covariances)
        else:
            variances, basis = self._checked_eigh(np.asarray(weights, float), np.asarray(covariances, float))
        self.log_weights = jnp.log(weights)
        self.means = means
        self.basis = jnp.asarray(basis, means.dtype)
        self.variances = jnp.asarray(variances, means.dtype)

    @staticmethod
    def _checked_eigh(weights: np.ndarray, covariances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if (weights < 0).any() or abs(weights.sum() - 1) > 1e-4:
            raise ValueError(
                f"GaussianMixture: weights must be positive and sum to 1, not {weights}: divide them by their sum"
            )
        scale = np.abs(covariances).max()
        if np.abs(covariances - covariances.swapaxes(-1, -2)).max() > 1e-4 * scale:
            raise ValueError("GaussianMixture: each covariance must be symmetric: use 0.5 * (S + S.T)")
        variances, basis = np.linalg.eigh(covariances)
        if variances.min() < -1e-5 * scale:
            raise ValueError(
                "GaussianMixture: each covariance must be positive semi-definite; an eigenvalue is "
                f"{variances.min():.3g}"
            )
        return np.maximum(variances, 0), basis

    def tree_flatten(self) -> tuple[tuple[jax.Array, ...], None]:
        return (self.log_weights, self.means, self.basis, self.variances), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: Sequence[jax.Array]) -> "GaussianMixture":
        mixture = object.__new__(cls)
        mixture.log_weights, mixture.means, mixture.basis, mixture.variances = leaves
        return mixture

    def __repr__(self) -> str:
        components, d = (*np.shape(self.means), "?", "?")[:2]
        return f"GaussianMixture({components} components in {d} dimensions)"

    @property
    def covariances(self) -> jax.Array:
        """The covariances S_k, (k, d, d)."""
        return jnp.einsum("kij,kj,klj->kil", self.basis, self.variances, self.basis, precision=_HIGHEST)

    def mean(self) -> jax.Array:
        """The mixture's mean, (d,)."""
        return jnp.exp(self.log_weights) @ self.means

    def covariance(self) -> jax.Array:
        """The mixture's covariance, (d, d)."""
        weights, offsets = jnp.exp(self.log_weights), self.means - self.mean()[None]
        return jnp.einsum("k,kij->ij", weights, self.covariances) + jnp.einsum("k,ki,kj->ij", weights, offsets, offsets)

    def sample(self, key: jax.Array, n: int) -> jax.Array:
        """Draw n samples, (n, d)."""
        key_component, key_noise = jax.random.split(key)
        k = jax.random.categorical(key_component, self.log_weights, shape=(n,))
        z = jnp.sqrt(self.variances)[k] * jax.random.normal(key_noise, (n, self.means.shape[1]), self.means.dtype)
        return self.means[k] + jnp.einsum("nij,nj->ni", self.basis[k], z, precision=_HIGHEST)

    def log_prob(self, x: jax.Array) -> jax.Array:
        """The log-density log sum_k w_k N(x; m_k, S_k) in nats, (n,)."""
        return jax.nn.logsumexp(self._component_log_probs(self._whiten(x)), axis=1)

    def posterior(self, x: jax.Array) -> jax.Array:
        """The probability p(component k | x), (n, k)."""
        return jax.nn.softmax(self._component_log_probs(self._whiten(x)), axis=1)

    def score(self, x: jax.Array) -> jax.Array:
        """The gradient of log_prob, like x: -sum_k r_k(x) S_k^-1 (x - m_k) with the posterior weights r_k."""
        along = self._whiten(x)
        responsibilities = jax.nn.softmax(self._component_log_probs(along), axis=1)
        pull = responsibilities[:, :, None] * along / self.variances.astype(along.dtype)[None]
        score = -jnp.einsum("kij,nkj->ni", self.basis.astype(along.dtype), pull, precision=_HIGHEST)
        return like(score.reshape(np.shape(x)), x)

    def at(self, sde: "SDE", t: Scalar) -> "GaussianMixture":
        """The exact distribution of x_t at one time: means alpha m_k, covariances alpha² S_k + sigma² I."""
        dtype = self.means.dtype
        alpha, sigma = jnp.asarray(sde.alpha(t), dtype), jnp.asarray(sde.sigma(t), dtype)
        leaves = (self.log_weights, alpha * self.means, self.basis, alpha**2 * self.variances + sigma**2)
        return self.tree_unflatten(None, leaves)

    def observe(
        self,
        operator: "ObservationOperator",
        y: npt.ArrayLike,
        noise: npt.ArrayLike,
        *,
        shape: tuple[int, ...] | None = None,
    ) -> tuple["GaussianMixture", float]:
        """Condition on an observation y = A x + n with n Gaussian of mean 0: the exact posterior, again a mixture.

        Computed on the host, in float64.

        Args:
            operator: A, linear, of `sde_lib.inverse`.
            y: one observation, without an axis of samples.
            noise: the standard deviation of n in the units of x, a number or like y; or, of y (m,), its covariance
                (m, m), which is then no standard deviation.
            shape: of a point, as the operator takes it. Default: (d,).

        Returns:
            posterior: the distribution of x given y.
            log_evidence: log p(y) in nats; of a `Mask`, of the entries that are seen.

        Raises ValueError for an operator that is not linear, and shapes that do not fit.
        """
        from sde_lib.inverse.exact import observe_components  # which needs none of this module

        shape = self.means.shape[1:] if shape is None else shape
        found = observe_components(jnp.exp(self.log_weights), self.means, self.covariances, operator, y, noise, shape)
        return GaussianMixture(*found[:3]), found[3]

    def _whiten(self, x: jax.Array) -> jax.Array:
        """The offsets from each mean along each component's axes, (n, k, d)."""
        x = points(x)
        check_entries(self, x, self.means.shape[1:])
        offsets = x.reshape(x.shape[0], 1, -1) - self.means.astype(x.dtype)[None]
        return jnp.einsum("nki,kij->nkj", offsets, self.basis.astype(x.dtype), precision=_HIGHEST)

    def _component_log_probs(self, along: jax.Array) -> jax.Array:
        """The terms log w_k + log N(x; m_k, S_k), (n, k), from the offsets along the axes."""
        variances = self.variances.astype(along.dtype)
        log_norm = self.log_weights.astype(along.dtype) - 0.5 * jnp.sum(jnp.log(2 * np.pi * variances), axis=1)
        return log_norm[None] - 0.5 * jnp.sum(along**2 / variances[None], axis=2)
