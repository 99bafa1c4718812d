"""Small file operations that leave either the old content or the new one, whatever stops the process."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replace the file's content: written beside it, flushed to disk, then renamed over it."""
    beside = path.with_name(f".{path.name}.part")
    with open(beside, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
