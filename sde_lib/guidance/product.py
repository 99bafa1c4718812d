"""Products of distributions: sums of their scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.batch import per_row
from sde_lib.composed import ComposedScore, check_same_sde, is_guided, number, take_rows
from sde_lib.pytree import register_dataclass
from sde_lib.score import ScoreFn, check_score
from sde_lib.sde import SDE
from sde_lib.typing import Array, PyTree, Scalar


@register_dataclass
@dataclass(frozen=True)
class Product(ComposedScore):
    """The score sum_i w_i s_i: composition of models (Du et al. 2023, arXiv:2302.11552, eq. 10 and 11).

    At t = 0 it is the score of the product of p_i^w_i. At other times it is not that of the product diffused, since
    diffusion does not commute with products: no sampler of it samples the product, and the ODE and the SDE differ.
    `sde_lib.samplers.WeightedSDE` does.

    Args:
        scores: (s_1, .., s_k), on one SDE, each handed cond: `Told` hands one a part of it.
        weights: (w_1, .., w_k), each a number or (n,).
    """

    scores: tuple[ScoreFn, ...]
    weights: tuple[Scalar, ...] | Array

    def __post_init__(self) -> None:
        if not len(self.scores):
            raise ValueError("Product: give at least one score")
        for score_fn in self.scores:
            check_score(score_fn, "Product")
            check_same_sde(self, self.scores[0], score_fn)
        if len(self.weights) != len(self.scores):
            raise ValueError(f"Product: give a weight for each of {len(self.scores)} scores, not {len(self.weights)}")
        weights = tuple(number(self, "each weight", weight) for weight in self.weights)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "scores", tuple(self.scores))

    @property
    def sde(self) -> SDE:
        """The forward process of all scores."""
        return self.scores[0].sde

    def parts(self) -> tuple[ScoreFn, ...]:
        return tuple(self.scores)

    def with_parts(self, parts: Sequence[ScoreFn]) -> "Product":
        return replace(self, scores=tuple(parts))

    def take(self, rows: Array) -> "Product":
        weights = tuple(jnp.asarray(w)[rows] if np.ndim(w) else w for w in self.weights)
        return replace(self, scores=tuple(take_rows(s, rows) for s in self.scores), weights=weights)

    def __call__(self, x: jax.Array, t: Scalar, cond: PyTree = None) -> jax.Array:
        scores = self.factors(x, t, cond)
        first, *others = (per_row(jnp.asarray(w), s) * s for s, w in zip(scores, self.weights, strict=True))
        return sum(others, start=first)

    def factors(self, x: jax.Array, t: Scalar, cond: PyTree) -> list[jax.Array]:
        """The scores."""
        return [score_fn(x, t, cond) for score_fn in self.scores]

    @property
    def powers(self) -> tuple[Scalar, ...]:
        """The powers of the distributions: the weights."""
        return tuple(self.weights)


@partial(register_dataclass, static=("name",))
@dataclass(frozen=True)
class Told(ComposedScore):
    """A score that is told one entry of cond, cond[name]: scores of a `Product` are told different things by it.

    Of a picture's digit, its thickness and its slant, all of which it shows, so that they are independent given it,

        s(x | digit, thickness, slant) = s(x | digit, thickness) + s(x | digit, slant) - s(x | digit)

    at t = 0, also where no such thickness and slant of the digit were ever seen together (Liu et al. 2022,
    arXiv:2206.01714, eq. 11, there without what the parts share).

    Args:
        score_fn: the score that is handed cond[name].
        name: of the entry of cond, a dictionary of arrays with n rows each.

    Raises ValueError for a cond without it.
    """

    score_fn: ScoreFn
    name: str

    def __post_init__(self) -> None:
        check_score(self.score_fn, "Told")

    @property
    def sde(self) -> SDE:
        """The forward process of the score."""
        return self.score_fn.sde

    @property
    def is_guided(self) -> bool:  # type: ignore[override]
        """Whether the score is."""
        return is_guided(self.score_fn)

    def parts(self) -> tuple[ScoreFn, ...]:
        return (self.score_fn,)

    def with_parts(self, parts: Sequence[ScoreFn]) -> "Told":
        return replace(self, score_fn=parts[0])

    def __call__(self, x: jax.Array, t: Scalar, cond: PyTree = None) -> jax.Array:
        if not isinstance(cond, Mapping) or self.name not in cond:
            has = ", ".join(map(str, cond)) if isinstance(cond, Mapping) else type(cond).__name__
            raise ValueError(
                f"Told: cond must be a dictionary with an entry {self.name!r}, not {has or 'an empty one'}"
            )
        return self.score_fn(x, t, cond[self.name])
