"""A residual multi-layer perceptron for vectors."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.attention import keeps_variance
from models.conditions import Kind, Vector
from models.layers import Condition, Linear, check_call, check_counts, dropout_keys, named


class MLPBlock(nnx.Module):
    """A residual block h + W2 dropout(silu((1 + scale) * W1 silu(h) + shift)).

    scale and shift come from the conditioning vector.
    """

    def __init__(self, width: int, dropout: float, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.inner = Linear(width, width, dtype=dtype, rngs=rngs)
        self.outer = Linear(width, width, scale=0.0, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, h: jax.Array, scale: jax.Array, shift: jax.Array, key: jax.Array | None) -> jax.Array:
        u = nnx.silu(self.inner(nnx.silu(h)) * (1 + scale) + shift)
        return h + self.outer(self.dropout(u, deterministic=key is None, rngs=key))


class MLP(nnx.Module):
    """A network for vectors: x (n, d), c_noise (n,), cond or None -> (n, d), float32. Zero until trained.

    shape: (d,). width: hidden units. depth: residual blocks of two layers each. num_classes: 0 for no labels.
    kind: of another condition, `models.conditions`; a vector modulates the blocks and also stands beside x in the first
    layer. jumps: it is a flow map's, told a second label too. dtype: the compute dtype.
    Raises ValueError for a shape that is not a vector's.
    """

    def __init__(
        self,
        shape: Sequence[int] = (2,),
        *,
        width: int = 128,
        depth: int = 3,
        dropout: float = 0.0,
        num_classes: int = 0,
        kind: Kind | None = None,
        jumps: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if len(shape) != 1:
            raise ValueError(f"MLP takes vectors of shape (d,), not {tuple(shape)}: use UNet or DiT for images")
        check_counts(d=shape[0], width=width, depth=depth)
        self.shape, self.depth, self.dtype = (int(shape[0]),), depth, jnp.dtype(dtype)
        self.condition = Condition(width, num_classes, kind, jumps, rngs=rngs)
        # One product gives the modulation of every block: fewer, larger operations.
        self.modulation = Linear(width, 2 * depth * width, scale=0.0, dtype=dtype, rngs=rngs)
        told = kind.size if isinstance(kind, Vector) else 0
        scale = keeps_variance(self.shape[0], width) if told else 1.0
        self.inner = Linear(self.shape[0], width, scale=scale, dtype=dtype, rngs=rngs)
        scale = keeps_variance(told, width) if told else 1.0
        self.beside = Linear(told, width, scale=scale, dtype=dtype, rngs=rngs) if told else None
        self.blocks = named([MLPBlock(width, dropout, dtype=dtype, rngs=rngs) for _ in range(depth)])
        self.outer = Linear(width, self.shape[0], scale=0.0, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, c_noise: jax.Array, cond: Any = None, key: jax.Array | None = None) -> jax.Array:
        check_call(self.shape, x, c_noise, self.condition.jump is not None)
        keys = dropout_keys(key, self.depth)
        modulation = jnp.split(self.modulation(self.condition(c_noise, cond)), 2 * self.depth, axis=-1)
        h = self.inner(x.astype(self.dtype))
        if self.beside is not None:  # "nothing" is the mean vector here
            told = jnp.zeros((1, self.beside.in_features)) if cond is None else jnp.where(jnp.isnan(cond), 0.0, cond)
            h = h + self.beside(told.astype(self.dtype))
        for i, block in enumerate(self.blocks.values()):
            h = block(h, modulation[2 * i], modulation[2 * i + 1], next(keys))
        return self.outer(nnx.silu(h)).astype(jnp.float32)
