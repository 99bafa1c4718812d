"""A diffusers `UNet2DModel` of DDPM's architecture as a run, such as google/ddpm-cifar10-32: Ho et al. 2020, arXiv:2006.11239.

    python -m experiment.import_diffusers FOLDER RUN [--data_name=cifar10]

FOLDER holds config.json and diffusion_pytorch_model.safetensors (or .bin), itself or in unet/. RUN is a run directory that sample.py and
evaluate.py take like any other: the network predicts the noise of a chain of 1,000 steps, here under the VP process of the same betas, told
the step at which the chain has the same log SNR.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from experiment import cli
from experiment.errors import UserError
from experiment.torch_files import read_state_dict

if TYPE_CHECKING:
    from models import NCSNpp

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

# What DDPM's architecture is in diffusers' words: key -> (its value, what an absent key means).
NEEDED: dict[str, tuple[Any, Any]] = {
    "time_embedding_type": ("positional", "positional"),
    "freq_shift": (1, 0),
    "flip_sin_to_cos": (False, True),
    "center_input_sample": (False, False),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "conv"),
    "upsample_type": ("conv", "conv"),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "mid_block_scale_factor": (1, 1),
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
SCHEDULE: dict[str, Any] = {"beta_schedule": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon", "trained_betas": None}

TOP = {"dense0": "time_embedding.linear_1", "dense1": "time_embedding.linear_2", "inner": "conv_in"}
MIDDLE = {"00": "mid_block.resnets.0", "01": "mid_block.attentions.0", "02": "mid_block.resnets.1"}
WITHIN_LEVEL = {"blocks": "resnets", "attention": "attentions"}
BLOCK = {"norm0": "norm1", "conv0": "conv1", "dense": "time_emb_proj", "norm1": "norm2", "conv1": "conv2", "shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
# Names before diffusers 0.15 -> names since.
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `NCSNpp` for a UNet2DModel's config. Raises UserError for one that is not of DDPM's architecture."""
    for key, (value, default) in NEEDED.items():
        if config.get(key, default) != value:
            raise UserError(
                f"the folder's {key} is {config.get(key, default)!r}, and DDPM's is {value!r}: give a UNet2DModel of DDPM's"
                " architecture, such as google/ddpm-cifar10-32"
            )
    try:
        channels, down, up = config["block_out_channels"], config["down_block_types"], config["up_block_types"]
        size, width = int(config["sample_size"]), int(channels[0])
        attends = [{"DownBlock2D": False, "AttnDownBlock2D": True}[name] for name in down]
        mirrored = [{"UpBlock2D": False, "AttnUpBlock2D": True}[name] for name in reversed(up)]
        if attends != mirrored or len(attends) != len(channels) or any(c % width for c in channels):
            raise ValueError("levels differ on the way down and up, or have no whole multiple of the first's channels")
        if config["in_channels"] != config["out_channels"]:
            raise ValueError("it takes images of other channels than it gives")
        return {
            "shape": (size, size, int(config["in_channels"])),
            "width": width,
            "channel_mults": tuple(int(c) // width for c in channels),
            "blocks": int(config["layers_per_block"]),
            "attention": tuple(sorted(size >> level for level, attend in enumerate(attends) if attend)),
            "attention_per_block": True,
            "embedding": "positional",
            "resblock": "ddpm",
            "resample_with_conv": True,
            "fir": False,
            "skip_rescale": False,
            "norm_groups": int(config.get("norm_num_groups", 32)),
        }
    except (LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"the folder's config.json is not that of DDPM's architecture ({type(error).__name__}: {error}):"
            " give a UNet2DModel such as google/ddpm-cifar10-32"
        ) from None


def diffusers_names(network: "NCSNpp") -> dict[str, str]:
    """{path of our weight, with slashes: diffusers' name}."""
    from flax import nnx

    from models.ncsnpp_blocks import Attention, Head, ResBlock

    parts = {ResBlock: BLOCK, Attention: ATTENTION, Head: {"norm": "conv_norm_out", "conv": "conv_out"}}
    found = {}
    for path, module in network.published_order():
        resampler = path[-1] == "resample"
        for ours, theirs in ({"conv": "conv"} if resampler else parts.get(type(module), {"": ""})).items():
            inner = getattr(module, ours) if ours else module
            if inner is None:
                continue
            for leaf, name in {"scale" if isinstance(inner, nnx.GroupNorm) else "kernel": "weight", "bias": "bias"}.items():
                found["/".join(filter(None, (*path, ours, leaf)))] = ".".join(filter(None, (_prefix(path), theirs, name)))
    return found


def _prefix(path: tuple[str, ...]) -> str:
    if len(path) == 1:
        return TOP.get(path[0], "")  # what is left is the head, whose parts stand at the top
    if path[0] == "middle":
        return MIDDLE[path[1]]
    way, level, kind = path[0], int(path[1]), path[2]
    within = f"{WITHIN_LEVEL[kind]}.{int(path[3])}" if kind in WITHIN_LEVEL else f"{way}samplers.0"
    return f"{way}_blocks.{level}.{within}"


def _renamed(name: str) -> str:
    """A weight's name as diffusers has it since 0.15."""
    module, _, leaf = name.rpartition(".")
    before, _, last = module.rpartition(".")
    return f"{before}.{RENAMED[last]}.{leaf}" if ".attentions." in name and last in RENAMED else name


def import_folder(folder: str | Path, out: str | Path, data_name: str = "cifar10", data_path: str = "") -> str:
    """Write the run `out` with the folder's network; returns what was read, in a line. Raises UserError, and then leaves no run."""
    from experiment.imported import Imported, abstract, arranged, check_new, write_run
    from experiment.run import RunDirectory

    root = Path(folder)
    unet = root / "unet" if (root / "unet" / "config.json").is_file() else root
    check_new(RunDirectory(out))
    options, betas = options_of(_json(unet / "config.json")), _betas(root, unet)
    there = [unet / name for name in WEIGHTS if (unet / name).is_file()]
    if not there:
        raise UserError(f"{unet} has no weights: it needs {' or '.join(WEIGHTS)}")
    content = read_state_dict(there[0])
    if not isinstance(content, Mapping) or not all(isinstance(array, np.ndarray) for array in content.values()):
        raise UserError(f"{there[0]} holds more than weights: give what diffusers saved")
    weights = {_renamed(str(name)): array for name, array in content.items()}
    network, shape = abstract(options), options.pop("shape")
    params = arranged(network, diffusers_names(network), weights)
    imported = Imported(
        params=params,
        ema=params,  # what Ho et al. published is the average
        moments=None,
        step=0,
        shape=shape,
        sde={"name": "vp", **betas},
        model={"name": "ncsnpp", **options, "parameterization": "raw_eps", "noise_label": "chain"},
        data={"centered": True, "name": data_name, "path": data_path},
        sample={},
        ema_decay=0.9999,
    )
    write_run(imported, out)
    count = sum(array.size for array in weights.values())
    return f"{out}: {count:,} weights; vp, beta {betas['beta_min']:g} to {betas['beta_max']:g}, images {shape[0]}x{shape[1]}"


def _betas(root: Path, unet: Path) -> dict[str, float]:
    """beta_min and beta_max of the VP process, by the scheduler's file if there is one. Raises UserError for another chain."""
    files = [folder / "scheduler_config.json" for folder in (root / "scheduler", root, unet)]
    there = [file for file in files if file.is_file()]
    schedule = _json(there[0]) if there else {}
    for key, value in SCHEDULE.items():
        if schedule.get(key, value) != value:
            raise UserError(f"the folder's {key} is {schedule[key]!r}; this reads chains with {value!r} alone: give DDPM's")
    steps = SCHEDULE["num_train_timesteps"]
    try:
        ends = [float(schedule.get(key, value)) for key, value in (("beta_start", 1e-4), ("beta_end", 0.02))]
    except (TypeError, ValueError) as error:
        raise UserError(f"{there[0]} has betas that are no numbers ({error}): give DDPM's") from None
    return {name: float(f"{steps * beta:.10g}") for name, beta in zip(("beta_min", "beta_max"), ends, strict=True)}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): give a folder that diffusers' save_pretrained wrote") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): get it again from where it was published") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no object: give a folder that diffusers' save_pretrained wrote")
    return content


def main(folder: str, run: str) -> int:
    given = flags.FLAGS
    print(import_folder(folder, run, given.data_name, given.data_path))
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("data_name", "cifar10", "What the network was trained on, for evaluate.py: as config.data.name.")
    flags.DEFINE_string("data_path", "", "The same, as a folder or zip of images or an .npz: as config.data.path.")
    cli.run_app(main, positional=("FOLDER", "RUN"))
