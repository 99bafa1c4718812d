"""Extrapolation from one score past another: classifier-free guidance, autoguidance, and their projected form."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self, cast

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.batch import check_rows, per_row, sum_of_entries
from sde_lib.composed import ComposedScore, calls, calls_at, check_same_sde, number, whole
from sde_lib.conversions import denoiser_from_score, score_from_denoiser
from sde_lib.pytree import register_dataclass
from sde_lib.score import ScoreFn, check_score
from sde_lib.sde import SDE
from sde_lib.typing import Array, PyTree, Scalar

# A time is inside an interval that ends there, whatever the rounding of float32 in its log SNR.
_ROUNDING = 1e-5


class Combine(Protocol):
    """What makes one score of a pair and the scale g, which is ready to multiply them."""

    def __call__(self, sde: SDE, s1: jax.Array, s0: jax.Array, g: jax.Array, x: jax.Array, t: Scalar) -> jax.Array: ...


@register_dataclass
@dataclass(frozen=True)
class Line:
    """The point s0 + g (s1 - s0) on the line from s0 through s1."""

    def __call__(self, sde: SDE, s1: jax.Array, s0: jax.Array, g: jax.Array, x: jax.Array, t: Scalar) -> jax.Array:
        return s0 + g * (s1 - s0)


class ScorePair(ComposedScore):
    """The base of what has a score s1 and another, s0, that it moves away from.

    Inside the interval low <= log SNR <= high the scale is `scale`, outside it is 1 and the score s1 itself, bit for
    bit. Where no row needs s0 only s1 is called.
    """

    score_fn: ScoreFn
    scale: Scalar
    low: Scalar
    high: Scalar

    per_row: ClassVar[tuple[str, ...]] = ("scale", "low", "high")

    @property
    def sde(self) -> SDE:
        """The forward process of both."""
        return self.score_fn.sde

    def _check(self) -> None:
        check_score(self.score_fn, type(self).__name__)
        for name in self.per_row:
            object.__setattr__(self, name, number(self, name, getattr(self, name)))
        if not any(isinstance(v, jax.core.Tracer) for v in (self.low, self.high)) and np.any(self.low > self.high):
            raise ValueError(f"{type(self).__name__}: low must be at most high, not {self.low} and {self.high}")
        if not isinstance(self.scale, jax.core.Tracer) and not np.isfinite(self.scale).all():
            raise ValueError(f"{type(self).__name__}: scale must be finite, not {self.scale}")

    def at_every_time(self, scale: Scalar) -> Self:
        """This pair with one scale, and without an interval."""
        return cast(Self, replace(cast(Any, self), scale=scale, low=-np.inf, high=np.inf))

    def pair(self, x: jax.Array, t: Scalar, cond: PyTree) -> tuple[jax.Array, jax.Array]:
        """The scores s1 and s0."""
        raise TypeError(f"{type(self).__name__} must define pair(x, t, cond)")

    def scale_at(self, t: Scalar) -> Scalar:
        """The scale at time t: 1 outside the interval; a scalar or (n,)."""
        log_snr = self.score_fn.sde.log_snr(jnp.asarray(t))
        low = jnp.asarray(self.low) - _ROUNDING * (1 + jnp.abs(jnp.asarray(self.low)))
        high = jnp.asarray(self.high) + _ROUNDING * (1 + jnp.abs(jnp.asarray(self.high)))
        return jnp.where((low <= log_snr) & (log_snr <= high), self.scale, 1.0)

    def combined(self, combine: Combine, x: jax.Array, t: Scalar, cond: PyTree) -> jax.Array:
        """What the pair makes: s1 where the scale is 1; in one call where it is 1 in every row."""
        g = self.scale_at(t)
        needed = jnp.any(g != 1)

        def both() -> jax.Array:
            return self.combined_everywhere(combine, x, t, cond)

        def alone() -> jax.Array:
            return self.score_fn(x, t, cond)

        if isinstance(needed, jax.core.Tracer):
            return cast(jax.Array, jax.lax.cond(needed, both, alone))
        return both() if needed else alone()

    def combined_everywhere(self, combine: Combine, x: jax.Array, t: Scalar, cond: PyTree) -> jax.Array:
        """What the pair makes, with both scores called whatever the scale."""
        s1, s0 = self.pair(x, t, cond)
        g = per_row(self.scale_at(t), s1)
        return jnp.where(g == 1, s1, combine(self.sde, s1, s0, g, x, t))

    def __call__(self, x: jax.Array, t: Scalar, cond: PyTree = None) -> jax.Array:
        return self.combined(Line(), x, t, cond)

    @property
    def is_guided(self) -> bool:  # type: ignore[override]
        """Whether any row has another scale than 1."""
        return isinstance(self.scale, jax.core.Tracer) or bool(np.any(np.asarray(self.scale) != 1))

    @property
    def calls(self) -> int:
        return int(self._calls_of_both()) if self.is_guided else calls(self.score_fn)

    @property
    def varies(self) -> bool:
        traced = any(isinstance(v, jax.core.Tracer) for v in (self.low, self.high, self.scale))
        everywhere = not traced and np.all(self.low == -np.inf) and np.all(self.high == np.inf)
        return super().varies or (self.is_guided and not bool(everywhere))

    def calls_at(self, t: Scalar) -> Array:
        return jnp.where(jnp.any(self.scale_at(t) != 1), self._calls_of_both(t), calls_at(self.score_fn, t))

    @property
    def jumps(self) -> tuple[Scalar, ...]:
        # Also where every row's scale is 1: a row alone takes the steps that it takes among others.
        return super().jumps + ((self.low, self.high) if self.is_guided or np.ndim(self.scale) else ())

    def whole(self, t: Scalar | None = None) -> ScoreFn:
        return self.whole_with(Line(), t)

    def whole_with(self, combine: Combine, t: Scalar | None = None) -> ScoreFn:
        """What `combined` makes, as `whole` says."""
        if not self.is_guided:
            return whole(self.score_fn, t)
        pair = self.with_parts([whole(part, t) for part in self.parts()])
        if t is None:
            return Whole(pair, combine)
        scale = self.scale_at(t)
        if not np.any(scale != 1):
            return pair.score_fn
        return Whole(pair.at_every_time(scale), combine)

    def _calls_of_both(self, t: Scalar | None = None) -> Array | int:
        return sum((calls(part) if t is None else calls_at(part, t) for part in self.parts()), start=0)

    def factors(self, x: jax.Array, t: Scalar, cond: PyTree) -> list[jax.Array]:
        """The scores of the product p1^g p0^(1 - g) that guidance tilts towards."""
        return list(self.pair(x, t, cond))

    @property
    def powers(self) -> tuple[Scalar, ...]:
        """The powers of that product, (g, 1 - g)."""
        return self.scale, 1 - self.scale

    @property
    def factor_calls(self) -> int:
        """The network calls of `factors`."""
        return int(self._calls_of_both())

    def check_product(self) -> None:
        """Raise ValueError for an interval, too: powers that change in time are no product's."""
        super().check_product()
        if np.any(self.low != -np.inf) or np.any(self.high != np.inf):
            raise ValueError(f"{type(self).__name__}: only guidance at every time is a product: leave out low and high")


@register_dataclass
@dataclass(frozen=True)
class ClassifierFree(ScorePair):
    """The score s0 + g (s1 - s0) with s1 the conditional score and s0 that of the condition "nothing".

    Ho & Salimans 2022, arXiv:2207.12598, eq. 6, there w = g - 1; inside an interval: Kynkäänniemi et al. 2024,
    arXiv:2404.07724, eq. 5. It samples neither p(x | c)^g p(x)^(1-g) nor, by the ODE and the SDE, one and the same
    distribution.

    Both scores come from one call of 2n rows, which counts as 2 network calls for each sample; with null=None from two
    calls of n rows.

    Args:
        score_fn: the score of x given cond; with cond of "nothing", of all x.
        scale: g, a number or (n,). 1 is no guidance, s1 bit for bit and one network call; 0 is s0.
        null: the condition of "nothing", one row's worth, given to every row. None hands the score cond=None.
        low, high: the interval of log SNR, log(alpha²/sigma²), with its ends, in which there is guidance; outside it
            the score is s1. Scalars or (n,).

    Raises ValueError for a call without a condition, and for a null that is no row of cond.
    """

    score_fn: ScoreFn
    scale: Scalar
    null: PyTree = None
    low: Scalar = -np.inf
    high: Scalar = np.inf

    def __post_init__(self) -> None:
        self._check()

    def parts(self) -> tuple[ScoreFn, ...]:
        return (self.score_fn,)

    def with_parts(self, parts: Sequence[ScoreFn]) -> "ClassifierFree":
        return replace(self, score_fn=parts[0])

    def _calls_of_both(self, t: Scalar | None = None) -> Array | int:
        return 2 * super()._calls_of_both(t)

    @property
    def jvps(self) -> int:
        return (2 if self.is_guided else 1) * super().jvps

    def pair(self, x: jax.Array, t: Scalar, cond: PyTree) -> tuple[jax.Array, jax.Array]:
        if not jax.tree.leaves(cond):
            raise ValueError("ClassifierFree: there is no condition to guide by: give cond, or scale=1")
        check_rows(cond, x.shape[0])
        if self.null is None:
            return self.score_fn(x, t, cond), self.score_fn(x, t, None)
        # The two rows of a sample lie side by side, on one device where the batch is on several.
        t = jnp.repeat(t, 2, axis=0) if np.ndim(t) else t
        both = self.score_fn(jnp.repeat(x, 2, axis=0), t, beside_null(cond, self.null))
        paired = both.reshape(x.shape[0], 2, *x.shape[1:])
        return paired[:, 0], paired[:, 1]


def beside_null(cond: PyTree, null: PyTree) -> PyTree:
    """The condition with 2n rows: each of cond's, followed by null. Raises ValueError where null is no row of cond."""

    def interleave(rows: jax.Array, nothing: jax.Array) -> jax.Array:
        rows, nothing = jnp.asarray(rows), jnp.asarray(nothing)
        whole_numbers = rows.dtype.kind in "iu" and nothing.dtype.kind not in "iu"  # a NaN is none
        if whole_numbers or nothing.shape not in (rows.shape[1:], (1, *rows.shape[1:])):
            raise ValueError(
                f"ClassifierFree: null must be one row of cond, {rows.dtype.name}{list(rows.shape[1:])}, not "
                f"{nothing.dtype.name}{list(nothing.shape)}"
            )
        nothing = jnp.broadcast_to(nothing.astype(rows.dtype).reshape(rows.shape[1:])[None], rows.shape)
        return jnp.stack([rows, nothing], axis=1).reshape(2 * rows.shape[0], *rows.shape[1:])

    given, like_cond = jax.tree.structure(null), jax.tree.structure(cond)
    if str(given) != str(like_cond):
        raise ValueError(f"ClassifierFree: null must be a row of cond, in its structure {like_cond}, not {given}")
    return jax.tree.map(interleave, cond, null)


@register_dataclass
@dataclass(frozen=True)
class Autoguidance(ScorePair):
    """The score s_guide + g (s - s_guide): away from a worse model of the same data.

    Karras et al. 2024, arXiv:2406.02507, eq. 3. Two network calls, one where g = 1.

    Args:
        score_fn: the score s, handed cond.
        guide: any score on the same SDE, handed cond too: an earlier checkpoint, another average, a smaller network.
        scale: g, a number or (n,). 1 is no guidance.
        low, high: as for `ClassifierFree`.
    """

    score_fn: ScoreFn
    guide: ScoreFn
    scale: Scalar
    low: Scalar = -np.inf
    high: Scalar = np.inf

    def __post_init__(self) -> None:
        self._check()
        check_score(self.guide, "Autoguidance")
        check_same_sde(self, self.score_fn, self.guide)

    def parts(self) -> tuple[ScoreFn, ...]:
        return self.score_fn, self.guide

    def with_parts(self, parts: Sequence[ScoreFn]) -> "Autoguidance":
        return replace(self, score_fn=parts[0], guide=parts[1])

    def pair(self, x: jax.Array, t: Scalar, cond: PyTree) -> tuple[jax.Array, jax.Array]:
        return self.score_fn(x, t, cond), self.guide(x, t, cond)


@register_dataclass
@dataclass(frozen=True)
class Projected(ComposedScore):
    """Adaptive projected guidance as a score: less of the guidance along the denoised image, which oversaturates.

    With the denoisers D1 and D0 of the guided pair, Delta = D1 - D0 shortened to at most `radius`, and its parts
    along D1 and across it,

        D = D1 + (g - 1) (Delta_across + parallel Delta_along)

    Sadat et al. 2024, arXiv:2410.02416, algorithm 1 without its momentum, which is a sampler's state and no score's.
    parallel=1 without a radius is the pair's own guidance. The score is not linear in x, also of Gaussians.

    Args:
        guided: a `ClassifierFree` or `Autoguidance`.
        parallel: eta, the share that is kept of the part along D1.
        radius: the longest that Delta may be, its Euclidean norm over a sample's entries; None for any.
    """

    guided: ScorePair  # type: ignore[assignment]
    parallel: Scalar = 0.0
    radius: Scalar | None = None

    per_row: ClassVar[tuple[str, ...]] = ("parallel", "radius")

    def __post_init__(self) -> None:
        if not isinstance(self.guided, ScorePair):
            raise ValueError(
                f"Projected: guided must be a ClassifierFree or an Autoguidance, not a {type(self.guided).__name__}"
            )
        object.__setattr__(self, "parallel", number(self, "parallel", self.parallel))
        if self.radius is not None:
            object.__setattr__(self, "radius", number(self, "radius", self.radius))
        if isinstance(self.radius, (int, float)) and not self.radius > 0:
            raise ValueError(f"Projected: radius must be positive, or None for any, not {self.radius}")

    @property
    def sde(self) -> SDE:
        """The forward process of the pair."""
        return self.guided.sde

    def parts(self) -> tuple[ScoreFn, ...]:
        return (self.guided,)

    def with_parts(self, parts: Sequence[ScoreFn]) -> "Projected":
        return replace(self, guided=cast(ScorePair, parts[0]))

    @property
    def is_guided(self) -> bool:  # type: ignore[override]
        """Whether the pair is."""
        return self.guided.is_guided

    def __call__(self, x: jax.Array, t: Scalar, cond: PyTree = None) -> jax.Array:
        return self.guided.combined(_Projection(self.parallel, self.radius), x, t, cond)

    def whole(self, t: Scalar | None = None) -> ScoreFn:
        return self.guided.whole_with(_Projection(self.parallel, self.radius), t)


@register_dataclass
@dataclass(frozen=True)
class _Projection:
    """The projected guidance of `Projected`."""

    parallel: Scalar
    radius: Scalar | None

    def __call__(self, sde: SDE, s1: jax.Array, s0: jax.Array, g: jax.Array, x: jax.Array, t: Scalar) -> jax.Array:
        d1, d0 = (denoiser_from_score(sde, s, x, t) for s in (s1, s0))
        delta, tiny = d1 - d0, jnp.finfo(s1.dtype).tiny
        if self.radius is not None:
            length = jnp.sqrt(sum_of_entries(delta**2))
            delta = per_row(jnp.minimum(1, self.radius / jnp.maximum(length, tiny)), delta) * delta
        along = per_row(sum_of_entries(delta * d1) / jnp.maximum(sum_of_entries(d1**2), tiny), d1) * d1
        pushed = delta - along + per_row(jnp.asarray(self.parallel), along) * along
        return score_from_denoiser(sde, d1 + (g - 1) * pushed, x, t)


@register_dataclass
@dataclass(frozen=True)
class Whole(ComposedScore):
    """What a pair and `combine` make, with both scores called whatever the scale: no branch."""

    pair: ScorePair
    combine: Combine

    varies: ClassVar[Any] = False

    @property
    def sde(self) -> SDE:
        """The forward process of the pair."""
        return self.pair.sde

    def parts(self) -> tuple[ScoreFn, ...]:
        return (self.pair,)

    def with_parts(self, parts: Sequence[ScoreFn]) -> "Whole":
        return replace(self, pair=cast(ScorePair, parts[0]))

    def whole(self, t: Scalar | None = None) -> ScoreFn:
        return self

    def __call__(self, x: jax.Array, t: Scalar, cond: PyTree = None) -> jax.Array:
        return self.pair.combined_everywhere(self.combine, x, t, cond)
