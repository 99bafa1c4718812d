"""The help of a command: what it does, its flags, and for one with a config every key of it."""

import textwrap
from typing import Any

from absl import flags

from experiment.config import KEYS, SECTIONS, describe

WIDTH, INDENT = 100, 6

_EVERY = {
    "help": "This text; -h too.",
}
_OF_CONFIG = {
    "config=FILE": "A file with get_config(), such as configs/digits.py, or a .json, such as a run's config.json.",
    "config.KEY=VALUE": "Set a key, over what the file says. All keys are listed below.",
    "print_config": "Print the config that the file and the keys give together, as JSON, and stop.",
}


def help_text(about: str, own: list[flags.Flag], config: str = "") -> str:
    """Return the text of --help.

    Args:
        about: the command's docstring.
        own: the command's own flags.
        config: the default file of --config; "" for a command that has no config.
    """
    told = {f"{flag.name}{_taken(flag)}": _meaning(flag) for flag in own}
    of_config = {
        name: f"{text} Default: {config}." if name == "config=FILE" else text for name, text in _OF_CONFIG.items()
    }
    entries = [_entry(f"--{name}", text) for name, text in {**(of_config if config else {}), **told, **_EVERY}.items()]
    parts = [about.strip(), "Flags:", "\n".join(entries)]
    return "\n\n".join([*parts, *(_keys() if config else [])])


def _taken(flag: flags.Flag) -> str:
    """What follows the flag's name: "=INT"."""
    kind = flag.parser.syntactic_help.split(" ")[-1] if flag.parser else ""
    if flag.boolean:
        return ""
    return {"integer": "=INT", "number": "=NUMBER", "list": "=A,B,.."}.get(kind, "=TEXT")


def _meaning(flag: flags.Flag) -> str:
    if flag.default in (None, "", [], False) or "Default:" in flag.help:
        return flag.help
    return f"{flag.help} Default: {flag.default}."


def _entry(name: str, text: str) -> str:
    pad = " " * INDENT
    return f"  {name}\n{textwrap.fill(text, WIDTH, initial_indent=pad, subsequent_indent=pad)}"


def _keys() -> list[str]:
    """A part for the config's keys of each section, with their defaults, ranges and meanings."""
    head = "Keys of the config, each set by --config.KEY=VALUE, with their defaults:"
    sections = {"": [name for name in KEYS if "." not in name]}
    sections |= {section: [name for name in KEYS if name.startswith(f"{section}.")] for section in SECTIONS}
    return [head, *("\n".join(map(_key, names)) for names in sections.values())]


def _key(name: str) -> str:
    field: Any = KEYS[name][1]
    return _entry(f"{name}={as_text(field.default)}", f"{field.metadata['meaning']} ({describe(name)})")


def as_text(value: Any) -> str:
    """The value as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(as_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
