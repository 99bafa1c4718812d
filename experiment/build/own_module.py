"""A Python file of the user's own that adds to the tables of names: an SDE, a network, a sampler, a parameterisation.

    from experiment.build.objects import SDES
    SDES["ou"] = OrnsteinUhlenbeck

What the constructors of its classes take, beside what every one is given, become config keys of their section.
"""

import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiment.build.objects import GIVEN, MODELS, PARAMETERIZATIONS, SDES, parameters
from experiment.common.errors import UserError, place, quoted

TABLES: tuple[tuple[str, Mapping[str, Any]], ...] = (("sde", SDES), ("model", MODELS), ("model", PARAMETERIZATIONS))

_loaded: dict[str, dict[str, Any]] = {}


def load(name: str) -> tuple[str, dict[str, Any]]:
    """Import the file, once for each process. Its folder joins the end of sys.path, for what it imports itself.

    Returns:
        path: the file's absolute path.
        keys: {"sde.rate": float, ...}, of the constructors of the classes that it added.

    Raises UserError where there is no such file, and, with its line and the reason, where it raises.
    """
    try:
        path = Path(name).expanduser().resolve()
        there = path.suffix == ".py" and path.is_file()
    except (OSError, RuntimeError, ValueError):
        there = False
    if not there:
        raise UserError(f"config.module is {quoted(name)}: there is no such Python file; give the path of one")
    if str(path) not in _loaded:
        before = {id(table): dict(table) for _, table in TABLES}
        _execute(path)
        keys: dict[str, Any] = {}
        for section, table in TABLES:
            for key, made in table.items():
                if before[id(table)].get(key) is not made:
                    keys |= {f"{section}.{argument}": kind for argument, kind in _arguments(made).items()}
        _loaded[str(path)] = keys
    return str(path), _loaded[str(path)]


def _execute(path: Path) -> None:
    spec = importlib.util.spec_from_file_location(f"own_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's code raises, sys.exit too
        del sys.modules[spec.name]
        raise UserError(f"config.module {place(str(path), error)}: mend it") from None


def _arguments(made: Callable[..., Any]) -> dict[str, Any]:
    """The constructor's arguments that a config may set, each with its type: bool, int, float, str or a tuple."""
    if not inspect.isclass(made):
        return {}
    signature = inspect.signature(made.__init__)
    try:
        hints = typing.get_type_hints(made.__init__)
    except Exception:  # an annotation that means nothing at run time
        hints = {}
    names = [name for name in parameters(made)[1:] if name not in GIVEN and signature.parameters[name].kind in _NAMED]
    found = {name: _kind(hints.get(name), signature.parameters[name].default) for name in names}
    return {name: kind for name, kind in found.items() if kind is not None}


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_SIMPLE = (bool, int, float, str)


def _kind(hint: Any, default: Any) -> Any:
    """The key's type, by the annotation, else by the default; None for what a config cannot hold."""
    for kind in (hint, *typing.get_args(hint), type(default)):
        if kind in _SIMPLE:
            return kind
        if typing.get_origin(kind) is tuple and typing.get_args(kind)[0] in _SIMPLE:
            return tuple[typing.get_args(kind)[0], ...]  # type: ignore[misc]
    if isinstance(default, tuple) and default and type(default[0]) in _SIMPLE:
        return tuple[type(default[0]), ...]  # type: ignore[misc]
    return None
