"""A U-Net for images, after DDPM++ (Song et al. 2021, arXiv:2011.13456, appendix H) with modulation as in ADM (arXiv:2105.05233)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers import DENSE, ZERO, Condition, Linear, SelfAttention, check_call, check_positive, group_norm, image_shape, named


def conv3x3(inputs: int, outputs: int, *, zero: bool = False, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(inputs, outputs, (3, 3), kernel_init=ZERO if zero else DENSE, dtype=jnp.dtype(dtype), rngs=rngs)


def downsample(x: jax.Array) -> jax.Array:
    """Mean over 2x2 pixels."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def upsample(x: jax.Array) -> jax.Array:
    """Each pixel repeated 2x2."""
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)


class ResBlock(nnx.Module):
    """Residual block, then self-attention if heads > 0. (n, h, w, inputs) -> (n, h, w, outputs).

    x' + conv(dropout(silu((1 + scale) norm(conv(silu(norm(x)))) + shift))), x' = x or a 1x1 convolution of it;
    scale and shift come from the conditioning vector. The last convolution starts at zero.
    """

    def __init__(self, inputs: int, outputs: int, embedding: int, heads: int, dropout: float, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1 = group_norm(inputs, dtype=dtype, rngs=rngs)
        self.conv1 = conv3x3(inputs, outputs, dtype=dtype, rngs=rngs)
        self.modulation = Linear(embedding, 2 * outputs, zero=True, dtype=dtype, rngs=rngs)
        self.norm2 = group_norm(outputs, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.conv2 = conv3x3(outputs, outputs, zero=True, dtype=dtype, rngs=rngs)
        self.shortcut = Linear(inputs, outputs, dtype=dtype, rngs=rngs) if inputs != outputs else None
        self.attention = ImageAttention(outputs, heads, dtype=dtype, rngs=rngs) if heads else None

    def __call__(self, x: jax.Array, embedding: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        scale, shift = jnp.split(self.modulation(embedding)[:, None, None, :], 2, axis=-1)
        h = self.conv1(nnx.silu(self.norm1(x)))
        h = nnx.silu(self.norm2(h) * (1 + scale) + shift)
        h = self.conv2(self.dropout(h, deterministic=rngs is None, rngs=rngs))
        h = h + (x if self.shortcut is None else self.shortcut(x))
        return h if self.attention is None else self.attention(h)


class ImageAttention(nnx.Module):
    """x + attention over the pixels of norm(x); starts as the identity."""

    def __init__(self, channels: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = group_norm(channels, dtype=dtype, rngs=rngs)
        self.attention = SelfAttention(channels, heads, zero=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        n, h, w, c = x.shape
        return x + self.attention(self.norm(x).reshape(n, h * w, c)).reshape(x.shape)


class UNet(nnx.Module):
    """Network for images: x (n, h, w, c), c_noise (n,), cond (n,) int or None -> like x, float32. Zero until trained.

    shape: (h, w, c). width: channels of the first level; level i has width * channel_mults[i] at resolution h / 2^i.
    blocks: residual blocks per level, down and up. attention: resolutions (heights) with attention after each block; the middle
    always has it. heads: attention heads. num_classes: 0 for no labels. dtype: the compute dtype.
    Raises ValueError if h or w is not divisible by 2^(levels-1), an attention resolution does not occur, or heads does not divide.
    """

    def __init__(
        self,
        shape: Sequence[int] = (8, 8, 1),
        *,
        width: int = 32,
        channel_mults: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: Sequence[int] = (),
        heads: int = 1,
        dropout: float = 0.0,
        num_classes: int = 0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.shape, self.dtype = image_shape(shape, "UNet"), jnp.dtype(dtype)
        check_positive(width=width, blocks=blocks, heads=heads, **{f"channel_mults[{i}]": m for i, m in enumerate(channel_mults)})
        resolutions = _resolutions(self.shape, len(channel_mults), attention)
        self.levels, self.blocks = len(channel_mults), blocks
        embedding, channels = 4 * width, [width * m for m in channel_mults]

        def block(inputs: int, outputs: int, attend: bool) -> ResBlock:
            return ResBlock(inputs, outputs, embedding, heads if attend else 0, dropout, dtype=dtype, rngs=rngs)

        self.condition = Condition(embedding, num_classes, rngs=rngs)
        self.inner = conv3x3(self.shape[2], width, dtype=dtype, rngs=rngs)
        down, up, current = [], [], width
        for outputs, resolution in zip(channels, resolutions, strict=True):
            for _ in range(blocks):
                down.append(block(current, outputs, resolution in attention))
                current = outputs
        middle = [block(current, current, True), block(current, current, False)]
        for outputs, resolution in zip(reversed(channels), reversed(resolutions), strict=True):
            for _ in range(blocks):
                up.append(block(current + outputs, outputs, resolution in attention))
                current = outputs
        self.down, self.middle, self.up = named(down), named(middle), named(up)
        self.norm = group_norm(width * channel_mults[0], dtype=dtype, rngs=rngs)
        self.outer = conv3x3(width * channel_mults[0], self.shape[2], zero=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, c_noise: jax.Array, cond: jax.Array | None = None, rngs: nnx.Rngs | None = None) -> jax.Array:
        check_call(self.shape, x, c_noise)
        embedding = self.condition(c_noise, cond)
        h, skips = self.inner(x.astype(self.dtype)), []
        for i, block in enumerate(self.down.values()):
            if i and i % self.blocks == 0:
                h = downsample(h)
            h = block(h, embedding, rngs)
            skips.append(h)
        for block in self.middle.values():
            h = block(h, embedding, rngs)
        for i, block in enumerate(self.up.values()):
            if i and i % self.blocks == 0:
                h = upsample(h)
            h = block(jnp.concatenate([h, skips.pop()], axis=-1), embedding, rngs)
        return self.outer(nnx.silu(self.norm(h))).astype(jnp.float32)


def _resolutions(shape: tuple[int, int, int], levels: int, attention: Sequence[int]) -> list[int]:
    """Height of each level; checks the sizes."""
    if levels < 1:
        raise ValueError("channel_mults is empty: give one multiplier per resolution, such as (1, 2)")
    height, width, step = shape[0], shape[1], 2 ** (levels - 1)
    if height % step or width % step:
        raise ValueError(
            f"{levels} channel_mults need an image size divisible by {step}; it is {height}x{width}: "
            "shorten channel_mults, or resize or pad the images"
        )
    resolutions = [height >> i for i in range(levels)]
    unknown = sorted(set(attention) - set(resolutions))
    if unknown:
        raise ValueError(f"attention at resolution {unknown[0]} does not occur: choose among {', '.join(map(str, resolutions))}")
    return resolutions
