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

import hashlib
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiment.common.errors import UserError, one_line, shown
from experiment.data.dataset import Dataset, Split
from experiment.data.image_decoding import Recipe, Unreadable
from experiment.data.stored import Unusable, Writer, flush, mapped, read, read_record, stored_once, write_record

VERSION = 2  # the decoder's and the files': with another one everything is decoded again


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


def decoded_once(source: Source, recipe: Recipe, cache: Path, plan: Callable[[], Plan]) -> Dataset:
    """Open the stored images of the source as a data set with 256 levels, decoding and storing them first if need be.

    `plan` is called only where nothing whole is stored for this source and recipe. The splits' x are views of the
    mapped file and cannot be written to. cache: where they are stored if the place beside the source cannot be written.
    Any number of processes may call this at once: one decodes, the others wait.

    Raises UserError for images that cannot be read (counted, the first named; not with recipe.skip_unreadable), for
    whatever `plan` raises it, and where no place can be written.
    """
    key = _key(source, recipe)
    folder = f"crop{recipe.crop}_size{recipe.size}{'_skip_unreadable' * recipe.skip_unreadable}"
    try:
        return stored_once(
            source.path,
            cache,
            folder,
            "decoding",
            lambda stored: _open(stored, key, source.name),
            lambda new: _write(new, key, source, recipe, plan()),
        )
    except OSError as error:
        raise UserError(
            f"cannot write the decoded images of {source.path} ({error}): set data.cache to a writable folder with "
            "space"
        ) from error


def _key(source: Source, recipe: Recipe) -> str:
    digest = hashlib.sha256(repr((VERSION, recipe)).encode())
    for line in source.identity:
        digest.update(os.fsencode(line) + b"\n")
    return digest.hexdigest()


def _write(folder: Path, key: str, source: Source, recipe: Recipe, plan: Plan) -> None:
    """Fill `folder` with the plan's images.

    Raises UserError for images that must not be used, OSError where the folder cannot be written.
    """
    unreadable: list[Unreadable] = []
    labels: list[int] = []
    captions: list[str] = []
    n_train = 0
    with open(folder / "images.npy", "wb") as file:
        writer = Writer(file, plan.total)
        with tqdm(plan.rows, "decoding images", plan.total, unit=" images", delay=1, disable=None) as bar:
            for row in bar:
                if isinstance(row, Unreadable):
                    unreadable.append(row)
                    continue
                writer.add(row.pixels[None])
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
        flush(file)
    if captions:
        (folder / "captions.json").write_text(json.dumps(captions))
    record = {
        "captions": zlib.crc32((folder / "captions.json").read_bytes()) if captions else None,
        "key": key,
        "recipe": asdict(recipe),
        **writer.record,
        "train": n_train,
        "classes": plan.classes,
        "left_out": [len(unreadable), unreadable[0].name] if unreadable else [0, ""],
        "labels": zlib.crc32((folder / "labels.npy").read_bytes()),
    }
    write_record(folder, record)


def _open(folder: Path, key: str, name: str) -> Dataset:
    """Open the data set stored in `folder`.

    Raises Unusable where there is none, where it comes from another source, and where it is damaged.
    """
    try:
        record = read_record(folder, key, "its images have changed, or what is done to them")
        x = mapped(folder / "images.npy", record)
        data = read(folder / "labels.npy")
        if zlib.crc32(data) != record["labels"]:
            raise ValueError("labels.npy was changed")
        labels = np.load(io.BytesIO(data))
        captions = None
        if record.get("captions") is not None:
            data = read(folder / "captions.json")
            captions = np.array(json.loads(data), str)
            if zlib.crc32(data) != record["captions"] or len(captions) != len(x):
                raise ValueError("captions.json was changed")
    except Unusable:
        raise
    except Exception as error:  # of as many kinds as there are of damage
        raise Unusable(f"what is stored in {folder} is damaged ({one_line(error)})") from error
    count, first = record["left_out"]
    if count:
        print(f"{_count(count)} that cannot be read left out of {name}, first {shown(first)}", file=sys.stderr)
    parts = (slice(record["train"]), slice(record["train"], None))
    train, test = (_split(x[part], labels[part], None if captions is None else captions[part]) for part in parts)
    return Dataset(name, train, test, levels=256, num_classes=len(record["classes"]))


def _split(x: np.ndarray, labels: np.ndarray, captions: np.ndarray | None) -> Split:
    return Split(x, None if (labels < 0).any() else labels, captions=captions)


def _count(n: int) -> str:
    return f"{n} image{'s' * (n != 1)}"
