"""A whole config: checked against the schema, compared with another, written to config.json and read from it.

A misspelt or impossible value fails before all else.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict, config_dict

from experiment.common.errors import UserError, one_line, quoted
from experiment.config.schema import KEYS, OWN_KEYS, SECTIONS, Schema, key
from experiment.config.values import check_key, check_value, kind_of

MOST_BYTES = 2**24  # of a config.json
OLDER = "model.class_conditional"
BESIDE = {"provenance": dict, "earlier_provenance": list, "reconstructed": dict}  # what readers take for these


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested config as {"train.lr": 1e-3, ...}."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        inside = isinstance(value, (Mapping, ConfigDict, FrozenConfigDict)) and (value or name in SECTIONS)
        found |= flatten(value, f"{prefix}{name}.") if inside else {f"{prefix}{name}": value}
    return found


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"train.lr": 1e-3, ...} as a nested config."""
    found: dict[str, Any] = {}
    for name, value in flat.items():
        section, _, last = name.rpartition(".")
        (found.setdefault(section, {}) if section else found)[last] = value
    return found


def adopt(module: Any) -> str:
    """Import a module of the user's, whose constructors' arguments become keys: None unless they are given.

    Returns the file's absolute path. Raises UserError where there is no such file, or where it raises.
    """
    from experiment.build.own_module import load  # imports jax, which a config without one does not need

    path, arguments = load(check_value("module", module))
    for name, kind in arguments.items():
        if name not in KEYS:
            meaning = f"of {path}: None for its own default"
            KEYS[name] = (kind | None, key(None, meaning))
            OWN_KEYS.add(name)
    return path


def adopt_of_run(workdir: str | Path) -> None:
    """Import the module of the run that lies in workdir, if there is one. What else is wrong there is told later."""
    from experiment.common.files import read_regular  # imports NumPy, which --help does not need

    try:
        module = json.loads(read_regular(Path(workdir).expanduser() / "config.json", MOST_BYTES)).get("module")
    except (OSError, ValueError, RuntimeError, AttributeError, RecursionError):
        return
    if isinstance(module, str) and module:
        adopt(module)


def check_config(config: Any) -> Any:
    """Return the whole config that a given one stands for: its values, each in its type, over the defaults; locked.

    Raises UserError that names the key: unknown (with the nearest valid one), or of a wrong type or range.
    """
    given = flatten(config)
    if given.get("module"):
        given["module"] = adopt(given["module"])
    if given.get(OLDER, 0) is None:  # of a whole config, where it is open
        del given[OLDER]
    for name in given:
        check_key(name)
    values = nested(
        {
            name: check_value(name, given.get(name, field.default))
            for name, (_, field) in KEYS.items()
            if name not in OWN_KEYS or given.get(name) is not None
        }
    )
    _settle_condition(values, given.get(OLDER))
    _settle_objective(values["train"])
    for low, high in (("beta_min", "beta_max"), ("sigma_min", "sigma_max")):
        below, above = values["sde"][low], values["sde"][high]
        if below >= above:
            raise UserError(f"config.sde.{low} is {below:g}: it must be below config.sde.{high}, {above:g}")
    return ConfigDict(values).lock()


def _settle_condition(values: dict[str, Any], class_conditional: bool | None) -> None:
    """Make both names of a class-conditional network agree. Raises UserError where they contradict each other.

    class_conditional: the older name's value; None where it is not given.
    """
    model, dropout = values["model"], values["train"]["cond_dropout"]
    if class_conditional and model["condition"] == "none":
        model["condition"] = "label"
    if class_conditional is not None and class_conditional != (model["condition"] == "label"):
        raise UserError(
            f"config.model.class_conditional is {str(class_conditional).lower()}, and config.model.condition is"
            f" {model['condition']}: leave the former out, which is its older name"
        )
    model["class_conditional"] = model["condition"] == "label"
    if dropout and model["condition"] == "none":
        raise UserError(
            f"config.train.cond_dropout is {dropout:g}, and the network is told nothing that could be left out: set"
            " config.model.condition, or leave it out"
        )


def _settle_objective(train: dict[str, Any]) -> None:
    """Fill in the loss of a flow map's jumps. Raises UserError for what is of a flow map, where none is learned."""
    if train["objective"] == "flow_map":
        train["flow_map_loss"] = train["flow_map_loss"] or "lagrangian"
        if train["teacher"] and train["start"]:
            raise UserError(
                "config.train.start is set beside config.train.teacher, from which training starts: leave it out"
            )
        return
    for name in ("teacher", "flow_map_loss"):
        if train[name]:
            raise UserError(
                f"config.train.{name} is {quoted(train[name])}, and the score is learned, not a flow map: add"
                " config.train.objective=flow_map, or leave it out"
            )


def filled(config: Any, values: Mapping[str, Any]) -> Any:
    """The checked config with these values, by dotted name, where it has None."""
    found = ConfigDict(config.to_dict())
    for name, value in values.items():
        section, _, last = name.rpartition(".")
        if found[section][last] is None:
            found[section][last] = value
    return check_config(found)


def whole_config(config: Any) -> Any:
    """Return the whole, checked config with every value open to be set."""
    checked = check_config(config).to_dict()
    checked["model"]["class_conditional"] = config_dict.placeholder(bool)  # it follows the condition
    for name, (hint, _) in KEYS.items():
        section, _, last = name.rpartition(".")
        if section and checked[section].get(last, 0) is None:
            kind, many, _ = kind_of(hint)
            checked[section][last] = config_dict.placeholder(tuple if many else kind)
    return ConfigDict(checked)


def set_keys(config: Any) -> dict[str, Any]:
    """Return {key: value} of what differs from the defaults."""
    return {name: value for name, value in flatten(config).items() if value != KEYS[name][1].default}


def differences(old: Any, new: Any, free: tuple[str, ...] = ()) -> list[str]:
    """List the keys that differ, as ["train.lr 0.001 -> 0.002", ...], but for the `free` ones.

    "eval." frees a whole section.
    """
    before, after = flatten(old), flatten(new)
    return [
        f"{name} {before.get(name)!r} -> {after.get(name)!r}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
        and not any(name == f or (f.endswith(".") and name.startswith(f)) for f in free)
    ]


def save_config(path: Path, config: Any, **beside: Any) -> None:
    """Write config.json atomically: the config's sections, and beside them what else is to be remembered of the run."""
    from experiment.common.files import write_json  # imports NumPy, which --help does not need

    write_json(path, {**config.to_dict(), **beside})


def load_config(path: Path, remedy: str = "restore it, or train into another --workdir") -> tuple[Any, dict[str, Any]]:
    """Read config.json, or another file of its form. Raises UserError where it cannot be read as a config.

    Beside the config's sections, what training writes there itself is told by its data_shape or provenance; a file
    without them holds a config alone.

    Returns:
        The checked config, and what was saved beside it.
    """
    from experiment.common.files import read_regular  # imports NumPy, which --help does not need

    try:
        content = dict(json.loads(read_regular(path, MOST_BYTES)))
        ours = [field.name for field in dataclasses.fields(Schema)]
        sections = {name: content.pop(name) for name in ours if name in content}
        for name, kind in BESIDE.items():
            if not isinstance(content.get(name), kind | None):
                raise TypeError(f"its {name} is {quoted(content[name])}")
        if not {"data_shape", "provenance"} & content.keys():
            sections, content = {**sections, **content}, {}
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, OverflowError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): {remedy}") from None
    try:
        return check_config(sections), content
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is damaged (its sections are nested without end): {remedy}") from None
