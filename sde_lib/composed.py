"""Scores made of other scores: what a call of one costs in network calls, and how it is cut into rows.

A score says what a call of it costs as `calls`, network calls for each row of x: 1 where it says nothing. A guided
score may cost less at some times; then it branches on the time, which samplers with a table of times make use of. What
does not know its times in advance takes the score `whole`, of which every call costs the same, and an ODE's solution
goes from jump to jump.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.score import ScoreFn
from sde_lib.sde import SDE
from sde_lib.typing import Array, PyTree, Scalar

ScoreT = TypeVar("ScoreT", bound=ScoreFn)


class ComposedScore:
    """The base of frozen dataclasses that are a score made of other scores, and say under which `sde`."""

    is_guided: ClassVar[Any] = True  # no distribution's score at every time, but one that is pushed
    per_row: ClassVar[tuple[str, ...]] = ()  # the fields that may have a number for each row of x

    def parts(self) -> tuple[ScoreFn, ...]:
        """The scores that it is made of."""
        raise TypeError(f"{type(self).__name__} must define parts()")

    def with_parts(self, parts: Sequence[ScoreFn]) -> Self:
        """This score, made of others."""
        raise TypeError(f"{type(self).__name__} must define with_parts(parts)")

    @property
    def calls(self) -> int:
        """The most network calls that one call makes, for each row."""
        return sum(calls(part) for part in self.parts())

    @property
    def jvps(self) -> int:
        """The derivative products of the network beside them."""
        return sum(jvps(part) for part in self.parts())

    @property
    def varies(self) -> bool:
        """Whether a call may cost less at some times."""
        return any(getattr(part, "varies", False) for part in self.parts())

    def calls_at(self, t: Scalar) -> Array | int:
        """The network calls of a call at time t, a scalar."""
        return sum((calls_at(part, t) for part in self.parts()), start=0)

    @property
    def jumps(self) -> tuple[Scalar, ...]:
        """The log SNR at which the score jumps, as a function of time."""
        return tuple(jump for part in self.parts() for jump in jumps(part))

    def whole(self, t: Scalar | None = None) -> ScoreFn:
        """The same score without branches: every call costs `calls`. With a time, the score between the jumps about it.

        At other times that score is another: it goes on smoothly where this one jumps.
        """
        return cast(ScoreFn, self.with_parts([whole(part, t) for part in self.parts()]))

    # What `sde_lib.samplers.WeightedSDE` takes: a score that is one of a product prod_i p_i^w_i at t = 0.

    def factors(self, x: jax.Array, t: Scalar, cond: PyTree) -> list[jax.Array]:
        """The scores of the p_i."""
        raise TypeError(f"{type(self).__name__} is the score of no product")

    @property
    def powers(self) -> tuple[Scalar, ...]:
        """The powers w_i; none of what is no product."""
        return ()

    @property
    def factor_calls(self) -> int:
        """The network calls of `factors`."""
        return self.calls

    def check_product(self) -> None:
        """Raise ValueError where the parts are no distributions' scores."""
        if not self.powers:
            raise ValueError(f"{type(self).__name__} is the score of no product: give a Product or ClassifierFree")
        if any(is_guided(part) for part in self.parts()):
            raise ValueError(f"{type(self).__name__}: a part is guided itself: give the scores of distributions")

    def take(self, rows: Array) -> Self:
        """This score for some of its rows, where it has numbers for each."""
        own: Any = {name: v[rows] for name in self.per_row if np.ndim(v := getattr(self, name))}
        return replace(self.with_parts([take_rows(part, rows) for part in self.parts()]), **own)  # type: ignore[type-var]


def calls(score_fn: object) -> int:
    """The most network calls that one call of the score makes, for each row of x."""
    said = getattr(score_fn, "calls", 1)
    return said if isinstance(said, int) else 1  # a name of its own for something else


def jvps(score_fn: object) -> int:
    """The derivative products of the network in one call of the score, for each row of x."""
    return score_fn.jvps if isinstance(score_fn, ComposedScore) else 0


def calls_at(score_fn: object, t: Scalar) -> Array | int:
    """The network calls of a call at time t, a scalar."""
    return score_fn.calls_at(t) if isinstance(score_fn, ComposedScore) else calls(score_fn)


def network_calls(score_fn: object, times: Array) -> int:
    """The network calls of one score call at each of these times, (n,), for each row of x."""
    if not getattr(score_fn, "varies", False):
        return len(times) * calls(score_fn)
    total = _network_calls(score_fn, jnp.asarray(times))
    return cast(int, total) if isinstance(total, jax.core.Tracer) else int(total)


@jax.jit
def _network_calls(score_fn: ComposedScore, times: jax.Array) -> jax.Array:
    return jnp.sum(jax.vmap(lambda t: jnp.asarray(score_fn.calls_at(t)))(times))


def jumps(score_fn: object) -> tuple[Scalar, ...]:
    """The log SNR at which the score jumps."""
    return score_fn.jumps if isinstance(score_fn, ComposedScore) else ()


def whole(score_fn: ScoreT, t: Scalar | None = None) -> ScoreT:
    """The same score, of which every call makes as many network calls; with a time, as it is between two jumps."""
    return cast(ScoreT, score_fn.whole(t)) if isinstance(score_fn, ComposedScore) else score_fn


def take_rows(score_fn: ScoreT, rows: Array) -> ScoreT:
    """The score for these rows of what it has a number for each row of."""
    return cast(ScoreT, score_fn.take(rows)) if isinstance(score_fn, ComposedScore) else score_fn


def is_guided(score_fn: object) -> bool:
    """Whether the score is no distribution's at every time, but one pushed by guidance."""
    return bool(getattr(score_fn, "is_guided", False))


def check_unguided(score_fn: object, where: str, guided: bool) -> None:
    """Raise ValueError for a guided score whose likelihood nobody asked for by name."""
    if is_guided(score_fn) and not guided:
        raise ValueError(
            f"{where}: {type(score_fn).__name__} is no distribution's score, and what its ODE or SDE draws is not the "
            "tilted distribution: give the score without guidance, or set guided=True for the model's own density"
        )


def number(owner: object, name: str, value: Scalar) -> Scalar:
    """The value of a field that is a number or (n,) of them, a host's number as a float: 2 compiles as 2.0 does.

    Raises ValueError for anything else; traced values cannot be checked.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    if np.ndim(value) > 1 or not np.isrealobj(value) or np.isnan(np.asarray(value, float)).any():
        raise ValueError(f"{type(owner).__name__}: {name} must be a number, or (n,) of them, not {value}")
    return value if np.ndim(value) or isinstance(value, jax.Array) else float(value)


def same_sde(first: SDE, other: SDE) -> bool:
    """Tell whether both are the same process; constants that are traced are not compared."""
    if first is other:
        return True
    leaves = jax.tree.leaves(first), jax.tree.leaves(other)
    if type(first) is not type(other) or len(leaves[0]) != len(leaves[1]):
        return False
    if any(isinstance(leaf, jax.core.Tracer) for side in leaves for leaf in side):
        return True
    return all(np.allclose(a, b, rtol=1e-6, atol=0) for a, b in zip(*leaves, strict=True))


def check_same_sde(owner: object, first: ScoreFn, other: ScoreFn) -> None:
    """Raise ValueError for scores that do not live on the same process."""
    if not same_sde(first.sde, other.sde):
        raise ValueError(
            f"{type(owner).__name__}: the scores live on different SDEs, {first.sde!r} and {other.sde!r}: give "
            "reschedule(score_fn, sde) of one of them"
        )
