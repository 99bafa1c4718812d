"""Small file operations that leave either the old content or the new one, whatever stops the process."""

import io
import json
import os
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
