"""Results that lie where new ones are to be written: kept, where they are of other settings."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from experiment.common.files import set_aside

_NAMED = {"n": "n", "seeds": "seeds", "seed": "seed", "steps": "steps", "checkpoint_step": "step", "step": "step"}


def keep_earlier(
    folder: Path,
    file: str,
    document: Any,
    identity: Callable[[Any], Any],
    beside: Callable[[Any], Iterable[str]],
    told: str = "",
) -> list[str]:
    """Move the folder's result, the JSON `file` and the files beside it, where the new document is not of its settings.

    identity(document) is what two results of the same settings share; beside(document) are the names of a result's
    other files. told: the one that the line names; default the JSON file.

    Returns:
        A line that says where the earlier result is now; none where nothing was moved. The same settings write over it.

    Raises UserError where it cannot be moved.
    """
    path = folder / file
    if not path.is_file():
        return []
    try:
        earlier = json.loads(path.read_text())
        if identity(earlier) == identity(document):
            return []
        names = [file, *beside(earlier)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # damaged, or an older layout
        earlier, names = {}, [file, *beside(document)]
    target = set_aside(folder, names, _name(earlier))
    told = told or file
    return [f"{folder / told} was of other settings: it is kept as {target / told}"]


def _name(document: Mapping[str, Any]) -> str:
    known = {**document.get("protocol", {}), **document}
    return "_".join(f"{word}{known[key]}" for key, word in _NAMED.items() if type(known.get(key)) is int) or "earlier"
