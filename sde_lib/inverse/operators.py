"""What is seen of x: operators from a batch of points (n, *shape) to a batch of observations (n, *seen).

An operator is a pytree whose numbers are leaves, so that another mask or kernel compiles nothing anew. Its derivative
and its transpose are taken by JAX: any differentiable function will do, as `Operator(function)`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sde_lib.pytree import register_dataclass
from sde_lib.typing import Array


class ObservationOperator:
    """The base of operators: a function of a batch that computes each row from its own."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """The noiseless observation of x (n, *shape)."""
        raise TypeError(f"{type(self).__name__} must define __call__(x)")

    def entries(self) -> jax.Array | None:
        """Which entries of y are seen, like one y; None for all."""
        return None


def check_operator(operator: object, where: str) -> None:
    """Raise ValueError for what is no operator, such as a plain function."""
    if not isinstance(operator, ObservationOperator):
        raise ValueError(
            f"{where}: the operator must be one of sde_lib.inverse: wrap a function of a batch as Operator(function)"
        )


def check_affine(operator: ObservationOperator, shape: tuple[int, ...], where: str) -> None:
    """Raise ValueError for an operator that is not linear, or linear and a constant, on points of this shape."""
    a, b = np.random.default_rng(0).standard_normal((2, *shape))
    points = jnp.asarray(np.stack([a, b, a + b, np.zeros(shape)]), jnp.float32)
    found = operator(points)
    if isinstance(found, jax.core.Tracer):
        return
    seen = np.asarray(found, float)
    missed = np.abs(seen[0] + seen[1] - seen[2] - seen[3]).max(initial=0)
    if not missed <= 1e-3 * np.abs(seen).max(initial=0):
        raise ValueError(
            f"{where}: the operator is not linear: give its derivative as Linear(matrix), or use a method of Observed"
        )


@partial(register_dataclass, static=("function",))
@dataclass(frozen=True)
class Operator(ObservationOperator):
    """The operator that a function of a batch computes: (n, *shape) -> (n, *seen), each row from its own.

    It need not be linear for methods that take its derivative. It is compiled with what it closes over.
    """

    function: Callable[[jax.Array], jax.Array]

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.function(x)
        if y.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"Operator: the function must map a batch (n, *shape) to (n, *seen), not {x.shape} to {y.shape}: wrap "
                "one of a single point in jax.vmap"
            )
        return y


@register_dataclass
@dataclass(frozen=True)
class Linear(ObservationOperator):
    """The product y = A x with the entries of x laid flat: (n, *shape) -> (n, m).

    matrix: A, (m, d), d the number of entries. Raises ValueError for another number of entries.
    """

    matrix: Array

    def __post_init__(self) -> None:
        if np.ndim(self.matrix) != 2:
            raise ValueError(f"Linear: the matrix must be (m, d), not {np.shape(self.matrix)}")

    def __call__(self, x: jax.Array) -> jax.Array:
        flat = x.reshape(x.shape[0], -1)
        if flat.shape[1] != np.shape(self.matrix)[1]:
            raise ValueError(
                f"Linear: the matrix {np.shape(self.matrix)} takes {np.shape(self.matrix)[1]} entries, but x "
                f"{x.shape[1:]} has {flat.shape[1]}: give a matrix (m, {flat.shape[1]})"
            )
        matrix = jnp.asarray(self.matrix, x.dtype)
        return jnp.matmul(flat, matrix.T, precision=jax.lax.Precision.HIGHEST)


@register_dataclass
@dataclass(frozen=True)
class Mask(ObservationOperator):
    """The entries of x that are seen, and zeros for the others: y = mask * x, like x.

    What y holds where nothing is seen has no effect. mask: (*shape), true or 1 where the entry is seen.
    Raises ValueError for a mask that is not like x, or has other values than 0 and 1.
    """

    mask: Array

    def __post_init__(self) -> None:
        if not isinstance(self.mask, jax.core.Tracer) and not np.isin(np.asarray(self.mask), (0, 1)).all():
            raise ValueError("Mask: the mask must hold true or false, or 1 and 0: give mask > 0.5")

    def __call__(self, x: jax.Array) -> jax.Array:
        if np.shape(self.mask) != x.shape[1:]:
            raise ValueError(f"Mask: the mask is {np.shape(self.mask)}, but x {x.shape[1:]}: give one entry for each")
        return x * jnp.asarray(self.mask, x.dtype)[None]

    def entries(self) -> jax.Array:
        return jnp.asarray(self.mask) != 0


@partial(register_dataclass, static=("factor", "sides"))
@dataclass(frozen=True)
class Downsample(ObservationOperator):
    """The mean over blocks of factor places along each side.

    sides: how many axes of x are sides of a grid, the first ones; by default all but the last, which is channels'.
    Raises ValueError for a factor below 1, or one that does not divide the sides.
    """

    factor: int
    sides: int | None = None

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"Downsample: factor must be at least 1, not {self.factor}")

    def __call__(self, x: jax.Array) -> jax.Array:
        sides = max(x.ndim - 2, 1) if self.sides is None else self.sides
        grid, rest = x.shape[1 : 1 + sides], x.shape[1 + sides :]
        if len(grid) < sides or any(side % self.factor for side in grid):
            raise ValueError(
                f"Downsample: factor {self.factor} must divide each of {sides} sides of x {x.shape[1:]}: choose a "
                "divisor, or set sides"
            )
        blocks = x.reshape(x.shape[0], *(part for side in grid for part in (side // self.factor, self.factor)), *rest)
        return jnp.mean(blocks, axis=tuple(range(2, 2 * sides + 1, 2)))


@register_dataclass
@dataclass(frozen=True)
class Convolve(ObservationOperator):
    """The convolution with a kernel over a periodic grid, like x: y_i = sum_j k_j x_(i - j).

    The kernel has an axis for each side of the grid, and its middle is its centre (of an even side, the place after the
    middle); axes of x beyond these are channels, each convolved by itself. Computed by the fast Fourier transform.
    Raises ValueError for a kernel with more axes than x, or larger than the grid.
    """

    kernel: Array

    def __call__(self, x: jax.Array) -> jax.Array:
        size = np.shape(self.kernel)
        grid = x.shape[1 : 1 + len(size)]
        if not size or len(grid) < len(size) or any(k > side for k, side in zip(size, grid, strict=True)):
            raise ValueError(f"Convolve: the kernel {size} does not fit into the grid of x {x.shape[1:]}: crop it")
        axes = tuple(range(1, 1 + len(size)))
        gain = self.gain(grid, x.dtype)
        gain = gain.reshape(1, *gain.shape, *(1,) * (x.ndim - 1 - len(size)))
        return jnp.fft.irfftn(gain * jnp.fft.rfftn(x, axes=axes), s=grid, axes=axes)

    def gain(self, grid: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        """The kernel's Fourier transform on the grid, in the layout of `numpy.fft.rfftn`."""
        kernel = jnp.asarray(self.kernel, dtype)
        padded = jnp.zeros(grid, kernel.dtype).at[tuple(slice(k) for k in kernel.shape)].set(kernel)
        centred = jnp.roll(padded, [-(k // 2) for k in kernel.shape], axis=tuple(range(kernel.ndim)))
        return jnp.fft.rfftn(centred)


def matrix_of(operator: ObservationOperator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The matrix of a linear operator on points of this shape, in float64, and which rows are seen at all.

    Returns:
        matrix: (m, d), d the number of entries of x and m that of y.
        seen: (m,), false for the entries of y that a `Mask` hides.

    Raises ValueError for an operator that is not linear.
    """
    check_operator(operator, "observe")
    d = math.prod(shape)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        probes = np.concatenate([np.eye(d), np.zeros((1, d)), rng.standard_normal((2, d))])
        found = np.asarray(operator(jnp.asarray(probes.reshape(-1, *shape)))).reshape(len(probes), -1)
    matrix = found[:d].T
    scale = 1e-6 * (1 + np.abs(found).max(initial=0))
    if np.abs(found[d]).max(initial=0) > scale or np.abs(found[d + 1 :] - probes[d + 1 :] @ matrix.T).max(initial=0) > (
        scale * math.sqrt(d)
    ):
        raise ValueError(
            f"{type(operator).__name__}: the operator is not linear, and the exact posterior takes linear ones: give "
            "its derivative as Linear(matrix), or use a method of Observed"
        )
    entries = operator.entries()
    return matrix, np.ones(len(matrix), bool) if entries is None else np.asarray(entries).ravel()
