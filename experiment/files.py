"""Small file operations that leave either the old content or the new one, whatever stops the process."""

import io
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiment.errors import UserError


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the file's content, by way of a file beside it that is flushed to disk, then renamed over it.

    Folders above it are made. Raises UserError where the file cannot be written.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): choose another folder, or make room") from None


def write_text(path: Path, text: str) -> None:
    """Replace the file's content by the text, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, document: Any) -> None:
    """Replace the file's content by the document, indented. Raises ValueError for numbers that are not finite."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Replace the file's content by an .npz that holds the arrays by name."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the keywords for its own
    write_bytes(path, buffer.getvalue())


def cache_folder(given: str = "") -> Path:
    """The folder where prepared data and compiled programs are kept.

    That is `given`, or noise_compass under $XDG_CACHE_HOME, which is ~/.cache where it is not set.
    """
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "noise_compass"


def user_path(text: str | Path) -> Path:
    """The path that a user wrote, with ~ as his home. Raises UserError where it stands for no path."""
    try:
        path = Path(text).expanduser()
        os.fsencode(path)
    except (RuntimeError, ValueError) as error:  # ~nobody, a surrogate
        raise UserError(f"{str(text)[:80]!r} is no path ({error}): give another") from None
    if "\0" in str(path):
        raise UserError(f"{str(text)[:80]!r} is no path, with a zero byte in it: give another")
    return path


def check_folder(folder: Path) -> None:
    """Check that files can be written in the folder, which need not be there yet; nothing is left behind.

    For a command to call before its long work. Raises UserError where they cannot.
    """
    try:
        there = folder.absolute()
        while not there.exists() and there != there.parent:
            there = there.parent
        with tempfile.TemporaryDirectory(dir=there, prefix=".check-") as own:
            (Path(own) / folder.absolute().relative_to(there)).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"cannot write to {str(folder)[:200]} ({reason}): choose another folder") from None


def set_aside(folder: Path, names: Iterable[str], kept: str) -> Path:
    """Move the named files of the folder, those that are there, into a new folder beside it, whose path is returned.

    It is called `<folder>_<kept>`, with a number after it where there is one already.
    """
    target = next(path for path in _numbered(folder.with_name(f"{folder.name}_{kept}")) if not path.exists())
    try:
        target.mkdir(parents=True)
        for name in names:
            if (folder / name).is_file():
                os.replace(folder / name, target / name)
    except OSError as error:
        raise UserError(f"cannot move {folder} to {target} ({error.strerror}): give --out, or make room") from None
    return target


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.name}_{number}")
