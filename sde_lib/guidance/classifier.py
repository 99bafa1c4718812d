"""Classifier guidance: a score and the gradient of a classifier."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from sde_lib.batch import check_rows, like, per_row, points
from sde_lib.composed import ComposedScore, number
from sde_lib.pytree import register_dataclass
from sde_lib.score import ScoreFn, check_score
from sde_lib.sde import SDE
from sde_lib.typing import PyTree, Scalar


@register_dataclass
@dataclass(frozen=True)
class ClassifierGuided(ComposedScore):
    """The score s + g grad_x log p_t(c | x), with s the unconditional score.

    Dhariwal & Nichol 2021, arXiv:2105.05233, section 4.2, here for every SDE. With an exact classifier of the noisy
    x it is `ClassifierFree` of the same scale, by Bayes' rule (Song et al. 2021, arXiv:2011.13456, eq. 14): 1 is the
    conditional score, 0 the unconditional one.

    NFE counts the calls of the score; beside each there is one gradient of the classifier.

    Args:
        score_fn: the score s, handed cond=None: the classifier alone knows the condition.
        log_prob_fn: `log_prob_fn(x, t, cond)` -> (n,), log p_t(cond | x) of each row, up to what does not depend on x.
            A function is compiled with what it closes over; one that is a pytree, such as
            `jax.tree_util.Partial(function, weights)`, takes other weights without compiling again.
        scale: g, a number or (n,).
    """

    score_fn: ScoreFn
    log_prob_fn: Callable[[jax.Array, Scalar, PyTree], jax.Array]
    scale: Scalar

    per_row: ClassVar[tuple[str, ...]] = ("scale",)

    def __post_init__(self) -> None:
        check_score(self.score_fn, "ClassifierGuided")
        object.__setattr__(self, "scale", number(self, "scale", self.scale))
        if jax.tree_util.all_leaves([self.log_prob_fn]):  # a plain function, which is not data
            object.__setattr__(self, "log_prob_fn", jax.tree_util.Partial(self.log_prob_fn))

    @property
    def sde(self) -> SDE:
        """The forward process of the score."""
        return self.score_fn.sde

    def parts(self) -> tuple[ScoreFn, ...]:
        return (self.score_fn,)

    def with_parts(self, parts: Sequence[ScoreFn]) -> "ClassifierGuided":
        return replace(self, score_fn=parts[0])

    def gradient(self, x: jax.Array, t: Scalar, cond: PyTree) -> jax.Array:
        """The gradient of log p_t(cond | x) in x. Raises ValueError where the classifier gives not one for each row."""
        check_rows(cond, x.shape[0])

        def total(y: jax.Array) -> jax.Array:
            log_prob = self.log_prob_fn(y, t, cond)
            if log_prob.shape != y.shape[:1]:
                raise ValueError(
                    f"ClassifierGuided: log_prob_fn must give one number for each of {y.shape[0]} rows, not "
                    f"{log_prob.shape}"
                )
            return jnp.sum(log_prob)

        return like(jax.grad(total)(points(x)), x)

    def __call__(self, x: jax.Array, t: Scalar, cond: PyTree = None) -> jax.Array:
        score = self.score_fn(x, t, None)
        return score + per_row(jnp.asarray(self.scale), score) * self.gradient(x, t, cond)

    def factors(self, x: jax.Array, t: Scalar, cond: PyTree) -> list[jax.Array]:
        """The scores of the product p(x | c)^g p(x)^(1 - g)."""
        s0 = self.score_fn(x, t, None)
        return [s0 + self.gradient(x, t, cond), s0]

    @property
    def powers(self) -> tuple[Scalar, ...]:
        """The powers of that product, (g, 1 - g)."""
        return self.scale, 1 - self.scale
