"""From levels to densities: a discrete x, at the centre of its bin, becomes z at t_min with a known log q(z | x).

A density p of z then bounds the probability of the level, and the tighter the more draws (Burda et al. 2016,
arXiv:1509.00519, eq. 8):

    log P(x) >= E log (1/K) sum_k p(z_k)/q(z_k | x)

in nats, the same unit for every q: there is no offset such as the well-known +7 to add.
"""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf, logsumexp

from sde_lib.batch import points, sum_of_entries, threefry
from sde_lib.sde import SDE
from sde_lib.typing import Array


class Dequantization(Protocol):
    def __call__(self, sde: SDE, keys: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]: ...


@dataclass(frozen=True)
class UniformDequantization:
    """A draw z uniform in the bin of x, taken as a point at t_min.

    Theis et al. 2016, arXiv:1511.01844, section 3.1.

    bin_width: of a level in the model's space, such as 2/256.
    """

    bin_width: float

    def __post_init__(self) -> None:
        _check(self.bin_width)

    def __call__(self, sde: SDE, keys: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draw z for bin centres x (n, *shape), row i from keys[i] alone.

        Returns:
            z: like x.
            log_density: (n,), log q(z | x) in nats.
        """
        x = points(x)
        u = jax.vmap(lambda key, row: jax.random.uniform(key, row.shape, row.dtype, -0.5, 0.5))(threefry(keys), x)
        return x + self.bin_width * u, jnp.full(x.shape[0], -x[0].size * np.log(self.bin_width), x.dtype)


@dataclass(frozen=True)
class TruncatedNormalDequantization:
    """A draw z = alpha x + sigma e at t_min, e standard normal but for |e| <= tau = alpha bin_width/(2 sigma).

    Zheng et al. 2023, arXiv:2305.03935, section 4.2.

    The bins tile the space of z. A network trained on bin centres has seen just these z, but for the tails: it needs no
    training for it, and where it was trained with little noise the bound is tighter than the uniform one.
    """

    bin_width: float

    def __post_init__(self) -> None:
        _check(self.bin_width)

    def __call__(self, sde: SDE, keys: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draw z for bin centres x (n, *shape), row i from keys[i] alone.

        Returns:
            z: like x.
            log_density: (n,), log q(z | x) in nats.
        """
        x = points(x)
        alpha, sigma = (jnp.asarray(f(sde.t_min), x.dtype) for f in (sde.alpha, sde.sigma))
        tau = 0.5 * self.bin_width * alpha / sigma
        e = jax.vmap(lambda key, row: jax.random.truncated_normal(key, -tau, tau, row.shape, row.dtype))(
            threefry(keys), x
        )
        # An end, of probability 2^-23, or what z rounds to, may be in the next bin: a few roundings keep it inside.
        most = tau - 4 * jnp.finfo(x.dtype).eps * (tau + alpha / sigma * jnp.abs(x))
        e = jnp.clip(e, -most, most)
        log_density = -0.5 * e**2 - 0.5 * np.log(2 * np.pi) - jnp.log(sigma) - jnp.log(erf(tau / np.sqrt(2)))
        return alpha * x + sigma * e, sum_of_entries(log_density)


def importance_weighted(log_ratios: Array) -> jax.Array:
    """The logarithm of a mean, log (1/K) sum_k exp(log_ratios_k), over the last axis: (..., K) to (...).

    For K > 1 it bounds log P(x) on average only if the densities are exact. Of estimates with noise of variance s² that
    differs between the draws it is too high by up to s²/2: average over the probes first, and take many.
    """
    return logsumexp(jnp.asarray(log_ratios), axis=-1) - jnp.log(log_ratios.shape[-1])


def _check(bin_width: float) -> None:
    if not bin_width > 0:
        raise ValueError(
            f"bin_width must be positive, not {bin_width}: it is the width of one level, 2/levels for data in [-1, 1)"
        )
