"""What is seen of the examples of a run: the operators of inverse problems, by name, in the units of the data.

An operator of sde_lib takes points of the model's space. What it sees there is turned into what the same operator sees
of data in the user's units, and back, once: `Seen` holds the map.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiment.common.errors import UserError, choose, one_line
from experiment.common.files import open_regular, read_regular, user_path
from experiment.data.npz import read_npz
from experiment.data.scaling import Scaling
from sde_lib.inverse import Convolve, Downsample, Linear, Mask, ObservationOperator, Operator

Array = np.ndarray

LARGEST_PICTURE = 2**28  # bytes of a file that holds a mask


@dataclass(frozen=True)
class Seen:
    """An operator on points of the model's space, and what it sees in the units of the data: offset + scale y.

    words: what is seen, to print. offset, scale: like one y, float64. open: (*shape), true for the entries of an
    example that are asked for: those that a mask hides, or all.
    """

    words: str
    operator: ObservationOperator
    offset: Array
    scale: Array
    open: Array

    def to_data(self, y: Array) -> Array:
        """What is seen of points of the model's space, (n, *seen), in the units of the data; float64."""
        return self.offset + self.scale * np.asarray(y, np.float64)

    def to_model(self, y: Array) -> Array:
        """What is seen of data in their units, (n, *seen), in the model's space; float32."""
        return ((np.asarray(y, np.float64) - self.offset) / self.scale).astype(np.float32)

    def noise_to_model(self, noise: float) -> Array:
        """The noise's standard deviation in the model's space, like one y, of that in the units of the data."""
        return (noise / self.scale).astype(np.float32)


@dataclass(frozen=True)
class Asked:
    """How an operator is to see, as the flags of `experiment.restore` say it; None for the default."""

    seen: str | None = None
    share: float | None = None
    factor: int | None = None
    width: float | None = None
    matrix: str | None = None


def see(name: str, asked: Asked, shape: tuple[int, ...], scaling: Scaling, seed: int = 0) -> Seen:
    """Make the operator `name` for examples of this shape.

    seed: of a random mask. Raises UserError for an unknown name, a setting of another operator, one out of range, a
    file that does not fit, and an operator that examples of this shape do not have.
    """
    kind = choose(OPERATORS, name, "--operator", operator_list())
    for flag, value in vars(asked).items():
        if value is not None and flag not in kind.flags:
            others = [f"--operator={other}" for other, its in OPERATORS.items() if flag in its.flags]
            raise UserError(f"--{flag} is not for --operator={name}: leave it out, or use {' or '.join(others)}")
    return kind.make(asked, tuple(shape), scaling, seed)


def _masked(mask: Array, words: str, shape: tuple[int, ...], scaling: Scaling) -> Seen:
    shift, scale = scaling.affine(shape)
    return Seen(words, Mask(jnp.asarray(mask, jnp.float32)), mask * shift, scale, ~mask if not mask.all() else mask)


def _through_mask(asked: Asked, shape: tuple[int, ...], scaling: Scaling, seed: int) -> Seen:
    name = asked.seen or "left"
    if asked.share is not None and name != "random":
        raise UserError("--share goes with --seen=random: add it")
    if name in MASKS:
        share = 0.5 if asked.share is None else asked.share
        if not 0 < share < 1:
            raise UserError(f"--share is {share:g}: give the share of the entries that is seen, above 0 and below 1")
        mask, words = MASKS[name](_places(shape), np.random.RandomState(seed), share)
        mask = np.broadcast_to(mask if len(shape) == 1 else mask[..., None], shape)
    else:
        mask, words = read_mask(name, shape), f"what {Path(name).name} shows"
    if not mask.any():
        raise UserError(f"--seen={name} sees nothing of an example {shape}: give a mask with ones where it is seen")
    return _masked(mask, words, shape, scaling)


def _places(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The grid of an example, or its entries where it has none."""
    return shape[:-1] or shape


def _left(grid: tuple[int, ...], random: Any, share: float) -> tuple[Array, str]:
    mask = np.zeros(grid, bool)
    mask[..., : grid[-1] // 2] = True
    return mask, "the left half" if len(grid) > 1 else "the first half"


def _around_a_box(grid: tuple[int, ...], random: Any, share: float) -> tuple[Array, str]:
    mask = np.ones(grid, bool)
    mask[tuple(slice(side // 4, side // 4 + max(side // 2, 1)) for side in grid)] = False
    return mask, "all but a box of half the side in the middle"


def _random(grid: tuple[int, ...], random: Any, share: float) -> tuple[Array, str]:
    size = math.prod(grid)
    mask = np.zeros(size, bool)
    mask[random.permutation(size)[: round(share * size)]] = True
    return mask.reshape(grid), f"{share:.0%} of the {'places' if len(grid) > 1 else 'entries'}, chosen at random"


# What is seen through a mask: (grid, random, share) -> (mask, words).
MASKS: dict[str, Callable[..., tuple[Array, str]]] = {"left": _left, "box": _around_a_box, "random": _random}


def read_mask(name: str, shape: tuple[int, ...]) -> Array:
    """Read a mask (*shape), or (*grid) for all channels, from a picture, an .npy, or an .npz that has it as mask.

    Raises UserError for what is no mask of this shape.
    """
    path = user_path(name, "--seen")
    if not path.is_file():
        raise UserError(f"--seen is {name}; give one of {', '.join(MASKS)}, or the file of a mask: there is none")
    if path.suffix in (".npz", ".npy"):
        mask = read_array(path, "--seen", "mask")
    else:
        mask = _picture(path, "--seen", "L", shape[:-1]) > 127
    if mask.shape not in (shape, shape[:-1]):
        raise UserError(f"--seen={path}: the mask is {mask.shape}, and an example {shape}: give one entry for each")
    if not np.isin(mask, (0, 1)).all():
        raise UserError(f"--seen={path}: a mask must hold true or false, or 1 and 0: save mask > 0.5")
    return np.broadcast_to(mask.astype(bool).reshape(mask.shape + (1,) * (len(shape) - mask.ndim)), shape)


def _picture(path: Path, flag: str, mode: str, grid: tuple[int, ...]) -> Array:
    """Read a picture in Pillow's mode, uint8; of another size than the grid, an array of that size that is empty.

    Raises UserError for what is none.
    """
    try:
        with Image.open(io.BytesIO(read_regular(path, LARGEST_PICTURE))) as image:
            # Its header tells the size before anything is decoded.
            return np.asarray(image.convert(mode)) if image.size[::-1] == grid else np.empty(image.size[::-1], np.uint8)
    except Exception as error:  # Pillow raises a dozen kinds for what is damaged
        raise UserError(f"cannot read {flag}={path} ({one_line(error, 100)}): give a PNG, or an .npz") from None


def read_observed(name: str, seen: Seen, scaling: Scaling) -> Array:
    """Read a user's own observations, y (n, *seen) or one of them, in the units of the data, into the model's space.

    From an .npy, an .npz that has them as y, or a picture of images of 256 levels. What a mask hides may hold anything.
    Raises UserError for what the operator cannot have seen.
    """
    path, shape = user_path(name, "--observed"), seen.offset.shape
    if not path.is_file():
        raise UserError(f"--observed={path}: there is no such file: give an .npz, an .npy or a picture")
    if path.suffix in (".npz", ".npy"):
        y = read_array(path, "--observed", "y", finite=False)
    elif scaling.levels != 256 or len(shape) != 3 or shape[2] not in (1, 3):
        raise UserError(f"--observed={path}: what is seen here is {shape}, no picture of 256 levels: give an .npz")
    else:
        y = _picture(path, "--observed", "L" if shape[2] == 1 else "RGB", shape[:2])
        y = y.reshape(shape) if y.size == math.prod(shape) else y
    y = y[None] if y.shape == shape else y
    if y.shape[1:] != shape or not len(y):
        n = ", ".join(["n", *map(str, shape)])
        raise UserError(f"--observed={path}: y is {y.shape}, and the operator sees {shape} of an example: give ({n})")
    entries = seen.operator.entries()
    y = y if entries is None else np.where(np.asarray(entries), y, seen.offset)
    if not np.isfinite(y).all():
        raise UserError(
            f"--observed={path}: y is not finite where it was seen: give a mask that hides those places, --seen=FILE"
        )
    return seen.to_model(y)


def read_array(path: Path, flag: str, key: str, finite: bool = True) -> Array:
    """Read the array of an .npy, or that of an .npz which has this name or is the only one.

    Raises UserError for a damaged file, and one that holds no such array, of real and, if asked, finite numbers.
    """
    if path.suffix == ".npy":
        try:
            with open_regular(path) as file:
                found = np.load(file, allow_pickle=False)
        except Exception as error:  # numpy raises a dozen kinds for what is damaged
            raise UserError(f"cannot read {flag}={path} ({one_line(error, 100)}): save it with numpy.save") from None
    else:
        arrays = read_npz(path)
        if key not in arrays and len(arrays) != 1:
            raise UserError(f"{flag}={path}: there is no {key} among {', '.join(arrays) or 'no arrays'}: save it so")
        found = arrays.get(key, next(iter(arrays.values())))
    if found.dtype.kind not in "biuf" or (finite and not np.isfinite(found).all()):
        raise UserError(f"{flag}={path}: {key} is {found.dtype} of shape {found.shape}: give real, finite numbers")
    return found


def _grid_only(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) == 1:
        raise UserError(
            f"--operator={name} takes examples on a grid, and this run's are vectors of {shape[0]}: use "
            "--operator=mask, or give --matrix=FILE"
        )


def _downsampled(asked: Asked, shape: tuple[int, ...], scaling: Scaling, seed: int) -> Seen:
    _grid_only("downsample", shape)
    factor = 4 if asked.factor is None else asked.factor
    divisors = [f for f in range(2, max(shape[:-1]) + 1) if all(side % f == 0 for side in shape[:-1])]
    if factor not in divisors:
        remedy = f"give {' or '.join(map(str, divisors))}" if divisors else "use --operator=mask"
        raise UserError(f"--factor is {factor}, and must divide each side of the grid {shape[:-1]}: {remedy}")
    every = tuple(slice(None, None, factor) for _ in shape[:-1])
    shift, scale = (constant[every] for constant in scaling.affine(shape))  # which channels have of their own
    words = f"the mean of each block of {' x '.join([str(factor)] * len(shape[:-1]))}"
    return Seen(words, Downsample(factor), shift, scale, np.ones(shape, bool))


def _blurred(asked: Asked, shape: tuple[int, ...], scaling: Scaling, seed: int) -> Seen:
    _grid_only("blur", shape)
    width = 1.0 if asked.width is None else asked.width
    if not 0 < width <= max(shape[:-1]):
        raise UserError(f"--width is {width:g}: give a Gaussian's width above 0, to {max(shape[:-1])} places")
    kernel = np.ones(())
    for side in shape[:-1]:
        line = np.exp(-0.5 * ((np.arange(side) - side // 2) / width) ** 2)
        kernel = kernel[..., None] * (line / line.sum())
    words = f"a blur by a Gaussian of width {width:g} over the periodic grid"
    operator = Convolve(jnp.asarray(kernel, jnp.float32))
    return Seen(words, operator, *scaling.affine(shape), np.ones(shape, bool))


def _noisy(asked: Asked, shape: tuple[int, ...], scaling: Scaling, seed: int) -> Seen:
    return _masked(np.ones(shape, bool), "the whole", shape, scaling)


def _grey(x: jax.Array) -> jax.Array:
    """The mean over the channels."""
    return jnp.mean(x, axis=-1, keepdims=True)


def _without_colour(asked: Asked, shape: tuple[int, ...], scaling: Scaling, seed: int) -> Seen:
    if scaling.levels is None or shape[-1] != 3:
        raise UserError(
            f"--operator=colour takes images with levels and 3 channels, and this run's examples are {shape}: give "
            "what is seen of them as --matrix=FILE"
        )
    shift, scale = (constant[..., :1] for constant in scaling.affine(shape))
    return Seen("the mean over the channels", Operator(_grey), shift, scale, np.ones(shape, bool))


def _by_matrix(asked: Asked, shape: tuple[int, ...], scaling: Scaling, seed: int) -> Seen:
    if asked.matrix is None:
        raise UserError("--operator=matrix: give the matrix, as --matrix=FILE.npz or .npy")
    path, d = user_path(asked.matrix, "--matrix"), math.prod(shape)
    if not path.is_file():
        raise UserError(f"--matrix={path}: there is no such file: give an .npz or .npy")
    matrix = read_array(path, "--matrix", "matrix").astype(np.float64)
    if matrix.ndim != 2 or matrix.shape[1] != d or not len(matrix):
        raise UserError(f"--matrix={path}: the matrix is {matrix.shape}, and an example has {d} entries: give (m, {d})")
    shift, scale = (constant.ravel() for constant in scaling.affine(shape))
    rows = matrix * scale
    size = np.linalg.norm(rows, axis=1)  # by which each entry of y is of unit scale in the model's space
    size = np.where(size > 0, size, 1.0)
    operator = Linear(jnp.asarray(rows / size[:, None], jnp.float32))
    words = f"{len(matrix)} numbers by the matrix {path.name}"
    return Seen(words, operator, matrix @ shift, size, np.ones(shape, bool))


@dataclass(frozen=True)
class NamedOperator:
    """What makes an operator, the flags that are its own, and a line that says what it sees."""

    make: Callable[[Asked, tuple[int, ...], Scaling, int], Seen]
    flags: tuple[str, ...]
    line: str


OPERATORS = {
    "mask": NamedOperator(_through_mask, ("seen", "share"), "a part: in-painting; --seen says which"),
    "downsample": NamedOperator(_downsampled, ("factor",), "means of blocks: super-resolution by --factor"),
    "blur": NamedOperator(_blurred, ("width",), "a Gaussian blur of --width places: deblurring"),
    "denoise": NamedOperator(_noisy, (), "the whole, with noise: denoising"),
    "colour": NamedOperator(_without_colour, (), "the mean over three channels: colourisation"),
    "matrix": NamedOperator(_by_matrix, ("matrix",), "the product with the matrix of --matrix=FILE"),
}


def operator_list() -> str:
    """A line for each operator of the table: its name, and what it sees."""
    width = max(map(len, OPERATORS))
    return "\n".join(f"{name:{width}}  {named.line}" for name, named in OPERATORS.items())
