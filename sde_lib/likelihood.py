"""Log-density of data under the probability-flow ODE.

Along dx/dt = f x - ½ g² s the density obeys d log p/dt = -div(f x - ½ g² s), so with x at t_min carried to its latent at t_max

    log p_{t_min}(x) = log p_{t_max}(latent) + d log(alpha(t_max)/alpha(t_min)) - ½ ∫ g² div s dt

(Song et al. 2021, arXiv:2011.13456, eq. 39; Grathwohl et al. 2019, arXiv:1810.01367). The linear drift's divergence is exact; only the
score's is computed, or estimated. This is the density of the ODE's model, never of the samples that a stochastic sampler draws.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import diffrax
import jax
import jax.numpy as jnp

from sde_lib.samplers.ode import ProbabilityFlow, solve
from sde_lib.score import ScoreFn, per_sample


class Divergence(Protocol):
    """How to get div s: `probes` are fixed along a solve, `__call__` gives the value and its divergences."""

    def probes(self, keys: Any, x: jax.Array) -> jax.Array: ...

    def __call__(self, fn: Callable[[jax.Array], jax.Array], x: jax.Array, probes: jax.Array) -> tuple[jax.Array, jax.Array]: ...


@dataclass(frozen=True)
class Exact:
    """div s = sum_j ds_j/dx_j, one forward derivative for each of the d entries.

    chunk: how many derivatives to hold in memory at a time; default all.
    """

    chunk: int | None = None

    def probes(self, keys: Any, x: jax.Array) -> jax.Array:
        """Nothing is drawn: (n, 0)."""
        return jnp.zeros((x.shape[0], 0), x.dtype)

    def __call__(self, fn: Callable[[jax.Array], jax.Array], x: jax.Array, probes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """fn(x), like x, and its divergence, (n, 1)."""
        value, push = jax.linearize(fn, x)
        d = x[0].size

        def entry(j: jax.Array) -> jax.Array:
            basis = jnp.zeros((d,), x.dtype).at[j].set(1).reshape(x.shape[1:])
            return push(jnp.broadcast_to(basis, x.shape)).reshape(x.shape[0], d)[:, j]

        entries = jax.lax.map(entry, jnp.arange(d), batch_size=min(self.chunk or d, d))
        return value, jnp.sum(entries, axis=0)[:, None]


@dataclass(frozen=True)
class Hutchinson:
    """div s = E[v' (ds/dx) v] over Rademacher probes v (Hutchinson 1990): unbiased, exact for a diagonal Jacobian.

    With several probes in one solve each gives its own estimate, from whose spread comes the standard error.
    """

    count: int = 1

    def __init__(self, probes: int = 1):
        if probes < 1:
            raise ValueError(f"Hutchinson: probes must be at least 1, not {probes}")
        object.__setattr__(self, "count", probes)

    def probes(self, keys: Any, x: jax.Array) -> jax.Array:
        """(n, probes, *shape), row i from keys[i] alone."""
        return jax.vmap(lambda key: jax.random.rademacher(key, (self.count, *x.shape[1:]), x.dtype))(keys)

    def __call__(self, fn: Callable[[jax.Array], jax.Array], x: jax.Array, probes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """fn(x), like x, and the estimates of its divergence, (n, probes)."""

        def product(v: jax.Array) -> tuple[jax.Array, jax.Array]:
            value, derivative = jax.jvp(fn, (x,), (v,))
            return value, jnp.sum((v * derivative).reshape(x.shape[0], -1), axis=1)

        return jax.vmap(product, in_axes=1, out_axes=(None, 1))(probes)


class LogProb(NamedTuple):
    """What `log_prob` returns.

    nats: (n,) log-densities of x at t_min.
    probe_nats: (n, probes), one estimate for each probe; nats is their mean. One column for `Exact`.
    latent: like x, at t_max.
    nfe: score evaluations of the solve; each also computes the divergence.
    """

    nats: jax.Array
    probe_nats: jax.Array
    latent: jax.Array
    nfe: int


def log_prob(
    score_fn: ScoreFn,
    x: jax.Array,
    key: jax.Array | None = None,
    *,
    divergence: Divergence | None = None,
    prior: Any = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: diffrax.AbstractSolver | None = None,
    max_steps: int = 4096,
    per_sample: bool = False,
    first: int = 0,
    cond: Any = None,
) -> LogProb:
    """log p_{t_min}(x) of the probability-flow ODE, in nats.

    Args:
        score_fn: the score, which carries its SDE.
        x: (n, *shape), taken as points at t_min.
        key: randomness of the probes, those of row i from (key, first + i); not needed for `Exact()`.
        divergence: `Exact()` (default) or `Hutchinson(probes=4)`.
        prior: distribution at t_max; default the SDE's N(0, sigma(t_max)² I). The difference from the exact p_T,
            `data.at(sde, sde.t_max)`, goes into the result in full.
        rtol, atol, solver, max_steps, per_sample: as for `ProbabilityFlow`.
        cond: conditioning with n rows.

    Raises:
        ValueError: a probe-based divergence without a key.
        RuntimeError: the solve reached max_steps.
    """
    divergence = divergence or Exact()
    if key is None and isinstance(divergence, Hutchinson):
        raise ValueError("log_prob: Hutchinson(probes=...) draws random probes: give it a key, or use Exact()")
    keys = None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(x.shape[0]))
    probes = divergence.probes(keys, x)
    sde = score_fn.sde
    flow = ProbabilityFlow(rtol, atol, solver or diffrax.Tsit5(), max_steps=max_steps, per_sample=per_sample)
    times = jnp.stack([jnp.asarray(sde.t_min, x.dtype), jnp.asarray(sde.t_max, x.dtype)])
    change = jnp.zeros((x.shape[0], probes.shape[1] or 1), x.dtype)
    (path, changes), nfe = solve(flow, _Augmented(divergence), (x, change), times, (score_fn, cond, probes), _error_in_nats)
    latent, change = path[-1], changes[-1]
    prior = sde.prior(x.shape[1:]) if prior is None else prior
    linear = x[0].size * jnp.log(jnp.asarray(sde.alpha(sde.t_max) / sde.alpha(sde.t_min), x.dtype))
    probe_nats = prior.log_prob(latent)[:, None] + linear + change
    return LogProb(jnp.mean(probe_nats, axis=1), probe_nats, latent, nfe)


def _error_in_nats(error: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The largest, over the samples, of the Euclidean norm of x's scaled error, and of the log-density's over sqrt(d).

    A displacement dx moves the log-density by s·dx, a sum over the entries. Their root mean square, which is enough for samples, would let
    the log-density of a point in 50 dimensions drift by a hundred times the tolerance.
    """
    x, change = error
    norm2 = jnp.sum(x.reshape(x.shape[0], -1) ** 2, axis=1)
    return jnp.maximum(jnp.sqrt(jnp.max(norm2)), jnp.max(jnp.abs(change)) / x[0].size ** 0.5)


@dataclass(frozen=True)
class _Augmented:
    """d(x, change)/dt = (f x - ½ g² s, -½ g² div s)."""

    divergence: Divergence

    def __call__(self, t: Any, y: tuple[jax.Array, jax.Array], args: tuple[ScoreFn, Any, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, _ = y
        score_fn, cond, probes = args
        score, div = self.divergence(lambda x: score_fn(x, t, cond), x, probes)
        half_g2 = 0.5 * per_sample(score_fn.sde.g2(t), x)
        return per_sample(score_fn.sde.f(t), x) * x - half_g2 * score, -half_g2 * div


def bits_per_dim(nats: Any, dim: int, bin_width: float) -> Any:
    """Bits per dimension of discrete data, from the log-density in nats of its dequantised self: -nats/(dim ln 2) - log2(bin_width).

    bin_width is the width of one level in the model's space: 2/256 for bytes scaled to [-1, 1), which gives the well-known +7.
    """
    return -nats / (dim * math.log(2)) - math.log2(bin_width)
