"""One score for several independent observations of the same parameters: the corrected one, and the naive sum."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.composed import ComposedScore, calls
from sde_lib.pytree import register_dataclass
from sde_lib.score import ScoreFn, check_score
from sde_lib.sde import SDE
from sde_lib.typing import Array, PyTree, Scalar


@partial(register_dataclass, static=("count",))
@dataclass(frozen=True)
class IndependentObservations(ComposedScore):
    """The score of theta given m independent observations, from that given one and from the prior's: GAUSS.

    With s_j the score given observation j, s_0 the prior's, C_j and C_0 the covariances of p(theta | x_j) and of the
    prior, and r = alpha²/sigma²,

        s = L^-1 (sum_j P_j s_j + (1 - m) P_0 s_0),   P = C^-1 + r I,   L = sum_j P_j + (1 - m) P_0

    Linhart et al. 2024, arXiv:2404.07593, section 3: exact at every time where all are Gaussian, so that the ODE and
    the SDE sample the posterior. Without covariances it is the naive sum of scores, sum_j s_j + (1 - m) s_0 (Geffner et
    al. 2023, arXiv:2209.14249), which is guidance by a scale of m and samples another distribution, far too narrow.

    A call makes (m + 1) network calls for each row, in one call of (m + 1) n rows, or two with null=None.

    Args:
        score_fn: the score of theta given one observation, and the prior's given `null`.
        count: m.
        null: the condition of "nothing", one row's worth; None hands the score cond=None.
        covariances: C_j, (m, d, d), such as of draws given each observation; None for the naive sum.
        prior_covariance: C_0, (d, d).

    cond of a call has the observations along its second axis, (n, m, ..), and x is (n, d).

    Raises ValueError for one covariance without the other, for covariances that no posterior has, and for observations
    of another number.
    """

    score_fn: ScoreFn
    count: int
    null: PyTree = None
    covariances: Array | None = None
    prior_covariance: Array | None = None

    def __post_init__(self) -> None:
        check_score(self.score_fn, "IndependentObservations")
        if self.count < 1:
            raise ValueError(f"IndependentObservations: count must be at least 1, not {self.count}")
        if self.covariances is None or self.prior_covariance is None:
            if self.covariances is not self.prior_covariance:
                raise ValueError("IndependentObservations: give covariances and prior_covariance, or neither")
            return
        if isinstance(self.covariances, jax.core.Tracer) or isinstance(self.prior_covariance, jax.core.Tracer):
            return
        each, prior = np.asarray(self.covariances, float), np.asarray(self.prior_covariance, float)
        if prior.ndim != 2 or each.shape != (self.count, *prior.shape):
            raise ValueError(
                f"IndependentObservations: covariances must be ({self.count}, d, d) and prior_covariance (d, d), not "
                f"{each.shape} and {prior.shape}"
            )
        precision = np.linalg.inv(each).sum(axis=0) + (1 - self.count) * np.linalg.inv(prior)
        if np.linalg.eigvalsh(0.5 * (precision + precision.T)).min() <= 0:
            raise ValueError(
                "IndependentObservations: the precisions leave none to the posterior: covariances given an observation "
                "must be narrower than prior_covariance; draw more to estimate them"
            )

    @property
    def sde(self) -> SDE:
        """The forward process of the score."""
        return self.score_fn.sde

    @property
    def is_guided(self) -> bool:  # type: ignore[override]
        """Whether it is the naive sum."""
        return self.covariances is None and self.count > 1

    @property
    def calls(self) -> int:
        return (self.count + 1) * calls(self.score_fn)

    @property
    def varies(self) -> bool:
        return False

    def parts(self) -> tuple[ScoreFn, ...]:
        return (self.score_fn,)

    def with_parts(self, parts: Sequence[ScoreFn]) -> "IndependentObservations":
        return replace(self, score_fn=parts[0])

    def __call__(self, x: jax.Array, t: Scalar, cond: PyTree = None) -> jax.Array:
        scores = self.each(x, t, cond)
        signs = jnp.asarray([1.0] * self.count + [1.0 - self.count], x.dtype)
        if self.covariances is None or self.prior_covariance is None:
            return jnp.tensordot(scores, signs, axes=((1,), (0,)))
        flat = scores.reshape(*scores.shape[:2], -1)
        all_c = jnp.concatenate(
            [jnp.asarray(self.covariances, x.dtype), jnp.asarray(self.prior_covariance, x.dtype)[None]]
        )
        alpha, sigma = jnp.asarray(self.sde.alpha(t), x.dtype), jnp.asarray(self.sde.sigma(t), x.dtype)
        share = (sigma**2 / (alpha**2 + sigma**2)).reshape(-1, 1, 1, 1)  # of C^-1, beside I: P/(1 + r)
        precisions = (
            share * jnp.linalg.inv(all_c)[None] + (1 - share) * jnp.eye(flat.shape[-1], dtype=x.dtype)[None, None]
        )
        signed = signs[None, :, None, None] * precisions
        signed = jnp.broadcast_to(signed, (len(x), *signed.shape[1:]))
        total = jnp.einsum("nkij,nkj->ni", signed, flat, precision=jax.lax.Precision.HIGHEST)
        return jnp.linalg.solve(jnp.sum(signed, axis=1), total[..., None])[..., 0].reshape(x.shape)

    def each(self, x: jax.Array, t: Scalar, cond: PyTree) -> jax.Array:
        """The score given each observation, and last the prior's: (n, m + 1, *shape)."""
        for leaf in jax.tree.leaves(cond):
            if np.shape(leaf)[:2] != (len(x), self.count):
                raise ValueError(
                    f"IndependentObservations: cond must be ({len(x)}, {self.count}, ..), not {np.shape(leaf)}"
                )
        if not jax.tree.leaves(cond):
            raise ValueError("IndependentObservations: there is nothing observed: give cond")

        def beside(rows: jax.Array, nothing: jax.Array) -> jax.Array:
            rows = jnp.asarray(rows)
            last = jnp.broadcast_to(jnp.asarray(nothing, rows.dtype), (len(x), 1, *rows.shape[2:]))
            return jnp.concatenate([rows, last], axis=1)

        width = self.count + (self.null is not None)
        given = cond if self.null is None else jax.tree.map(beside, cond, self.null)
        given = jax.tree.map(lambda c: jnp.asarray(c).reshape(len(x) * width, *np.shape(c)[2:]), given)
        many = jnp.repeat(jnp.asarray(t), width, axis=0) if np.ndim(t) else t
        scores = self.score_fn(jnp.repeat(x, width, axis=0), many, given).reshape(len(x), width, *x.shape[1:])
        return scores if self.null is not None else jnp.append(scores, self.score_fn(x, t, None)[:, None], axis=1)
