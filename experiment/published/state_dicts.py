"""The state dicts in a checkpoint: where it keeps a network's weights and their average, whatever it calls them.

Compilers and wrappers put their names before or between those of modules, and training codes keep averages under many
names: as a list in the network's order, or by name, as plain state dicts or within a wrapper's.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from experiment.common.errors import UserError, shown

# Put there by torch.compile, DataParallel and its kind, Fabric, FSDP and checkpointing; no network has such modules.
WRAPPERS = ("_orig_mod", "module", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_WRAPPER = re.compile(rf"(?<![^./])(?:{'|'.join(WRAPPERS)})\.")
_AVERAGE = re.compile(r"(?<![a-z])(?:ema|average|averaged|shadow|swa)(?![a-z])", re.IGNORECASE)
_NOT = re.compile(r"(?<![a-z])(?:online|raw)(?![a-z])", re.IGNORECASE)  # the network itself, beside its average
COUNTER = "n_averaged"  # of PyTorch's own AveragedModel, no weight
DEEPEST, MOST = 4, 10**6  # of dicts in dicts, and of their entries

StateDict = dict[str, np.ndarray]


def unwrapped(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Take the names of wrappers out of the weights' names, wherever they stand.

    Raises UserError where two weights then have one name.
    """
    found: dict[str, Any] = {}
    for name, array in arrays.items():
        plain = _WRAPPER.sub("", name)
        if plain in found and found[plain] is not array:
            raise UserError(f"the checkpoint has {shown(plain)} twice, with and without a wrapper's name: give one")
        found[plain] = array
    return found


def networks(content: Any, mark: str) -> dict[str, StateDict]:
    """Find the state dicts of networks that have a weight of the name `mark`..., by where they are: "model", say.

    Content itself is "". A name may have more before the mark, which then belongs to the place: "ema_model." and
    "online_model." in one dict are two networks. Other arrays in a dict belong to its network if it has a single one
    with nothing before the mark.
    """
    found: dict[str, StateDict] = {}
    for place, mapping in _dicts(content, (), [MOST]):
        arrays = {name: value for name, value in mapping.items() if isinstance(name, str) and _is_array(value)}
        arrays = unwrapped(arrays)
        starts = {name[: name.index(mark)] for name in arrays if mark in name}
        starts = {start for start in starts if not start or start[-1] in "./"}
        for start in starts:
            own = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
            if not start:
                others = tuple(other for other in starts if other)
                own = {name: array for name, array in own.items() if not (others and name.startswith(others))}
            own.pop(COUNTER, None)
            where = ".".join(filter(None, (*place, start.strip("./"))))
            if where in found:
                raise UserError(f"the checkpoint has two networks at {shown(where) or 'its top'}: give one of them")
            found[where] = own
    return found


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _dicts(
    content: Any, place: tuple[str, ...], left: list[int]
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yield the dicts in dicts, each with the keys that lead to it, wrappers' names left out."""
    if not isinstance(content, Mapping) or len(place) > DEEPEST:
        return
    left[0] -= len(content)
    if left[0] < 0:
        raise UserError(f"the checkpoint has dicts in dicts of over {MOST} entries: give the network's weights alone")
    yield tuple(key for key in place if key not in WRAPPERS), content
    for key, value in content.items():
        if isinstance(key, str):
            yield from _dicts(value, (*place, key), left)


def is_average(place: str) -> bool:
    """Tell by the place's last telling part whether it holds an average: "ema.state_dict" does, "ema.online" not."""
    for part in reversed(place.split(".")):
        if _AVERAGE.search(part):
            return True
        if _NOT.search(part):
            return False
    return False


def averages_in_order(content: Any) -> dict[str, Mapping[str, Any]]:
    """Find averages that are lists in the network's order (shadow_params), by where they are."""
    return {
        ".".join(place): mapping
        for place, mapping in _dicts(content, (), [MOST])
        if isinstance(mapping.get("shadow_params"), list | tuple)
    }
