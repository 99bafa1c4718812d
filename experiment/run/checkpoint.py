"""Checkpoints of the training state: orbax writes the arrays, and a digest of every file shows later damage.

`<directory>/<step>/` holds one orbax item for each of the state's entries that are not empty, `meta` with the step and
the sums of the log's open window, and sha256.json. A checkpoint is written under another name and renamed when whole,
and renamed again before it is removed, so every folder whose name is a number is complete.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiment.common.errors import UserError, one_line, shown
from experiment.common.files import open_regular, read_regular
from experiment.devices.hosts import from_first, gathered

ITEMS = ("params", "ema", "power_ema", "opt_state", "learned")
DIGESTS = "sha256.json"
_STEP = re.compile("0|[1-9][0-9]{0,17}")  # a folder's name as `save` writes it
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")
MOST_DIGESTS = 2**26
_UNFINISHED, _REMOVED, _DAMAGED = ".unfinished", ".removed", ".damaged"


class Damaged(Exception):
    """A checkpoint that is not as it was written."""


def _digest(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_digests(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): _digest(path) for path in files}
    (folder / DIGESTS).write_text(json.dumps(found, indent=1))


def _fault(folder: Path, items: tuple[str, ...]) -> str:
    """Find a missing or changed file among these items and those of the checkpoint as a whole.

    Returns a description of the fault, or "" where all files are as written.
    """
    try:
        digests = json.loads(read_regular(folder / DIGESTS, MOST_DIGESTS))
        for name, digest in digests.items():
            if ("/" not in name or name.partition("/")[0] in items) and _digest(folder / name) != digest:
                return f"{shown(name)} has changed"
        # A byte that changes in a name here would otherwise leave its file unchecked.
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {DIGESTS}
        return "" if "meta/metadata" in digests and not there - digests.keys() else f"{DIGESTS} is not whole"
    except FileNotFoundError as error:
        return f"{shown(os.path.relpath(error.filename, folder))} is missing"
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        return f"{DIGESTS} or what it names cannot be read ({one_line(error)})"


def _flat(tree: Any) -> dict[str, Any]:
    """The tree's leaves by name, independent of the classes of its nodes."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _unflat(flat: dict[str, Any], like: Any) -> Any:
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in _flat(like)])


class Checkpoints:
    """The checkpoints of one run. One process writes (it holds the run's lock); any number may read.

    With several hosts, each writes its own part, and the first one decides which checkpoints there are, which are whole
    and which are removed; every host must call every method.

    Args:
        directory: the folder that holds them.
        keep: how many of the newest to keep.
    """

    def __init__(self, directory: Path, keep: int = 1):
        self.directory, self.keep = directory.absolute(), keep
        self._orbax = ocp.Checkpointer(ocp.CompositeCheckpointHandler())

    def steps(self) -> list[int]:
        """The steps at which there is a checkpoint, ascending."""
        if not self.directory.is_dir():
            return []
        folders = [path for path in self.directory.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()]
        return sorted(int(path.name) for path in folders)

    def save(self, state: Any, window: dict[str, float]) -> None:
        """Write the whole state, then remove the oldest checkpoints beyond `keep`.

        A step that is there already stays as it is. Raises UserError where the folder cannot be written.
        """
        step = int(state["step"])
        path = self.directory / str(step)
        if from_first(path.is_dir):
            return
        unfinished = path.with_name(path.name + _UNFINISHED)
        items = {name: ocp.args.StandardSave(_flat(state[name])) for name in ITEMS if _flat(state.get(name, {}))}
        meta = ocp.args.JsonSave({"step": step, "window": window})
        try:
            self._check_room([array for name in items for array in _flat(state[name]).values()])
            self._orbax.save(unfinished, ocp.args.Composite(meta=meta, **items))
        except (OSError, ValueError) as error:
            code = _OS_ERROR.search(str(error))  # the form in which tensorstore passes it on
            if isinstance(error, ValueError) and not code:
                raise
            reason = os.strerror(int(code[1])) if code else one_line(getattr(error, "strerror", None) or error)
            raise UserError(
                f"cannot write the checkpoint of step {step} into {self.directory} ({reason}): "
                "make room, and run the same command again"
            ) from None
        if jax.process_index() == 0:
            _write_digests(unfinished)
            unfinished.rename(path)
            for old in self.steps()[: -self.keep]:
                self._remove(self.directory / str(old))

    def _check_room(self, arrays: list[Any]) -> None:
        """Raise OSError where the disk has no room for these: orbax would tell of it in hundreds of lines."""
        self.directory.mkdir(parents=True, exist_ok=True)
        needed = sum(array.nbytes for array in arrays)
        if needed > shutil.disk_usage(self.directory).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def clean(self) -> None:
        """Remove the remains of an interrupted save or removal. Only for the process that writes.

        Raises UserError where something else lies in the folder's place.
        """
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(f"{self.directory} is a file, where checkpoints go: move it away")
        if jax.process_index() == 0 and self.directory.is_dir():
            for path in self.directory.iterdir():
                if _UNFINISHED in path.name or path.name.endswith(_REMOVED):  # orbax's own name holds the first too
                    shutil.rmtree(path, ignore_errors=True)

    def _remove(self, path: Path) -> None:
        # Renamed first: a removal that is cut short must not leave a checkpoint with holes.
        shutil.rmtree(path.rename(path.with_name(path.name + _REMOVED)), ignore_errors=True)

    def restore(self, like: Any, say: Callable[[str], None], repair: bool = False) -> tuple[Any, dict[str, Any]] | None:
        """Read the newest checkpoint that is whole.

        Args:
            like: the state wanted, as shapes with dtypes and shardings; leave out the items that are not needed.
            say: called with one line for each damaged checkpoint that was passed over.
            repair: set the damaged ones aside under another name, so that training can write these steps again.

        Returns:
            state: the wanted items, and the step where it is wanted.
            meta: the step, and the sums of the log's open window.

        None when there is no checkpoint at all. Raises UserError when there are checkpoints and none can be read.
        """
        damaged: list[tuple[int, str]] = []
        steps = from_first(self.steps)
        for step in reversed(steps):
            try:
                state, meta = self.read(step, like)
            except Damaged as error:
                damaged.append((step, str(error)))
                continue
            for bad, reason in damaged:
                self._pass_over(bad, reason, step, say, repair)
            return state, meta
        if from_first(self.steps) != steps:  # training went on while this process read
            return self.restore(like, say, repair)
        if damaged:
            raise UserError(
                f"no checkpoint in {self.directory} can be read (step {damaged[0][0]}: {damaged[0][1]}):"
                " restore one from a copy, or train into another --workdir"
            )
        return None

    def _pass_over(self, bad: int, reason: str, step: int, say: Callable[[str], None], repair: bool) -> None:
        path = self.directory / str(bad)
        if repair and jax.process_index() == 0:
            aside = path.with_name(f"{bad}{_DAMAGED}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        say(f"the checkpoint of step {bad} is damaged ({reason}); using that of step {step}")

    def read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Read the checkpoint of one step, as `restore` does. Raises Damaged where it is not as it was written."""
        path = self.directory / str(step)
        wanted = {name: _flat(like[name]) for name in ITEMS if _flat(like.get(name, {}))}
        fault = from_first(lambda: _fault(path, ("meta", *wanted)))
        if fault:
            raise Damaged(fault)
        items = {name: ocp.args.StandardRestore(flat) for name, flat in wanted.items()}
        read, fault = {}, ""
        try:
            read = self._orbax.restore(path, ocp.args.Composite(meta=ocp.args.JsonRestore(), **items))
        except Exception as error:  # whole, and yet not what `like` asks for: orbax raises many kinds
            fault = one_line(error)
        faults = [f for f in gathered(fault) if f]
        if faults:
            raise Damaged(faults[0])
        state = {
            name: _unflat(read[name], like[name]) if name in wanted else like[name] for name in ITEMS if name in like
        }
        if read["meta"]["step"] != step:
            raise Damaged(f"it is of step {read['meta']['step']}")
        if "step" in like:
            state["step"] = jax.device_put(np.int32(step), like["step"].sharding)
        return state, read["meta"]
