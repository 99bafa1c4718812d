"""One value: what its key takes, in words; the check of its type and its range; reading it from a command line."""

import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Iterable
from typing import Any

from experiment.common.errors import UserError, quoted
from experiment.config.schema import FLOAT32, KEYS, MOST, SEEDS

ENTRIES = 100  # of a tuple


def nearest(name: str, names: Iterable[str]) -> str:
    """The closest of `names`, or "" when none is close."""
    close = difflib.get_close_matches(name[:100], list(names), n=1, cutoff=0.5)
    return close[0] if close else ""


def check_key(name: str) -> None:
    """Raises UserError, with the nearest valid key, for a dotted name that is not a key."""
    if name in KEYS:
        return
    head, _, tail = name.rpartition(".")
    siblings = [k for k in KEYS if k.startswith(head + ".")] if head else []
    namesake = [k for k in KEYS if k.rpartition(".")[2] == tail]
    guess = nearest(name, siblings) or (namesake[0] if namesake else "") or nearest(name, KEYS)
    if name in {k.partition(".")[0] for k in KEYS}:
        raise UserError(f"config.{name} is a section, not a key: set one of its keys, such as config.{guess}")
    remedy = f"did you mean config.{guess}?" if guess else f"the keys are: {', '.join(KEYS)}"
    raise UserError(f"unknown config key config.{name}: {remedy}")


def kind_of(hint: Any) -> tuple[type, bool, bool]:
    """Return the type of an entry, whether the key is a tuple of them, and whether None will do."""
    optional = isinstance(hint, types.UnionType)
    if optional:
        hint = typing.get_args(hint)[0]
    many = typing.get_origin(hint) is tuple
    return (typing.get_args(hint)[0] if many else hint), many, optional


def describe(name: str) -> str:
    """Say in words what the key takes: "an int, at least 1"."""
    hint, field = KEYS[name]
    kind, many, optional = kind_of(hint)
    article = {int: "an int", float: "a float", bool: "true or false", str: "a string"}[kind]
    words = f"a tuple, each entry {article}" if many else article
    if field.metadata["choices"]:
        words = "one of " + ", ".join(choice or '""' for choice in field.metadata["choices"])
    limits = field.metadata["ranges"].items()
    words += "".join(f", {word} {_number(limit)}" for word, limit in limits if limit is not None)
    return words + (", or None" if optional else "")


def _number(limit: float) -> str:
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"


def _entry(kind: type, value: Any) -> Any:
    """Return the value as `kind`. Raises ValueError when it is of another type; an int will do for a float.

    So will numpy's own kind of number, and a path for a string.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError
    return value


def _within(value: Any, field: dataclasses.Field[Any]) -> bool:
    if field.metadata["choices"]:
        return value in field.metadata["choices"]
    low, above, high, below = field.metadata["ranges"].values()
    return not isinstance(value, (int, float)) or (
        math.isfinite(value)
        and (low is None or value >= low)
        and (above is None or value > above)
        and (high is None or value <= high)
        and (below is None or value < below)
    )


def _check_size(name: str, value: Any) -> None:
    """Raises UserError for a number that is in its range, and that the device cannot hold."""
    ranges = KEYS[name][1].metadata["ranges"]
    if isinstance(value, int) and abs(value) > MOST and ranges["at most"] is None and ranges["below"] is None:
        raise UserError(f"config.{name} is {quoted(value)}: give a whole number of at most {MOST:,}")
    if isinstance(value, float) and value and not FLOAT32[0] <= abs(value) <= FLOAT32[1]:
        raise UserError(
            f"config.{name} is {value:g}: float32 holds sizes from {FLOAT32[0]:g} to {FLOAT32[1]:g}; give another"
        )


def check_value(name: str, value: Any) -> Any:
    """Return the value in its key's type. Raises UserError when its type or range is wrong."""
    hint, field = KEYS[name]
    kind, many, optional = kind_of(hint)
    if value is None and optional:
        return None
    if many and kind is str and isinstance(value, (tuple, list)):
        # Names in one string, as "em, ode".
        parts = (part for entry in value for part in (entry.split(",") if isinstance(entry, str) else [entry]))
        value = [part.strip() if isinstance(part, str) else part for part in parts]
    listed = isinstance(value, (tuple, list))
    try:
        if listed != many:
            raise ValueError
        entries = [_entry(kind, entry) for entry in (value if listed else [value])]
        if len(entries) > ENTRIES or not all(_within(entry, field) for entry in entries):
            raise ValueError
    except (ValueError, OverflowError):
        most = f", {ENTRIES} entries at most" if many else ""
        raise UserError(f"config.{name} is {quoted(value)}; it takes {describe(name)}{most}") from None
    for entry in entries:
        _check_size(name, entry)
    return tuple(entries) if many else entries[0]


def check_flag(flag: str, value: int | None, key: str = "", *, least: int | None = None, most: int = MOST) -> None:
    """Check a flag's whole number: against the range of the key, narrowed by least and most. None is not given.

    Raises UserError for a number out of range.
    """
    if value is None:
        return
    low, above, high, below = KEYS[key][1].metadata["ranges"].values() if key else (None,) * 4
    least = max(int(limit) for limit in (0, low, None if above is None else above + 1, least) if limit is not None)
    most = min(int(limit) for limit in (most, high, None if below is None else below - 1) if limit is not None)
    if not least <= value <= most:
        told = f"at least {least}" if value < least else f"at most {most:,}"
        raise UserError(f"--{flag} is {_short(value)}: give {told}")


def check_seed(seed: int | None, seeds: int = 1) -> None:
    """Raises UserError for a seed, the first of so many, that leaves the one range of all seeds, NumPy's."""
    if seed is None:
        return
    if not 0 <= seed < SEEDS:
        raise UserError(f"--seed is {_short(seed)}: give an integer from 0 to 2^32 - 1")
    if seed + seeds > SEEDS:
        raise UserError(f"--seed is {seed}, and the last of --seeds={seeds} is beyond 2^32 - 1: give a smaller --seed")


def _short(value: int) -> str:
    return str(value) if abs(value) < 10**20 else f"a number of about {int(value.bit_length() * 0.30103)} digits"


def read_text(name: str, text: str) -> Any:
    """Read a key's value as the command line gives it: a number, true or false, None, or a tuple as 1,2 or (1, 2).

    What its key's type does not read stays text, for `check_value` to refuse.
    """
    kind, many, optional = kind_of(KEYS[name][0])
    if optional and text.strip().lower() in ("none", "null"):
        return None
    if not many:
        return _read(kind, text)
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("()", "[]"):
        inner = inner[1:-1]
    parts = [part.strip() for part in inner.split(",")]
    return tuple(_read(kind, part) for part in (parts if parts[-1] else parts[:-1]))


def _read(kind: type, text: str) -> Any:
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), text)
    if kind is str:
        marked = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        return text[1:-1] if marked else text
    try:
        return kind(text)
    except ValueError:
        return text
