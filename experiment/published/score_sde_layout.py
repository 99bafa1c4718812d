"""The published networks of score_sde, read from their state dicts: which network, and which weight is which of ours.

Song et al. 2021, arXiv:2011.13456; DDPM, DDPM++ and NCSN++ as in github.com/yang-song/score_sde_pytorch. Their modules
are numbered in the order of calls, all_modules.0, .1, ...; what they are is told by their weights' names and shapes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import nnx

from experiment.common.errors import UserError, one_line, shown
from models import NCSNpp
from models.ncsnpp_blocks import Attention, Downsample, FourierEmbedding, Head, ResBlock, Upsample

Module = Mapping[str, np.ndarray]

PREFIX = "all_modules."
DIGITS = 5  # of a module's number; networks have hundreds
# The published networks have attention at 16x16.
ATTENTION = 16

# A weight that only this kind of module has -> the kind. Dense layers, convolutions and norms have none.
KINDS = {
    "GroupNorm_1.weight": "block",
    "NIN_3.W": "attention",
    "Conv_0.weight": "resampler",
    "Conv2d_0.weight": "resampler",
    "W": "fourier",
}
PLAIN_KINDS = {1: "norm", 2: "dense", 4: "conv"}

# Our module -> {our part: its published name}. Where there are two names, the network's options tell which.
BLOCK = {"norm0": "GroupNorm_0", "conv0": "Conv_0", "dense": "Dense_0", "norm1": "GroupNorm_1", "conv1": "Conv_1"}
PARTS: dict[type, dict[str, str]] = {
    Attention: {"norm": "GroupNorm_0", "query": "NIN_0", "key": "NIN_1", "value": "NIN_2", "out": "NIN_3"},
    FourierEmbedding: {"": ""},
}


def modules_of(weights: Mapping[str, np.ndarray]) -> dict[int, Module]:
    """Sort the weights by module, in the order of numbers: {number: {weight's name within the module: array}}.

    Raises UserError where there are none.
    """
    found: dict[int, dict[str, np.ndarray]] = {}
    for name, array in weights.items():
        number, _, rest = name.removeprefix(PREFIX).partition(".")
        if name.startswith(PREFIX) and number.isdecimal() and len(number) <= DIGITS:
            found.setdefault(int(number), {})[rest] = array
    if not found:
        some = ", ".join(map(shown, list(weights)[:3]))
        raise UserError(
            f"the checkpoint has no {PREFIX}* but {some}: give one of score_sde's NCSN++, DDPM++ or DDPM networks"
        )
    return dict(sorted(found.items()))


def kind_of(module: Module) -> str:
    """Tell the kind of the module; "unknown" where it is none of these."""
    for name, kind in KINDS.items():
        if name in module:
            return "combine" if kind == "resampler" and module[name].shape[2:] == (1, 1) else kind
    return PLAIN_KINDS.get(module["weight"].ndim, "unknown") if "weight" in module else "unknown"


def options_of(weights: Mapping[str, np.ndarray], *, has_sigmas: bool, image_size: int = 0) -> dict[str, Any]:
    """Read off the options of `NCSNpp` that the checkpoint shows, with its `shape` among them.

    Options that weights do not show are set as published: fir with a progressive network, skip_rescale except for DDPM.

    Args:
        weights: the checkpoint's, by name.
        has_sigmas: whether it has a table of noise levels: NCSN++ and DDPM++ do, DDPM does not.
        image_size: pixels per side; 0 is the size that puts its attention at 16x16.

    Raises UserError for a checkpoint of another network, or one that does not show which network it is.
    """
    modules = modules_of(weights)
    try:
        return _options([(kind_of(module), module) for module in modules.values()], has_sigmas, image_size)
    except (LookupError, ValueError, ArithmeticError, TypeError, AttributeError) as error:
        gaps = [f"{PREFIX}{k}" for k in range(max(modules)) if k not in modules]
        named = f"it lacks {', '.join(gaps[:3])}, {len(gaps)} in all"
        lacking = f": {named if gaps else 'some are missing, or it is of another network'}"
        raise UserError(
            f"the checkpoint's modules are not those of NCSN++, DDPM++ or DDPM ({_told(error)}){lacking}"
        ) from None


def _told(error: Exception) -> str:
    return f"no {shown(str(error))}" if isinstance(error, KeyError) else one_line(error)


def _options(modules: list[tuple[str, Module]], has_sigmas: bool, image_size: int) -> dict[str, Any]:
    fourier = modules[0][0] == "fourier"
    width, channels = modules[2 + fourier][1]["weight"].shape[:2]
    body = modules[3 + fourier :]
    turn = _turn(body, width)
    down, up = body[: turn - 3], body[turn:]
    below, above = _ordinary(down), _ordinary(up)
    levels = len(above) - len(below)  # a level has one block more on the way up
    blocks = len(below) // levels
    if blocks * levels != len(below) or [kind for kind, _ in body[turn - 3 : turn]] != ["block", "attention", "block"]:
        raise ValueError(f"{len(below)} residual blocks down, {len(above)} up")
    ddpm = any("NIN_0.W" in module for kind, module in body if kind == "block")
    attention = _attention_levels(down, blocks)
    size = image_size or (ATTENTION << min(attention) if attention else 32)
    carries = [_channels_in(module) == channels for kind, module in down if kind == "resampler"]
    progressive, progressive_input = _progressive(up, channels), _progressive_input(down, any(carries))
    resamplers = len(carries) - (levels - 1 if any(carries) else 0)
    fir_shown = any("Conv2d_0.weight" in module for _, module in body)
    combines = [(module, body[i + 1][1]) for i, (kind, module) in enumerate(body) if kind == "combine"]
    concatenates = any(_channels_in(then) > _channels_out(join) for join, then in combines)
    return {
        "shape": (size, size, channels),
        "width": width,
        "channel_mults": tuple(_channels_out(below[i * blocks]) // width for i in range(levels)),
        "blocks": blocks,
        "attention": tuple(sorted(size >> level for level in attention)),
        "embedding": "fourier" if fourier else "positional",
        "resblock": "ddpm" if ddpm else "biggan",
        "resample_with_conv": not ddpm or resamplers > 0 or levels == 1,
        "fir": fir_shown or (progressive, progressive_input) != ("none", "none"),
        "skip_rescale": not ddpm or has_sigmas,
        "norm_groups": 0 if has_sigmas or not ddpm else 32,
        "progressive": progressive,
        "progressive_input": progressive_input,
        "progressive_combine": "cat" if concatenates else "sum",
    }


def _channels_in(module: Module) -> int:
    return int(_first_convolution(module).shape[1])


def _channels_out(module: Module) -> int:
    return int(_first_convolution(module).shape[0])


def _first_convolution(module: Module) -> np.ndarray:
    """Find the weight of the module's first convolution. Raises KeyError where it is missing."""
    there = [name for name in ("Conv_0.weight", "Conv2d_0.weight") if name in module]
    return module[there[0] if there else "weight"]


def _turn(body: list[tuple[str, Module]], width: int) -> int:
    """Find where the way up begins: the first block that takes more channels than came before, for a skip joins."""
    current, joined = width, False
    for i, (kind, module) in enumerate(body):
        if kind == "block":
            if _channels_in(module) != current and not joined:
                return i
            current = _channels_out(module)
        joined = kind == "combine"  # after it a block may take twice as many
    raise ValueError("no way up")


def _ordinary(part: list[tuple[str, Module]]) -> list[Module]:
    """Select the residual blocks that do not resample.

    The others keep the number of channels, and have a shortcut all the same.
    """
    blocks = [module for kind, module in part if kind == "block"]
    return [m for m in blocks if "Conv_2.weight" not in m or _channels_in(m) != _channels_out(m)]


def _attention_levels(down: list[tuple[str, Module]], blocks: int) -> set[int]:
    seen, levels = 0, set()
    for i, (kind, _) in enumerate(down):
        seen += len(_ordinary(down[i : i + 1]))
        if kind == "attention":
            levels.add((seen - 1) // blocks)
    return levels


def _progressive(up: list[tuple[str, Module]], channels: int) -> str:
    """Tell the kind of progressive output by the convolutions that follow a norm.

    "none" has one, "output_skip" one to images for each level, "residual" others to features before the last.
    """
    heads = [_channels_out(module) for kind, module in up if kind == "conv"]
    if len(heads) == 1:
        return "none"
    return "output_skip" if heads[0] == channels else "residual"


def _progressive_input(down: list[tuple[str, Module]], carries: bool) -> str:
    if any(kind == "combine" for kind, _ in down):
        return "input_skip"
    return "residual" if carries else "none"


def published_names(network: NCSNpp, weights: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> dict[str, str]:
    """Name the weights of `network`, which may be abstract: {path of our weight, with slashes: its published name}."""
    shortcut = "NIN_0" if options["resblock"] == "ddpm" else "Conv_2"
    resampler = {"conv": "Conv2d_0" if options["fir"] else "Conv_0"}
    parts = {**PARTS, ResBlock: {**BLOCK, "shortcut": shortcut}, Downsample: resampler, Upsample: resampler}
    # A resampler without weights has a number, and no keys: then those that are there are taken in their order.
    numbers = list(modules_of(weights)) if not options["resample_with_conv"] else None
    found = {}
    for k, (path, module) in enumerate(_entries(network)):
        number = k if numbers is None else numbers[k] if k < len(numbers) else k + numbers[-1]
        combine = isinstance(module, nnx.Linear) and path[-1] == "pyramid"
        for part, published in parts.get(type(module), {"": "Conv_0" if combine else ""}).items():
            inner = getattr(module, part) if part else module
            if inner is None:
                continue
            for ours, theirs in _leaves(inner, published).items():
                name = ".".join(filter(None, (f"{PREFIX}{number}", published, theirs)))
                found["/".join(filter(None, (*path, part, ours)))] = name
    return found


def _entries(network: NCSNpp) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the modules as the published list has them, a Head as its two parts."""
    for path, module in network.published_order():
        if isinstance(module, Head):
            yield (*path, "norm"), module.norm
            yield (*path, "conv"), module.conv
        else:
            yield path, module


def _leaves(module: Any, published: str) -> dict[str, str]:
    """Name the module's weights: {our leaf: its published name}."""
    if isinstance(module, FourierEmbedding):
        return {"frequencies": "W"}
    if published.startswith("NIN"):
        return {"kernel": "W", "bias": "b"}
    return {"scale" if isinstance(module, nnx.GroupNorm) else "kernel": "weight", "bias": "bias"}
