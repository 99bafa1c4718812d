"""A U-Net for images of any size, series and volumes, after DDPM++ with modulation as in ADM.

Song et al. 2021, arXiv:2011.13456, appendix H; Dhariwal & Nichol 2021, arXiv:2105.05233.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.attention import CrossAttention, Linear, SelfAttention
from models.conditions import Kind, Told
from models.layers import (
    Condition,
    Remat,
    check_call,
    check_counts,
    conv,
    dropout_keys,
    grid_shape,
    group_norm,
    named,
    rematerialised,
    resolutions,
)
from models.resample import downsample, upsample


class ResBlock(nnx.Module):
    """A residual block, then self-attention if heads > 0. (n, *sides, inputs) -> (n, *sides, outputs).

    After it come, with features > 0, attention to the tokens of a text.

    x' + conv(dropout(silu((1 + scale) norm(conv(silu(norm(x)))) + shift))), x' = x or a convolution of it, one place
    wide; scale and shift come from the conditioning vector. The last convolution starts at zero.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        heads: int,
        dropout: float,
        axes: int = 2,
        features: int = 0,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.norm1 = group_norm(inputs, dtype=dtype, rngs=rngs)
        self.conv1 = conv(inputs, outputs, axes=axes, dtype=dtype, rngs=rngs)
        self.modulation = Linear(embedding, 2 * outputs, scale=0.0, dtype=dtype, rngs=rngs)
        self.norm2 = group_norm(outputs, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.conv2 = conv(outputs, outputs, axes=axes, scale=0.0, dtype=dtype, rngs=rngs)
        self.shortcut = Linear(inputs, outputs, dtype=dtype, rngs=rngs) if inputs != outputs else None
        self.attention = GridAttention(outputs, heads, dtype=dtype, rngs=rngs) if heads else None
        reads = heads and features
        self.reading = GridReading(outputs, features, heads, dtype=dtype, rngs=rngs) if reads else None

    def __call__(
        self, x: jax.Array, embedding: jax.Array, key: jax.Array | None, told: Told | None = None
    ) -> jax.Array:
        modulation = jnp.expand_dims(self.modulation(embedding), tuple(range(1, x.ndim - 1)))
        scale, shift = jnp.split(modulation, 2, axis=-1)
        h = self.conv1(nnx.silu(self.norm1(x)))
        h = nnx.silu(self.norm2(h) * (1 + scale) + shift)
        h = self.conv2(self.dropout(h, deterministic=key is None, rngs=key))
        h = h + (x if self.shortcut is None else self.shortcut(x))
        h = h if self.attention is None else self.attention(h)
        return h if self.reading is None or told is None else self.reading(h, told.tokens, told.mask)


class GridAttention(nnx.Module):
    """Attention over the places of norm(x), added to x; it starts as the identity."""

    def __init__(self, channels: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = group_norm(channels, dtype=dtype, rngs=rngs)
        self.attention = SelfAttention(channels, heads, scale=0.0, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        n, *_, c = x.shape
        return x + self.attention(self.norm(x).reshape(n, -1, c)).reshape(x.shape)


class GridReading(nnx.Module):
    """Attention of the places of norm(x) to the tokens of a text, added to x; it starts as the identity."""

    def __init__(self, channels: int, features: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = group_norm(channels, dtype=dtype, rngs=rngs)
        self.attention = CrossAttention(channels, features, heads, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, tokens: Any, mask: Any) -> jax.Array:
        n, *_, c = x.shape
        return x + self.attention(self.norm(x).reshape(n, -1, c), tokens, mask).reshape(x.shape)


class UNet(nnx.Module):
    """A network for grids: x (n, *shape), c_noise (n,), cond or None -> like x, float32. Zero until trained.

    shape: (h, w, c) of images, (l, c) of series, (d, h, w, c) of volumes, with any sides: an odd one is halved rounding
    up.
    width: channels of the first level; level i has width * channel_mults[i] at resolution h / 2^i. blocks: residual
    blocks per level, down and up. attention: resolutions (the first side) with attention after each block; the middle
    always has it. heads: attention heads. num_classes: 0 for no labels. kind: of another condition,
    `models.conditions`; the tokens of a text are attended to wherever places are to each other. jumps: it is a flow
    map's, told a second label too. augmented: it may be told how images were augmented. remat, dtype: as
    `rematerialised`, and the compute dtype.
    Raises ValueError if there are more levels than halves, an attention resolution does not occur, or heads does not
    divide.
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
        kind: Kind | None = None,
        jumps: bool = False,
        augmented: bool = False,
        remat: Remat = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.shape, self.dtype, self.remat = grid_shape(shape, "UNet"), jnp.dtype(dtype), remat
        check_counts(
            width=width, blocks=blocks, heads=heads, **{f"channel_mults[{i}]": m for i, m in enumerate(channel_mults)}
        )
        sizes = resolutions(self.shape, len(channel_mults), attention)
        self.levels, self.blocks = len(channel_mults), blocks
        embedding, channels = 4 * width, [width * m for m in channel_mults]
        axes, values, features = len(self.shape) - 1, self.shape[-1], kind.token_features if kind else 0

        def block(inputs: int, outputs: int, attend: bool) -> ResBlock:
            heads_here = heads if attend else 0
            return ResBlock(inputs, outputs, embedding, heads_here, dropout, axes, features, dtype=dtype, rngs=rngs)

        self.condition = Condition(embedding, num_classes, kind, jumps, augmented, rngs=rngs)
        self.inner = conv(values, width, axes=axes, dtype=dtype, rngs=rngs)
        down, up, current = [], [], width
        for outputs, resolution in zip(channels, sizes, strict=True):
            for _ in range(blocks):
                down.append(block(current, outputs, resolution in attention))
                current = outputs
        middle = [block(current, current, True), block(current, current, False)]
        for outputs, resolution in zip(reversed(channels), reversed(sizes), strict=True):
            for _ in range(blocks):
                up.append(block(current + outputs, outputs, resolution in attention))
                current = outputs
        self.down, self.middle, self.up = named(down), named(middle), named(up)
        self.norm = group_norm(width * channel_mults[0], dtype=dtype, rngs=rngs)
        self.outer = conv(width * channel_mults[0], values, axes=axes, scale=0.0, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, c_noise: jax.Array, cond: Any = None, key: jax.Array | None = None) -> jax.Array:
        check_call(self.shape, x, c_noise, self.condition.jump is not None)
        keys = dropout_keys(key, len(self.down) + len(self.middle) + len(self.up))
        told = self.condition.told(cond, len(x))
        embedding = self.condition.vector(c_noise, told)
        h, skips = self.inner(x.astype(self.dtype)), []
        for i, block in enumerate(self.down.values()):
            if i and i % self.blocks == 0:
                h = downsample(h)
            h = rematerialised(block, self.remat)(h, embedding, next(keys), told)
            skips.append(h)
        for block in self.middle.values():
            h = rematerialised(block, self.remat)(h, embedding, next(keys), told)
        for i, block in enumerate(self.up.values()):
            if i and i % self.blocks == 0:
                h = upsample(h, skips[-1].shape[1:-1])
            h = rematerialised(block, self.remat)(
                jnp.concatenate([h, skips.pop()], axis=-1), embedding, next(keys), told
            )
        return self.outer(nnx.silu(self.norm(h))).astype(jnp.float32)
