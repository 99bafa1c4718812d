"""The user's units of data without levels: vectors, series, images of floats, volumes.

The network sees z = (x - mean)/std, standardised for each coordinate of a vector, or each channel of a field, by
constants of the training split. They are kept in the run, so that samples, pictures and log-densities come out in x's
units:

    log p(x) = log p(z) - sum over the entries of log std
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiment.data.stored import in_blocks
from sde_lib import SDE, NetworkFlowMap, NetworkScore, register_dataclass

Array = Any


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Units:
    """The map between x in the user's units and z of mean 0 and variance 1: x = mean + std z.

    mean, std: float64, (d,) of vectors, (channels,) of fields. All of it is computed in float64 on the host, since
    times in seconds, or energies in erg, leave float32 no digits.
    """

    mean: np.ndarray
    std: np.ndarray

    def __repr__(self) -> str:
        few = len(self.mean) <= 4
        return f"Units(mean={self.mean}, std={self.std})" if few else f"Units(of {len(self.mean)})"

    @staticmethod
    def of(x: np.ndarray) -> "Units":
        """The units of examples x (n, d) or (n, ..., channels), by their mean and deviation, 0 where constant."""
        axes, count = tuple(range(x.ndim - 1)), x[..., 0].size
        mean = sum(part.sum(axis=axes, dtype=np.float64) for part in in_blocks(x)) / count
        square = sum(_squares(part, mean).sum(axis=axes) for part in in_blocks(x))
        least = np.min([part.min(axis=axes) for part in in_blocks(x)], axis=0)
        most = np.max([part.max(axis=axes) for part in in_blocks(x)], axis=0)
        constant = least == most  # where rounding would leave a little
        return Units(mean, np.where(constant, 0.0, np.sqrt(square / count)))

    @property
    def dtype(self) -> Any:
        """float32, or float64 where a float32 of x would be off by more than 1e-4 standard deviations."""
        largest = np.abs(self.mean) + 10 * self.std
        told = largest * np.finfo(np.float32).eps < 1e-4 * self.std
        told |= self.std == 0
        return np.float32 if np.all(told & (largest < np.finfo(np.float32).max)) else np.float64

    def to_model(self, x: Array) -> np.ndarray:
        """(x - mean)/std, float32."""
        return ((np.asarray(x, np.float64) - self.mean) / self.std).astype(np.float32)

    def to_data(self, z: Array) -> np.ndarray:
        """The x = mean + std z, of `dtype`."""
        return (self.mean + self.std * np.asarray(z, np.float64)).astype(self.dtype)

    def near(self, other: "Units") -> bool:
        """Tell whether both are of the same data: to a thousandth of a standard deviation."""
        same = self.mean.shape == other.mean.shape and np.abs(self.mean - other.mean) < 1e-3 * self.std
        return bool(np.all(same & (np.abs(self.std - other.std) < 1e-3 * self.std)))

    def log_det(self, shape: tuple[int, ...]) -> float:
        """The sum of log std over the entries of an example of this shape: log p(x) = log p(z) - log_det."""
        return float(np.sum(np.broadcast_to(np.log(self.std), shape)))


def _squares(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(x - mean)², in float64 and in place."""
    off = x.astype(np.float64)
    off -= mean
    return np.square(off, out=off)


@register_dataclass
@dataclass(frozen=True, repr=False)
class StandardizedScore:
    """The score of z = (x - mean)/std under its SDE, with the units that lead back to x as leaves.

    To samplers and likelihoods it is `score_fn`, of z. Their samples are `units.to_data(z)`, and their log-densities,
    less `units.log_det(shape)`, are those of x.

    units: None for x that are not standardised. cond_units: those of the vectors (n, m) that the score is told, which
    it takes as the user has them and standardises itself; a row of NaN stays one. None for another condition.
    """

    score_fn: NetworkScore
    units: Units | None
    cond_units: Units | None = None

    def __repr__(self) -> str:
        told = "" if self.cond_units is None else f", cond_units={self.cond_units!r}"
        return f"StandardizedScore({self.score_fn!r}, {self.units!r}{told})"

    @property
    def sde(self) -> SDE:
        return self.score_fn.sde

    def __call__(self, x: jax.Array, t: Any, cond: Any = None) -> jax.Array:
        return self.score_fn(x, t, _standardised(cond, self.cond_units))

    def flow_map(self) -> "StandardizedFlowMap":
        """The flow map of whose network this score is the diagonal."""
        score_fn = self.score_fn
        inner = NetworkFlowMap(score_fn.apply, score_fn.params, score_fn.sde, score_fn.parameterization)
        return StandardizedFlowMap(inner, self.units, self.cond_units)


@register_dataclass
@dataclass(frozen=True, repr=False)
class StandardizedFlowMap:
    """The flow map whose diagonal is a `StandardizedScore`, told as that one is."""

    inner: NetworkFlowMap
    units: Units | None
    cond_units: Units | None = None

    @property
    def sde(self) -> SDE:
        return self.inner.sde

    @property
    def score(self) -> StandardizedScore:
        """The diagonal."""
        return StandardizedScore(self.inner.score, self.units, self.cond_units)

    def __call__(self, x: jax.Array, t: Any, s: Any, cond: Any = None) -> jax.Array:
        return self.inner(x, t, s, _standardised(cond, self.cond_units))


def _standardised(cond: Any, units: Units | None) -> Any:
    """The vectors (n, m) that a network is told, in its units; what is no such vector as it is."""
    if units is None or cond is None:
        return cond
    cond = jnp.asarray(cond, jnp.float32)
    mean, std = (jnp.asarray(constant, jnp.float32)[None] for constant in (units.mean, units.std))
    if cond.ndim != 2 or cond.shape[1:] != mean.shape[1:]:  # one column would repeat
        raise ValueError(f"cond must be (n, {mean.shape[1]}), a vector for each sample; it is {cond.shape}")
    return (cond - mean) / std
