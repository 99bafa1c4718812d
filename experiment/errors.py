"""What a user's mistake raises."""

from collections.abc import Mapping
from typing import Any


class UserError(Exception):
    """A mistake that the user can mend. Its text is one line: what is wrong, and the remedy.

    The commands print it on stderr and exit with status 2, without a traceback. `listing`, what there is to choose from
    with a line each, goes to stdout before it.
    """

    def __init__(self, text: str, listing: str = ""):
        super().__init__(text)
        self.listing = listing


def choose(table: Mapping[str, Any], name: str, what: str, listing: str = "") -> Any:
    """table[name]. Raises UserError with every name of the table."""
    if name not in table:
        raise UserError(f"{what} is {name!r}; it must be one of: {', '.join(table)}", listing)
    return table[name]
