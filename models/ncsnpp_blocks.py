"""The parts of `NCSNpp` (Song et al. 2021, arXiv:2011.13456, appendix H).

They are label embeddings, resampling, residual blocks and attention.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from models.layers import Linear, conv, group_norm, named
from models.resample import downsample, fir_blur, fir_downsample, fir_upsample, upsample

# A scale of 0 means this one in the published code, so that an untrained network gives about 1e-5 and no layer is dead.
SMALLEST_SCALE = 1e-10
# What the published NIN, a dense layer over the channels, starts with.
NIN_SCALE = 0.1


def positional_embedding(label: jax.Array, width: int) -> jax.Array:
    """Sinusoids of the label as Ho et al. 2020 published them, (n,) -> (n, width), float32.

    [sin(w c), cos(w c)], w_k = 10000^(-k/(width/2 - 1)).
    """
    half = width // 2
    # The exponent is rounded to float32 and the exponential is exact, as in the published code: at label 999 a last bit
    # is 6e-5 rad.
    exponents = np.arange(half, dtype=np.float32) * np.float32(-math.log(10000.0) / max(half - 1, 1))
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    phase = label.astype(jnp.float32)[:, None] * frequencies[None, :]
    embedding = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, width % 2)))


class FourierEmbedding(nnx.Module):
    """Random Fourier features of the label, never trained, (n,) -> (n, 2 width), float32.

    [sin(2 pi W c), cos(2 pi W c)], W ~ N(0, scale²): phases reach 1e3 rad.
    """

    def __init__(self, width: int, scale: float, *, rngs: nnx.Rngs):
        self.frequencies = nnx.Param(scale * jax.random.normal(rngs.params(), (width,), jnp.float32))

    def __call__(self, label: jax.Array) -> jax.Array:
        frequencies = jax.lax.stop_gradient(self.frequencies[...])
        phase = label.astype(jnp.float32)[:, None] * frequencies[None, :] * (2 * math.pi)
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


class Downsample(nnx.Module):
    """A 3x3 convolution of stride 2, which halves h and w, after the filter if `fir`.

    (n, h, w, inputs) -> (n, h/2, w/2, outputs)
    """

    def __init__(self, inputs: int, outputs: int, *, fir: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.fir = fir
        padding = "VALID" if fir else ((0, 1), (0, 1))
        self.conv = conv(inputs, outputs, stride=2, padding=padding, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(fir_blur(x, 2) if self.fir else x)


class Upsample(nnx.Module):
    """A layer that doubles h and w.

    With `fir` it is a transposed 3x3 convolution and the filter, else pixels repeated and a convolution.
    """

    def __init__(self, inputs: int, outputs: int, *, fir: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.fir = fir
        self.conv = conv(inputs, outputs, dtype=dtype, rngs=rngs)
        if fir:
            self.conv.padding, self.conv.input_dilation = ((2, 2), (2, 2)), 2

    def __call__(self, x: jax.Array) -> jax.Array:
        if not self.fir:
            return self.conv(upsample(x))
        assert self.conv.bias is not None
        bias = self.conv.bias[...].astype(x.dtype)[
            None, None, None, :
        ]  # it comes after the filter, whose gain is not 1 here
        return fir_blur(self.conv(x) - bias, 1, gain=2.0) + bias


RESAMPLERS = {
    ("down", True): fir_downsample,
    ("down", False): downsample,
    ("up", True): fir_upsample,
    ("up", False): upsample,
}


class ResBlock(nnx.Module):
    """A residual block: the BigGAN one with `resample`, DDPM's without.

    (n, h, w, inputs), (n, embedding) -> (n, h, w, outputs), or with `resample` "down" or "up" at half or twice the
    size.

    x' + conv1(dropout(silu(norm1(conv0(r(silu(norm0(x)))) + dense(silu(temb)))))), over sqrt(2) if `rescale`; r
    resamples, and x' is r(x), through a dense layer over the channels where these change or r is there. The BigGAN
    block; without r, DDPM's.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        embedding: int,
        dropout: float,
        fir: bool,
        rescale: bool,
        init_scale: float,
        shortcut_scale: float,
        norm_groups: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        resample: Literal["down", "up"] | None = None,
    ):
        self.resample, self.fir = resample, fir
        self.norm0 = group_norm(inputs, groups=norm_groups, dtype=dtype, rngs=rngs)
        self.conv0 = conv(inputs, outputs, dtype=dtype, rngs=rngs)
        self.dense = Linear(embedding, outputs, dtype=dtype, rngs=rngs)
        self.norm1 = group_norm(outputs, groups=norm_groups, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.conv1 = conv(outputs, outputs, scale=init_scale, dtype=dtype, rngs=rngs)
        changes = inputs != outputs or resample is not None
        self.shortcut = Linear(inputs, outputs, scale=shortcut_scale, dtype=dtype, rngs=rngs) if changes else None
        self.gain = math.sqrt(0.5) if rescale else 1.0

    def __call__(self, x: jax.Array, temb: jax.Array, key: jax.Array | None) -> jax.Array:
        h = nnx.silu(self.norm0(x))
        if self.resample:
            resample = RESAMPLERS[self.resample, self.fir]
            h, x = resample(h), resample(x)
        h = self.conv0(h) + self.dense(nnx.silu(temb))[:, None, None, :]
        h = nnx.silu(self.norm1(h))
        h = self.conv1(self.dropout(h, deterministic=key is None, rngs=key))
        return ((x if self.shortcut is None else self.shortcut(x)) + h) * self.gain


class Attention(nnx.Module):
    """Self-attention over pixels, one head: x + out(softmax(q k^T / sqrt(c)) v), q, k, v of norm(x).

    The sum is over sqrt(2) if `rescale`.
    """

    def __init__(
        self, channels: int, *, rescale: bool, init_scale: float, norm_groups: int, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        dense = partial(Linear, channels, channels, dtype=dtype, rngs=rngs)
        self.norm = group_norm(channels, groups=norm_groups, dtype=dtype, rngs=rngs)
        self.query, self.key, self.value = dense(scale=NIN_SCALE), dense(scale=NIN_SCALE), dense(scale=NIN_SCALE)
        self.out = dense(scale=init_scale)
        self.gain = math.sqrt(0.5) if rescale else 1.0

    def __call__(self, x: jax.Array) -> jax.Array:
        n, h, w, c = x.shape
        normed = self.norm(x).reshape(n, h * w, 1, c)
        q, k, v = self.query(normed), self.key(normed), self.value(normed)
        u = jax.nn.dot_product_attention(q, k, v, implementation="xla")
        return (x + self.out(u).reshape(x.shape)) * self.gain


class Head(nnx.Module):
    """The way out of the network at one resolution: conv(silu(norm(h)))."""

    def __init__(self, inputs: int, outputs: int, *, scale: float, norm_groups: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = group_norm(inputs, groups=norm_groups, dtype=dtype, rngs=rngs)
        self.conv = conv(inputs, outputs, scale=scale, dtype=dtype, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        return self.conv(nnx.silu(self.norm(h)))


class Level(nnx.Module):
    """One resolution, on the way down or up.

    It has blocks, attention after some of them, and what leads to the next level. resample: halves or doubles h; None:
    without weights, or nothing at the `last` level. pyramid: down, what joins the input; up, what carries the output to
    this resolution. head: up only, the output's part of this resolution.
    """

    def __init__(
        self,
        blocks: list[ResBlock],
        attention: dict[int, Attention],
        resample: Any,
        pyramid: Any,
        head: Head | None = None,
        *,
        last: bool,
    ):
        self.blocks = named(blocks)
        self.attention = nnx.Dict({f"{i:02d}": module for i, module in attention.items()})
        self.last = last
        self.resample: Any = resample
        self.pyramid: Any = pyramid
        self.head: Any = head


@dataclass(frozen=True)
class Parts:
    """The maker of one network's modules: the options that all of them share."""

    embedding: int
    dropout: float
    fir: bool
    biggan: bool
    resample_with_conv: bool
    rescale: bool
    init_scale: float
    norm_groups: int
    given: dict[str, Any]  # dtype and rngs

    @property
    def _branch(self) -> dict[str, Any]:
        return {"rescale": self.rescale, "init_scale": self.init_scale, "norm_groups": self.norm_groups, **self.given}

    def block(self, inputs: int, outputs: int, resample: Literal["down", "up"] | None = None) -> ResBlock:
        shortcut = 1.0 if self.biggan else NIN_SCALE
        options: dict[str, Any] = {
            "embedding": self.embedding,
            "dropout": self.dropout,
            "fir": self.fir,
            "shortcut_scale": shortcut,
        }
        return ResBlock(inputs, outputs, resample=resample, **options, **self._branch)

    def attention(self, channels: int) -> Attention:
        return Attention(channels, **self._branch)

    def head(self, inputs: int, outputs: int, scale: float) -> Head:
        return Head(inputs, outputs, scale=scale, norm_groups=self.norm_groups, **self.given)

    def resampler(self, kind: Literal["down", "up"], channels: int) -> ResBlock | Downsample | Upsample | None:
        """The module from one level to the next; None where pixels are resampled without weights."""
        if self.biggan:
            return self.block(channels, channels, kind)
        layer = Downsample if kind == "down" else Upsample
        return layer(channels, channels, fir=self.fir, **self.given) if self.resample_with_conv else None
