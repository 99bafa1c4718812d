"""NCSN++, DDPM++ and DDPM (Song et al. 2021, arXiv:2011.13456, appendix H), for weights that can be published ones.

    DDPM++  NCSNpp(shape)
    NCSN++  NCSNpp(shape, embedding="fourier", fir=True, progressive_input="residual", centered=False)
    DDPM    NCSNpp(shape, blocks=2, resblock="ddpm", skip_rescale=False, norm_groups=32)

"deep" is blocks=8. DDPM is that of Ho et al. 2020, arXiv:2006.11239, as published there. The published networks divide
by sigma themselves (`scale_by_sigma`); here the parameterisation does, `sde_lib.RawScorePrediction`, and the label that
a Fourier embedding takes is log sigma, not sigma: no logarithm of 0.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.attention import Linear
from models.conditions import Augmentation, Kind, label_table
from models.layers import (
    Jump,
    Remat,
    both_labels,
    check_call,
    check_counts,
    conv,
    dropout_keys,
    image_resolutions,
    image_shape,
    named,
    read,
    rematerialised,
)
from models.ncsnpp_blocks import (
    RESAMPLERS,
    SMALLEST_SCALE,
    Downsample,
    FourierEmbedding,
    Level,
    Parts,
    ResBlock,
    Upsample,
    positional_embedding,
)

Path = tuple[str, ...]


class NCSNpp(nnx.Module):
    """A network for images: x (n, h, w, c), label (n,), cond or None -> like x, float32.

    Args:
        shape: (h, w, c).
        width: channels of the first level; level i has width * channel_mults[i], at resolution h / 2^i. blocks:
            residual blocks per level.
        attention: resolutions (heights) with attention: after each block on the way down, once per level on the way up,
            as published, or after each block there too with `attention_per_block`, as in Ho et al.'s own code. The
            middle always has it.
        embedding: of the label: "positional", or "fourier" (label: log sigma) with frequencies of standard deviation
            fourier_scale.
        resblock: "biggan", which resamples inside a block, or "ddpm", with resampling of its own (a convolution if
            resample_with_conv).
        fir: resample by StyleGAN2's filter. skip_rescale: every sum of two branches over sqrt(2).
        progressive: what becomes the output: "none", the last level; "output_skip", the sum of an image from every
            level; "residual", a pyramid of features that replaces the levels' own.
        progressive_input: "none"; "input_skip", the input, halved, joins every level by a 1x1 convolution; "residual",
            as above.
        progressive_combine: how input_skip joins: "sum" or "cat".
        centered: whether x is in [-1, 1]; False: in [0, 1], and the network takes 2x - 1.
        init_scale: of each branch's last layer. norm_groups: of every group norm; 0: min(channels/4, 32).
        num_classes: 0 for no labels. kind: of another condition, `models.conditions`. jumps: it is a flow
            map's, told a second label too. augmented: it may be told how images were augmented. remat,
            dtype: as `rematerialised`, and the compute dtype.

    Raises:
        ValueError: h or w is not divisible by 2^(levels-1), or an attention resolution does not occur.
    """

    def __init__(
        self,
        shape: Sequence[int] = (32, 32, 3),
        *,
        width: int = 128,
        channel_mults: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        attention_per_block: bool = False,
        embedding: Literal["positional", "fourier"] = "positional",
        fourier_scale: float = 16.0,
        resblock: Literal["biggan", "ddpm"] = "biggan",
        resample_with_conv: bool = True,
        fir: bool = False,
        skip_rescale: bool = True,
        progressive: Literal["none", "output_skip", "residual"] = "none",
        progressive_input: Literal["none", "input_skip", "residual"] = "none",
        progressive_combine: Literal["sum", "cat"] = "sum",
        centered: bool = True,
        init_scale: float = 0.0,
        norm_groups: int = 0,
        dropout: float = 0.0,
        num_classes: int = 0,
        kind: Kind | None = None,
        jumps: bool = False,
        augmented: bool = False,
        remat: Remat = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.shape, self.dtype, self.remat = image_shape(shape, "NCSNpp"), jnp.dtype(dtype), remat
        check_counts(width=width, blocks=blocks, **{f"channel_mults[{i}]": m for i, m in enumerate(channel_mults)})
        resolutions = image_resolutions(self.shape, len(channel_mults), attention)
        self.fir, self.centered, self.combine = fir, centered, progressive_combine
        self.progressive, self.progressive_input = progressive, progressive_input
        self.gain = math.sqrt(0.5) if skip_rescale else 1.0

        given: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        last_scale, biggan = init_scale or SMALLEST_SCALE, resblock == "biggan"
        parts = Parts(4 * width, dropout, fir, biggan, resample_with_conv, skip_rescale, last_scale, norm_groups, given)
        levels = [
            (width * m, resolution in attention) for m, resolution in zip(channel_mults, resolutions, strict=True)
        ]
        image = self.shape[2]

        self.embedding: Any = FourierEmbedding(width, fourier_scale, rngs=rngs) if embedding == "fourier" else None
        self.dense0 = Linear(2 * width if embedding == "fourier" else width, 4 * width, rngs=rngs)
        self.dense1 = Linear(4 * width, 4 * width, rngs=rngs)
        self.labels = label_table(num_classes, 4 * width, rngs) if num_classes else None
        self.kind, self.reader = kind, None if kind is None else kind.reader(4 * width, rngs)
        self.jump = Jump(4 * width) if jumps else None
        self.augmentation = Augmentation(4 * width) if augmented else None
        self.inner = conv(image, width, **given)
        self.down, skips = self._way_down(parts, levels, blocks, width, image)
        current = skips[-1]
        self.middle = named([parts.block(current, current), parts.attention(current), parts.block(current, current)])
        self.up = self._way_up(parts, levels, blocks, attention_per_block, skips, image)
        self.outer: Any = None if progressive == "output_skip" else parts.head(levels[0][0], image, last_scale)

    def _way_down(
        self, parts: Parts, levels: list[tuple[int, bool]], blocks: int, width: int, image: int
    ) -> tuple[nnx.Dict, list[int]]:
        """The levels on the way down, and what they leave for the way up.

        levels: (channels, whether with attention) of each.

        Returns:
            levels: the modules, from the finest.
            skips: the channels of all that is kept for the way up.
        """
        skips, current, carried = [width], width, image
        found: list[Level] = []
        for c, attends in levels:
            level, attention = [], {}
            for i in range(blocks):
                level.append(parts.block(current, c))
                current = c
                if attends:
                    attention[i] = parts.attention(current)
                skips.append(current)
            last = len(found) == len(levels) - 1
            resample: Any = None
            pyramid: Any = None
            if not last:
                resample = parts.resampler("down", current)
                if self.progressive_input == "input_skip":
                    pyramid = Linear(image, current, **parts.given)
                    current *= 2 if self.combine == "cat" else 1
                elif self.progressive_input == "residual":
                    pyramid = Downsample(carried, current, fir=parts.fir, **parts.given)
                    carried = current
                skips.append(current)
            found.append(Level(level, attention, resample, pyramid, last=last))
        return named(found), skips

    def _way_up(
        self,
        parts: Parts,
        levels: list[tuple[int, bool]],
        blocks: int,
        attention_per_block: bool,
        skips: list[int],
        image: int,
    ) -> nnx.Dict:
        """The levels on the way up, from the coarsest."""
        skips, current, carried = list(skips), skips[-1], 0
        found: list[Level] = []
        for c, attends in reversed(levels):
            level, attention = [], {}
            for i in range(blocks + 1):
                level.append(parts.block(current + skips.pop(), c))
                current = c
                if attends and (attention_per_block or i == blocks):
                    attention[i] = parts.attention(current)
            out: Any = None
            pyramid: Any = None
            if self.progressive == "output_skip":
                out = parts.head(current, image, parts.init_scale)
            elif self.progressive == "residual" and not found:
                out = parts.head(current, current, 1.0)
            elif self.progressive == "residual":
                pyramid = Upsample(carried, current, fir=parts.fir, **parts.given)
            carried, last = current, len(found) == len(levels) - 1
            resample = None if last else parts.resampler("up", current)
            found.append(Level(level, attention, resample, pyramid, out, last=last))
        return named(found)

    def published_order(self) -> Iterator[tuple[Path, nnx.Module]]:
        """Yield (path in the parameters, module) in the order of the published list `all_modules`.

        A `Head` stands for two of its entries.
        """
        for name in ("embedding", "dense0", "dense1", "inner"):
            if getattr(self, name) is not None:
                yield (name,), getattr(self, name)
        yield from _levels("down", self.down, ("resample", "pyramid"))
        for name, module in self.middle.items():
            yield ("middle", name), module
        yield from _levels("up", self.up, ("head", "pyramid", "resample"))
        if self.outer is not None:
            yield ("outer",), self.outer

    def __call__(self, x: jax.Array, label: jax.Array, cond: Any = None, key: jax.Array | None = None) -> jax.Array:
        check_call(self.shape, x, label, self.jump is not None)
        x = (x if self.centered else 2 * x - 1).astype(self.dtype)
        temb = self._condition(label, cond)
        keys = dropout_keys(key, sum(isinstance(module, ResBlock) for _, module in self.published_order()))

        def through(module: Any, h: jax.Array) -> jax.Array:
            if not isinstance(module, ResBlock):
                return rematerialised(module, self.remat)(h)
            return rematerialised(module, self.remat)(h, temb, next(keys))

        h, pyramid = self.inner(x), x
        skips = [h]
        for level in self.down.values():
            for i, block in level.blocks.items():
                h = through(block, h)
                h = through(level.attention[i], h) if i in level.attention else h
                skips.append(h)
            if not level.last:
                h = through(level.resample, h) if level.resample is not None else RESAMPLERS["down", self.fir](h)
                h, pyramid = self._join_input(level.pyramid, h, pyramid)
                skips.append(h)
        for module in self.middle.values():
            h = through(module, h)
        output = None
        for level in self.up.values():
            for i, block in level.blocks.items():
                h = through(block, jnp.concatenate([h, skips.pop()], axis=-1))
                h = through(level.attention[i], h) if i in level.attention else h
            h, output = self._join_output(level, h, output)
            if not level.last:
                h = through(level.resample, h) if level.resample is not None else RESAMPLERS["up", self.fir](h)
        result = self.outer(h) if self.outer is not None else output
        assert result is not None
        return result.astype(jnp.float32)

    def _condition(self, label: jax.Array, cond: Any) -> jax.Array:
        """The vector that every block takes, (n, 4 width), float32."""
        label, moved = both_labels(label)
        embedded = (
            positional_embedding(label, self.dense0.in_features) if self.embedding is None else self.embedding(label)
        )
        h = self.dense0(embedded)
        h = h if self.jump is None or moved is None else h + self.jump(moved)
        temb = self.dense1(nnx.silu(h))
        labels = None if self.labels is None else self.labels[...]
        told = read(cond, len(label), labels, self.kind, self.reader, self.augmentation)
        return temb if told is None else temb + told.vector

    def _join_input(self, module: Any, h: jax.Array, pyramid: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The features and the input pyramid at the next resolution."""
        if self.progressive_input == "none":
            return h, pyramid
        if self.progressive_input == "residual":
            h = (module(pyramid) + h) * self.gain
            return h, h
        pyramid = RESAMPLERS["down", self.fir](pyramid)
        joined = module(pyramid)
        return (joined + h if self.combine == "sum" else jnp.concatenate([joined, h], axis=-1)), pyramid

    def _join_output(self, level: Level, h: jax.Array, output: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        """The features and the output pyramid at this resolution."""
        if self.progressive == "none":
            return h, None
        if output is None:
            return h, level.head(h)
        if self.progressive == "output_skip":
            return h, RESAMPLERS["up", self.fir](output) + level.head(h)
        h = (level.pyramid(output) + h) * self.gain
        return h, h


def _levels(name: str, levels: nnx.Dict, after: tuple[str, ...]) -> Iterator[tuple[Path, nnx.Module]]:
    for number, level in levels.items():
        path = (name, number)
        for i, block in level.blocks.items():
            yield (*path, "blocks", i), block
            if i in level.attention:
                yield (*path, "attention", i), level.attention[i]
        for part in after:
            if getattr(level, part) is not None:
                yield (*path, part), getattr(level, part)
