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

EMBED = jax.nn.initializers.normal(1.0)

# Which activations are computed again in the backward pass: none, those of each block, or those but for its products
# and convolutions.
Remat = Literal["none", "blocks", "products"]

NOISE_FEATURES = 64


def noise_embedding(c_noise: jax.Array, features: int = NOISE_FEATURES) -> jax.Array:
    """Sinusoids of the noise label, (n,) -> (n, features), float32.

    sqrt(2) [cos(w c), sin(w c)], w geometric from 1/4 to 32 rad, for c = c_noise = log(sigma/alpha)/4 in about [-2.5,
    2.5]: the slowest sine is monotone over the whole range, the fastest turns by 1 rad when log(sigma/alpha) moves by
    1/8.
    """
    frequencies = np.geomspace(0.25, 32.0, features // 2).astype(np.float32)
    phase = c_noise.astype(jnp.float32)[:, None] * frequencies[None, :]
    return math.sqrt(2.0) * jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)


def initialiser(scale: float) -> jax.nn.initializers.Initializer:
    """An initialiser, uniform of variance scale/(mean of fan-in and fan-out), as in DDPM; zeros for scale 0."""
    return jax.nn.initializers.variance_scaling(scale, "fan_avg", "uniform") if scale else jax.nn.initializers.zeros


class Linear(nnx.Linear):
    """A dense layer over the last axis; `scale` is its initialiser's, 0 starts it at zero."""

    def __init__(
        self, inputs: int, outputs: int, *, scale: float = 1.0, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        super().__init__(inputs, outputs, kernel_init=initialiser(scale), dtype=jnp.dtype(dtype), rngs=rngs)

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        # As one matrix: on CPU the gradient of a transformer takes a fifth less time than with the batch kept apart.
        flat = super().__call__(inputs.reshape(-1, self.in_features), out_sharding)
        return flat.reshape(*inputs.shape[:-1], self.out_features)


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
    """The vector that conditions every block: silu(W silu(V embed(c_noise) + label)), (n,) -> (n, width), float32.

    cond: (n,) int labels in 0..num_classes-1, or num_classes for "no label", which None also means. A label outside
    that range gives NaN (inside jit nothing can raise), so a wrong label is never taken for another class.
    Raises ValueError if labels are given to a network without classes.
    """

    def __init__(self, width: int, num_classes: int, *, rngs: nnx.Rngs):
        self.inner = Linear(NOISE_FEATURES, width, rngs=rngs)
        self.outer = Linear(width, width, rngs=rngs)
        self.labels = label_table(num_classes, width, rngs) if num_classes else None

    def __call__(self, c_noise: jax.Array, cond: jax.Array | None) -> jax.Array:
        h = self.inner(noise_embedding(c_noise))
        if self.labels is not None:
            h = h + label_rows(self.labels[...], cond, len(c_noise))
        else:
            check_unlabelled(cond)
        return nnx.silu(self.outer(nnx.silu(h)))


def label_table(num_classes: int, width: int, rngs: nnx.Rngs) -> nnx.Param:
    """A row of `width` for each class, and one for "no label"."""
    return nnx.Param(EMBED(rngs.params(), (num_classes + 1, width), jnp.float32))


def label_rows(table: jax.Array, cond: jax.Array | None, n: int) -> jax.Array:
    """The table's rows for cond, (n,) int, as (n, width).

    They are the last row, "no label", for None, and NaN for a label that does not exist.

    Raises ValueError for a cond that is not one integer for each example.
    """
    last = len(table) - 1
    if cond is None:
        cond = jnp.full((n,), last, jnp.int32)
    if cond.shape != (n,) or not jnp.issubdtype(cond.dtype, jnp.integer):
        raise ValueError(f"cond must hold one integer label per example, shape {(n,)}; it is {cond.dtype} {cond.shape}")
    known = (cond >= 0) & (cond <= last)
    return jnp.where(known[:, None], table.at[cond].get(mode="clip"), jnp.nan)


def check_unlabelled(cond: jax.Array | None) -> None:
    """Raise ValueError when labels are given to a network without classes."""
    if cond is not None:
        raise ValueError("labels were given to a network without classes: build it with num_classes, or pass cond=None")


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


class SelfAttention(nnx.Module):
    """Multi-head self-attention over tokens, softmax(q k^T / sqrt(width/heads)) v. (n, tokens, width) -> same.

    Knows no order of tokens. Plain matrix products, so that jvp (of Hutchinson's estimate) passes through.
    scale: of the last layer's initialiser. Raises ValueError if heads does not divide width.
    """

    def __init__(self, width: int, heads: int, *, scale: float = 1.0, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        if heads < 1 or width % heads:
            raise ValueError(
                f"heads={heads} does not divide the attention's {width} channels: choose a divisor of {width}"
            )
        self.heads = heads
        self.qkv = Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, scale=scale, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        h = jax.nn.dot_product_attention(q, k, v, implementation="xla")
        return self.out(h.reshape(n, tokens, width))


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


def check_call(shape: tuple[int, ...], x: jax.Array, c_noise: jax.Array) -> None:
    """Raise ValueError unless x is (n, *shape) and c_noise (n,)."""
    if x.ndim != len(shape) + 1 or x.shape[1:] != shape:
        raise ValueError(f"the network was built for x of shape (batch, {', '.join(map(str, shape))}); x is {x.shape}")
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
