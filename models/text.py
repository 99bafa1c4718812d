"""A text as its bytes, read by a small transformer of ours: no vocabulary, no weights from elsewhere.

A caption is its UTF-8 bytes, one token each, and -1 where there is none. Every caption is padded to one length inside
the network, so that it gives the same bits whatever it was padded to outside.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.attention import Linear, SelfAttention

PAD = -1
BYTES = 256
WIDTH, HEADS, LAYERS = 128, 4, 2


def text_tokens(text: str, length: int) -> np.ndarray:
    """The bytes of a text as tokens (length,) int32, filled up with -1. Raises ValueError where they are more."""
    found = np.frombuffer(text.encode(), np.uint8)
    if len(found) > length:
        raise ValueError(f"{text[:40]!r} has {len(found)} bytes, and at most {length} are read: shorten it")
    return np.pad(found.astype(np.int32), (0, length - len(found)), constant_values=PAD)


def norm(x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """(x - mean)/sqrt(var + epsilon) over the last axis."""
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + epsilon)


class TextLayer(nnx.Module):
    """Self-attention among the tokens that are there, then a two-layer perceptron, each added to its input."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.attention = SelfAttention(WIDTH, HEADS, rngs=rngs)
        self.inner = Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.outer = Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, h: jax.Array, mask: jax.Array) -> jax.Array:
        h = h + self.attention(norm(h), mask)
        return h + self.outer(nnx.gelu(self.inner(norm(h))))


class TextEncoder(nnx.Module):
    """Bytes (n, any number up to `length`) int, -1 for none -> tokens (n, 1 + length, WIDTH) and their mask, float32.

    The first token stands for the whole; an empty caption has no other. A number that is no byte gives NaN.
    """

    def __init__(self, length: int, *, rngs: nnx.Rngs):
        self.length = length
        table = jax.nn.initializers.normal(1.0)
        self.bytes = nnx.Param(table(rngs.params(), (BYTES, WIDTH), jnp.float32))
        self.places = nnx.Param(table(rngs.params(), (1 + length, WIDTH), jnp.float32))
        self.layers = nnx.Dict({f"{i:02d}": TextLayer(rngs=rngs) for i in range(LAYERS)})

    def __call__(self, cond: jax.Array) -> tuple[jax.Array, jax.Array]:
        if cond.shape[1] > self.length:
            raise ValueError(f"cond holds captions of {cond.shape[1]} bytes, and {self.length} are read: shorten them")
        cond = jnp.pad(cond, ((0, 0), (0, self.length - cond.shape[1])), constant_values=PAD)
        known = jnp.all((cond >= PAD) & (cond < BYTES), axis=1)
        letters = self.bytes[...].at[cond].get(mode="clip")
        h = jnp.pad(letters, ((0, 0), (1, 0), (0, 0))) + self.places[...][None]
        mask = jnp.pad(cond != PAD, ((0, 0), (1, 0)), constant_values=True)
        for layer in self.layers.values():
            h = layer(h, mask)
        return jnp.where(known[:, None, None], norm(h), jnp.nan), mask
