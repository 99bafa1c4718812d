"""The walls of a bounded prior, seen from the residuals z of experiment/data/whitening.py.

A prior on a box, low <= theta <= high, cuts a posterior where its density jumps, which a network smooths: what it draws
there leaks through the wall, and what is left inside is too thin. The Gaussian that whitening starts from, cut by one
wall n·z <= b, has a score at every noise in closed form, and that is added to the network's: with y = x_t/alpha and
rho = sigma/alpha, y has the density

    N(y; 0, (1 + rho²) I) Phi((b - n·y/(1 + rho²))/s) up to a constant,    s² = rho²/(1 + rho²)

The second factors of several walls are multiplied: exact for walls at right angles, a coordinate's two being far apart
beside the residuals. A smooth posterior has the same jump, so that at small noise nothing of it is left to learn.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from experiment.data.whitening import Whitening
from sde_lib import SDE, NetworkScore, register_dataclass

Array = np.ndarray

# In full precision: what TF32 leaves out is divided by the least noise.
_product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

FARTHEST = 50.0  # beyond a wall, in standard deviations of z given x_t: farther counts as this


@register_dataclass
@dataclass(frozen=True)
class PriorWalls:
    """Walls n·z <= b, the distance b an affine function of what the network is told, c.

    normals: n (m, d), of length 1. slope: (k, m), and offset: (m,), of b in c.
    """

    normals: jax.Array
    slope: jax.Array
    offset: jax.Array

    def distances(self, c: jax.Array) -> jax.Array:
        """Compute b (n, m) at c (n, k), in standard deviations of the residuals; negative where z = 0 is beyond."""
        return _product(c, self.slope) + self.offset[None]

    def told(self, c: jax.Array) -> jax.Array:
        """c, and beside it how near each wall is, (n, k + m): 1 far inside, -3 far beyond."""
        return jnp.concatenate([c, 2 * jnp.tanh(self.distances(c)) - 1], axis=1)

    def score(self, x: jax.Array, alpha: jax.Array, sigma: jax.Array, c: jax.Array) -> jax.Array:
        """Compute what the walls add to the score of N(0, I) at x_t (n, d), (n, d). alpha, sigma: () or (n, 1)."""
        rho2 = (sigma / alpha) ** 2
        variance, std = 1 + rho2, jnp.sqrt(rho2 / (1 + rho2))
        u = (self.distances(c) - _product(x, self.normals.T) / (alpha * variance)) / std
        u = jnp.maximum(u, -FARTHEST)
        pushes = jnp.exp(norm.logpdf(u) - norm.logcdf(u)) / std
        return -_product(pushes, self.normals) / (alpha * variance)


def prior_walls(whitening: Whitening, support: tuple[Array, Array]) -> PriorWalls:
    """See the walls low <= theta <= high of the support from the whitening's residuals: first high's, then low's."""
    low, high = support
    size = np.linalg.norm(whitening.root, axis=1)
    normals, slope = whitening.root / size[:, None], whitening.slope / size
    ends = (high - whitening.offset) / size, (whitening.offset - low) / size
    arrays = np.concatenate([normals, -normals]), np.concatenate([-slope, slope], axis=1), np.concatenate(ends)
    return PriorWalls(*(jnp.asarray(array, jnp.float32) for array in arrays))


@register_dataclass
@dataclass(frozen=True)
class WalledScore:
    """A network's score of residuals whose prior has walls: it adds to the score of a Gaussian that they cut."""

    network: NetworkScore
    walls: PriorWalls

    @property
    def sde(self) -> SDE:
        return self.network.sde

    def __call__(self, x: jax.Array, t: Any, cond: Any = None, *, key: jax.Array | None = None) -> jax.Array:
        """The score at x (n, d), told c (n, k); the network is also told how near the walls are."""
        alpha, sigma = (jnp.reshape(of(jnp.asarray(t, x.dtype)), (-1, 1)) for of in (self.sde.alpha, self.sde.sigma))
        return self.network(x, t, self.walls.told(cond), key=key) + self.walls.score(x, alpha, sigma, cond)
