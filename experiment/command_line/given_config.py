"""The config that a command is given: a file's values, under those of --config.section.key=value."""

import os
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiment.common.errors import UserError, place, quoted, shown
from experiment.config import KEYS, adopt, check_config, check_key, flatten, load_config, nested, read_text


class Given(NamedTuple):
    """What the command line says of the config, each value as text, and the arguments that are left."""

    file: str
    overrides: dict[str, str]
    rest: list[str]


def split_arguments(arguments: list[str], file: str) -> Given:
    """Take --config=FILE, by default `file`, and --config.section.key=value out of the arguments.

    A key of true or false may stand alone: --config.data.flip is true, --noconfig.data.flip false. Raises UserError
    for another one without its value.
    """
    overrides: dict[str, str] = {}
    rest: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        name, equals, value = argument.lstrip("-").partition("=")
        key = name.removeprefix("no").removeprefix("config.")
        if not argument.startswith("-") or (name != "config" and key in (name, name.removeprefix("no"))):
            rest.append(argument)
        elif name.startswith("no"):
            overrides[key] = "false"
        elif not equals and key in KEYS and KEYS[key][0] is bool:
            overrides[key] = "true"
        else:
            if not equals:
                if not left or left[0].startswith("--"):
                    raise UserError(f"--{shown(name)} has no value: write --{shown(name)}=VALUE")
                value = left.pop(0)
            if name == "config":
                file = value
            else:
                overrides[key] = value
    return Given(file, overrides, rest)


def whole_config(given: Given) -> Any:
    """Return the whole, checked config: the file's values, then the overrides.

    Raises UserError for a file that gives no config, an unknown key, and a value that its key does not take.
    """
    return overridden(flatten(read_config_file(given.file)), given.overrides)


def overridden(values: Mapping[str, Any], overrides: Mapping[str, str]) -> Any:
    """Return the whole, checked config of flat values, under overrides as the command line gives them.

    Raises UserError for an unknown key, and a value that its key does not take.
    """
    module = overrides.get("module", values.get("module"))
    if module:
        adopt(module)  # it may bring keys
    for name in overrides:
        check_key(name)
    read = {name: read_text(name, text) for name, text in overrides.items()}
    # Its older name may be in the file.
    kept = {k: v for k, v in values.items() if not (k == "model.class_conditional" and "model.condition" in read)}
    return check_config(nested({**kept, **read}))


def read_config_file(name: str) -> Any:
    """Read the values that a config file gives: by its get_config(), or in a .json such as a run's config.json.

    Raises UserError, with the file, its line and the reason, where it gives none.
    """
    path = Path(name)
    if not path.is_file():
        raise UserError(_no_file(name))
    if path.suffix == ".json":
        return load_config(path, "mend it, or give another --config")[0]
    try:
        get_config = runpy.run_path(name).get("get_config")
        config = get_config() if callable(get_config) else None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's code raises, sys.exit too
        raise UserError(f"config file {place(name, error)}: mend it, or give another --config") from None
    if not callable(get_config):
        raise UserError(f"config file {name} has no get_config(): write one, as configs/digits.py does")
    if not isinstance(config, Mapping | ConfigDict):
        raise UserError(f"get_config() of {name} returns {type(config).__name__}: give a ConfigDict of what differs")
    return config


def _no_file(name: str) -> str:
    path = Path(name)
    if path.is_dir():
        return f"config file {shown(name)} is a folder: give a file in it, such as a run's config.json"
    if path.exists():
        return f"config file {shown(name)} is no ordinary file: give one with get_config(), or a .json"
    there = sorted(Path(__file__).parents[2].glob("configs/[!_]*.py"))
    names = ", ".join(os.path.relpath(path) for path in there if path.name != "base.py")
    return f"config file {quoted(name)} does not exist; there are {names}"
