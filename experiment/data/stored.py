"""Arrays kept beside their source, mapped into memory: made once, whole or absent, and checked at each start.

Beside the source `photos.zip` lies `photos.zip.noise_compass/`, and in it a folder for each way to take it. A folder
holds `.npy` files and record.json, which tells their shapes and the checksums of their blocks, and a key that changes
with the source. Where that place cannot be written, the folder lies in the cache folder. It is written under another
name and renamed when whole; it may be deleted at any time.
"""

import contextlib
import errno
import hashlib
import json
import math
import mmap
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from experiment.common.errors import one_line, shown
from experiment.common.files import lock_file, open_regular

BLOCK = 2**22  # bytes with a checksum of their own
CHECKED = 256  # blocks checked at each start, 1 GiB: all of a smaller file, of a larger one others each time
ROWS = 4096
NUMBERS = 2**24  # 128 MiB in float64
_BUILDING = ".building-"
T = TypeVar("T")


class Unusable(Exception):
    """The reason why what is stored cannot be used."""


def stored_once(
    path: Path, cache: Path, folder: str, doing: str, opened: Callable[[Path], T], write: Callable[[Path], None]
) -> T:
    """Open what is stored of the source `path` in `folder`, making it first if need be.

    opened: opens a folder. It raises Unusable where there is none, where it is damaged, and where it comes from another
    source. write: fills a new folder. doing: this in a word, such as decoding. cache: where the folder lies if the
    place beside the source cannot be written. Any number of processes may call this at once: one writes, the others
    wait.

    Raises OSError where no place can be written, and whatever `write` raises.
    """
    absolute = Path(os.path.abspath(path))
    elsewhere = f"{absolute.name}-{hashlib.sha256(os.fsencode(absolute)).hexdigest()[:16]}"
    places = [absolute.parent / f"{absolute.name}.noise_compass", cache / "images" / elsewhere]
    for place in places:
        with contextlib.suppress(Unusable):
            return opened(place / folder)
    for place in places:
        try:
            with _alone(place, path, doing):
                return _made(place / folder, path, doing, opened, write)
        except OSError as error:
            failure = f"{place}: {error.strerror or error}"
    raise OSError(failure)


def _made(folder: Path, path: Path, doing: str, opened: Callable[[Path], T], write: Callable[[Path], None]) -> T:
    """Write `folder`, whose parent this process holds, unless another process has just done so."""
    try:
        return opened(folder)
    except Unusable as error:
        if folder.exists():
            print(f"{doing} {shown(str(path))} again: {one_line(error, 500)}", file=sys.stderr)
    for left in folder.parent.glob(f"{_BUILDING}*"):  # by processes that were killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_BUILDING, ignore_cleanup_errors=True) as own:
        whole = Path(own, "whole")
        whole.mkdir()
        write(whole)
        if folder.exists():
            os.rename(folder, Path(own, "old"))  # a process that has it mapped keeps it
        os.rename(whole, folder)
    return opened(folder)


class Writer:
    """An .npy file of rows, written in order with bounded memory; `checksums` are those of its blocks."""

    def __init__(self, file: Any, total: int):
        self.file, self.total = file, total
        self.count = 0
        self.offset = 0  # of the first row in the file
        self.shape: tuple[int, ...] = ()
        self.dtype = np.dtype(np.uint8)
        self.checksums: list[int] = []
        self.pending = bytearray()

    def add(self, rows: np.ndarray) -> None:
        """Write rows (k, *shape), of the same shape and dtype as those before.

        Raises OSError where the total will not fit, ValueError for others.
        """
        if not self.count:
            self.shape, self.dtype = rows.shape[1:], rows.dtype
            needed, free = self.total * rows[0].nbytes, shutil.disk_usage(self.file.name).free
            if needed > free:  # better said now than after hours
                raise OSError(errno.ENOSPC, f"{needed} bytes needed, {free} free")
            self._header(self.total)
        if rows.shape[1:] != self.shape or rows.dtype != self.dtype:
            raise ValueError(f"expected {self.dtype} {self.shape}, got {rows.dtype} {rows.shape[1:]}")
        self.count += len(rows)
        self.pending += rows.tobytes()
        while len(self.pending) >= BLOCK:
            self._block()

    def finish(self) -> None:
        if self.pending:
            self._block()
        self.file.seek(0)
        self._header(self.count)  # of the same length: numpy leaves room for the first axis to change
        self.offset = self.file.tell()
        flush(self.file)

    @property
    def record(self) -> dict[str, Any]:
        """What `mapped` is told of the finished file."""
        return {
            "shape": [self.count, *self.shape],
            "dtype": self.dtype.str,
            "offset": self.offset,
            "blocks": self.checksums,
        }

    def _block(self) -> None:
        block = bytes(self.pending[:BLOCK])
        del self.pending[:BLOCK]
        self.checksums.append(zlib.crc32(block))
        self.file.write(block)

    def _header(self, n: int) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (n, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)


def mapped(path: Path, record: dict[str, Any]) -> np.ndarray:
    """Map the file's rows into memory, after a check of some of its blocks.

    The CHECKED blocks are drawn at random: reading all of a set of 100 GB would take minutes at every start. Raises
    ValueError where the file has another length, or a block is not as it was written.
    """
    offset, shape, checksums = record["offset"], tuple(record["shape"]), record["blocks"]
    dtype = np.dtype(record.get("dtype", "|u1"))
    if path.stat().st_size != offset + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{path.name} has another length")
    some = np.random.default_rng().permutation(len(checksums))[:CHECKED]
    with open(path, "rb") as file:
        for block in np.sort(some):
            file.seek(offset + int(block) * BLOCK)
            if zlib.crc32(file.read(BLOCK)) != checksums[block]:
                raise ValueError(f"{path.name} was changed")
    # A plain view of the mapped memory: numpy's memmap class adds nothing but time to every slice.
    return np.asarray(np.memmap(path, dtype, "r", offset, shape))


def release(array: np.ndarray) -> None:
    """Let the system take back the memory of a mapped file that is only read; of other arrays nothing is done."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)


def in_blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of x in order, up to ROWS of them and NUMBERS numbers at once; what is mapped is given back on the way.

    The blocks depend on x's shape alone, so that sums over them are the same for a mapped array as for another.
    """
    some = min(ROWS, max(1, NUMBERS // max(1, math.prod(x.shape[1:]))))
    for first in range(0, len(x), some):
        yield x[first : first + some]
        release(x)


def write_record(folder: Path, record: dict[str, Any]) -> None:
    with open(folder / "record.json", "w") as text:
        json.dump({"record": record, "checksum": _checksum(record)}, text)
        flush(text)


def read_record(folder: Path, key: str, changed: str) -> dict[str, Any]:
    """Read the record of `folder`.

    Raises Unusable, for the reason `changed`, where it has another key; for damage as many kinds as there are.
    """
    content = json.loads(read(folder / "record.json"))
    record = content["record"]
    if content["checksum"] != _checksum(record):
        raise ValueError("record.json was changed")
    if record["key"] != key:
        raise Unusable(changed)
    return record


def _checksum(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def read(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


def flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _alone(place: Path, path: Path, doing: str) -> Iterator[None]:
    """Hold the folder `place`, made if need be, for this process; a hold dies with its process.

    A folder that is marked read-only is left as it is by the superuser too, who could write to it. Raises OSError where
    the folder cannot be written.
    """
    lock = place / ".lock"
    while True:
        existing = next(folder for folder in (place, *place.parents) if folder.exists())
        if not existing.stat().st_mode & 0o222:
            raise PermissionError(errno.EACCES, f"{existing} is read-only")
        place.mkdir(parents=True, exist_ok=True)
        with open(lock, "a") as file:
            try:
                lock_file(file, place)
            except BlockingIOError:
                # The line and its end in one piece, for others may write at the same time.
                print(f"another process is {doing} {shown(str(path))}: waiting for it\n", end="", file=sys.stderr)
                lock_file(file, place, wait=True)
            if not os.fstat(file.fileno()).st_nlink:
                continue  # its last holder failed and took the folder away
            try:
                yield
            finally:
                if os.listdir(place) == [lock.name]:  # nothing was stored
                    shutil.rmtree(place, ignore_errors=True)
            return
