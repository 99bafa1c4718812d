"""Langevin sampling of any distribution that has a score: no SDE, no noise levels."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.batch import fold_in_each, like, normal_like, per_row, points, row_keys, sum_of_entries
from sde_lib.distributions import HasScore, Prior
from sde_lib.samplers.linear import kept_rows


class LangevinSamples(NamedTuple):
    """The result of `langevin`.

    x: (n, *shape).
    path: (frames, n, *shape), or None.
    acceptance: the accepted share of Metropolis's proposals, 1 without it.
    nfe: score evaluations for each chain.
    """

    x: jax.Array
    path: jax.Array | None
    acceptance: jax.Array
    nfe: int


@dataclass(frozen=True)
class Langevin:
    """The unadjusted Langevin algorithm x' = x + eps s(x) + sqrt(2 eps) z, or its Metropolis-adjusted form (MALA).

    Without Metropolis the chain settles in a distribution that is off by O(eps): for a Gaussian of variance v, in the
    variance v/(1 - eps/(2 v)). With it the distribution is exact (Roberts & Tweedie 1996), at the cost of the
    log-density.

    Args:
        steps: how many.
        step_size: eps. Papers that write x + (e/2) s + sqrt(e) z mean e = 2 eps.
        metropolis: accept or reject each step; needs the distribution's `log_prob`, up to a constant.
        noise: 1 samples; 0 climbs to the nearest peak; between, a colder chain. Metropolis takes 1 only.
    """

    steps: int = 1000
    step_size: float = 1e-2
    metropolis: bool = False
    noise: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Langevin: steps must be at least 1, not {self.steps}")
        if not self.step_size > 0:
            raise ValueError(f"Langevin: step_size must be positive, not {self.step_size}")
        if self.metropolis and self.noise != 1:
            raise ValueError("Langevin: the Metropolis test is for noise=1; set metropolis=False")


def langevin(
    sampler: Langevin, distribution: HasScore, x: jax.Array, key: jax.Array, *, frames: int = 0
) -> LangevinSamples:
    """Run a chain from each row of x, (n, *shape).

    Args:
        sampler: its settings.
        distribution: anything with `score(x)`, and `log_prob(x)` for Metropolis; `Density(log_density)` makes one from
            a log-density.
        x: where the chains start.
        key: chain i's randomness comes from (key, i).
        frames: how many frames of the path to keep, both ends included; 0 keeps none.
    """
    if isinstance(sampler, type):
        raise ValueError(f"langevin: the sampler must be an object: write {sampler.__name__}()")
    if frames < 0 or frames == 1:
        raise ValueError(f"langevin: frames must be 0 (keep no path) or at least 2 (both ends), not {frames}")
    given, x = x, points(x)
    keys = row_keys(key, jnp.arange(x.shape[0]))
    kept, frame = kept_rows(frames, sampler.steps)
    slots = jnp.asarray(np.searchsorted(kept, np.arange(1, sampler.steps + 1)))
    settings = jnp.asarray([sampler.step_size, sampler.noise], x.dtype)
    x, path, accepted = _chain(distribution, x, keys, settings, slots, len(kept), sampler.metropolis)
    path = path if path is None else like(path if len(kept) == frames else path[frame], given)
    return LangevinSamples(like(x, given), path, accepted / sampler.steps, sampler.steps + sampler.metropolis)


# x, its score, its log-density, the path, and how many proposals each chain has accepted.
_Carry = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array]


@partial(jax.jit, static_argnames=("frames", "metropolis"))
def _chain(
    distribution: HasScore,
    x: jax.Array,
    keys: jax.Array,
    settings: jax.Array,
    slots: jax.Array,
    frames: int,
    metropolis: bool,
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    size, noise = settings
    path = jnp.zeros((frames, *x.shape), x.dtype).at[0].set(x) if frames else None

    def log_prob(x: jax.Array) -> jax.Array:
        return cast(Prior, distribution).log_prob(x) if metropolis else jnp.zeros(x.shape[0], x.dtype)

    def squared_residual(x: jax.Array, start: jax.Array, score: jax.Array) -> jax.Array:
        return sum_of_entries((x - start - size * score) ** 2)

    def step(carry: _Carry, row: tuple[jax.Array, jax.Array]) -> tuple[_Carry, None]:
        x, score, log_p, path, accepted = carry
        i, slot = row
        step_keys = fold_in_each(keys, i)
        new_x = x + size * score + noise * jnp.sqrt(2 * size) * normal_like(step_keys, x)
        new_score, new_log_p = distribution.score(new_x), log_prob(new_x)
        if metropolis:
            # log q(x | x') - log q(x' | x) of the Gaussian proposal.
            backward, forward = squared_residual(x, new_x, new_score), squared_residual(new_x, x, score)
            log_ratio = new_log_p - log_p + (forward - backward) / (4 * size)
            uniform = jax.vmap(jax.random.uniform)(fold_in_each(step_keys, 0))
            accept = jnp.log(uniform) < log_ratio
            new_x = jnp.where(per_row(accept, x).astype(bool), new_x, x)
            new_score = jnp.where(per_row(accept, x).astype(bool), new_score, score)
            new_log_p = jnp.where(accept, new_log_p, log_p)
        else:
            accept = jnp.ones(x.shape[0], bool)
        path = None if path is None else path.at[slot].set(new_x)
        return (new_x, new_score, new_log_p, path, accepted + accept), None

    start = (x, distribution.score(x), log_prob(x), path, jnp.zeros(x.shape[0], x.dtype))
    (x, _, _, path, accepted), _ = jax.lax.scan(step, start, (jnp.arange(len(slots)), slots))
    return x, path, jnp.mean(accepted)
