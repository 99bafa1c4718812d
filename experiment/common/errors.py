"""The error that a user's mistake raises, and how a name, or any error's text, stands in a message."""

import reprlib
import traceback
from collections.abc import Mapping
from typing import Any

LONGEST = 2000  # characters of a message, which may quote its input

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 3, 80, 80


class UserError(Exception):
    """A mistake that the user can mend. Its text is one line: what is wrong, and the remedy.

    The commands print it on stderr and exit with status 2, without a traceback. `listing` goes to stdout before it: the
    names to choose from, one line each. The text is escaped and cut as `shown` does, for it quotes names from files.
    """

    def __init__(self, text: str, listing: str = ""):
        super().__init__(shown(" ".join(text.split()), LONGEST))
        self.listing = listing


def choose(table: Mapping[str, Any], name: str, what: str, listing: str = "") -> Any:
    """Look up table[name]. Raises UserError with every name of the table."""
    if name not in table:
        raise UserError(f"{what} is {quoted(name)}; it must be one of: {', '.join(table)}", listing)
    return table[name]


def shown(name: object, limit: int = 200) -> str:
    """The name of a file, key or class as a message shows it: on one line, of at most `limit` characters.

    What a terminal would obey, and bytes that are no text, are escaped as Python writes them; of what is too long the
    middle is left out. Anything but text is shown as `quoted` does.
    """
    text = name if isinstance(name, str) else quoted(name)
    if len(text) > limit:
        text = f"{text[: limit // 2]} ... {text[5 - limit // 2 :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def quoted(value: object) -> str:
    """The value as Python writes it, text in quotes, on one line and of bounded size, however deeply it is nested."""
    try:
        return shown(_REPR.repr(value))
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__


def one_line(error: object, limit: int = 200) -> str:
    """The error's text on one line, at most `limit` characters of it; its class where it has none."""
    return shown(" ".join(str(error)[: 8 * limit].split())[:limit], limit) or type(error).__name__


def place(name: str, error: BaseException) -> str:
    """Say where a Python file of the user's failed, and why: "mine.py, line 3: NameError: name 'x' is not defined"."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
    reason = one_line(error)
    if isinstance(error, SyntaxError) and error.filename == name:
        lines, reason = [error.lineno], error.msg
    at = f", line {lines[-1]}" if lines and lines[-1] else ""
    return f"{name}{at}: {type(error).__name__}: {reason}"
