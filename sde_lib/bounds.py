"""The variational bound of the continuous-time model, whose distribution is that of its reverse SDE.

Kingma et al. 2021, arXiv:2107.00630, eq. 11 and 12. With z_t = alpha x + sigma eps, and e(z_t, t) = -sigma s(z_t, t)
the noise that the score predicts,

    -log p(x) <= KL(q(z_T | x) || N(0, sigma_T² I)) + reconstruction + ½ (lambda_0 - lambda_T) E |eps - e|²

in nats, lambda = log SNR uniform between that at t_min and at t_max. The reconstruction is E[-log P(x | z_0)] for data
with levels, where P weighs each entry's levels by N(z_0; alpha level, sigma²); without levels it is the entropy of
q(z_0 | x), and what is bounded is E[-log p(z_0)], the density's at t_min. With the exact score the bound is tight but
for the prior. It is what can be said of the samples of the SDE; `log_prob` says nothing of them.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from sde_lib.batch import check_rows, fold_in_each, normal_like, per_row, points, row_keys, sum_of_entries
from sde_lib.composed import calls, check_unguided, whole
from sde_lib.score import ScoreFn, check_score
from sde_lib.sde import SDE
from sde_lib.typing import PyTree


class Bound(NamedTuple):
    """The result of `vlb` for n examples, in nats.

    nats: (n,), a lower bound of the log-likelihood: -(prior + reconstruction + diffusion).
    prior, reconstruction, diffusion: (n,), the three terms.
    per_time: (n, times), the diffusion integrand over log SNR, ½ |eps - e|², at `log_snr`; stratified, so that its
        mean over a row times the range of log SNR is the row's diffusion.
    log_snr: (n, times).
    nfe: network calls for each example.
    """

    nats: jax.Array
    prior: jax.Array
    reconstruction: jax.Array
    diffusion: jax.Array
    per_time: jax.Array
    log_snr: jax.Array
    nfe: int


def vlb(
    score_fn: ScoreFn,
    x: jax.Array,
    key: jax.Array,
    *,
    times: int = 32,
    centres: npt.ArrayLike | None = None,
    first: int = 0,
    cond: PyTree = None,
    guided: bool = False,
) -> Bound:
    """Bound the log-likelihood of x (n, *shape) from below, with `times` noise levels for each example.

    Args:
        score_fn: the score, which carries its SDE.
        x: data, for data with levels the centres of their bins.
        key: of the noise; that of row i comes from (key, first + i).
        times: noise levels for each example, one in each of as many equal parts of the range of log SNR.
        centres: the centre of every level, (levels,), for data with levels.
        cond: conditioning with n rows.
        guided: bound the likelihood of a guided score's reverse SDE, which is not that of its tilted distribution.

    Raises ValueError for times < 1, and for a guided score without `guided`.
    """
    if times < 1:
        raise ValueError(f"vlb: times must be at least 1, not {times}")
    check_score(score_fn, "vlb")
    check_unguided(score_fn, "vlb", guided)
    x = points(x)
    check_rows(cond, len(x))
    keys = row_keys(key, first + jnp.arange(x.shape[0]))
    sde, score_fn = score_fn.sde, whole(score_fn)
    high, low = (jnp.asarray(sde.log_snr(t), x.dtype) for t in (sde.t_min, sde.t_max))
    log_snr, per_time = _diffusion(score_fn, x, keys, times, cond)
    alpha_t, sigma_t = (jnp.asarray(f(sde.t_max), x.dtype) for f in (sde.alpha, sde.sigma))
    prior = 0.5 * sum_of_entries(((alpha_t / sigma_t) * x) ** 2)
    reconstruction = _entropy(sde, x) if centres is None else _level_nats(sde, x, keys, jnp.asarray(centres, x.dtype))
    diffusion, nfe = (high - low) * jnp.mean(per_time, axis=1), times * calls(score_fn)
    return Bound(-(prior + reconstruction + diffusion), prior, reconstruction, diffusion, per_time, log_snr, nfe)


@partial(jax.jit, static_argnames="first")
def clean_offset(
    score_fn: ScoreFn, x: jax.Array, key: jax.Array, *, first: int = 0, cond: PyTree = None
) -> tuple[jax.Array, jax.Array]:
    """Draw z near each x, with the offset by which a density at t_min bounds that of the clean data.

    For a density p at t_min, log p_0(x) >= E[log p(z) + offset]. The model of x draws z from p, and x from N(E[x | z],
    (sigma/alpha)² I) with the score's E[x | z]. By Jensen's inequality, for z = alpha x + sigma eps and
    e = -sigma s(z, t_min) (Song et al. 2021, arXiv:2101.09258, appendix B.2),

        offset = log p(x | z) - log q(z | x) = d log alpha + ½ |eps|² - ½ |eps - e|²

    in nats. Without the entropy of q, the middle term's mean with the 2 pi's, it would be no bound. For data without
    levels, of which `log_prob(score_fn, x)` takes the clean x for a draw at t_min.

    Args: as for `vlb`; one z for each row.

    Returns:
        z: (n, *shape), at t_min.
        offset: (n,), in nats.
    """
    check_rows(cond, len(x))
    sde, x = score_fn.sde, points(x)
    alpha, sigma = (jnp.asarray(f(sde.t_min), x.dtype) for f in (sde.alpha, sde.sigma))
    keys = row_keys(key, first + jnp.arange(x.shape[0]))
    eps = normal_like(keys, x)
    z = alpha * x + sigma * eps
    error = eps + sigma * score_fn(z, sde.t_min, cond)
    return z, x[0].size * jnp.log(alpha) + 0.5 * sum_of_entries(eps**2) - 0.5 * sum_of_entries(error**2)


@partial(jax.jit, static_argnames="times")
def _diffusion(
    score_fn: ScoreFn, x: jax.Array, keys: jax.Array, times: int, cond: PyTree
) -> tuple[jax.Array, jax.Array]:
    """The noise levels drawn and the integrand there.

    Returns:
        log_snr, per_time: (n, times), log SNR and ½ |eps - e|².
    """
    sde = score_fn.sde
    high, low = (jnp.asarray(sde.log_snr(t), x.dtype) for t in (sde.t_min, sde.t_max))
    shift = jax.vmap(jax.random.uniform)(fold_in_each(keys, times)).astype(x.dtype)

    def stratum(j: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_snr = high + (low - high) * (j + shift) / times
        t = jnp.clip(sde.time_of_log_snr(log_snr), sde.t_min, sde.t_max)
        eps = normal_like(fold_in_each(keys, j), x)
        sigma = per_row(sde.sigma(t), x)
        error = eps + sigma * score_fn(per_row(sde.alpha(t), x) * x + sigma * eps, t, cond)
        return log_snr, 0.5 * sum_of_entries(error**2)

    log_snr, per_time = jax.lax.map(stratum, jnp.arange(times))
    return log_snr.T, per_time.T


def _entropy(sde: SDE, x: jax.Array) -> jax.Array:
    """The entropy of N(alpha x, sigma² I) at t_min, (n,)."""
    return jnp.full(x.shape[0], 0.5 * x[0].size * (np.log(2 * np.pi) + 1 + 2 * jnp.log(sde.sigma(sde.t_min))), x.dtype)


def _level_nats(sde: SDE, x: jax.Array, keys: jax.Array, centres: jax.Array) -> jax.Array:
    """The reconstruction -log P(x | z_0) of one z_0 for each row, (n,)."""
    eps = normal_like(fold_in_each(keys, 2**31 - 1), x)
    alpha, sigma = (jnp.asarray(f(sde.t_min), x.dtype) for f in (sde.alpha, sde.sigma))
    # In units of sigma, from x's own level: its logit is -eps²/2.
    apart = x[..., None] - centres.reshape((1,) * x.ndim + (-1,))
    logits = -0.5 * (eps[..., None] + apart * (alpha / sigma)) ** 2
    return sum_of_entries(jax.nn.logsumexp(logits, axis=-1) + 0.5 * eps**2)
