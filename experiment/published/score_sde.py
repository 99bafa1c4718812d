"""The import of score_sde's checkpoints: the parts of a file, and the settings that its weights do not show.

Song et al. 2021, arXiv:2011.13456; NCSN++, DDPM++ and DDPM.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiment.common.errors import UserError, choose, quoted, shown
from experiment.common.files import user_path
from experiment.published.score_sde_layout import PREFIX, options_of, published_names
from experiment.published.state_dicts import WRAPPERS, StateDict, averages_in_order, is_average, networks
from experiment.published.to_run import Imported, abstract, arranged, check_new, write_run
from experiment.published.torch_files import read_state_dict
from experiment.run.directory import RunDirectory


@dataclass(frozen=True)
class ProcessDefaults:
    """The settings that score_sde trains with under an SDE, by the config's keys."""

    parameterization: str
    centered: bool
    noise_label: str
    ema: float


PROCESSES = {
    "vp": ProcessDefaults("raw_eps", True, "time", 0.9999),
    "subvp": ProcessDefaults("raw_eps", True, "time", 0.9999),
    # This is the label of discrete noise levels; a Fourier embedding takes log sigma.
    "ve": ProcessDefaults("raw_score", False, "reversed_time", 0.999),
}


@dataclass(frozen=True)
class CheckpointParts:
    """The parts of a checkpoint, by the names of the network's weights.

    Args:
        weights, ema: the weights and their average; the same where the file has only one of them.
        moments: Adam's first and second, or None.
        sigmas: the noise levels, or None.
        step: how many updates the weights had; 0 where that is not known.
        decay: of the average, or None.
        unused: where in the file there is more that is not read.
    """

    weights: dict[str, np.ndarray]
    ema: dict[str, np.ndarray]
    moments: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None
    sigmas: np.ndarray | None
    step: int
    decay: float | None
    unused: list[str]


def parts_of(content: Any) -> CheckpointParts:
    """Take apart what `read_state_dict` read. Raises UserError where that is no checkpoint of score_sde's."""
    if not isinstance(content, Mapping):
        raise UserError(
            f"the checkpoint holds a {type(content).__name__}, not a state dict: give the file that score_sde saved"
        )
    found = {place: _renamed(arrays) for place, arrays in networks(content, PREFIX).items()}
    if not found:
        _refuse(content)
    own = {place: arrays for place, arrays in found.items() if not is_average(place)} or found
    place = _one_of(own, "networks", "model")
    weights = own[place]
    sigmas = weights.pop("sigmas", None)
    # Fourier frequencies are never trained: a parameter, but not of the average.
    trained = [name for name, array in weights.items() if not (name.endswith(".W") and array.ndim == 1)]
    named = {name: arrays for name, arrays in found.items() if name not in own}
    ordered = averages_in_order(content)
    moments = _moments(content.get("optimizer"), weights, trained)
    step = content.get("step", 0)
    if not isinstance(step, int) or not 0 <= step < 2**31:
        raise UserError(f"the checkpoint's step is {quoted(step)}: give a checkpoint whose step is a whole number")
    used = {place, *(["optimizer"] if moments else [])}
    ema, decay = weights, None
    if named or ordered:
        average = _one_of({**named, **ordered}, "averages", "ema")
        shadow = named[average] if average in named else _in_order(ordered[average], trained)
        ema = {**weights, **_like(shadow, weights, trained)}
        decay = _decay(content, average)
        used.add(average)
    return CheckpointParts(weights, ema, moments, sigmas, step, decay, _unused(content, used))


def _refuse(content: Mapping[str, Any]) -> None:
    inner = content.get("model", content)
    arrays = (
        [name for name, value in inner.items() if isinstance(value, np.ndarray)] if isinstance(inner, Mapping) else []
    )
    if not arrays:
        raise UserError("the checkpoint holds no arrays: give the file that score_sde saved, or a state dict")
    some = ", ".join(map(shown, arrays[:3]))
    raise UserError(
        f"the checkpoint has no {PREFIX}* but {some}: give one of score_sde's NCSN++, DDPM++ or DDPM networks"
    )


def _unused(content: Mapping[str, Any], used: set[str]) -> list[str]:
    """Name the entries that hold arrays and of which nothing is used. `used`: the places of what is."""
    first = {re.split("[./]", place)[0] for place in used}

    def holds_arrays(value: Any) -> bool:  # at one look, not how deeply
        items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        return isinstance(value, np.ndarray) or any(isinstance(item, np.ndarray | Mapping) for item in items)

    return [
        name
        for name, value in content.items()
        if isinstance(name, str) and re.split("[./]", name)[0] not in {*first, *WRAPPERS} and holds_arrays(value)
        if not ("" in used and isinstance(value, np.ndarray))  # then it is one of the network's
    ]


def _renamed(arrays: StateDict) -> StateDict:
    """Give 1x1 convolutions their name, which in score_sde's first commits was another."""
    return {name.replace(".Conv.", ".Conv_0."): array for name, array in arrays.items()}


def _one_of(places: Mapping[str, Any], what: str, usual: str) -> str:
    """Choose the place of what a checkpoint is to have once. Raises UserError where it has none, or several."""
    if len(places) > 1 and usual not in places:
        raise UserError(
            f"the checkpoint has several {what}, {', '.join(map(shown, places))}: keep one of them in the file"
        )
    return usual if usual in places else next(iter(places))


def _in_order(average: Mapping[str, Any], trained: list[str]) -> StateDict:
    shadow = average["shadow_params"]
    if len(shadow) != len(trained):
        raise UserError(
            f"the checkpoint's average has {len(shadow)} weights, and the network {len(trained)}: "
            "give a checkpoint of one network"
        )
    return dict(zip(trained, shadow, strict=True))


def _like(average: Mapping[str, Any], weights: StateDict, trained: list[str]) -> StateDict:
    """Select the average of the trained weights. Raises UserError where it is not of these weights."""
    for name in trained:
        array = average.get(name)
        if not isinstance(array, np.ndarray) or array.shape != weights[name].shape:
            what = f"one of shape {array.shape}" if isinstance(array, np.ndarray) else "none"
            raise UserError(
                f"the checkpoint's average has {what} for {shown(name)}, which is of shape {weights[name].shape}: "
                "give a checkpoint of one network"
            )
    return {name: average[name] for name in trained}


def _decay(content: Mapping[str, Any], average: str) -> float | None:
    holder = content.get(average.partition(".")[0])
    decay = holder.get("decay") if isinstance(holder, Mapping) else None
    return decay if isinstance(decay, float) and 0 < decay < 1 else None


def _moments(optimizer: Any, weights: Mapping[str, np.ndarray], trained: list[str]) -> tuple[Any, Any] | None:
    """Find Adam's moments in the optimizer's state.

    Returns:
        first, second: {name: array} each.

    None where they are not all there.
    """
    try:
        (group,) = optimizer["param_groups"]
        if not all(isinstance(number, int) for number in group["params"]):
            return None
        state = dict(zip(weights, (optimizer["state"].get(number) for number in group["params"]), strict=True))
        found = [{name: state[name][moment] for name in trained} for moment in ("exp_avg", "exp_avg_sq")]
        if any(moment[name].shape != weights[name].shape for moment in found for name in trained):
            return None
    except (LookupError, TypeError, ValueError, AttributeError):  # another optimiser, or none
        return None
    frozen = {name: np.zeros_like(array) for name, array in weights.items() if name not in trained}
    return {**found[0], **frozen}, {**found[1], **frozen}


def import_checkpoint(path: str | Path, out: str | Path, given: Mapping[str, Any]) -> str:
    """Write the run `out` with the weights in `path`; returns a line that says what was read.

    given: the command's flags by name, None where the weights are to tell.

    Raises UserError for any mistake, and then leaves no run.
    """
    path = user_path(path, "CHECKPOINT")
    if path.is_dir():
        raise UserError(
            f"{path} is a folder: give a checkpoint's file, or, for diffusers, "
            "python -m experiment.import_diffusers FOLDER RUN"
        )
    check_new(RunDirectory(out))
    parts = parts_of(read_state_dict(path))
    told = options_of(parts.weights, has_sigmas=parts.sigmas is not None, image_size=given["image_size"] or 0)
    options = {**told, **_given(given, "fir", "skip_rescale")}
    name = given["sde"] or ("ve" if options["embedding"] == "fourier" else "vp")
    process = choose(PROCESSES, name, "--sde")
    label = given["noise_label"] or ("log_sigma" if options["embedding"] == "fourier" else process.noise_label)
    if options["embedding"] == "fourier" and name != "ve":
        raise UserError(
            f"the checkpoint's network takes log sigma, as score_sde's do under ve alone: leave out --sde={name}"
        )
    centered = process.centered if given["centered"] is None else given["centered"]
    network, shape = abstract({**options, "centered": centered}), options.pop("shape")
    names = published_names(network, parts.weights, options)
    params = arranged(network, names, parts.weights)
    moments = parts.moments and (arranged(network, names, parts.moments[0]), arranged(network, names, parts.moments[1]))
    imported = Imported(
        params=params,
        ema=params if parts.ema is parts.weights else arranged(network, names, parts.ema),
        moments=moments,
        step=parts.step,
        shape=shape,
        sde={
            "name": name,
            **({"t_min": 1e-5, **_levels(parts.sigmas)} if name == "ve" else {}),  # where the published samplers end
            **_given(given, "beta_min", "beta_max", "sigma_min", "sigma_max"),
        },
        model={"name": "ncsnpp", **options, "parameterization": process.parameterization, "noise_label": label},
        data={"centered": centered, "name": given["data_name"], "path": given["data_path"]},
        # As in Song et al. 2021 for 256 pixels and more; a Langevin step that is right for 32 is too long there.
        sample={**({"snr": 0.075} if name == "ve" else {}), "steps": 2000} if shape[0] >= 256 else {},
        ema_decay=process.ema if parts.decay is None else parts.decay,
    )
    write_run(imported, out)
    count = sum(array.size for array in parts.weights.values())
    hidden = ", ".join(f"{key} {options[key]}" for key in ("fir", "skip_rescale"))
    unused = f"; not read: {', '.join(map(shown, parts.unused))}" if parts.unused else ""
    what = f"{count:,} weights, {'their average applied, ' if parts.ema is not parts.weights else ''}step {parts.step}"
    return f"{out}: {what}; {name}, images {shape[0]}x{shape[1]}, {hidden} (flags change what is not so){unused}"


def _given(given: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: given[name] for name in names if given[name] is not None}


def _levels(sigmas: np.ndarray | None) -> dict[str, float]:
    """Read off sigma_min and sigma_max, to the ten digits that survive the logarithms they were made by."""
    if sigmas is None or sigmas.size < 2:
        return {}
    return {"sigma_min": float(f"{sigmas.min():.10g}"), "sigma_max": float(f"{sigmas.max():.10g}")}
