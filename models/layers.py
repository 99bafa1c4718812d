"""The parts that networks share: noise embedding, conditioning, initialisers, attention, rematerialisation.

Parameters are float32; `dtype` is the compute dtype. The embedding, the statistics of norms and the softmax are float32
always.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from models.attention import Linear, initialiser
from models.attention import SelfAttention as SelfAttention  # with the other parts, for a network of one's own
from models.conditions import (
    Augmentation,
    Augmented,
    Kind,
    Told,
    check_untold,
    label_rows,
    label_table,
    nothing_rows,
)

# Which activations are computed again in the backward pass: none, those of each block, or those but for its products
# and convolutions.
Remat = Literal["none", "blocks", "products"]

NOISE_FEATURES = 64
JUMP_FEATURES = 32


def noise_embedding(c_noise: jax.Array, features: int = NOISE_FEATURES) -> jax.Array:
    """Sinusoids of the noise label, (n,) -> (n, features), float32.

    sqrt(2) [cos(w c), sin(w c)], w geometric from 1/4 to 32 rad, for c = c_noise = log(sigma/alpha)/4 in about [-2.5,
    2.5]: the slowest sine is monotone over the whole range, the fastest turns by 1 rad when log(sigma/alpha) moves by
    1/8.
    """
    frequencies = np.geomspace(0.25, 32.0, features // 2).astype(np.float32)
    phase = c_noise.astype(jnp.float32)[:, None] * frequencies[None, :]
    return math.sqrt(2.0) * jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)


def jump_embedding(moved: jax.Array, features: int = JUMP_FEATURES) -> jax.Array:
    """Sinusoids of how far a flow map jumps, (n,) -> (n, features), float32, which are 0 where that is 0.

    sqrt(2) [1 - cos(w m), sin(w m)], w geometric from 1/2 to 8 rad, for m = tau_s - tau_t in [-1, 1]: slow enough for
    losses that differentiate in it.
    """
    frequencies = np.geomspace(0.5, 8.0, features // 2).astype(np.float32)
    phase = moved.astype(jnp.float32)[:, None] * frequencies[None, :]
    return math.sqrt(2.0) * jnp.concatenate([1 - jnp.cos(phase), jnp.sin(phase)], axis=-1)


class Jump(nnx.Module):
    """What a flow map's network makes of its second label, (n,) -> (n, width), float32: no bias, and 0 at the start.

    So a jump of no length is what the network gives without that label, bit for bit, whatever it has learned; and
    before it has learned any, so is every jump. It draws no random number, so that all other weights start as without.
    """

    def __init__(self, width: int):
        self.kernel = nnx.Param(jnp.zeros((JUMP_FEATURES, width), jnp.float32))

    def __call__(self, moved: jax.Array) -> jax.Array:
        return jump_embedding(moved) @ self.kernel[...]


def both_labels(c_noise: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """The noise label (n,), and how far a flow map's jump goes, (n,), where c_noise is (n, 2)."""
    return (c_noise, None) if c_noise.ndim == 1 else (c_noise[:, 0], c_noise[:, 1])


def conv(
    inputs: int,
    outputs: int,
    *,
    axes: int = 2,
    stride: int = 1,
    padding: Any = "SAME",
    scale: float = 1.0,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution over `axes` axes of space, 3 wide along each, with `initialiser(scale)`."""
    return nnx.Conv(
        inputs,
        outputs,
        (3,) * axes,
        stride,
        padding=padding,
        kernel_init=initialiser(scale),
        dtype=jnp.dtype(dtype),
        rngs=rngs,
    )


class Condition(nnx.Module):
    """The vector that conditions every block: silu(W silu(V embed(c_noise) + told)), (n,) -> (n, width), float32.

    num_classes: 0, or the network is told a class: cond is (n,) int labels in 0..num_classes-1, or num_classes for
    "nothing", which None also means. A label outside that range gives NaN (inside jit nothing can raise), so a wrong
    label is never taken for another class. kind: what else it is told, as models/conditions.py has it. jumps: c_noise
    may be (n, 2), of which the second is how far a flow map jumps, embedded and added to V embed(c_noise). augmented:
    cond may be `Augmented`.

    Raises ValueError if cond is given to a network without conditions, or is not of its kind.
    """

    def __init__(
        self,
        width: int,
        num_classes: int = 0,
        kind: Kind | None = None,
        jumps: bool = False,
        augmented: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self.inner = Linear(NOISE_FEATURES, width, rngs=rngs)
        self.outer = Linear(width, width, rngs=rngs)
        self.labels = label_table(num_classes, width, rngs) if num_classes else None
        self.kind, self.reader = kind, None if kind is None else kind.reader(width, rngs)
        self.jump = Jump(width) if jumps else None
        self.augmentation = Augmentation(width) if augmented else None

    def told(self, cond: Any, n: int) -> Told | None:
        """What cond, of n rows or None, tells the network; None where it is told nothing at all."""
        labels = None if self.labels is None else self.labels[...]
        return read(cond, n, labels, self.kind, self.reader, self.augmentation)

    def vector(self, c_noise: jax.Array, told: Told | None) -> jax.Array:
        """The vector of a noise label and of what `told` gave."""
        label, moved = both_labels(c_noise)
        h = self.inner(noise_embedding(label))
        h = h if self.jump is None or moved is None else h + self.jump(moved)
        return nnx.silu(self.outer(nnx.silu(h if told is None else h + told.vector)))

    def __call__(self, c_noise: jax.Array, cond: Any) -> jax.Array:
        return self.vector(c_noise, self.told(cond, len(c_noise)))


def read(
    cond: Any, n: int, labels: jax.Array | None, kind: Kind | None, reader: Any, augmentation: Augmentation | None
) -> Told | None:
    """What cond, of n rows, tells a network that has a table of labels, or the reader of a kind, or neither.

    augmentation: what reads how images were augmented, or None.
    """
    if isinstance(cond, Augmented):
        if augmentation is None:
            raise ValueError("cond is Augmented, and this network reads no augmentation: build it with augmented")
        told, shift = read(cond.cond, n, labels, kind, reader, None), augmentation(cond.labels)
        return Told(shift) if told is None else told._replace(vector=told.vector + shift)
    if labels is not None:
        return Told(label_rows(labels, cond, n))
    if reader is None or kind is None:
        check_untold(cond)
        return None
    return reader(nothing_rows(kind, n) if cond is None else cond)


def layer_norm(x: jax.Array, scale: jax.Array, shift: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Layer norm over the last axis with a modulation per example, (1 + scale) norm(x) + shift (DiT, arXiv:2212.09748).

    x: (n, tokens, c); scale, shift: (n, c). Computed in float32, returned in x's dtype.
    """
    h = x.astype(jnp.float32)
    h = h - h.mean(axis=-1, keepdims=True)
    h = h * jax.lax.rsqrt(jnp.square(h).mean(axis=-1, keepdims=True) + epsilon)
    return (h * (1.0 + scale[:, None, :]) + shift[:, None, :]).astype(x.dtype)


class GroupNorm(nnx.GroupNorm):
    """Group norm of (n, *sides, c), scale (x - mean)/sqrt(var + epsilon) + bias; statistics float32, in two passes.

    Each channel is summed over the sides, and a small product makes the groups' means of these sums, one for each
    channel again. On CPU this is several times as fast as means over sides and channels at once, since the compiler
    then computes what is made of them anew for every entry.
    """

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]  # there is no mask
        channels, sides = x.shape[-1], tuple(range(1, x.ndim - 1))
        size, count = channels // self.num_groups, math.prod(x.shape[1:-1])
        of_group = np.kron(np.eye(self.num_groups), np.full((size, size), 1 / (size * count))).astype(np.float32)

        def group_mean(values: jax.Array) -> jax.Array:
            means = jnp.dot(values.sum(axis=sides), of_group, precision=jax.lax.Precision.HIGHEST)
            return jnp.expand_dims(means, sides)

        shape = (1,) * (x.ndim - 1) + (channels,)
        scale, bias = (jnp.reshape(weight[...], shape) for weight in (self.scale, self.bias) if weight is not None)
        centred = x.astype(jnp.float32)
        centred = centred - group_mean(centred)
        factor = jax.lax.rsqrt(group_mean(centred * centred) + self.epsilon) * scale
        return (centred * factor + bias).astype(self.dtype)


def group_norm(channels: int, *, groups: int = 0, dtype: DTypeLike, rngs: nnx.Rngs) -> GroupNorm:
    """Group norm with `groups`, or min(c/4, 32), or the next smaller number that divides c."""
    most = groups or max(1, min(channels // 4, 32))
    groups = next(g for g in range(most, 0, -1) if channels % g == 0)
    return GroupNorm(channels, groups, dtype=jnp.dtype(dtype), rngs=rngs)


def named(modules: Sequence[nnx.Module]) -> nnx.Dict:
    """A list of modules under the names "00", "01", ...

    String keys keep the parameters a plain dict that any checkpoint takes.
    """
    return nnx.Dict({f"{i:02d}": module for i, module in enumerate(modules)})


def dropout_keys(key: jax.Array | None, n: int) -> Iterator[Any]:
    """Split a key into n, or repeat None n times: evaluation, without dropout."""
    return iter([None] * n if key is None else jax.random.split(key, n))


def _is_product(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in ("dot_general", "conv_general_dilated")


_POLICIES: dict[str, Any] = {"blocks": None, "products": _is_product}


def rematerialised(block: Callable[..., jax.Array], remat: Remat) -> Callable[..., jax.Array]:
    """The block, its activations computed again in the backward pass: less memory, more time.

    Chen et al. 2016, arXiv:1604.06174. none: all are kept. blocks: only its input is. products: what products and
    convolutions give is kept too, the cheap rest is not.
    """
    return block if remat == "none" else jax.checkpoint(lambda *args: block(*args), policy=_POLICIES[remat])


def check_call(shape: tuple[int, ...], x: jax.Array, c_noise: jax.Array, jumps: bool = False) -> None:
    """Raise ValueError unless x is (n, *shape) and c_noise (n,), or (n, 2) for a network with jumps."""
    if x.ndim != len(shape) + 1 or x.shape[1:] != shape:
        raise ValueError(f"the network was built for x of shape (batch, {', '.join(map(str, shape))}); x is {x.shape}")
    if c_noise.shape == (len(x), 2):
        if jumps:
            return
        raise ValueError("c_noise (n, 2) is of a flow map, and this network is told one time: build it with jumps=True")
    if c_noise.shape != x.shape[:1]:
        raise ValueError(
            f"c_noise must hold one number per example, shape {x.shape[:1]}; it is {c_noise.shape}: broadcast it first"
        )


def check_counts(**options: Any) -> None:
    """Raise ValueError naming the first option that is not a positive whole number."""
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} must be a positive whole number; it is {value!r}")


SIDES = ("depth", "height", "width")


def grid_shape(shape: Sequence[int], network: str) -> tuple[int, ...]:
    """The shape as one, two or three sides of a grid, and channels. Raises ValueError for another number of axes."""
    if not 2 <= len(shape) <= 4:
        raise ValueError(
            f"{network} takes series (length, channels), images (height, width, channels) and volumes, not "
            f"{tuple(shape)}: use the MLP for vectors"
        )
    names = (*SIDES[-(len(shape) - 1) :], "channels") if len(shape) > 2 else ("length", "channels")
    check_counts(**dict(zip(names, shape, strict=True)))
    return tuple(int(side) for side in shape)


def image_shape(shape: Sequence[int], network: str) -> tuple[int, int, int]:
    """The shape as (height, width, channels). Raises ValueError if it is not an image's."""
    if len(shape) != 3:
        raise ValueError(
            f"{network} takes images of shape (height, width, channels), not {tuple(shape)}: use the MLP for vectors"
        )
    check_counts(height=shape[0], width=shape[1], channels=shape[2])
    return int(shape[0]), int(shape[1]), int(shape[2])


def resolutions(shape: Sequence[int], levels: int, attention: Sequence[int]) -> list[int]:
    """The first side of the grid (*sides, channels) at each level, halved from one to the next, rounded up.

    Raises ValueError for no level, for more of them than there are halves, or an attention resolution that does not
    occur.
    """
    if levels < 1:
        raise ValueError("channel_mults is empty: give one multiplier per resolution, such as (1, 2)")
    *sides, _ = shape
    if 2 ** (levels - 1) > max(sides):
        raise ValueError(
            f"{levels} channel_mults halve {'x'.join(map(str, sides))} to less than one place: shorten channel_mults"
        )
    found = [-(-sides[0] // 2**i) for i in range(levels)]
    unknown = sorted(set(attention) - set(found))
    if unknown:
        raise ValueError(
            f"attention at resolution {unknown[0]} does not occur: choose among {', '.join(map(str, found))}"
        )
    return found


def image_resolutions(shape: tuple[int, int, int], levels: int, attention: Sequence[int]) -> list[int]:
    """The `resolutions` of images that every level halves exactly.

    Raises ValueError if a side is not divisible by 2^(levels - 1), too.
    """
    height, width, step = shape[0], shape[1], 2 ** max(levels - 1, 0)
    if height % step or width % step:
        raise ValueError(
            f"{levels} channel_mults need an image size divisible by {step}; it is {height}x{width}: "
            "shorten channel_mults, or resize or pad the images, or use the U-Net, which takes any size"
        )
    return resolutions(shape, levels, attention)
