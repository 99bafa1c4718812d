"""The error that a user's mistake raises, and any error's text as one line."""

from collections.abc import Mapping
from typing import Any


class UserError(Exception):
    """A mistake that the user can mend. Its text is one line: what is wrong, and the remedy.

    The commands print it on stderr and exit with status 2, without a traceback. `listing` goes to stdout before it: the
    names to choose from, one line each.
    """

    def __init__(self, text: str, listing: str = ""):
        super().__init__(text)
        self.listing = listing


def choose(table: Mapping[str, Any], name: str, what: str, listing: str = "") -> Any:
    """Look up table[name]. Raises UserError with every name of the table."""
    if name not in table:
        raise UserError(f"{what} is {name!r}; it must be one of: {', '.join(table)}", listing)
    return table[name]


def one_line(error: object, limit: int = 200) -> str:
    """The error's text on one line, at most `limit` characters of it; its class where it has none."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
