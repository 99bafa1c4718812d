"""DiT, a transformer over patches of a grid with adaLN-zero conditioning (Peebles & Xie 2023, arXiv:2212.09748)."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from models.attention import CrossAttention, Linear, SelfAttention
from models.conditions import Kind, Told
from models.layers import (
    Condition,
    Remat,
    check_call,
    check_counts,
    dropout_keys,
    grid_shape,
    layer_norm,
    named,
    rematerialised,
)

MLP_RATIO = 4


def patchify(x: jax.Array, size: int) -> jax.Array:
    """Cut grids into patches of `size` places along every side, both row by row.

    (n, *sides, c) -> (n, product of sides / size^k, size^k * c), k the number of sides
    """
    n, *sides, c = x.shape
    axes = len(sides)
    x = x.reshape(n, *(part for side in sides for part in (side // size, size)), c)
    x = x.transpose(0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
    return x.reshape(n, math.prod(sides) // size**axes, size**axes * c)


def unpatchify(tokens: jax.Array, size: int, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `patchify`, with shape = (*sides, c)."""
    *sides, c = shape
    axes = len(sides)
    x = tokens.reshape(tokens.shape[0], *(side // size for side in sides), *[size] * axes, c)
    x = x.transpose(0, *(axis for i in range(1, axes + 1) for axis in (i, axes + i)), 2 * axes + 1)
    return x.reshape(tokens.shape[0], *shape)


def sincos_positions(sides: Sequence[int], width: int) -> np.ndarray:
    """A sine-cosine table (product of sides, width), the width shared evenly by both functions and all sides.

    Of images the quarters are sin and cos of the row, then sin and cos of the column. Frequencies 10000^(-k/K) as in
    ViT and DiT. Columns that the shares do not fill stay zero.
    """
    share = width // (2 * len(sides))
    frequencies = 10000.0 ** (-np.arange(share) / max(share, 1))
    places = np.unravel_index(np.arange(math.prod(sides)), tuple(sides))
    table = np.concatenate([f(np.outer(place, frequencies)) for place in places for f in (np.sin, np.cos)], axis=1)
    return np.pad(table, ((0, 0), (0, width - table.shape[1]))).astype(np.float32)


class DiTBlock(nnx.Module):
    """A block of attention, then a two-layer perceptron, (n, tokens, width) -> same.

    Each is h + gate * f((1 + scale) norm(h) + shift). With features > 0 the text's tokens are attended to between them,
    h + f(norm(h)), which starts at zero.
    """

    def __init__(self, width: int, heads: int, dropout: float, features: int = 0, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.attention = SelfAttention(width, heads, dtype=dtype, rngs=rngs)
        self.inner = Linear(width, MLP_RATIO * width, dtype=dtype, rngs=rngs)
        self.outer = Linear(MLP_RATIO * width, width, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.reading = CrossAttention(width, features, heads, dtype=dtype, rngs=rngs) if features else None

    def __call__(
        self, h: jax.Array, modulation: Sequence[jax.Array], key: jax.Array | None, told: Told | None = None
    ) -> jax.Array:
        """Apply the block.

        modulation: shift, scale, gate of the attention, then of the perceptron, each (n, width), float32.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        keys = dropout_keys(key, 2)
        u = self.attention(layer_norm(h, scale1, shift1))
        h = h + gate1[:, None, :].astype(h.dtype) * self.dropout(u, deterministic=key is None, rngs=next(keys))
        if self.reading is not None and told is not None and told.tokens is not None and told.mask is not None:
            plain = jnp.zeros_like(scale1)
            h = h + self.reading(layer_norm(h, plain, plain), told.tokens, told.mask)
        u = self.outer(nnx.gelu(self.inner(layer_norm(h, scale2, shift2))))
        return h + gate2[:, None, :].astype(h.dtype) * self.dropout(u, deterministic=key is None, rngs=next(keys))


class DiT(nnx.Module):
    """A network for grids: x (n, *shape), c_noise (n,), cond or None -> like x, float32. Zero until trained.

    shape: (h, w, c) of images, (l, c) of series, (d, h, w, c) of volumes. width: channels per token. depth: blocks.
    heads: attention heads. patch_size: places per side of a token (cost grows with the number of tokens, h w /
    patch_size^2 of images). num_classes: 0 for no labels. kind: of another condition, `models.conditions`; every block
    attends to the tokens of a text. jumps: it is a flow map's, told a second label too. augmented: it may be
    told how images were augmented. remat, dtype: as `rematerialised`, and the compute dtype. The position table is
    learned, from a sine-cosine start. Raises ValueError if heads does not divide width or patch_size does not divide
    every side.
    """

    def __init__(
        self,
        shape: Sequence[int] = (8, 8, 1),
        *,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        patch_size: int = 2,
        dropout: float = 0.0,
        num_classes: int = 0,
        kind: Kind | None = None,
        jumps: bool = False,
        augmented: bool = False,
        remat: Remat = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.shape, self.dtype = grid_shape(shape, "DiT"), jnp.dtype(dtype)
        check_counts(width=width, depth=depth, heads=heads, patch_size=patch_size)
        *sides, channels = self.shape
        if any(side % patch_size for side in sides):
            size = "x".join(map(str, sides))
            raise ValueError(f"patch_size={patch_size} does not divide the size {size}: choose a divisor of every side")
        self.depth, self.patch_size, self.remat = depth, patch_size, remat
        values, features = patch_size ** len(sides) * channels, kind.token_features if kind else 0
        self.condition = Condition(width, num_classes, kind, jumps, augmented, rngs=rngs)
        # One product gives the modulation of every block and of the head: fewer, larger operations. Zero: adaLN-zero.
        self.modulation = Linear(width, (6 * depth + 2) * width, scale=0.0, rngs=rngs)
        self.inner = Linear(values, width, dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(jnp.asarray(sincos_positions([side // patch_size for side in sides], width)))
        self.blocks = named([DiTBlock(width, heads, dropout, features, dtype=dtype, rngs=rngs) for _ in range(depth)])
        self.outer = Linear(width, values, scale=0.0, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, c_noise: jax.Array, cond: Any = None, key: jax.Array | None = None) -> jax.Array:
        check_call(self.shape, x, c_noise, self.condition.jump is not None)
        keys = dropout_keys(key, self.depth)
        told = self.condition.told(cond, len(x))
        shifts = self.modulation(self.condition.vector(c_noise, told))
        modulation = jnp.split(shifts, 6 * self.depth + 2, axis=-1)
        h = self.inner(patchify(x.astype(self.dtype), self.patch_size)) + self.positions[...].astype(self.dtype)[None]
        for i, block in enumerate(self.blocks.values()):
            h = rematerialised(block, self.remat)(h, modulation[6 * i : 6 * i + 6], next(keys), told)
        shift, scale = modulation[-2:]
        return unpatchify(self.outer(layer_norm(h, scale, shift)), self.patch_size, self.shape).astype(jnp.float32)
