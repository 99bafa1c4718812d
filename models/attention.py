"""Dense layers and attention: of tokens to each other, and of a grid's places to the tokens of a text.

Plain matrix products, so that jvp (of Hutchinson's estimate) passes through. Parameters are float32; `dtype` is the
compute dtype, and the softmax is float32 always.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


def initialiser(scale: float) -> jax.nn.initializers.Initializer:
    """An initialiser, uniform of variance scale/(mean of fan-in and fan-out), as in DDPM; zeros for scale 0."""
    return jax.nn.initializers.variance_scaling(scale, "fan_avg", "uniform") if scale else jax.nn.initializers.zeros


def keeps_variance(inputs: int, outputs: int) -> float:
    """The scale with which a layer's outputs have the variance of its inputs, however few these are.

    With 1 those of a few numbers are small, and a network is slow to learn what depends on them.
    """
    return (inputs + outputs) / (2 * inputs)


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


class SelfAttention(nnx.Module):
    """Multi-head self-attention over tokens, softmax(q k^T / sqrt(width/heads)) v. (n, tokens, width) -> same.

    Knows no order of tokens. mask: (n, tokens) bool, which of them are attended to; None for all.
    scale: of the last layer's initialiser. Raises ValueError if heads does not divide width.
    """

    def __init__(self, width: int, heads: int, *, scale: float = 1.0, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        check_heads(heads, width)
        self.heads = heads
        self.qkv = Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, scale=scale, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        h = attend(q, k, v, mask)
        return self.out(h.reshape(n, tokens, width))


class CrossAttention(nnx.Module):
    """Multi-head attention of x (n, places, width) to the tokens (n, tokens, features) of a text; it starts at zero.

    mask: (n, tokens) bool, of which every row has one that is True. Raises ValueError if heads does not divide width.
    """

    def __init__(self, width: int, features: int, heads: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        check_heads(heads, width)
        self.heads = heads
        self.q = Linear(width, width, dtype=dtype, rngs=rngs)
        self.kv = Linear(features, 2 * width, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, scale=0.0, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        n, places, width = x.shape
        q = self.q(x).reshape(n, places, self.heads, width // self.heads)
        kv = self.kv(tokens.astype(x.dtype)).reshape(n, tokens.shape[1], 2, self.heads, width // self.heads)
        return self.out(attend(q, kv[:, :, 0], kv[:, :, 1], mask).reshape(n, places, width))


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(size)) v of each head, (n, places, heads, size); mask (n, tokens): those attended to."""
    of_heads = None if mask is None else mask[:, None, None, :]
    return jax.nn.dot_product_attention(q, k, v, mask=of_heads, implementation="xla")


def check_heads(heads: int, width: int) -> None:
    """Raise ValueError where heads does not divide the width."""
    if heads < 1 or width % heads:
        raise ValueError(f"heads={heads} does not divide the attention's {width} channels: choose a divisor of {width}")
