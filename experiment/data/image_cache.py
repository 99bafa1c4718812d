"""Decoded images, kept: one uint8 array in a file that is mapped into memory, so that images are decoded once.

Beside the source `photos.zip` or `photos/` lies `photos.zip.noise_compass/` or `photos.noise_compass/`, and in it one
folder for each crop and size, such as `crop140_size64/`:

    images.npy    uint8 (n, h, w, c), the training images first, then the held-out ones: both splits are slices
    labels.npy    int32 (n,), -1 for none
    captions.json their captions, where they have any
    record.json   the key, how many are for training, class names, images left out, checksums

The key is a hash of what identifies the source (names, sizes and times of its files; names, sizes and checksums in a
zip) and of the recipe. Where that place cannot be written, the folder lies in the cache folder. It is written under
another name and renamed when whole; it may be deleted at any time.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiment.common.errors import UserError, one_line, shown
from experiment.common.files import lock_file, open_regular
from experiment.data.dataset import Dataset, Split
from experiment.data.image_decoding import Recipe, Unreadable

VERSION = 2  # the decoder's and the files': with another one everything is decoded again
BLOCK = 2**22  # bytes with a checksum of their own
CHECKED = 256  # blocks checked at each start, 1 GiB: all of a smaller file, of a larger one others each time
_BUILDING = ".building-"


@dataclass(frozen=True)
class Row:
    """A decoded image, uint8 (h, w, c), with its class, -1 for none, whether it is held out, and its caption."""

    pixels: np.ndarray
    label: int
    held_out: bool
    caption: str | None = None


@dataclass(frozen=True)
class Plan:
    """The rows to decode, `total` of them, training before held-out ones; they are made as they are iterated over."""

    rows: Iterable[Row | Unreadable]
    total: int
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """The place that images come from: its path, the data set's name, and lines that change when it does."""

    path: Path
    name: str
    identity: Iterable[str]


class _Unusable(Exception):
    """The reason why the stored images cannot be used."""


def decoded_once(source: Source, recipe: Recipe, cache: Path, plan: Callable[[], Plan]) -> Dataset:
    """Open the stored images of the source as a data set with 256 levels, decoding and storing them first if need be.

    `plan` is called only where nothing whole is stored for this source and recipe. The splits' x are views of the
    mapped file and cannot be written to. cache: where they are stored if the place beside the source cannot be written.
    Any number of processes may call this at once: one decodes, the others wait.

    Raises UserError for images that cannot be read (counted, the first named; not with recipe.skip_unreadable), for
    whatever `plan` raises it, and where no place can be written.
    """
    key = _key(source, recipe)
    path = Path(os.path.abspath(source.path))
    elsewhere = f"{path.name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    places = [path.parent / f"{path.name}.noise_compass", cache / "images" / elsewhere]
    folder = f"crop{recipe.crop}_size{recipe.size}{'_skip_unreadable' * recipe.skip_unreadable}"
    for place in places:
        with contextlib.suppress(_Unusable):
            return _open(place / folder, key, source.name)
    for place in places:
        try:
            with _alone(place, source):
                return _decoded(place / folder, key, source, recipe, plan)
        except OSError as error:
            failure = f"{place}: {error.strerror or error}"
    raise UserError(
        f"cannot write the decoded images of {source.path} ({failure}): set data.cache to a writable folder with space"
    )


def _key(source: Source, recipe: Recipe) -> str:
    digest = hashlib.sha256(repr((VERSION, recipe)).encode())
    for line in source.identity:
        digest.update(os.fsencode(line) + b"\n")
    return digest.hexdigest()


def _decoded(folder: Path, key: str, source: Source, recipe: Recipe, plan: Callable[[], Plan]) -> Dataset:
    """Decode into `folder`, whose parent this process holds, unless another process has just done so."""
    try:
        return _open(folder, key, source.name)
    except _Unusable as error:
        if folder.exists():
            print(f"decoding {shown(str(source.path))} again: {one_line(error, 500)}", file=sys.stderr)
    for left in folder.parent.glob(f"{_BUILDING}*"):  # by processes that were killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_BUILDING, ignore_cleanup_errors=True) as own:
        whole = Path(own, "whole")
        whole.mkdir()
        _write(whole, key, source, recipe, plan())
        if folder.exists():
            os.rename(folder, Path(own, "old"))  # a process that has it mapped keeps it
        os.rename(whole, folder)
    return _open(folder, key, source.name)


def _write(folder: Path, key: str, source: Source, recipe: Recipe, plan: Plan) -> None:
    """Fill `folder` with the plan's images.

    Raises UserError for images that must not be used, OSError where the folder cannot be written.
    """
    unreadable: list[Unreadable] = []
    labels: list[int] = []
    captions: list[str] = []
    n_train = 0
    with open(folder / "images.npy", "wb") as file:
        writer = _Writer(file, plan.total)
        with tqdm(plan.rows, "decoding images", plan.total, unit=" images", delay=1, disable=None) as bar:
            for row in bar:
                if isinstance(row, Unreadable):
                    unreadable.append(row)
                    continue
                writer.add(row.pixels)
                labels.append(row.label)
                captions += [] if row.caption is None else [row.caption]
                n_train += not row.held_out
        if unreadable and not recipe.skip_unreadable:
            raise UserError(
                f"{_count(len(unreadable))} cannot be read, first {unreadable[0].name} ({unreadable[0].reason}): "
                "replace them, or leave them out with --config.data.skip_unreadable=True"
            )
        if not 0 < n_train < len(labels):
            raise UserError(
                f"{source.path} has no readable image left to {'hold out' if n_train else 'train on'}; "
                "replace the damaged ones"
            )
        writer.finish()
    with open(folder / "labels.npy", "wb") as file:
        np.save(file, np.array(labels, np.int32))
        _flush(file)
    if captions:
        (folder / "captions.json").write_text(json.dumps(captions))
    record = {
        "captions": zlib.crc32((folder / "captions.json").read_bytes()) if captions else None,
        "key": key,
        "recipe": asdict(recipe),
        "shape": [len(labels), *writer.shape],
        "offset": writer.offset,
        "train": n_train,
        "classes": plan.classes,
        "left_out": [len(unreadable), unreadable[0].name] if unreadable else [0, ""],
        "blocks": writer.checksums,
        "labels": zlib.crc32((folder / "labels.npy").read_bytes()),
    }
    with open(folder / "record.json", "w") as text:
        json.dump({"record": record, "checksum": _checksum(record)}, text)
        _flush(text)


class _Writer:
    """An .npy file of images, written in order with bounded memory; `checksums` are those of its blocks."""

    def __init__(self, file: Any, total: int):
        self.file, self.total = file, total
        self.count = 0
        self.offset = 0  # of the first image in the file
        self.shape: tuple[int, ...] = ()
        self.checksums: list[int] = []
        self.pending = bytearray()

    def add(self, pixels: np.ndarray) -> None:
        if not self.count:
            self.shape = pixels.shape
            needed, free = self.total * pixels.nbytes, shutil.disk_usage(self.file.name).free
            if needed > free:  # better said now than after hours
                raise OSError(errno.ENOSPC, f"{needed} bytes needed, {free} free")
            self._header(self.total)
        if pixels.shape != self.shape or pixels.dtype != np.uint8:
            raise ValueError(f"expected uint8 {self.shape}, got {pixels.dtype} {pixels.shape}")
        self.count += 1
        self.pending += pixels.tobytes()
        while len(self.pending) >= BLOCK:
            self._block()

    def finish(self) -> None:
        if self.pending:
            self._block()
        self.file.seek(0)
        self._header(self.count)  # of the same length: numpy leaves room for the first axis to change
        self.offset = self.file.tell()
        _flush(self.file)

    def _block(self) -> None:
        block = bytes(self.pending[:BLOCK])
        del self.pending[:BLOCK]
        self.checksums.append(zlib.crc32(block))
        self.file.write(block)

    def _header(self, n: int) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)


def _open(folder: Path, key: str, name: str) -> Dataset:
    """Open the data set stored in `folder`.

    Raises _Unusable where there is none, where it comes from another source, and where it is damaged.
    """
    try:
        content = json.loads(_read(folder / "record.json"))
        record = content["record"]
        if content["checksum"] != _checksum(record):
            raise ValueError("record.json was changed")
        if record["key"] != key:
            raise _Unusable("its images have changed, or what is done to them")
        x = _mapped(folder / "images.npy", record)
        data = _read(folder / "labels.npy")
        if zlib.crc32(data) != record["labels"]:
            raise ValueError("labels.npy was changed")
        labels = np.load(io.BytesIO(data))
        captions = None
        if record.get("captions") is not None:
            data = _read(folder / "captions.json")
            captions = np.array(json.loads(data), str)
            if zlib.crc32(data) != record["captions"] or len(captions) != len(x):
                raise ValueError("captions.json was changed")
    except _Unusable:
        raise
    except Exception as error:  # of as many kinds as there are of damage
        raise _Unusable(f"what is stored in {folder} is damaged ({one_line(error)})") from error
    count, first = record["left_out"]
    if count:
        print(f"{_count(count)} that cannot be read left out of {name}, first {shown(first)}", file=sys.stderr)
    parts = (slice(record["train"]), slice(record["train"], None))
    train, test = (_split(x[part], labels[part], None if captions is None else captions[part]) for part in parts)
    return Dataset(name, train, test, levels=256, num_classes=len(record["classes"]))


def _read(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


def _split(x: np.ndarray, labels: np.ndarray, captions: np.ndarray | None) -> Split:
    return Split(x, None if (labels < 0).any() else labels, captions=captions)


def _mapped(path: Path, record: dict[str, Any]) -> np.ndarray:
    """Map the file's images into memory, after a check of some of its blocks.

    The CHECKED blocks are drawn at random: reading all of a set of 100 GB would take minutes at every start. Raises
    ValueError where the file has another length, or a block is not as it was written.
    """
    offset, shape, checksums = record["offset"], tuple(record["shape"]), record["blocks"]
    if path.stat().st_size != offset + math.prod(shape):
        raise ValueError(f"{path.name} has another length")
    some = np.random.default_rng().permutation(len(checksums))[:CHECKED]
    with open(path, "rb") as file:
        for block in np.sort(some):
            file.seek(offset + int(block) * BLOCK)
            if zlib.crc32(file.read(BLOCK)) != checksums[block]:
                raise ValueError(f"{path.name} was changed")
    # A plain view of the mapped memory: numpy's memmap class adds nothing but time to every slice.
    return np.asarray(np.memmap(path, np.uint8, "r", offset, shape))


def _checksum(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


@contextlib.contextmanager
def _alone(place: Path, source: Source) -> Iterator[None]:
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
                print(
                    f"another process is decoding {shown(str(source.path))}: waiting for it\n", end="", file=sys.stderr
                )
                lock_file(file, place, wait=True)
            if not os.fstat(file.fileno()).st_nlink:
                continue  # its last holder failed and took the folder away
            try:
                yield
            finally:
                if os.listdir(place) == [lock.name]:  # nothing was stored
                    shutil.rmtree(place, ignore_errors=True)
            return


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _count(n: int) -> str:
    return f"{n} image{'s' * (n != 1)}"
