"""The two published architectures as diffusers' `UNet2DModel` has them: the keys of the config, the weights' names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiment.common.errors import UserError, one_line, quoted

if TYPE_CHECKING:
    from models import NCSNpp


@dataclass(frozen=True)
class Architecture:
    """One of the published architectures, in diffusers' words.

    Args:
        name: the architecture's.
        needed: {key: (its value, the value that an absent key means)}.
        down, up: {the name of a level's blocks: whether it has attention}.
        options: those of our `NCSNpp`, except the sizes.
    """

    name: str
    needed: Mapping[str, tuple[Any, Any]]
    down: Mapping[str, bool]
    up: Mapping[str, bool]
    options: Mapping[str, Any]


# Of an image's side, and of levels, and of blocks in one: a number in a file may be any.
MOST_PIXELS, MOST_BLOCKS = 2**14, 100

_BOTH: dict[str, tuple[Any, Any]] = {
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "act_fn": ("silu", "silu"),
    "norm_eps": (1e-6, 1e-5),
    "attention_head_dim": (None, 8),
    "attn_norm_num_groups": (None, None),
    "resnet_time_scale_shift": ("default", "default"),
    "add_attention": (True, True),
    "class_embed_type": (None, None),
    "num_class_embeds": (None, None),
    "time_embedding_dim": (None, None),
}
DDPM = Architecture(
    "DDPM",
    {
        "time_embedding_type": ("positional", "positional"),
        "freq_shift": (1, 0),
        "flip_sin_to_cos": (False, True),
        "center_input_sample": (False, False),
        "downsample_padding": (0, 1),
        "downsample_type": ("conv", "conv"),
        "upsample_type": ("conv", "conv"),
        "mid_block_scale_factor": (1, 1),
        **_BOTH,
    },
    {"DownBlock2D": False, "AttnDownBlock2D": True},
    {"UpBlock2D": False, "AttnUpBlock2D": True},
    {
        "attention_per_block": True,
        "embedding": "positional",
        "resblock": "ddpm",
        "resample_with_conv": True,
        "fir": False,
        "skip_rescale": False,
    },
)
NCSNPP = Architecture(
    "NCSN++",
    {
        "time_embedding_type": ("fourier", "positional"),
        "mid_block_scale_factor": (2**0.5, 1),
        "norm_num_groups": (None, 32),
        **_BOTH,
    },
    {"SkipDownBlock2D": False, "AttnSkipDownBlock2D": True},
    {"SkipUpBlock2D": False, "AttnSkipUpBlock2D": True},
    {
        "attention_per_block": False,
        "embedding": "fourier",
        "resblock": "biggan",
        "fir": True,
        "skip_rescale": True,
        "progressive": "output_skip",
        "progressive_input": "input_skip",
        "progressive_combine": "sum",
    },
)

TOP = {"dense0": "time_embedding.linear_1", "dense1": "time_embedding.linear_2", "inner": "conv_in"}
MIDDLE = {"00": "mid_block.resnets.0", "01": "mid_block.attentions.0", "02": "mid_block.resnets.1"}
BLOCK = {
    "norm0": "norm1",
    "conv0": "conv1",
    "dense": "time_emb_proj",
    "norm1": "norm2",
    "conv1": "conv2",
    "shortcut": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
HEAD = {"norm": "skip_norm", "conv": "skip_conv"}
TOP_HEAD = {"norm": "conv_norm_out", "conv": "conv_out"}


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Tell the architecture by the embedding of the noise level."""
    return NCSNPP if config.get("time_embedding_type") == "fourier" else DDPM


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a UNet2DModel's config into the options of `NCSNpp`.

    Raises UserError for a config that is not of a published architecture.
    """
    published = architecture_of(config)
    for key, (value, default) in published.needed.items():
        if config.get(key, default) != value:
            raise UserError(
                f"the folder's {key} is {quoted(config.get(key, default))}, and {published.name}'s is {value!r}: "
                "give a UNet2DModel of DDPM's or NCSN++'s architecture, "
                "such as google/ddpm-cifar10-32 or google/ncsnpp-church-256"
            )
    try:
        channels, down, up = config["block_out_channels"], config["down_block_types"], config["up_block_types"]
        groups = config.get("norm_num_groups", 32)
        size, width, blocks = int(config["sample_size"]), int(channels[0]), int(config["layers_per_block"])
        if not (0 < size <= MOST_PIXELS and 0 < blocks <= MOST_BLOCKS and 0 < len(channels) <= MOST_BLOCKS):
            raise ValueError("sizes, levels or blocks that no such network has")
        attends = [published.down[name] for name in down]
        mirrored = [published.up[name] for name in reversed(up)]
        if attends != mirrored or len(attends) != len(channels) or any(c % width for c in channels):
            raise ValueError("levels differ on the way down and up, or have no whole multiple of the first's channels")
        if config["in_channels"] != config["out_channels"]:
            raise ValueError("it takes images of other channels than it gives")
        return {
            "shape": (size, size, int(config["in_channels"])),
            "width": width,
            "channel_mults": tuple(int(c) // width for c in channels),
            "blocks": blocks,
            "attention": tuple(sorted(size >> level for level, attend in enumerate(attends) if attend)),
            "norm_groups": 0 if groups is None else int(groups),
            **published.options,
        }
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(
            f"the folder's config.json is not that of {published.name}'s architecture "
            f"({type(error).__name__}: {one_line(error)}): "
            "give a UNet2DModel such as google/ddpm-cifar10-32 or google/ncsnpp-church-256"
        ) from None


def diffusers_names(network: "NCSNpp") -> dict[str, str]:
    """Name the network's weights as diffusers does: {path of our weight, with slashes: diffusers' name}."""
    from flax import nnx

    from models.ncsnpp_blocks import Attention, FourierEmbedding, Head, ResBlock

    found = {}
    for path, module in network.published_order():
        if isinstance(module, FourierEmbedding):
            found["/".join((*path, "frequencies"))] = "time_proj.weight"
            continue
        prefix = _prefix(path, network)
        parts = {ResBlock: BLOCK, Attention: ATTENTION, Head: HEAD if prefix else TOP_HEAD}.get(type(module), {"": ""})
        if path[-1] == "resample" and not isinstance(module, ResBlock):
            parts = {"conv": "conv"}
        for ours, theirs in parts.items():
            inner = getattr(module, ours) if ours else module
            if inner is None:
                continue
            weight = "scale" if isinstance(inner, nnx.GroupNorm) else "kernel"
            for leaf, name in {weight: "weight", "bias": "bias"}.items():
                found["/".join(filter(None, (*path, ours, leaf)))] = ".".join(filter(None, (prefix, theirs, name)))
    return found


def _prefix(path: tuple[str, ...], network: "NCSNpp") -> str:
    """diffusers' name of the module; "" for the last head, whose parts stand at the top."""
    if len(path) == 1:
        return TOP.get(path[0], "")
    if path[0] == "middle":
        return MIDDLE[path[1]]
    way, number, kind = path[:3]
    level = getattr(network, way)[number]
    within = {
        "pyramid": "skip_conv",
        "head": "",
        "resample": f"{way}samplers.0" if network.progressive == "none" else f"resnet_{way}",
    }
    if kind == "blocks":
        within["blocks"] = f"resnets.{int(path[3])}"
    elif kind == "attention":
        within["attention"] = f"attentions.{list(level.attention).index(path[3])}"
    if kind == "head" and level.last:
        return ""
    return ".".join(filter(None, (f"{way}_blocks.{int(number)}", within[kind])))
