"""A score given an observation, from the score without it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.batch import check_rows, like, per_row, points
from sde_lib.composed import ComposedScore
from sde_lib.conversions import denoiser_from_score
from sde_lib.inverse.methods import Method, MomentMatching, Product, Seen
from sde_lib.inverse.operators import ObservationOperator, check_operator
from sde_lib.pytree import register_dataclass
from sde_lib.score import ScoreFn, check_score
from sde_lib.sde import SDE
from sde_lib.typing import Array, PyTree, Scalar


@register_dataclass
@dataclass(frozen=True)
class Observed(ComposedScore):
    """The score of x_t given y = A(x_0) + n, as far as the method goes.

        s' = s + alpha/sigma² (D' - D)

    with the denoiser D = E[x_0 | x_t] moved to D' by the method. The observation comes as the condition,
    cond={"y": y, "cond": what the inner score is told}, y (n, *seen) with a row for each sample. Nothing is shared
    between rows, and another y, mask or noise compiles nothing anew. With any method but an exact one, the SDE comes
    nearer to the posterior than the ODE: it forgets early errors.

    Args:
        score_fn: the score of the prior.
        operator: A, of `sde_lib.inverse`, or any function of a batch as `Operator(function)`.
        noise: the standard deviation of n, a number or like one y, in the units of x.
        method: how y moves the denoiser.

    Raises ValueError for a negative noise, a noise of 0 where the method divides by it, and a y of the wrong shape.
    """

    score_fn: ScoreFn
    operator: ObservationOperator
    noise: Scalar | Array
    method: Method = field(default_factory=MomentMatching)

    def __post_init__(self) -> None:
        check_score(self.score_fn, "Observed")
        check_operator(self.operator, "Observed")
        if isinstance(self.method, type):
            raise ValueError(f"Observed: the method must be an object: write {self.method.__name__}()")
        if isinstance(self.noise, jax.core.Tracer):
            return
        noise = np.asarray(self.noise, float)
        if not (noise >= 0).all():
            raise ValueError("Observed: noise is a standard deviation: it must not be negative")
        if self.method.divides_by_noise and not (noise > 0).all():
            raise ValueError(
                f"Observed: {type(self.method).__name__} divides by the noise: give one above 0, or use MomentMatching"
            )

    @property
    def sde(self) -> SDE:
        """The forward process of the prior's score."""
        return self.score_fn.sde

    def parts(self) -> tuple[ScoreFn, ...]:
        return (self.score_fn,)

    def with_parts(self, parts: Sequence[ScoreFn]) -> "Observed":
        return replace(self, score_fn=parts[0])

    @property
    def jvps(self) -> int:
        """Derivative products of the prior's score in each of its calls."""
        return super().jvps + self.method.jvps

    def __call__(self, x: jax.Array, t: Scalar, cond: PyTree = None) -> jax.Array:
        s, seen = self.seen(points(x), t, cond)
        alpha, sigma = per_row(self.sde.alpha(t), s), per_row(self.sde.sigma(t), s)
        return like(s + alpha / sigma**2 * self.method.shift(seen), x)

    def seen(self, x: jax.Array, t: Scalar, cond: PyTree) -> tuple[jax.Array, Seen]:
        """The prior's score at x, and the observation linearised about its denoiser: one network call.

        Raises ValueError for a cond that holds no observation, or one of another shape.
        """
        y = self.given(x, cond)
        alpha, sigma = per_row(self.sde.alpha(t), x), per_row(self.sde.sigma(t), x)

        def score(z: jax.Array) -> jax.Array:
            return self.score_fn(z, t, cond.get("cond"))

        s, derivative = jax.linearize(score, x)
        denoised, ratio = denoiser_from_score(self.sde, s, x, t), (sigma / alpha) ** 2
        return s, self.linearised(denoised, y, ratio, lambda v: v + sigma**2 * derivative(v))

    def given(self, x: jax.Array, cond: PyTree) -> jax.Array:
        """The observation y that the condition holds, in x's dtype.

        Raises ValueError for a cond that holds none, or not one for each row of x.
        """
        if not isinstance(cond, dict) or "y" not in cond or set(cond) - {"y", "cond"}:
            raise ValueError(
                'Observed: give the observation as cond={"y": y, "cond": None}, y with a row for each sample'
            )
        check_rows(cond["y"], x.shape[0])
        return jnp.asarray(cond["y"], x.dtype)

    def linearised(self, denoised: jax.Array, y: jax.Array, ratio: jax.Array, gain: Product) -> Seen:
        """The observation, linearised about the denoiser; gain is v -> alpha J v."""
        expected, push = jax.linearize(self.operator, denoised)
        if y.shape != expected.shape:
            raise ValueError(f"Observed: y must be {expected.shape} for x {denoised.shape}, not {y.shape}")
        noise = jnp.asarray(self.noise, y.dtype)
        if noise.shape not in ((), y.shape[1:]):
            raise ValueError(f"Observed: noise must be a number or like one y, {y.shape[1:]}, not {noise.shape}")
        transpose = jax.linear_transpose(push, denoised)
        residual = y - expected
        entries = self.operator.entries()
        if entries is not None:
            residual = jnp.where(entries[None], residual, 0)
        return Seen(
            self.operator,
            residual,
            not noise.ndim,
            jnp.broadcast_to(noise**2, residual.shape[1:])[None],
            push,
            lambda u: transpose(u)[0],
            lambda v: ratio * gain(v),
            ratio,
        )
