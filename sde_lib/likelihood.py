"""Log-density of data under the probability-flow ODE.

Along dx/dt = f x - ½ g² s the density obeys d log p/dt = -div(f x - ½ g² s), so with x at t_min carried to its latent
at t_max

    log p_{t_min}(x) = log p_{t_max}(latent) + d log(alpha(t_max)/alpha(t_min)) - ½ ∫ g² div s dt

(Song et al. 2021, arXiv:2011.13456, eq. 39; Grathwohl et al. 2019, arXiv:1810.01367). The linear drift's divergence is
exact; only the score's is computed, or estimated. This is the density of the ODE's model, never of the samples that a
stochastic sampler draws.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from sde_lib.batch import check_rows, like, per_row, points, row_keys, sum_of_entries
from sde_lib.composed import check_unguided
from sde_lib.distributions import Prior
from sde_lib.divergence import Divergence, Exact, Hutchinson
from sde_lib.samplers.ode import Drift, ProbabilityFlow, solve_between_jumps
from sde_lib.score import ScoreFn, check_score
from sde_lib.typing import PyTree, ScalarT

if TYPE_CHECKING:  # a solve imports it, which takes a second
    import diffrax

__all__ = ["Exact", "Hutchinson", "LogProb", "bits_per_dim", "log_prob"]


class LogProb(NamedTuple):
    """The result of `log_prob`.

    nats: (n,) log-densities of x at t_min.
    probe_nats: (n, probes), one estimate for each probe; nats is their mean. One column for `Exact`.
    latent: like x, at t_max.
    nfe: network calls of the solve; each also computes the divergence.
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
    prior: Prior | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    data_std: float | None = None,
    log_snr: bool = True,
    solver: "diffrax.AbstractSolver | None" = None,
    max_steps: int = 4096,
    per_sample: bool = False,
    first: int = 0,
    cond: PyTree = None,
    guided: bool = False,
) -> LogProb:
    """Compute log p_{t_min}(x) of the probability-flow ODE, in nats.

    Args:
        score_fn: the score, which carries its SDE.
        x: (n, *shape), taken as points at t_min. The solve is in float32 at least, whatever its dtype.
        key: randomness of the probes, those of row i from (key, first + i); not needed for `Exact()`.
        divergence: `Exact()` (default) or `Hutchinson(probes=4)`.
        data_std: standard deviation of the data. The score's Jacobian is then near -I/(alpha² data_std² + sigma²), a
            part whose divergence is known, and only the residual is probed: normal probes gain by it, Rademacher ones
            are exact on it anyway.
        log_snr: integrate over log SNR, or else over t. In t a third of the calls is saved on VP and SubVP, but in many
            dimensions the error is a hundred times as large where alpha ends at 0, on cosine VP and rectified flow.
        prior: distribution at t_max; default the SDE's N(0, sigma(t_max)² I). The difference from the exact p_T,
            `data.at(sde, sde.t_max)`, goes into the result in full.
        rtol, atol, solver, max_steps, per_sample: as for `ProbabilityFlow`.
        cond: conditioning with n rows.
        guided: compute the density of a guided score's ODE, which is not that of its tilted distribution, nor of what
            a stochastic sampler of it draws.

    Raises:
        ValueError: a guided score without `guided`, a probe-based divergence without a key, or a data_std that is not
            positive.
        RuntimeError: the solve reached max_steps.
    """
    check_score(score_fn, "log_prob")
    check_unguided(score_fn, "log_prob", guided)
    if isinstance(divergence, type):
        raise ValueError(f"log_prob: divergence must be an object: write {divergence.__name__}()")
    divergence = divergence or Exact()
    if key is None and not isinstance(divergence, Exact):
        raise ValueError(f"log_prob: {type(divergence).__name__} draws random probes: give it a key, or use Exact()")
    if data_std is not None and not data_std > 0:
        raise ValueError(f"log_prob: data_std must be positive, not {data_std}")
    given, x = x, points(x)
    check_rows(cond, x.shape[0])
    keys = None if key is None else row_keys(key, first + jnp.arange(x.shape[0]))
    probes = divergence.probes(keys, x)
    sde = score_fn.sde
    flow = ProbabilityFlow(rtol, atol, max_steps=max_steps, per_sample=per_sample)
    flow = flow if solver is None else replace(flow, solver=solver)
    ends = [sde.log_snr(t) if log_snr else t for t in (sde.t_min, sde.t_max)]
    times, drift = jnp.stack([jnp.asarray(t, x.dtype) for t in ends]), _Augmented(divergence)
    known = jnp.asarray(jnp.inf if data_std is None else data_std, x.dtype)
    estimates = divergence.count if isinstance(divergence, Hutchinson) else 1
    change = jnp.zeros((x.shape[0], estimates), x.dtype)
    args = (score_fn, cond, probes, jnp.broadcast_to(known, x.shape[:1]))
    (path, changes), nfe = solve_between_jumps(
        flow, _InLogSNR(drift) if log_snr else drift, (x, change), times, args, _error_in_nats, in_log_snr=log_snr
    )
    latent, change = path[-1], changes[-1]
    prior = sde.prior(x.shape[1:]) if prior is None else prior
    linear = x[0].size * jnp.log(jnp.asarray(sde.alpha(sde.t_max) / sde.alpha(sde.t_min), x.dtype))
    probe_nats = prior.log_prob(latent)[:, None] + linear + change
    return LogProb(jnp.mean(probe_nats, axis=1), probe_nats, like(latent, given), nfe)


def _error_in_nats(error: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The largest, over the samples, of the Euclidean norm of x's scaled error, and of the log-density's over sqrt(d).

    A displacement dx moves the log-density by s·dx, a sum over the entries. Their root mean square, which is enough for
    samples, would let the log-density of a point in 50 dimensions drift by a hundred times the tolerance.
    """
    x, change = error
    norm2 = sum_of_entries(x**2)
    return jnp.maximum(jnp.sqrt(jnp.max(norm2)), jnp.max(jnp.abs(change)) / x[0].size ** 0.5)


# The score, its conditioning, the probes, the data's standard deviation.
Args = tuple[ScoreFn, PyTree, jax.Array, jax.Array]


@dataclass(frozen=True)
class _InLogSNR:
    """The drift over log SNR u: dy/du = (dt/du) dy/dt with dt/du = -sigma²/g²."""

    drift: Drift

    def __call__(self, u: jax.Array, y: PyTree, args: Args) -> PyTree:
        sde = args[0].sde
        t = sde.time_of_log_snr(u)
        rate = -(sde.sigma(t) ** 2) / sde.g2(t)
        return jax.tree.map(lambda leaf: rate * leaf, self.drift(t, y, args))


@dataclass(frozen=True)
class _Augmented:
    """The joint drift d(x, change)/dt = (f x - ½ g² s, -½ g² div s)."""

    divergence: Divergence

    def __call__(self, t: jax.Array, y: tuple[jax.Array, jax.Array], args: Args) -> tuple[jax.Array, jax.Array]:
        x, _ = y
        score_fn, cond, probes, data_std = args
        alpha, sigma = score_fn.sde.alpha(t), score_fn.sde.sigma(t)
        isotropic = -1 / ((alpha * data_std) ** 2 + sigma**2)
        score, div = self.divergence(lambda x: score_fn(x, t, cond), x, probes, isotropic)
        half_g2 = 0.5 * per_row(score_fn.sde.g2(t), x)
        return per_row(score_fn.sde.f(t), x) * x - half_g2 * score, -half_g2 * div


def bits_per_dim(nats: ScalarT, dim: int, bin_width: float) -> ScalarT:
    """Bits per dimension of discrete data, from the log-density in nats of its dequantised self.

        -nats/(dim ln 2) - log2(bin_width)

    bin_width is the width of one level in the model's space: 2/256 for bytes scaled to [-1, 1), which gives the
    well-known +7.
    """
    return -nats / (dim * math.log(2)) - math.log2(bin_width)
