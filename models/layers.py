"""What the networks share: the noise embedding, conditioning, initialisers, modulation, attention.

Parameters are float32; `dtype` is the compute dtype. The embedding, the statistics of norms and the softmax are float32 always.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

DENSE = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
ZERO = jax.nn.initializers.zeros
EMBED = jax.nn.initializers.normal(1.0)

NOISE_FEATURES = 64


def noise_embedding(c_noise: jax.Array, features: int = NOISE_FEATURES) -> jax.Array:
    """Sinusoids of the noise label, sqrt(2) [cos(w c), sin(w c)], w geometric from 1/4 to 32 rad. (n,) -> (n, features), float32.

    For c_noise = log(sigma/alpha)/4 in about [-2.5, 2.5]: the slowest sine is monotone over the whole range,
    the fastest turns by 1 rad when log(sigma/alpha) moves by 1/8.
    """
    frequencies = np.geomspace(0.25, 32.0, features // 2).astype(np.float32)
    phase = c_noise.astype(jnp.float32)[:, None] * frequencies[None, :]
    return math.sqrt(2.0) * jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)


class Linear(nnx.Linear):
    """Dense layer over the last axis with this project's initialiser; `zero=True` starts it at zero."""

    def __init__(self, inputs: int, outputs: int, *, zero: bool = False, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        super().__init__(inputs, outputs, kernel_init=ZERO if zero else DENSE, dtype=jnp.dtype(dtype), rngs=rngs)

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        # As one matrix: on CPU the gradient of a transformer takes a fifth less time than with the batch kept apart.
        flat = super().__call__(inputs.reshape(-1, self.in_features), out_sharding)
        return flat.reshape(*inputs.shape[:-1], self.out_features)


class Condition(nnx.Module):
    """The vector that conditions every block: silu(W silu(V embed(c_noise) + label)), (n,) -> (n, width), float32.

    cond: (n,) int labels in 0..num_classes-1, or num_classes for "no label", which None also means. A label outside that
    range gives NaN (inside jit nothing can raise), so a wrong label is never taken for another class.
    Raises ValueError if labels are given to a network without classes.
    """

    def __init__(self, width: int, num_classes: int, *, rngs: nnx.Rngs):
        self.num_classes = num_classes
        self.inner = Linear(NOISE_FEATURES, width, rngs=rngs)
        self.outer = Linear(width, width, rngs=rngs)
        self.labels = nnx.Param(EMBED(rngs.params(), (num_classes + 1, width), jnp.float32)) if num_classes else None

    def __call__(self, c_noise: jax.Array, cond: jax.Array | None) -> jax.Array:
        h = self.inner(noise_embedding(c_noise))
        if self.labels is not None:
            h = h + self._label(c_noise.shape, cond)
        elif cond is not None:
            raise ValueError("labels were given to a network without classes: build it with num_classes, or pass cond=None")
        return nnx.silu(self.outer(nnx.silu(h)))

    def _label(self, batch: tuple[int, ...], cond: jax.Array | None) -> jax.Array:
        assert self.labels is not None
        if cond is None:
            cond = jnp.full(batch, self.num_classes, jnp.int32)
        if cond.shape != batch or not jnp.issubdtype(cond.dtype, jnp.integer):
            raise ValueError(f"cond must hold one integer label per example, shape {batch}; it is {cond.dtype} {cond.shape}")
        known = (cond >= 0) & (cond <= self.num_classes)
        return jnp.where(known[:, None], self.labels[...].at[cond].get(mode="clip"), jnp.nan)


def layer_norm(x: jax.Array, scale: jax.Array, shift: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Layer norm over the last axis with a modulation per example, (1 + scale) norm(x) + shift (DiT, arXiv:2212.09748).

    x: (n, tokens, c); scale, shift: (n, c). Computed in float32, returned in x's dtype.
    """
    h = x.astype(jnp.float32)
    h = h - h.mean(axis=-1, keepdims=True)
    h = h * jax.lax.rsqrt(jnp.square(h).mean(axis=-1, keepdims=True) + epsilon)
    return (h * (1.0 + scale[:, None, :]) + shift[:, None, :]).astype(x.dtype)


def group_norm(channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Group norm with min(c/4, 32) groups, or the next smaller number that divides c. Statistics in float32, two passes."""
    most = max(1, min(channels // 4, 32))
    groups = next(g for g in range(most, 0, -1) if channels % g == 0)
    return nnx.GroupNorm(channels, groups, dtype=jnp.dtype(dtype), use_fast_variance=False, rngs=rngs)


class SelfAttention(nnx.Module):
    """Multi-head self-attention over tokens, softmax(q k^T / sqrt(width/heads)) v. (n, tokens, width) -> same.

    Knows no order of tokens. Plain matrix products, so that jvp (Hutchinson, MATHS.md section 4) passes through.
    Raises ValueError if heads does not divide width.
    """

    def __init__(self, width: int, heads: int, *, zero: bool = False, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        if heads < 1 or width % heads:
            raise ValueError(f"heads={heads} does not divide the attention's {width} channels: choose a divisor of {width}")
        self.heads = heads
        self.qkv = Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, zero=zero, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        h = jax.nn.dot_product_attention(q, k, v, implementation="xla")
        return self.out(h.reshape(n, tokens, width))


def named(modules: Sequence[nnx.Module]) -> nnx.Dict:
    """A list of modules under the names "00", "01", ...: string keys keep the parameters a plain dict that any checkpoint takes."""
    return nnx.Dict({f"{i:02d}": module for i, module in enumerate(modules)})


def check_call(shape: tuple[int, ...], x: jax.Array, c_noise: jax.Array) -> None:
    """Raises ValueError unless x is (n, *shape) and c_noise (n,)."""
    if x.ndim != len(shape) + 1 or x.shape[1:] != shape:
        raise ValueError(f"the network was built for x of shape (batch, {', '.join(map(str, shape))}); x is {x.shape}")
    if c_noise.shape != x.shape[:1]:
        raise ValueError(f"c_noise must hold one number per example, shape {x.shape[:1]}; it is {c_noise.shape}: broadcast it first")


def check_positive(**options: Any) -> None:
    """Raises ValueError naming the first option that is not a positive whole number."""
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} must be a positive whole number; it is {value!r}")


def image_shape(shape: Sequence[int], network: str) -> tuple[int, int, int]:
    """The shape as (height, width, channels). Raises ValueError if it is not an image's."""
    if len(shape) != 3:
        raise ValueError(f"{network} takes images of shape (height, width, channels), not {tuple(shape)}: use the MLP for vectors")
    check_positive(height=shape[0], width=shape[1], channels=shape[2])
    return int(shape[0]), int(shape[1]), int(shape[2])
