"""Twisted sequential Monte Carlo: posteriors that are exact with many particles, and their evidence."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.batch import fold_in_each, normal_like, sum_of_entries
from sde_lib.conversions import denoiser_from_score
from sde_lib.inverse.methods import Seen
from sde_lib.inverse.observed import Observed
from sde_lib.samplers.base import Samples
from sde_lib.samplers.grids import Grid, UniformLogSNR
from sde_lib.score import ScoreFn
from sde_lib.sde import host_sde
from sde_lib.typing import PyTree, Scalar

_CHOICE, _RESAMPLING = 2**31 - 3, 2**31 - 2  # streams of randomness, beside those of the steps
State = tuple[jax.Array, jax.Array, jax.Array]  # the particles, their log-weights, the log evidence so far
MOST_SEEN = 1024  # entries of y, whose covariance is factorised for each particle at each step


@dataclass(frozen=True)
class TwistedSMC:
    """The reverse SDE's first-order chain given y, by particles that the method guides and weights correct.

    Each sample has its own population of particles. A step from t to u has the prior's chain p(x_u | x_t), Gaussian
    about the denoiser D, and proposes q(x_u | x_t), the same about the method's D'. Its weight is

        p(x_u | x_t) psi_u(x_u)/(q(x_u | x_t) psi_t(x_t)),    psi = N(y; A(D), R + sigma²/(alpha² + sigma²) A A'),

    and at the end psi is the likelihood of y itself, at the denoiser's value, which is the sample. So any method and
    any twist psi give the exact posterior of the chain, as the particles grow; a worse one needs more of them (Wu et
    al. 2023, arXiv:2306.17775, algorithm 1). Populations are resampled systematically where their effective sample size
    falls below a share of the particles. A population's mean weight is an unbiased estimate of p(y).

    The result's `log_evidence` is log p(y) of each sample's population, (n,); `ess` the effective sample size at each
    step before resampling, (steps + 1, n). With `keep` it holds the populations too, `particles` and their
    `log_weights`: means over one are estimates of the posterior's, with an error that falls as 1/sqrt(particles). Takes
    an `Observed`.

    Args:
        steps: how many.
        particles: for each sample.
        grid: where the steps are.
        threshold: resample below this share of effective particles.
        keep: whether the result holds the populations.

    Raises ValueError for steps or particles below 1, and, when it runs, for a score that is not an `Observed`, a noise
    of 0, more entries of y than can be factorised, frames, and no particle left.
    """

    steps: int = 100
    particles: int = 64
    grid: Grid = field(default_factory=UniformLogSNR)
    threshold: float = 0.5
    keep: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.particles < 1:
            raise ValueError(
                f"TwistedSMC: steps and particles must be at least 1, not {self.steps} and {self.particles}"
            )
        if not 0 < self.threshold <= 1:
            raise ValueError(f"TwistedSMC: threshold must lie above 0 and be at most 1, not {self.threshold}")

    def run(self, score_fn: ScoreFn, x: jax.Array, keys: jax.Array, cond: PyTree, frames: int) -> Samples:
        """Run the populations: x holds `particles` rows for each of the keys; see `sde_lib.samplers.base.Sampler`."""
        if not isinstance(score_fn, Observed):
            raise ValueError(f"TwistedSMC: give an Observed score, not a {type(score_fn).__name__}")
        if frames:
            raise ValueError("TwistedSMC: resampling breaks paths: leave out frames")
        if not isinstance(score_fn.noise, jax.core.Tracer) and not (np.asarray(score_fn.noise) > 0).all():
            raise ValueError("TwistedSMC: the likelihood needs a noise above 0: give one")
        sde = host_sde(score_fn.sde)
        times = np.asarray(self.grid(sde, self.steps), float)
        half = np.asarray(sde.log_snr(times), float) / 2
        h = np.diff(half)
        alpha, sigma = np.asarray(sde.alpha(times), float), np.asarray(sde.sigma(times), float)
        rows = (
            times[:-1],
            sigma[1:] / sigma[:-1] * np.exp(-h),
            -alpha[1:] * np.expm1(-2 * h),
            sigma[1:] * np.sqrt(-np.expm1(-2 * h)),
        )
        table = tuple(jnp.asarray(row, x.dtype) for row in rows)
        x, log_evidence, ess, population, log_weights = _run(
            score_fn, x, keys, cond, table, jnp.asarray(times[-1], x.dtype), jnp.asarray(self.threshold, x.dtype)
        )
        if not isinstance(log_evidence, jax.core.Tracer) and not bool(jnp.isfinite(log_evidence).all()):
            raise ValueError(
                "TwistedSMC: no particle is left of a population: give more particles, more steps or a larger noise"
            )
        calls = (self.steps + 1) * self.particles * score_fn.calls
        done = Samples(x, calls, log_evidence=log_evidence, ess=ess)
        return done._replace(particles=population, log_weights=log_weights) if self.keep else done


@jax.jit
def _run(
    score_fn: Observed,
    x: jax.Array,
    keys: jax.Array,
    cond: PyTree,
    table: tuple[jax.Array, ...],
    end: jax.Array,
    threshold: jax.Array,
) -> tuple[jax.Array, ...]:
    n, k = keys.shape[0], x.shape[0] // keys.shape[0]
    rows = jax.tree.map(lambda c: jnp.repeat(c, k, axis=0), cond)
    own_keys = jax.vmap(lambda key: jax.random.split(key, k))(keys).reshape(-1)
    matrix = gram_matrix(score_fn, x[:1])

    def look(x: jax.Array, t: Scalar, last: bool = False) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The denoiser, the method's shift of it, and the twist, (n, k)."""
        s, seen = score_fn.seen(x, t, rows)
        r2 = jnp.ravel(seen.ratio / (1 + seen.ratio))[:, None, None]
        psi = log_twist(score_fn, seen, 0 * r2 if last else r2, matrix)
        return denoiser_from_score(score_fn.sde, s, x, t), score_fn.method.shift(seen), psi.reshape(n, k)

    def weighed(log_weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The log of the mean weight, (n,), and the effective sample size."""
        total = jax.nn.logsumexp(log_weights, axis=1)
        ess = jnp.exp(2 * total - jax.nn.logsumexp(2 * log_weights, axis=1))
        return total - jnp.log(k), ess

    def step(state: State, scanned: tuple[jax.Array, ...]) -> tuple[State, jax.Array]:
        x, log_weights, log_evidence = state
        i, t, a, b, c = scanned
        denoised, shift, psi = look(x, t)
        log_weights = log_weights + psi
        mean, ess = weighed(log_weights)
        again = ess < threshold * k
        chosen = jax.vmap(systematic)(fold_in_each(fold_in_each(keys, _RESAMPLING), i), log_weights)
        chosen = jnp.where(again[:, None], chosen, jnp.arange(k)[None])
        log_evidence = log_evidence + jnp.where(again, mean, 0)
        log_weights = jnp.where(again[:, None], 0, log_weights) - jnp.take_along_axis(psi, chosen, axis=1)
        places = (chosen + k * jnp.arange(n)[:, None]).ravel()
        x, denoised, shift = x[places], denoised[places], shift[places]
        z, apart = normal_like(fold_in_each(own_keys, i), x), b / c * shift
        log_weights = log_weights - sum_of_entries(z * apart + 0.5 * apart**2).reshape(n, k)
        return (a * x + b * (denoised + shift) + c * z, log_weights, log_evidence), ess

    state = (x, jnp.zeros((n, k), x.dtype), jnp.zeros(n, x.dtype))
    (x, log_weights, log_evidence), ess = jax.lax.scan(step, state, (jnp.arange(len(table[0])), *table))
    denoised, _, psi = look(x, end, last=True)
    mean, last = weighed(log_weights + psi)
    one = jax.vmap(jax.random.categorical)(fold_in_each(keys, _CHOICE), log_weights + psi)
    population = denoised.reshape(n, k, *x.shape[1:])
    normalised = jax.nn.log_softmax(log_weights + psi, axis=1)
    x, ess = denoised[one + k * jnp.arange(n)], jnp.concatenate([ess, last[None]])
    return x, log_evidence + mean, ess, population, normalised


def systematic(key: jax.Array, log_weights: jax.Array) -> jax.Array:
    """Draw as many indices as there are weights, each about as often as its weight says, by one uniform number."""
    k = log_weights.shape[0]
    places = (jnp.arange(k) + jax.random.uniform(key, (), log_weights.dtype)) / k
    return jnp.clip(jnp.searchsorted(jnp.cumsum(jax.nn.softmax(log_weights)), places), 0, k - 1)


def gram_matrix(score_fn: Observed, x: jax.Array) -> jax.Array:
    """The matrix A A' of the operator, linearised at 0, (m, m). x: (1, *shape), for its shape.

    Raises ValueError for more entries of y than can be factorised.
    """
    expected, push = jax.linearize(score_fn.operator, jnp.zeros_like(x))
    m = expected.size
    if m > MOST_SEEN:
        raise ValueError(
            f"TwistedSMC: y has {m:,} entries, of which at most {MOST_SEEN:,} can be weighed: use MomentMatching alone"
        )
    pull = jax.linear_transpose(push, x)
    columns = jax.vmap(lambda u: push(pull(u.reshape(expected.shape))[0]).ravel())(jnp.eye(m, dtype=x.dtype))
    return (columns + columns.T) / 2


def log_twist(score_fn: Observed, seen: Seen, r2: jax.Array, matrix: jax.Array) -> jax.Array:
    """The log-density log N(y; A(D), R + r² A A') of each row, (n,), over the entries that are seen."""
    residual = seen.residual.reshape(seen.residual.shape[0], -1)
    variance = jnp.broadcast_to(seen.variance, (1, *seen.residual.shape[1:])).ravel()
    entries = score_fn.operator.entries()
    if entries is not None:
        variance = jnp.where(entries.ravel(), variance, 1 / (2 * np.pi))  # of which log N(0; 0, variance) is 0
    root = jnp.linalg.cholesky(jnp.diag(variance)[None] + r2 * matrix[None])
    z = jax.scipy.linalg.solve_triangular(root, residual[..., None], lower=True)[..., 0]
    log_det = jnp.sum(jnp.log(jnp.diagonal(root, axis1=1, axis2=2)), axis=1)
    return -0.5 * jnp.sum(z**2, axis=1) - log_det - 0.5 * residual.shape[1] * np.log(2 * np.pi)
