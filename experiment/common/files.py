"""Small file operations: what is written is the old content or the new one, and what is read ends.

Paths as users give them, and locks where the system has them, are here too.
"""

import contextlib
import errno
import io
import itertools
import json
import math
import os
import re
import stat
import sys
import tempfile
import zipfile
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from experiment.common.errors import UserError, one_line, shown

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # of two letters and more: C:/ is a place on Windows
# The answers of file systems that have no locks, as some network and cluster file systems.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def user_path(given: str | Path, what: str) -> Path:
    """The path that a user gave, with ~ replaced. `what` names it in a message, such as "--workdir".

    Raises UserError for one that can be no path here: of an unknown user, with a NUL, a name too long, or a URL.
    """
    text = os.fspath(given)
    if _URL.match(text):
        raise UserError(
            f"{what} {shown(text)} is a URL, and files are read and written on this machine only: give a path on it"
        )
    try:
        path = Path(text).expanduser()
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return path
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{what} {shown(text)} cannot be a path ({one_line(reason)}): give another") from None
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside this one to write to; at the end it is flushed to disk, then renamed over it.

    Folders above it are made. Raises UserError where the file cannot be written.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}): choose another folder, or make room"
        ) from None


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the file's content, by way of a file beside it, as `replacing` does."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Replace the file's content by the text, as `write_bytes` does. What of a path is no text is escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, document: Any) -> None:
    """Replace the file's content by the document, indented. Raises ValueError for numbers that are not finite."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Replace the file's content by an .npz that holds the arrays by name."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the keywords for its own
    write_bytes(path, buffer.getvalue())


def write_npz_rows(
    path: Path, name: str, shape: tuple[int, ...], dtype: Any, rows: Iterable[np.ndarray], **arrays: np.ndarray
) -> None:
    """Replace the file's content by an .npz that holds the array `name`, written some rows at a time, and the others.

    shape, dtype: of the array that the rows make together; they are never all in memory. Raises ValueError where they
    are more or fewer.
    """
    whole = np.dtype(dtype)
    header = {"descr": np.lib.format.dtype_to_descr(whole), "fortran_order": False, "shape": shape}
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        with archive.open(_member(name), "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            count = 0
            for some in rows:
                member.write(np.ascontiguousarray(some, whole).tobytes())
                count += len(some)
        if count != shape[0]:
            raise ValueError(f"{count} rows were given of {shape[0]}")
        for other, array in arrays.items():
            with archive.open(_member(other), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _member(name: str) -> zipfile.ZipInfo:
    """An array's entry in an .npz, compressed; of one date, so that equal arrays make equal files."""
    member = zipfile.ZipInfo(f"{name}.npy")
    member.compress_type = zipfile.ZIP_DEFLATED
    return member


def cache_folder(given: str = "") -> Path:
    """The folder where prepared data and compiled programs are kept.

    That is `given`, or noise_compass under $XDG_CACHE_HOME, which is ~/.cache where it is not set.
    """
    if given:
        return user_path(given, "cache folder")
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME") / "noise_compass"


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a file to read its bytes. Raises OSError for a pipe, a socket or a device, which may never end."""
    # O_NONBLOCK: to open a pipe that nobody writes to would wait forever.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", os.fspath(path))
    return file


def read_regular(path: str | Path, most: int) -> bytes:
    """Read a file that is to have at most `most` bytes. Raises OSError where it is larger, and as `open_regular`."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", os.fspath(path))
    return content


def lock_file(file: Any, where: Path, wait: bool = False) -> None:
    """Lock an open file of `where` for this process; the lock dies with it.

    Where there are no locks (Windows, some network file systems), say so on stderr and go on. Raises BlockingIOError
    where another process holds it and this one is not to wait.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        line = f"{shown(str(where))} lies where files cannot be locked: see to it that one process alone writes there"
        print(line, file=sys.stderr)


def arrays_in(archive: zipfile.ZipFile, most: int | None, leave_out: Container[str] = ()) -> dict[str, np.ndarray]:
    """Read the arrays of an open .npz, by name. Nothing is allocated that the file does not hold.

    most: the bytes that they may take, None where that is not known. leave_out: names of those that are not read.

    Raises ValueError for Python objects, for what is no array, and for one that is shorter or longer than it says;
    MemoryError for more than `most`. What zipfile, zlib and numpy raise for damage comes through.
    """
    members = [member for member in archive.infolist() if member.filename.removesuffix(".npy") not in leave_out]
    if most is not None and sum(member.file_size for member in members) > most:
        raise MemoryError
    found: dict[str, np.ndarray] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name in found:
            raise ValueError(f"{shown(name)} is there twice")
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            if version > (2, 0):
                raise ValueError(f"{shown(name)} is an array of records")
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
            if dtype.hasobject:
                raise ValueError(f"{shown(name)} is a pickle of Python objects")
            if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"{shown(name)} says that it is {dtype} of shape {shape}, and has less")
        with archive.open(member) as file:
            found[name] = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):
                raise ValueError(f"{shown(name)} says that it is {dtype} of shape {shape}, and has more")
    return found


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
