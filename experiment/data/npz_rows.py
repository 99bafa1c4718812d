"""The examples of a large `.npz`, unpacked once into files that are mapped into memory: see stored.py.

In the folders `examples/`, and `embeddings/` for those of captions, beside the file lie

    train.npy     the training rows, in the file's order, as `Split` has them
    test.npy      the held-out ones
    units.npy     float64 (2, ..): mean and std of the training examples, for numbers without levels
    record.json   the key and the checksums

The key is a hash of what the zip tells of the arrays: names, sizes and checksums.
"""

import contextlib
import hashlib
import math
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiment.common.errors import UserError, one_line
from experiment.common.files import open_regular
from experiment.data.dataset import fixed_order
from experiment.data.stored import Unusable, Writer, in_blocks, mapped, read_record, stored_once, write_record
from experiment.data.units import Units

Array = np.ndarray

LARGE = 2**26  # bytes of examples; fewer are read into memory, and nothing is written
_VERSION = 1
_READ = 2**24  # bytes of rows at once


@contextlib.contextmanager
def readable(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an .npz as a zip. Raises UserError where it is damaged, holds Python objects, is no .npz, or too large."""
    try:
        with open_regular(path) as file:
            if file.read(6) == b"\x93NUMPY":
                raise UserError(
                    f"{path} is a single array, an .npy under the name of an .npz; save it with numpy.savez"
                )
            with zipfile.ZipFile(file) as archive:
                yield archive
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{path} does not fit into this machine's memory: make it smaller, or use a folder") from None
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for what is damaged
        pickled = "pickle" in str(error)
        reason = "holds Python objects" if pickled else f"is damaged or no .npz file ({one_line(error, 100)})"
        raise UserError(f"cannot read {path}: it {reason}; save plain arrays with numpy.savez") from error


@dataclass(frozen=True)
class Member:
    """An array of an .npz, by what its header tells: rows of examples that lie one after another."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int  # of the rows, in bytes from the member's beginning

    def blocks(self, archive: zipfile.ZipFile) -> Iterator[Array]:
        """The rows in order, some at a time. zipfile holds them to their checksum at the end."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        some = max(1, _READ // row)
        with archive.open(f"{self.name}.npy") as file:
            file.read(self.start)
            for first in range(0, self.shape[0], some):
                count = min(some, self.shape[0] - first)
                content = file.read(count * row)
                yield np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])


def large_members(path: Path, names: Sequence[str]) -> dict[str, Member]:
    """The arrays of these names, where they are too large together to be read into memory, in their order.

    {} where they are not, where they lie column by column (as Fortran has them), and where something is wrong with the
    file, which `read_npz` tells.
    """
    found = {}
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if name not in names or entry.filename == name:
                    continue
                if name in found:
                    return {}
                found[name] = _member(name, entry, archive)
        sizes = sum(math.prod(member.shape) * member.dtype.itemsize for member in found.values())
    except Exception:  # zipfile, zlib and numpy raise a dozen kinds for what is damaged
        return {}
    return {name: found[name] for name in names if name in found} if sizes >= LARGE else {}


def _member(name: str, entry: zipfile.ZipInfo, archive: zipfile.ZipFile) -> Member:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = header(file)
        member = Member(name, shape, dtype, file.tell())
    size, numbers = math.prod(shape) * dtype.itemsize, dtype.kind in "iuf" and min(shape, default=1) > 0
    if (by_columns and len(shape) > 1) or not numbers or member.start + size != entry.file_size:
        raise ValueError(f"{name} is not plainly rows")
    return member


@dataclass(frozen=True)
class StoredSplits:
    """The rows of both splits, mapped, and the units of the training ones, None where they have none."""

    train: Array
    test: Array
    units: Units | None


def stored_splits(
    path: Path,
    cache: Path,
    folder: str,
    members: Sequence[Member],
    given: int | list[int],
    checked: Callable[[Member, Iterable[Array]], Iterable[Array]],
    units_of: Callable[[Array], Units] | None = None,
) -> StoredSplits | None:
    """The splits of one member, or the two that are themselves the splits, unpacked into `folder` if need be.

    given: what the values depend on beside the file's own. checked: the blocks of a member as `Split` has them; raises
    UserError for wrong values. units_of: of numbers that have them.

    Returns None, and says so, where no place can be written. Raises UserError as `load_npz` does.
    """
    with readable(path) as archive:
        told = [(m.name, m.shape, m.dtype.str, archive.getinfo(f"{m.name}.npy").CRC) for m in members]
    key = hashlib.sha256(repr((_VERSION, told, given)).encode()).hexdigest()

    def write(folder: Path) -> None:
        with readable(path) as archive:
            records = _unpack(folder, path, archive, members, checked)
        train = mapped(folder / "train.npy", records["train"])
        if units_of is not None and train.dtype != np.uint8:
            units = units_of(train)
            for part in ("train", "test"):
                _convert(folder / f"{part}.npy", records, part, units.dtype)
            with open(folder / "units.npy", "wb") as file:
                writer = Writer(file, 2)
                writer.add(np.stack([units.mean, units.std]))
                writer.finish()
            records["units"] = writer.record
        write_record(folder, {"key": key, **records})

    try:
        return stored_once(path, cache, folder, "unpacking", lambda stored: _open(stored, key), write)
    except OSError as error:
        print(
            f"{path} is read into memory whole, since it cannot be unpacked ({error}): set data.cache to a writable "
            "folder with space",
            file=sys.stderr,
        )
        return None


def _open(folder: Path, key: str) -> StoredSplits:
    try:
        record = read_record(folder, key, "the arrays have changed")
        train, test, *units = (
            mapped(folder / f"{name}.npy", record[name]) for name in ("train", "test", "units") if name in record
        )
    except Unusable:
        raise
    except Exception as error:  # of as many kinds as there are of damage
        raise Unusable(f"what is stored in {folder} is damaged ({one_line(error)})") from error
    return StoredSplits(train, test, Units(*np.array(units[0])) if units else None)


def _unpack(
    folder: Path,
    path: Path,
    archive: zipfile.ZipFile,
    members: Sequence[Member],
    checked: Callable[[Member, Iterable[Array]], Iterable[Array]],
) -> dict[str, dict[str, Any]]:
    """Write the rows of each split, and return the records of their files."""
    held_out = [np.full(member.shape[0], i, bool) for i, member in enumerate(members)]
    if len(members) == 1:
        held_out[0][fixed_order(members[0].shape[0], str(path))[1]] = True
    n_test = sum(int(part.sum()) for part in held_out)
    with open(folder / "train.npy", "wb") as of_train, open(folder / "test.npy", "wb") as of_test:
        writers = Writer(of_train, sum(map(len, held_out)) - n_test), Writer(of_test, n_test)
        for member, places in zip(members, held_out, strict=True):
            first = 0
            for block in checked(member, member.blocks(archive)):
                of_block = places[first : first + len(block)]
                for writer, rows in zip(writers, (~of_block, of_block), strict=True):
                    if rows.any():
                        writer.add(block[rows])
                first += len(block)
        for writer in writers:
            writer.finish()
    return {part: writer.record for part, writer in zip(("train", "test"), writers, strict=True)}


def _convert(path: Path, records: dict[str, dict[str, Any]], part: str, dtype: Any) -> None:
    """Replace a file of floats by one of this dtype, and its record."""
    if np.dtype(records[part]["dtype"]) == dtype:
        return
    old, beside = mapped(path, records[part]), path.with_suffix(".new")
    with open(beside, "wb") as file:
        writer = Writer(file, len(old))
        for block in in_blocks(old):
            writer.add(block.astype(dtype))
        writer.finish()
    beside.replace(path)
    records[part] = writer.record
