"""How an observation moves the denoiser: the methods of `Observed`.

With the denoiser D = E[x_0 | x_t], its Jacobian J, V = sigma²/alpha J, which for an exact score is the covariance of
x_0 given x_t, the residual r = y - A(D), the derivative A of the operator at D, and R the covariance of the noise, each
method is a shift D' - D. Only moment matching is exact, on Gaussian data; which one errs by how much is in
docs/inverse.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.batch import per_row, sum_of_entries
from sde_lib.inverse.operators import Convolve, ObservationOperator
from sde_lib.pytree import register_dataclass
from sde_lib.typing import Scalar

if TYPE_CHECKING:
    from sde_lib.fields import StationaryGaussianField

Product = Callable[[jax.Array], jax.Array]
State = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]  # of conjugate gradients

SOLVED = 64  # iterations of the solves that call no network, at most


class Seen(NamedTuple):
    """An observation, linearised about the denoiser.

    residual: r, (n, *seen). operator: the one that is not linearised. variance: the diagonal of R, broadcasting to r;
    white says whether it is one number. push, pull: v -> A v and
    u -> A' u. covariance: v -> V v, one derivative product of the score. ratio: (sigma/alpha)², ready to multiply x.
    """

    operator: ObservationOperator
    residual: jax.Array
    white: bool
    variance: jax.Array
    push: Product
    pull: Product
    covariance: Product
    ratio: jax.Array

    def across(self, values: jax.Array) -> jax.Array:
        """Numbers for each row, which multiply x, made ready to multiply y."""
        return values if values.ndim == 0 else values.reshape(-1, *(1,) * (self.residual.ndim - 1))

    def gram(self, u: jax.Array) -> jax.Array:
        """The product A A' u."""
        return self.push(self.pull(u))


class Method(Protocol):
    """A shift of the denoiser, and what it costs."""

    @property
    def jvps(self) -> int:
        """Derivative products of the score in one shift."""
        ...

    @property
    def divides_by_noise(self) -> bool:
        """Whether it needs a noise above 0."""
        ...

    def shift(self, seen: Seen) -> jax.Array:
        """The shift D' - D, like x."""
        ...


def conjugate_gradients(
    product: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    b: jax.Array,
    iterations: int | jax.Array,
    precondition: Product = lambda r: r,
) -> tuple[jax.Array, jax.Array]:
    """Solve M z = b for each row by itself, by conjugate gradients from 0 (Hestenes & Stiefel 1952).

    product(p) gives M p, and what else is linear in p; precondition(r) what is near M^-1 r, symmetric and positive. A
    row stops at a direction without positive curvature, p' M p <= 0, which only a learned score has, and where it is
    solved to rounding.

    Returns:
        z: like b.
        beside: what product gave beside, for z.
    """

    state, step, _ = iteration(product, b, precondition)
    z, beside, *_ = jax.lax.fori_loop(0, iterations, lambda _, state: step(state), state)
    return z, beside


def iteration(
    product: Callable[[jax.Array], tuple[jax.Array, jax.Array]], b: jax.Array, precondition: Product = lambda r: r
) -> tuple[State, Callable[[State], State], jax.Array]:
    """The first state, the step, and the square of each row's residual at which it is solved to rounding."""

    def step(state: State) -> State:
        z, beside, r, p, square, going = state
        of_p, beside_p = product(p)
        curvature = sum_of_entries(p * of_p)
        going = going & (curvature > 0) & (square > floor)
        length = jnp.where(going, square / jnp.where(going, curvature, 1), 0)
        z, beside = z + per_row(length, z) * p, beside + per_row(length, beside) * beside_p
        r = r - per_row(length, r) * of_p
        near = precondition(r)
        left = sum_of_entries(r * near)
        p = near + per_row(jnp.where(going, left / jnp.where(going, square, 1), 0), r) * p
        return z, beside, r, p, jnp.where(going, left, square), going

    near = precondition(b)
    square = sum_of_entries(b * near)
    floor = square * jnp.finfo(b.dtype).eps ** 2
    _, like_beside = jax.eval_shape(product, b)
    zero = jnp.zeros(like_beside.shape, b.dtype)
    return (jnp.zeros_like(b), zero, b, near, square, square > 0), step, floor


def solve_to_rounding(product: Product, b: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """Solve M z = b for each row by itself, by as many conjugate gradients as that takes, at most `most`.

    Returns:
        z: like b.
        left: |b - M z|/|b| of each row, (n,).
    """

    def going(state: tuple[jax.Array, State]) -> jax.Array:
        i, (*_, square, unsolved) = state
        return (i < most) & jnp.any(unsolved & (square > floor))

    first, step, floor = iteration(lambda p: (product(p), p), b)
    _, (z, *_) = jax.lax.while_loop(going, lambda state: (state[0] + 1, step(state[1])), (jnp.zeros((), int), first))
    total = sum_of_entries(b * b)
    left = sum_of_entries((b - product(z)) ** 2)
    return z, jnp.sqrt(left / jnp.where(total > 0, total, 1))


def solve_gram(seen: Seen, noise: jax.Array, scale: jax.Array, b: jax.Array) -> jax.Array:
    """Solve (noise + scale A A') z = b; no network is called."""
    z, _ = conjugate_gradients(lambda p: (noise * p + scale * seen.gram(p), p), b, SOLVED)
    return z


@register_dataclass
@dataclass(frozen=True)
class MomentMatching:
    """The shift V A' (R + A V A')^-1 r by a few conjugate gradients.

    It gives the posterior mean where x_0 given x_t is Gaussian: exact on Gaussian data once the iterations reach the
    number of observed entries, or the directions in which V differs. Rozet et al. 2024, arXiv:2405.13712, eq. 20. A
    learned score's V is neither symmetric nor positive at high noise; there the iterations stop, and one or two are
    better than many.

    Where the noise is small and V varies much, as of large images, the iterations are many; `near` makes them few. With
    the spectrum of the data, seen through a convolution, one is nearly enough: of a stationary field it is all.

    Args:
        iterations: each costs one derivative product of the score. Another number compiles nothing anew.
        near: a field of about the prior's covariance, by which the iterations are preconditioned: R + A V A' is
            inverted in Fourier space with the field's V. For a `Convolve` over its grid and one noise for all of y.

    Raises ValueError for iterations below 1 and, when it runs, for another operator or noise with `near`.
    """

    iterations: int = 1
    near: "StationaryGaussianField | None" = None

    divides_by_noise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        known = not isinstance(self.iterations, jax.core.Tracer)
        if known and (self.iterations < 1 or jnp.result_type(self.iterations).kind not in "iu"):
            raise ValueError(f"MomentMatching: iterations must be a whole number of at least 1, not {self.iterations}")

    @property
    def jvps(self) -> int:
        """One for each iteration."""
        return self.iterations

    def shift(self, seen: Seen) -> jax.Array:
        """The shift D' - D."""

        def product(p: jax.Array) -> tuple[jax.Array, jax.Array]:
            moved = seen.covariance(seen.pull(p))
            return seen.variance * p + seen.push(moved), moved

        if self.near is None:
            return conjugate_gradients(product, seen.residual, self.iterations)[1]
        return conjugate_gradients(product, seen.residual, self.iterations, _inverse_of(self.near, seen))[1]


def _inverse_of(field: "StationaryGaussianField", seen: Seen) -> Product:
    """The inverse of R + A C A' in Fourier space, C the covariance of the field's x_0 given x_t."""
    operator, grid = seen.operator, field.shape
    if not isinstance(operator, Convolve) or np.ndim(operator.kernel) != 2 or seen.residual.shape[1:3] != grid:
        raise ValueError(f"MomentMatching: near is for a Convolve over the field's grid {grid}: leave it out")
    if not seen.white:
        raise ValueError("MomentMatching: near is for one noise for all of y: give a number, or leave near out")
    dtype, channels = seen.residual.dtype, seen.residual.shape[3:]
    power, gain = (v.reshape(1, *v.shape, *(1,) * len(channels)) for v in (field.spectrum, operator.gain(grid, dtype)))
    ratio = seen.across(seen.ratio)
    total = jnp.ravel(seen.variance)[0] + jnp.abs(gain) ** 2 * (power * ratio / (power + ratio)).astype(dtype)
    return lambda r: jnp.fft.irfftn(jnp.fft.rfftn(r, axes=(1, 2)) / total, s=grid, axes=(1, 2))


@dataclass(frozen=True)
class OneProduct:
    """The base of methods whose shift is V A' z, one derivative product of the score."""

    jvps: ClassVar[int] = 1
    divides_by_noise: ClassVar[bool] = False

    def weigh(self, seen: Seen) -> jax.Array:
        """The weighed residual z."""
        raise TypeError(f"{type(self).__name__} must define weigh(seen)")

    def shift(self, seen: Seen) -> jax.Array:
        """The shift D' - D."""
        return seen.covariance(seen.pull(self.weigh(seen)))


@register_dataclass
@dataclass(frozen=True)
class PseudoInverse(OneProduct):
    """The shift V A' (R + r² A A')^-1 r with r² = sigma²/(alpha² + sigma²): PiGDM, exact for a prior N(m, I).

    Song et al. 2023, "Pseudoinverse-guided diffusion models", eq. 7.
    """

    def weigh(self, seen: Seen) -> jax.Array:
        return solve_gram(seen, seen.variance, seen.across(seen.ratio / (1 + seen.ratio)), seen.residual)


@register_dataclass
@dataclass(frozen=True)
class Assimilation(OneProduct):
    """The shift V A' (R + gamma sigma²/alpha²)^-1 r: score-based data assimilation.

    Rozet & Louppe 2023, arXiv:2306.10574, eq. 16. gamma: the share of the prior's uncertainty.
    """

    gamma: Scalar = 1e-2

    def weigh(self, seen: Seen) -> jax.Array:
        return seen.residual / (seen.variance + self.gamma * seen.across(seen.ratio))


@register_dataclass
@dataclass(frozen=True)
class Jensen(OneProduct):
    """The shift V A' R^-1 r: the likelihood at the denoiser's value, DPS before its step size.

    Chung et al. 2023, arXiv:2209.14687, eq. 14. It takes the denoiser for certain: posteriors come out too narrow.
    """

    divides_by_noise: ClassVar[bool] = True

    def weigh(self, seen: Seen) -> jax.Array:
        return seen.residual / seen.variance


@register_dataclass
@dataclass(frozen=True)
class Proximal:
    """The shift (A'A/R + weight alpha²/sigma²)^-1 A' r/R: DiffPIR's proximal step, with no derivative of the score.

    Zhu et al. 2023, arXiv:2305.08995, eq. 13. Written as s A' (R + s A A')^-1 r, s = sigma²/(weight alpha²).
    """

    weight: Scalar = 1.0

    jvps: ClassVar[int] = 0
    divides_by_noise: ClassVar[bool] = True

    def shift(self, seen: Seen) -> jax.Array:
        """The shift D' - D."""
        scale = seen.ratio / self.weight
        return scale * seen.pull(solve_gram(seen, seen.variance, seen.across(scale), seen.residual))


@register_dataclass
@dataclass(frozen=True)
class Projection:
    """The shift A^+ r, with the pseudo-inverse A^+ = A' (A A')^-1: DDNM, for observations without noise.

    Wang et al. 2023, arXiv:2212.00490, eq. 13. The noise is not looked at.
    """

    jvps: ClassVar[int] = 0
    divides_by_noise: ClassVar[bool] = False

    def shift(self, seen: Seen) -> jax.Array:
        """The shift D' - D."""
        zero = jnp.zeros((), seen.residual.dtype)
        return seen.pull(solve_gram(seen, zero, zero + 1, seen.residual))
