"""The import of folders of diffusers' `UNet2DModel`: the architectures of DDPM and NCSN++, with their schedulers."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiment.common.errors import UserError, one_line, quoted, shown
from experiment.common.files import read_regular, user_path
from experiment.published.diffusers_layout import NCSNPP, architecture_of, diffusers_names, options_of
from experiment.published.state_dicts import unwrapped
from experiment.published.to_run import Imported, abstract, arranged, check_new, write_run
from experiment.published.torch_files import read_state_dict
from experiment.run.directory import RunDirectory

STEM, KINDS = "diffusion_pytorch_model", ("safetensors", "bin")
INDEX = ".index.json"  # the list of the files that large weights are in
# As diffusers names them: stem, variant (such as fp16), number of the file, kind.
_FILE = re.compile(rf"{STEM}(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?(?:\.(?P<late>[\w-]+))?\.(?:{'|'.join(KINDS)})")
MOST_JSON, MOST_NUMBER = 2**24, 1e30
AVERAGE = "unet_ema"  # beside unet, where training keeps both

SCHEDULE: dict[str, Any] = {
    "beta_schedule": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "trained_betas": None,
}

# The names of weights before diffusers 0.15 -> their names since.
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def weights_in(folder: Path) -> tuple[dict[str, np.ndarray], str]:
    """Read the folder's weights, in one file or several, by diffusers' names since 0.15.

    Returns:
        weights: {name: array}.
        variant: which of several the folder has, such as fp16; "" for the weights themselves.

    Raises UserError where there are none, or several variants and none of them without a name.
    """
    variants: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        found = _FILE.fullmatch(file.name.removesuffix(INDEX))
        if found:
            variants.setdefault(found["variant"] or found["late"] or "", []).append(file)
    if not variants:
        others = ", ".join(shown(f.name) for f in sorted(folder.iterdir()) if f.is_file() and f.name != "config.json")
        raise UserError(
            f"{folder} has no weights but {others or 'no other file'}: it needs {STEM}.safetensors or {STEM}.bin"
        )
    if len(variants) > 1 and "" not in variants:
        raise UserError(f"{folder} has the variants {', '.join(variants)} of its weights: keep one of them")
    variant = "" if "" in variants else next(iter(variants))
    there = sorted(variants[variant], key=lambda file: [kind in file.name for kind in KINDS], reverse=True)
    whole = [file for file in there if "-of-" not in file.name and not file.name.endswith(INDEX)]
    lists = [file for file in there if file.name.endswith(INDEX)]
    if whole:
        files = whole[:1]
    elif lists:
        files = _listed(lists[0])
    else:
        raise UserError(f"{folder} has parts of its weights and no {STEM}.safetensors{INDEX}: get it too")
    weights: dict[str, np.ndarray] = {}
    for file in files:
        content = read_state_dict(file)
        if not isinstance(content, Mapping) or not all(isinstance(array, np.ndarray) for array in content.values()):
            raise UserError(f"{file} holds more than weights: give what diffusers saved")
        weights |= {_renamed(name): array for name, array in unwrapped({str(k): v for k, v in content.items()}).items()}
    return weights, variant


def _listed(index: Path) -> list[Path]:
    """Look up the files that the index lists. Raises UserError for a list that is none, or files elsewhere."""
    files = _json(index).get("weight_map")
    names = sorted(set(map(str, files.values()))) if isinstance(files, dict) else []
    wrong = [name for name in names if not _FILE.fullmatch(name)]
    if not names or wrong:
        raise UserError(f"{index} lists {shown(wrong[0]) if wrong else 'no files'} as weights: get it again")
    return [index.parent / name for name in names]


def _renamed(name: str) -> str:
    """The weight's name as diffusers has it since 0.15."""
    module, _, leaf = name.rpartition(".")
    before, _, last = module.rpartition(".")
    return f"{before}.{RENAMED[last]}.{leaf}" if ".attentions." in name and last in RENAMED else name


def import_folder(folder: str | Path, out: str | Path, data_name: str = "cifar10", data_path: str = "") -> str:
    """Write the run `out` with the folder's network; returns a line that says what was read.

    Raises UserError for any mistake, and then leaves no run.
    """
    root = user_path(folder, "FOLDER")
    unet = root / "unet" if (root / "unet" / "config.json").is_file() else root
    check_new(RunDirectory(out))
    config = _json(unet / "config.json")
    options = options_of(config)
    process = _ve(root, unet, config) if architecture_of(config) is NCSNPP else _vp(root, unet)
    weights, variant = weights_in(unet)
    average = root / AVERAGE
    ema, _ = weights_in(average) if unet != root and (average / "config.json").is_file() else (weights, "")
    network, shape = abstract({**options, "centered": process.centered}), options.pop("shape")
    names = diffusers_names(network)
    params = arranged(network, names, weights)
    imported = Imported(
        params=params,
        ema=params if ema is weights else arranged(network, names, ema),  # published weights are the average
        moments=None,
        step=0,
        shape=shape,
        sde=process.sde,
        model={"name": "ncsnpp", **options, **process.model},
        data={"centered": process.centered, "name": data_name, "path": data_path},
        sample=process.sample,
        ema_decay=process.ema_decay,
    )
    write_run(imported, out)
    count = sum(array.size for array in weights.values())
    interval = "[-1, 1]" if process.centered else "[0, 1]"
    told = f"{' of the variant ' + variant if variant else ''}{', their average applied' if ema is not weights else ''}"
    return f"{out}: {count:,} weights{told}; {process.line}, images {shape[0]}x{shape[1]} in {interval}"


@dataclass(frozen=True)
class PublishedProcess:
    """The process that a published network was trained for.

    Args:
        sde, model, sample: the keys of these sections of the config.
        centered: whether its images are in [-1, 1].
        ema_decay: of its average, for training on.
        line: the process in a few words.
    """

    sde: Mapping[str, Any]
    model: Mapping[str, Any]
    sample: Mapping[str, Any]
    centered: bool
    ema_decay: float
    line: str


def _vp(root: Path, unet: Path) -> PublishedProcess:
    """DDPM's process, with the betas of the scheduler's file if there is one. Raises UserError for another chain."""
    file, schedule = _schedule(root, unet)
    for key, value in SCHEDULE.items():
        if schedule.get(key, value) != value:
            raise UserError(
                f"the folder's {key} is {quoted(schedule[key])}; this reads chains with {value!r} alone: give DDPM's"
            )
    steps = SCHEDULE["num_train_timesteps"]
    start, end = _numbers(file, schedule, beta_start=1e-4, beta_end=0.02)
    low, high = (float(f"{steps * beta:.10g}") for beta in (start, end))
    sde = {"name": "vp", "beta_min": low, "beta_max": high}
    model = {"parameterization": "raw_eps", "noise_label": "chain"}
    return PublishedProcess(sde, model, {}, True, 0.9999, f"vp, beta {low:g} to {high:g}")


def _ve(root: Path, unet: Path, config: Mapping[str, Any]) -> PublishedProcess:
    """NCSN++'s process, with the noise levels of the scheduler's file if there is one.

    The network divides by sigma itself, so that its output is the score.
    """
    file, schedule = _schedule(root, unet)
    named = {"sigma_min": 0.01, "sigma_max": 1348.0, "sampling_eps": 1e-5, "snr": 0.15, "num_train_timesteps": 2000}
    low, high, t_min, snr, steps = _numbers(file, schedule, **named)
    sde = {"name": "ve", "sigma_min": low, "sigma_max": high, "t_min": t_min}
    model = {"parameterization": "raw_score", "noise_label": "log_sigma"}
    # A network that takes 2 x - 1 of its input has images in [0, 1].
    centered = not config.get("center_input_sample", False)
    sample = {"snr": snr, "steps": int(steps)}
    return PublishedProcess(sde, model, sample, centered, 0.999, f"ve, sigma {low:g} to {high:g}")


def _schedule(root: Path, unet: Path) -> tuple[Path, dict[str, Any]]:
    """Find and read the scheduler's file.

    Returns:
        file: its path, or, without one, the path where it would be.
        schedule: its content; {} without one.
    """
    files = [folder / "scheduler_config.json" for folder in (root / "scheduler", root, unet)]
    there = [file for file in files if file.is_file()]
    return (there[0], _json(there[0])) if there else (files[0], {})


def _numbers(file: Path, schedule: Mapping[str, Any], **defaults: float) -> list[float]:
    """Look up the scheduler's values of these keys. Raises UserError for one that is no positive number."""
    found = [schedule.get(key, value) for key, value in defaults.items()]
    for key, value in zip(defaults, found, strict=True):
        if not (isinstance(value, int | float) and 0 < value < MOST_NUMBER):
            raise UserError(
                f"{file}: {key} is {quoted(value)}, and must be a positive number: "
                "get the file again from where it was published"
            )
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_regular(path, MOST_JSON))
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): give a folder that diffusers' save_pretrained wrote"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): get it again from where it was published") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no object: give a folder that diffusers' save_pretrained wrote")
    return content
