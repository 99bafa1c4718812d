"""Published weights, whatever they come from, as a run: their layout turned into ours, and a run directory written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from experiment.build.objects import build_optimizer, check_names
from experiment.common.errors import UserError, one_line, shown
from experiment.config import check_config
from experiment.run.directory import DataShape, RunDirectory
from experiment.training.trainer import empty_window
from models import NCSNpp, OneKey, split

Params = dict[str, Any]

# Differences from the defaults that hold for every published network: of Song et al. 2021, arXiv:2011.13456,
# appendices G and H, on CIFAR-10.
TRAINING = {"lr": 2e-4, "warmup": 5000, "schedule": "constant", "checkpoint_every": 10_000, "log_every": 100}
MODEL = {"dropout": 0.1}
DATA = {"name": "cifar10", "flip": True}
SAMPLING = {"steps": 1000}
# The corrector's signal-to-noise ratio that is best for VP, where VE's is the default: their table 5.
VP_SNR = 0.01


@dataclass(frozen=True)
class Imported:
    """Weights in our layout and what is known of them, to be written as a run.

    Args:
        params, ema: the network's weights and their average; the same where only one is known.
        moments: Adam's first and second, each like params, or None.
        step: how many updates they had; 0 where that is not known.
        shape: of an image, (h, w, c).
        sde, model, data, sample: the config's sections, but for what holds for all (the constants above).
        ema_decay: of the average, for training on.
    """

    params: Params
    ema: Params
    moments: tuple[Params, Params] | None
    step: int
    shape: tuple[int, int, int]
    sde: Mapping[str, Any]
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    sample: Mapping[str, Any]
    ema_decay: float


def abstract(options: Mapping[str, Any]) -> NCSNpp:
    """Build the network of these options without any weights. Raises UserError for options that it refuses."""
    rngs: Any = OneKey()
    try:
        return nnx.eval_shape(lambda: NCSNpp(**options, rngs=rngs))
    except ValueError as error:
        raise UserError(f"the checkpoint's network cannot be built: {one_line(error)}") from None


def arranged(network: NCSNpp, names: Mapping[str, str], weights: Mapping[str, np.ndarray]) -> Params:
    """Arrange published weights, in PyTorch's layout, as the network's own, in float32.

    names: {path of a weight, with slashes: its name in `weights`}. Raises UserError that names those that are missing,
    of other shapes, or left over.
    """
    shapes = split(network)[1]
    paths = jax.tree.map_with_path(lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), shapes)
    missing = [name for name in names.values() if name not in weights]
    surplus = sorted(set(weights) - set(names.values()))
    if missing or surplus:
        said = [f"{kind} {_some(found)}" for kind, found in (("lacks", missing), ("has besides", surplus)) if found]
        raise UserError(
            f"the checkpoint {' and '.join(said)}, for the network that its other weights show: give it whole"
        )
    others = [f"{name} {array.dtype}" for name, array in weights.items() if array.dtype.kind not in "fiub"]
    if others:
        raise UserError(f"the checkpoint's {_some(others)} are no real numbers: give it as it was published")
    wrong: list[str] = []

    def place(path: str, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name = names[path]
        array = in_our_layout(weights[name], shape.shape, name)
        if array.shape != shape.shape:
            wrong.append(f"{name} {weights[name].shape}")
        return np.asarray(array, np.float32)

    params = jax.tree.map(place, paths, shapes)
    if wrong:
        raise UserError(
            f"the checkpoint's {_some(wrong)} are of other shapes than the network that its other weights show: give "
            "it as it was published"
        )
    return params


def in_our_layout(array: np.ndarray, shape: Sequence[int], name: str) -> np.ndarray:
    """Return a weight of PyTorch in our layout.

    Convolutions (out, in, h, w) become (h, w, in, out), dense layers (out, in) become (in, out); a .W is (in, out)
    already.
    """
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
        # A 1x1 convolution is a dense layer here.
        return array[0, 0] if len(shape) == 2 and array.shape[:2] == (1, 1) else array
    return array.T if array.ndim == 2 and not name.endswith(".W") else array


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more


def write_run(imported: Imported, out: str | Path) -> Path:
    """Write the run directory `out`, as training leaves one. Raises UserError where it has checkpoints already."""
    target = RunDirectory(out)
    corrector = {"snr": VP_SNR} if imported.sde["name"] in ("vp", "subvp") else {}
    config = check_config(
        {
            "sde": imported.sde,
            "model": {**MODEL, **imported.model},
            "data": {**DATA, **imported.data},
            "train": {**TRAINING, "steps": max(imported.step, 1), "ema": imported.ema_decay},
            "sample": {**SAMPLING, **corrector, **imported.sample},
        }
    )
    check_names(config)
    state = {
        "params": imported.params,
        "ema": imported.ema,
        "opt_state": _optimizer_state(config, imported),
        "step": imported.step,
    }
    with target.lock():
        check_new(target)
        target.checkpoints.clean()
        target.checkpoints.save(state, empty_window())
        target.write_config(config, DataShape(imported.shape, 256, 0))
    return target.path


def check_new(target: RunDirectory) -> None:
    """Raise UserError for a run directory that has checkpoints."""
    if target.checkpoints.steps():
        raise UserError(f"{target.path} has checkpoints already: give another RUN")


def _optimizer_state(config: Any, imported: Imported) -> Any:
    state = build_optimizer(config).init(imported.params)
    if imported.moments is None:
        return state
    mu, nu = imported.moments
    return optax.tree_utils.tree_set(state, mu=mu, nu=nu, count=np.int32(imported.step))
