"""DDPM++ and NCSN++ in PyTorch, the opponent of benchmarks/training.py; nothing else here uses PyTorch.

The networks of Song et al. 2021, arXiv:2011.13456, appendix H, for the two published CIFAR-10 configurations. Modules
carry the names of the published checkpoints (`all_modules` in the order of the calls), so that these load.

    python benchmarks/torch_ncsnpp.py FILE.npz

checks the output against a file that holds weights `sd/...`, inputs `x_nchw` and `labels`, and the published network's
`y_nchw`.
"""

import argparse
import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_SCALE = 1e-10  # the published code takes this for an initial scale of 0


def initialise(weight: Tensor, scale: float, fan_in: int, fan_out: int) -> None:
    """Draw the weight uniformly with variance scale/(mean of fan-in and fan-out)."""
    bound = math.sqrt(3 * max(scale, SMALLEST_SCALE) / (0.5 * (fan_in + fan_out)))
    nn.init.uniform_(weight, -bound, bound)


def conv(
    inputs: int, outputs: int, size: int = 3, scale: float = 1.0, stride: int = 1, padding: int | None = None
) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2 if padding is None else padding)
    initialise(layer.weight, scale, inputs * size**2, outputs * size**2)
    nn.init.zeros_(layer.bias)
    return layer


def dense(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    initialise(layer.weight, 1.0, inputs, outputs)
    nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


class Fourier(nn.Module):
    """The embedding [sin(2 pi W log sigma), cos(2 pi W log sigma)], W frozen."""

    def __init__(self, width: int, scale: float = 16.0):
        super().__init__()
        self.W = nn.Parameter(scale * torch.randn(width), requires_grad=False)

    def forward(self, sigma: Tensor) -> Tensor:
        phase = sigma.log()[:, None] * self.W[None, :] * (2 * math.pi)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


def positional(label: Tensor, width: int) -> Tensor:
    """Embed the label t as [sin(w t), cos(w t)], w_k = 10000^(-k/(width/2 - 1))."""
    half = width // 2
    k = torch.arange(half, device=label.device, dtype=torch.float32)
    frequencies = torch.exp(k * (-math.log(10000) / (half - 1)))
    phase = label.float()[:, None] * frequencies[None, :]
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


class Fir(nn.Module):
    """StyleGAN2's filter [1, 3, 3, 1]/8 along each axis, as a grouped convolution.

    It blurs, or resamples up or down by two.
    """

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", taps[:, None] * taps[None, :], persistent=False)

    def _per_channel(self, x: Tensor) -> Tensor:
        return self.kernel.to(x.dtype).expand(x.shape[1], 1, 4, 4)

    def blur(self, x: Tensor, padding: int, stride: int = 1) -> Tensor:
        return F.conv2d(x, self._per_channel(x), stride=stride, padding=padding, groups=x.shape[1])

    def down(self, x: Tensor) -> Tensor:
        return self.blur(x, padding=1, stride=2)

    def up(self, x: Tensor) -> Tensor:
        """Upsample by the transpose of `down`, times 4."""
        return F.conv_transpose2d(x, 4 * self._per_channel(x), stride=2, padding=1, groups=x.shape[1])


class Downsample(nn.Module):
    """The filter, then a 3x3 convolution of stride 2."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.fir = Fir()
        self.Conv2d_0 = conv(inputs, outputs, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.Conv2d_0(self.fir.blur(x, padding=2))


class ResBlock(nn.Module):
    """BigGAN's residual block; resample "up" or "down" acts on both branches."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, fir: bool, resample: str = ""):
        super().__init__()
        self.resample, self.fir = resample, Fir() if fir and resample else None
        self.GroupNorm_0 = group_norm(inputs)
        self.Conv_0 = conv(inputs, outputs)
        self.Dense_0 = dense(embedding, outputs)
        self.GroupNorm_1 = group_norm(outputs)
        self.Dropout_0 = nn.Dropout(dropout)
        self.Conv_1 = conv(outputs, outputs, scale=0.0)
        self.Conv_2 = conv(inputs, outputs, size=1) if inputs != outputs or resample else None

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return self.fir.up(x) if self.fir else F.interpolate(x, scale_factor=2, mode="nearest")
        if self.resample == "down":
            return self.fir.down(x) if self.fir else F.avg_pool2d(x, 2)
        return x

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self._resampled(F.silu(self.GroupNorm_0(x)))
        h = self.Conv_0(h) + self.Dense_0(F.silu(temb))[:, :, None, None]
        h = self.Conv_1(self.Dropout_0(F.silu(self.GroupNorm_1(h))))
        x = self._resampled(x)
        return ((x if self.Conv_2 is None else self.Conv_2(x)) + h) * math.sqrt(0.5)


class NIN(nn.Module):
    """A dense layer over the channels, the last axis here."""

    def __init__(self, channels: int, scale: float):
        super().__init__()
        self.W = nn.Parameter(torch.empty(channels, channels))
        self.b = nn.Parameter(torch.zeros(channels))
        initialise(self.W, scale, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.W.t(), self.b)


class Attention(nn.Module):
    """Self-attention with one head over the pixels."""

    def __init__(self, channels: int):
        super().__init__()
        self.GroupNorm_0 = group_norm(channels)
        self.NIN_0, self.NIN_1, self.NIN_2 = (NIN(channels, 0.1) for _ in range(3))
        self.NIN_3 = NIN(channels, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        tokens = self.GroupNorm_0(x).permute(0, 2, 3, 1).reshape(n, 1, height * width, c)
        h = F.scaled_dot_product_attention(self.NIN_0(tokens), self.NIN_1(tokens), self.NIN_2(tokens))
        return (x + self.NIN_3(h).reshape(n, height, width, c).permute(0, 3, 1, 2)) * math.sqrt(0.5)


class NCSNpp(nn.Module):
    """The network: x (n, 3, h, w), label (n,) -> like x. The label is 999 t (DDPM++) or sigma (NCSN++), as published.

    kind "ddpmpp" has a positional embedding, plain resampling, and x in [-1, 1]. kind "ncsnpp" has a Fourier embedding,
    resampling by a filter, a residual pyramid of the input, x in [0, 1], and its output over sigma.
    """

    def __init__(
        self,
        kind: Literal["ddpmpp", "ncsnpp"] = "ddpmpp",
        nf: int = 128,
        blocks: int = 4,
        ch_mult: tuple[int, ...] = (1, 2, 2, 2),
        attention: tuple[int, ...] = (16,),
        dropout: float = 0.1,
        size: int = 32,
        image: int = 3,
    ):
        super().__init__()
        self.nf, self.ncsnpp = nf, kind == "ncsnpp"
        # Each module of the body, and whether forward pops a skip before it and pushes one after it.
        self.plan: list[tuple[nn.Module, bool, bool]] = []

        def add(module: nn.Module, *, pops: bool = False, pushes: bool = False) -> None:
            self.plan.append((module, pops, pushes))

        def block(inputs: int, outputs: int, resample: str = "") -> ResBlock:
            return ResBlock(inputs, outputs, 4 * nf, dropout, self.ncsnpp, resample)

        skips, current, carried, last = [nf], nf, image, len(ch_mult) - 1
        for level, mult in enumerate(ch_mult):
            attends = size >> level in attention
            for _ in range(blocks):
                add(block(current, nf * mult), pushes=not attends)
                current = nf * mult
                if attends:
                    add(Attention(current), pushes=True)
                skips.append(current)
            if level < last:
                add(block(current, current, "down"), pushes=not self.ncsnpp)
                if self.ncsnpp:
                    add(Downsample(carried, current), pushes=True)
                carried = current
                skips.append(current)
        for module in (block(current, current), Attention(current), block(current, current)):
            add(module)
        for level, mult in reversed(list(enumerate(ch_mult))):
            for _ in range(blocks + 1):
                add(block(current + skips.pop(), nf * mult), pops=True)
                current = nf * mult
            if size >> level in attention:
                add(Attention(current))
            if level:
                add(block(current, current, "up"))
        head = [Fourier(nf)] if self.ncsnpp else []
        head += [dense(2 * nf if self.ncsnpp else nf, 4 * nf), dense(4 * nf, 4 * nf), conv(image, nf)]
        tail = [group_norm(current), conv(current, image, scale=0.0)]
        self.all_modules = nn.ModuleList([*head, *(module for module, _, _ in self.plan), *tail])

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        head, (norm, outer) = self.all_modules[: -2 - len(self.plan)], self.all_modules[-2:]
        dense0, dense1, inner = head[-3:]
        temb = dense1(F.silu(dense0(head[0](label) if self.ncsnpp else positional(label, self.nf))))
        x = 2 * x - 1 if self.ncsnpp else x
        h, pyramid = inner(x), x
        skips = [h]
        for module, pops, pushes in self.plan:
            if pops:
                h = torch.cat([h, skips.pop()], dim=1)
            if isinstance(module, ResBlock):
                h = module(h, temb)
            elif isinstance(module, Downsample):
                h = pyramid = (module(pyramid) + h) * math.sqrt(0.5)
            else:
                h = module(h)
            if pushes:
                skips.append(h)
        h = outer(F.silu(norm(h)))
        return h / label[:, None, None, None] if self.ncsnpp else h


def difference(path: str, channels_last: bool = False) -> float:
    """The largest difference to the published network's output, over the largest entry of that."""
    with np.load(path) as file:
        weights = {name[3:]: torch.from_numpy(file[name]) for name in file.files if name.startswith("sd/all_modules.")}
        x, labels, expected = (torch.from_numpy(file[name]) for name in ("x_nchw", "labels", "y_nchw"))
    fourier = "all_modules.0.W" in weights
    nf = weights["all_modules.3.weight" if fourier else "all_modules.2.weight"].shape[0]
    network = NCSNpp("ncsnpp" if fourier else "ddpmpp", nf=nf).eval()
    network.load_state_dict(weights)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = network(x, labels)
    return float((found - expected).abs().max() / expected.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    for path in parser.parse_args().files:
        plain, last = difference(path), difference(path, channels_last=True)
        print(f"{path}: {plain:.1e} of the largest entry, channels last {last:.1e}")


if __name__ == "__main__":
    main()
