"""The published networks of score_sde, read from their state dicts: which network, and which weight is which of ours.

Song et al. 2021, arXiv:2011.13456; DDPM, DDPM++ and NCSN++ as in github.com/yang-song/score_sde_pytorch. Their modules
are numbered in the order of calls, all_modules.0, .1, ...; what they are is told by their weights' names and shapes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import nnx

from experiment.errors import UserError
from models import NCSNpp
from models.ncsnpp_blocks import Attention, Downsample, FourierEmbedding, Head, ResBlock, Upsample

Module = Mapping[str, np.ndarray]

PREFIX = "all_modules."
# The published networks have attention at 16x16.
ATTENTION = 16

# A weight that only this kind of module has -> the kind. "" stands for a dense layer, a convolution or a norm.
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
    """{number: {weight's name within the module: array}}, by number. Raises UserError where there are none."""
    found: dict[int, dict[str, np.ndarray]] = {}
    for name, array in weights.items():
        number, _, rest = name.removeprefix(PREFIX).partition(".")
        if name.startswith(PREFIX) and number.isdecimal():
            found.setdefault(int(number), {})[rest] = array
    if not found:
        some = ", ".join(list(weights)[:3])
        raise UserError(
            f"the checkpoint has no {PREFIX}* but {some}: give one of score_sde's NCSN++, DDPM++ or DDPM networks"
        )
    return dict(sorted(found.items()))


def kind_of(module: Module) -> str:
    """What the module is; "unknown" when nothing here."""
    for name, kind in KINDS.items():
        if name in module:
            return "combine" if kind == "resampler" and module[name].shape[2:] == (1, 1) else kind
    return PLAIN_KINDS.get(module["weight"].ndim, "unknown") if "weight" in module else "unknown"


def options_of(weights: Mapping[str, np.ndarray], *, has_sigmas: bool, image_size: int = 0) -> dict[str, Any]:
    """The options of `NCSNpp` that the checkpoint shows, and `shape`. image_size: 0 is what puts its attention at
    16x16.
    has_sigmas: whether it has a table of noise levels: NCSN++ and DDPM++ do, DDPM does not.

    What weights do not show is set as published: fir with a progressive network, skip_rescale but for DDPM.
    Raises UserError for a checkpoint of another network, or without what tells which it is.
    """
    modules = modules_of(weights)
    try:
        return _options([(kind_of(module), module) for module in modules.values()], has_sigmas, image_size)
    except (LookupError, ValueError, ZeroDivisionError) as error:
        gaps = [f"{PREFIX}{k}" for k in range(max(modules)) if k not in modules]
        lacking = (
            f": it lacks {', '.join(gaps[:3])}, {len(gaps)} in all"
            if gaps
            else ": some are missing, or it is of another network"
        )
        raise UserError(
            f"the checkpoint's modules are not those of NCSN++, DDPM++ or DDPM ({_told(error)}){lacking}"
        ) from None


def _told(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


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
        "progressive_combine": "cat"
        if any(_channels_in(then) > _channels_out(join) for join, then in combines)
        else "sum",
    }


def _channels_in(module: Module) -> int:
    return int(_first_convolution(module).shape[1])


def _channels_out(module: Module) -> int:
    return int(_first_convolution(module).shape[0])


def _first_convolution(module: Module) -> np.ndarray:
    """Raises KeyError where it is missing."""
    there = [name for name in ("Conv_0.weight", "Conv2d_0.weight") if name in module]
    return module[there[0] if there else "weight"]


def _turn(body: list[tuple[str, Module]], width: int) -> int:
    """Where the way up begins: the first block that takes more than what came before it, since a skip joins there."""
    current, joined = width, False
    for i, (kind, module) in enumerate(body):
        if kind == "block":
            if _channels_in(module) != current and not joined:
                return i
            current = _channels_out(module)
        joined = kind == "combine"  # after it a block may take twice as many
    raise ValueError("no way up")


def _ordinary(part: list[tuple[str, Module]]) -> list[Module]:
    """The residual blocks that do not resample: of the others' channels none changes, and they have a shortcut all the
    same.
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
    """By the convolutions that follow a norm: one of them; one for each level, to images; one to features, and one."""
    heads = [_channels_out(module) for kind, module in up if kind == "conv"]
    if len(heads) == 1:
        return "none"
    return "output_skip" if heads[0] == channels else "residual"


def _progressive_input(down: list[tuple[str, Module]], carries: bool) -> str:
    if any(kind == "combine" for kind, _ in down):
        return "input_skip"
    return "residual" if carries else "none"


def published_names(network: NCSNpp, weights: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> dict[str, str]:
    """{path of our weight, with slashes: its published name}, for the weights of `network`, which may be abstract."""
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
                found["/".join(filter(None, (*path, part, ours)))] = ".".join(
                    filter(None, (f"{PREFIX}{number}", published, theirs))
                )
    return found


def _entries(network: NCSNpp) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The modules as the published list has them, a Head as its two."""
    for path, module in network.published_order():
        if isinstance(module, Head):
            yield (*path, "norm"), module.norm
            yield (*path, "conv"), module.conv
        else:
            yield path, module


def _leaves(module: Any, published: str) -> dict[str, str]:
    """{our leaf: its published name}."""
    if isinstance(module, FourierEmbedding):
        return {"frequencies": "W"}
    if published.startswith("NIN"):
        return {"kernel": "W", "bias": "b"}
    return {"scale" if isinstance(module, nnx.GroupNorm) else "kernel": "weight", "bias": "bias"}
