"""The keys of a config that nothing takes: they were set for another class than the chosen one."""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from experiment.build.objective import Objective
from experiment.build.objects import MODELS, build_parameterization, build_sde, parameters
from experiment.common.errors import UserError
from experiment.config import set_keys

# Keys that some classes take and others do not, each with the key that chooses the class; beside them, those of the
# sections model and sde, which their names choose.
_CHOSEN_BY = {
    "model.sigma_data": "model.parameterization",
    "model.scale_by_sigma": "model.parameterization",
    "model.text_length": "model.condition",
    "train.min_snr_gamma": "train.weighting",
    "train.time_mean": "train.times",
    "train.time_std": "train.times",
    "train.snapshot_every": "train.power_ema",
    "data.name": "data.path",
}


def chosen_by(name: str) -> str:
    """The key by whose choice a class takes the key `name`; "" for one that is of no class."""
    section = name.partition(".")[0]
    return _CHOSEN_BY.get(name, f"{section}.name" if section in ("model", "sde") else "")


def unused_keys(config: Any, given: Iterable[str] = ()) -> list[str]:
    """List the keys that are set, so not at their defaults, and that the chosen classes do not take.

    Raises UserError where one of them is in `given`, the keys of the command line.
    """
    read = _Reads(config)
    build_sde(read)
    build_parameterization(read)
    Objective.of(read)
    network = {f"model.{name}" for name in (*parameters(MODELS[config.model.name]), *_OF_EVERY_NETWORK)}
    others = {
        "train.snapshot_every": bool(config.train.power_ema),
        "model.text_length": config.model.condition == "text",
    }
    taken = network | read.names | {name for name, is_taken in others.items() if is_taken}
    unused = [name for name in set_keys(config) if chosen_by(name) and name not in {*taken, "data.name"}]
    for name in unused:
        if name in given:
            raise UserError(f"config.{name} is set, and {_choice(config, name)} does not take it: leave it out")
    # Told and not refused: the name may be a habit, as of a script.
    return [*unused, "data.name"] if "data.name" in given and config.data.name and config.data.path else unused


def check_data_keys(dataset: Any, given: Iterable[str]) -> None:
    """Raises UserError for a key of the command line that is of images, where the data are none."""
    of_levels = () if dataset.levels is not None else ("data.dequantize", "data.centered")
    for name in of_levels:
        if name in given:
            raise UserError(f"config.{name} is set, and {dataset.name} has no grey levels: leave it out")


def unused_line(config: Any, unused: Iterable[str]) -> str:
    """The line that tells the user of keys that a config file sets in vain."""
    return "set and not used: " + ", ".join(f"config.{name} (not of {_choice(config, name)})" for name in unused)


_OF_EVERY_NETWORK = ("name", "condition", "class_conditional", "dtype")


def _choice(config: Any, name: str) -> str:
    """The choice by which the key is not taken, such as "config.model.name=unet"."""
    section, _, key = chosen_by(name).partition(".")
    return f"config.{section}.{key}={config[section][key]}"


class _Reads:
    """A config that remembers, by dotted name, which of its values were read."""

    def __init__(self, config: Any, prefix: str = "", names: set[str] | None = None):
        self._config, self._prefix = config, prefix
        self.names: set[str] = set() if names is None else names

    def __getitem__(self, name: str) -> Any:
        value = self._config[name]
        if isinstance(value, ConfigDict):
            return _Reads(value, f"{self._prefix}{name}.", self.names)
        self.names.add(self._prefix + name)
        return value

    __getattr__ = __getitem__

    def __contains__(self, name: str) -> bool:
        return name in self._config
