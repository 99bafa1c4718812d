"""`.npz` files: images of levels, or numbers in any units; with or without conditions, or a split of their own."""

import dataclasses
import math
import shutil
import zipfile
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiment.common.errors import UserError, quoted, shown
from experiment.common.files import arrays_in, open_regular
from experiment.data.dataset import Dataset, Split, class_count, fixed_order
from experiment.data.npz_rows import Member, large_members, readable, stored_splits
from experiment.data.stored import in_blocks
from experiment.data.units import Units
from experiment.devices.memory import available

DATA_KEYS = ("x", "images", "data", "arr_0")  # arr_0 and arr_1 are what numpy.savez(file, x, labels) writes
LABEL_KEYS = ("labels", "label", "y", "arr_1")
LARGEST = 1e150  # of values whose variance a float64 holds
TOLD = ("cond", "captions", "embeddings", "mask")  # what else may be told of each example
TAKES = (
    "it must be uint8 images (n, h, w[, c]), or real numbers: vectors (n, d), series (n, length, c), "
    "fields (n, h, w, c) or volumes (n, d, h, w, c)"
)


def load_npz(path: Path, cache: Path | None = None) -> Dataset:
    """Load a data set from x (or images, data, arr_0) and, if there are, labels (or label, y, arr_1).

    uint8 (n, h, w, c) or (n, h, w) are images with levels, 256 or the optional integer `levels`. Other numbers have
    none, and are standardised (`Units`): vectors (n, d), series (n, l, c), fields (n, h, w, c), volumes (n, d, h, w,
    c); integers (n, h, w) are fields of one channel, as images are. With x_train and x_test (y_train, y_test) these are
    the splits, otherwise a fixed tenth is held out.

    Told of each example may be cond, (n,) integers, which are labels, or (n, m) floats; captions, (n,) strings; and of
    captions embeddings (n, l, d) with their mask (n, l). With a split each is named as x is: cond_train, cond_test.

    Examples that are large together are unpacked once, beside the file or in the cache folder, and mapped from there.
    cache: that folder; None to read all into memory.

    Raises UserError for an unreadable file, pickled objects, a wrong dtype or shape, channels that come first, NaN,
    and values outside the levels.
    """
    large = {} if cache is None else large_members(path, (*DATA_KEYS, "x_train", "x_test"))
    embedded = {} if cache is None else large_members(path, ("embeddings", "embeddings_train", "embeddings_test"))
    if sorted(embedded) not in (["embeddings"], ["embeddings_test", "embeddings_train"]):
        embedded = {}  # what is wrong with them is told below
    arrays = read_npz(path, leave_out={**large, **embedded})
    there: dict[str, Any] = {**large, **arrays}
    levels = _levels(path, arrays)
    parted = "x_train" in there and "x_test" in there
    keys = ["x_train", "x_test"] if parted else [key for key in DATA_KEYS if key in there][:1]
    if not keys:
        names = ", ".join(shown(name, 60) for name in list(there)[:5])
        raise UserError(f"{path}: no data among {names or 'no arrays'}; name them x, images or arr_0")
    for key in keys:
        _check_form(path, key, there[key])
    if large and cache is not None:
        checked, of_units = partial(_checked, path, levels), partial(_units, path)
        found = stored_splits(path, cache, "examples", [large[key] for key in keys], levels, checked, of_units)
        if found is None:
            return load_npz(path)
        train, test = _told_splits(path, arrays, [found.train, found.test], parted)
        units = found.units
    else:
        xs = [x for key in keys for x in _checked(path, levels, there[key], [there[key]], key)]
        if not parted:
            xs = [xs[0][rows] for rows in fixed_order(len(xs[0]), str(path))]
        (train, test), units = _told_splits(path, arrays, xs, parted), None
    if cache is not None and embedded and parted == (len(embedded) == 2):
        with_them = _with_embeddings(path, cache, embedded, arrays, (train, test))
        if with_them is None:
            return load_npz(path)
        train, test = with_them
    if parted:
        check_alike(path, train, test)
    count, name = class_count(train, test, source=str(path)), shown(path.stem)
    cond_units = None if train.vectors is None else Units.of(train.vectors)
    if train.x.dtype == np.uint8:
        return Dataset(name, train, test, levels=levels, num_classes=count, cond_units=cond_units)
    units = units or _units(path, train.x)
    train, test = (dataclasses.replace(split, x=split.x.astype(units.dtype, copy=False)) for split in (train, test))
    return Dataset(name, train, test, levels=None, num_classes=count, units=units, cond_units=cond_units)


def _told_splits(path: Path, arrays: dict[str, np.ndarray], xs: Sequence[np.ndarray], parted: bool) -> list[Split]:
    """The examples of the training and the held-out split with what the file tells of them.

    parted: by arrays of each split, otherwise by arrays of both.
    """
    if parted:
        return [Split(x, **_told(path, arrays, len(x), part)) for x, part in zip(xs, ("_train", "_test"), strict=True)]
    n = sum(map(len, xs))
    told = told_in(path, arrays, n)
    parts = fixed_order(n, str(path))
    return [dataclasses.replace(told.rows(rows), x=x) for rows, x in zip(parts, xs, strict=True)]


def read_npz(path: Path, leave_out: Container[str] = ()) -> dict[str, np.ndarray]:
    """Read the file's arrays, by name. Raises UserError where it is damaged, holds Python objects, or is no .npz."""
    with readable(path) as archive:
        return arrays_in(archive, available(), leave_out)


def mapped_images(path: Path, folder: Path) -> list[np.ndarray] | None:
    """The images of an .npz, uint8 of 256 levels, each array unpacked into a file of the folder and mapped from there.

    None for what is not plainly that: `load_npz` takes it, or tells what is wrong.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            split = [key for key in ("x_train", "x_test") if key in members]
            keys = split if len(split) == 2 else [key for key in DATA_KEYS if key in members][:1]
            if not keys or "levels" in members:
                return None
            found = []
            for key in keys:
                with archive.open(members[key]) as packed, open(folder / f"{key}.npy", "wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
                found.append(np.load(folder / f"{key}.npy", mmap_mode="r"))
    except Exception:  # zipfile, zlib and numpy raise a dozen kinds for what is damaged
        return None
    images = [x[..., None] if x.ndim == 3 else x for x in found]
    plain = all(x.dtype == np.uint8 and x.ndim == 4 and x.shape[-1] <= 4 < min(x.shape[1:3]) for x in images)
    return images if plain and len({x.shape[1:] for x in images}) == 1 else None


def _levels(path: Path, arrays: dict[str, np.ndarray]) -> int:
    value = arrays.get("levels", np.array(256))
    if value.size != 1 or value.dtype.kind not in "iu" or not 2 <= int(value.item()) <= 256:
        raise UserError(f"{path}: levels must be one integer from 2 to 256, not {quoted(value)}")
    return int(value.item())


def _check_form(path: Path, key: str, x: Any) -> None:
    """Raises UserError where an array of this dtype and shape holds no examples, or channels that come first."""
    ndim = len(x.shape)
    if not _images(x) and not (x.dtype.kind in "iuf" and 2 <= ndim <= 5):
        raise UserError(f"{path}: {key} is {_describe(x)}; {TAKES}")
    if not math.prod(x.shape):
        raise UserError(f"{path}: {key} is empty, of shape {x.shape}; save at least 2 examples")
    shape = (*x.shape, 1) if ndim == 3 and x.dtype.kind in "iu" else x.shape
    if len(shape) > 2 and shape[1] <= 4 and shape[-1] >= 8 and shape[1] < min(shape[2:]):
        order = ", ".join(map(str, (0, *range(2, len(shape)), 1)))
        raise UserError(
            f"{path}: {key} has shape {shape}: channels come last, so save {key}.transpose({order})"
            " (or, if they do, vectors: reshape(len(x), -1))"
        )


def _images(x: Any) -> bool:
    return x.dtype == np.uint8 and len(x.shape) in (3, 4)


def _checked(path: Path, levels: int, x: Any, blocks: Iterable[np.ndarray], key: str = "") -> Iterator[np.ndarray]:
    """Yield the blocks of an array x, by its name, dtype and shape, as uint8 (k, h, w, c), or as floats.

    Raises UserError after the last of them for what some of its values must not be.
    """
    key, whole = key or x.name, x.dtype.kind in "iu" and len(x.shape) > 2
    least, most, row, bad, first_bad = math.inf, -math.inf, 0, 0, 0
    for block in blocks:
        if whole:
            least, most = min(least, block.min()), max(most, block.max())
            block = block[..., None] if block.ndim == 3 else block
        if not _images(x):
            with np.errstate(over="ignore"):  # a longdouble beyond float64 becomes inf, and is named below
                small = x.dtype.itemsize <= 2 or x.dtype == np.float32
                block = block.astype(np.float32 if small else np.float64, copy=False)
            wrong = np.flatnonzero(~np.isfinite(block).reshape(len(block), -1).all(axis=1))
            first_bad = row + int(wrong[0]) if len(wrong) and not bad else first_bad
            bad += len(wrong)
        row += len(block)
        yield block
    if whole and x.dtype.itemsize > 2 and 0 <= least <= most < 256:
        raise UserError(
            f"{path}: {key} is {_describe(x)}, with values from {least} to {most}; save images as uint8, numbers as "
            "floats"
        )
    if _images(x) and most >= levels:
        raise UserError(f"{path}: {key} has the value {most}, outside its levels 0..{levels - 1}; correct one of them")
    if bad:
        raise UserError(f"{path}: {key} has NaN or infinity in {bad} row(s), first in row {first_bad}; drop them")


def _units(path: Path, x: np.ndarray) -> Units:
    """The units of the training examples x. Raises UserError where their variance is beyond float64."""
    if max(max(abs(float(part.min())), abs(float(part.max()))) for part in in_blocks(x)) > LARGEST:
        raise UserError(f"{path}: values beyond {LARGEST:g}, whose squares are infinity: save them in larger units")
    return Units.of(x)


def told_in(path: Path, arrays: dict[str, np.ndarray], n: int) -> Split:
    """What a file tells of each of n examples, which are left out here. Raises UserError as `load_npz` does."""
    return Split(np.empty((n, 0)), **_told(path, arrays, n))


def _told(path: Path, arrays: dict[str, np.ndarray], n: int, part: str = "") -> dict[str, Any]:
    """What is told of each of n examples, as `Split` takes it. part: the end of the arrays' names, such as _train.

    Raises UserError for an array of another kind, or of another number of rows.
    """
    keys = {stem: f"{stem}{part}" for stem in (*LABEL_KEYS, *TOLD) if f"{stem}{part}" in arrays}
    labels = next((keys[stem] for stem in LABEL_KEYS if stem in keys), None)
    found: dict[str, Any] = {"labels": None if labels is None else _labels(path, labels, arrays[labels], n)}
    if "cond" in keys and arrays[keys["cond"]].dtype.kind in "iu" and arrays[keys["cond"]].ndim == 1:
        if labels:
            raise UserError(f"{path}: {keys['cond']} and {labels} are both labels: leave one of them out")
        found["labels"] = _labels(path, keys["cond"], arrays[keys["cond"]], n)
    elif "cond" in keys:
        found["vectors"] = _vectors(path, keys["cond"], arrays[keys["cond"]], n)
    if "captions" in keys:
        found["captions"] = _captions(path, keys["captions"], arrays[keys["captions"]], n)
    if "embeddings" in keys:
        found["embeddings"] = embeddings_in(path, arrays, part, n)
    return found


def _vectors(path: Path, key: str, cond: np.ndarray, n: int) -> np.ndarray:
    if cond.ndim != 2 or cond.dtype.kind not in "iuf" or len(cond) != n or not cond.size:
        raise UserError(
            f"{path}: {key} is {_describe(cond)}; save a row for each of the {n} examples: ({n},) integers, which are "
            f"labels, or ({n}, m) numbers"
        )
    cond = cond.astype(np.float64 if cond.dtype.itemsize > 4 else np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(cond).all(axis=1))
    if len(bad):
        raise UserError(f"{path}: {key} has NaN or infinity in {len(bad)} row(s), first in row {bad[0]}; drop them")
    if float(np.abs(cond).max()) > LARGEST:
        raise UserError(f"{path}: {key} has values beyond {LARGEST:g}: save them in larger units")
    return cond


def _captions(path: Path, key: str, captions: np.ndarray, n: int) -> np.ndarray:
    if captions.shape != (n,) or captions.dtype.kind != "U":
        raise UserError(f"{path}: {key} is {_describe(captions)}; captions must be {n} strings, one for each example")
    return captions


def embeddings_in(
    path: Path | str, arrays: Mapping[str, np.ndarray], part: str, n: int | None
) -> dict[str, np.ndarray]:
    """The embeddings (n, l, d) of a file and their mask (n, l). n: None for any number.

    Raises UserError where one is missing, or of another kind or number of rows.
    """
    key, of_mask = f"embeddings{part}", f"mask{part}"
    embeddings, mask = arrays[key], arrays.get(of_mask)
    checked = _check_embeddings(path, key, embeddings, of_mask, mask, n)
    [embeddings] = _masked(path, key, checked, [embeddings])
    return {"embeddings": embeddings, "mask": checked}


def _with_embeddings(
    path: Path, cache: Path, members: Mapping[str, Member], arrays: Mapping[str, np.ndarray], splits: Sequence[Split]
) -> list[Split] | None:
    """Both splits with their captions' embeddings, which are large and mapped; None where they cannot be.

    members: of each split, or one of both. Raises UserError as `embeddings_in` does.
    """
    sizes = [sum(map(len, splits))] if len(members) == 1 else [len(split) for split in splits]
    masks: dict[str, np.ndarray] = {}
    for (key, member), n in zip(members.items(), sizes, strict=True):
        of_mask = key.replace("embeddings", "mask")
        masks[key] = _check_embeddings(path, key, member, of_mask, arrays.get(of_mask), n)

    def checked(member: Member, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return _masked(path, member.name, masks[member.name], blocks)

    given = [zlib.crc32(mask.tobytes()) for mask in masks.values()]
    found = stored_splits(path, cache, "embeddings", list(members.values()), given, checked)
    if found is None:
        return None
    of_splits = list(masks.values())
    if len(of_splits) == 1:
        of_splits = [of_splits[0][rows] for rows in fixed_order(sizes[0], str(path))]
    return [
        dataclasses.replace(split, embeddings={"embeddings": rows, "mask": mask})
        for split, rows, mask in zip(splits, (found.train, found.test), of_splits, strict=True)
    ]


def _check_embeddings(
    path: Path | str, key: str, embeddings: Any, of_mask: str, mask: np.ndarray | None, n: int | None
) -> np.ndarray:
    """Check embeddings by dtype and shape, and return their mask."""
    if mask is None:
        raise UserError(
            f"{path}: {key} has no mask: save {of_mask} beside it, (n, l) bool, which is true where there is a token"
        )
    shape = embeddings.shape
    if len(shape) != 3 or embeddings.dtype.kind != "f" or not math.prod(shape) or shape[0] != (n or shape[0]):
        rows = "n" if n is None else n
        raise UserError(f"{path}: {key} is {_describe(embeddings)}; embeddings must be floats ({rows}, l, d)")
    if mask.shape != shape[:2] or mask.dtype != bool:
        raise UserError(f"{path}: {of_mask} is {_describe(mask)}; it must be bool {shape[:2]}")
    return mask


def _masked(path: Path | str, key: str, mask: np.ndarray, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the blocks of embeddings, 0 where the mask (n, l) is false. Raises UserError after the last of them."""
    row, finite = 0, True
    for block in blocks:
        block = np.where(mask[row : row + len(block), :, None], block, 0).astype(np.float32)
        finite &= bool(np.isfinite(block).all())
        row += len(block)
        yield block
    if not finite:
        of_mask = key.replace("embeddings", "mask")
        raise UserError(f"{path}: {key} has NaN or infinity where {of_mask} is true; drop these rows")


def check_alike(path: Path, train: Split, test: Split) -> None:
    """Raises UserError where one split has what the other has not, or of another shape."""
    if train.x.shape[1:] != test.x.shape[1:] or (train.x.dtype == np.uint8) != (test.x.dtype == np.uint8):
        raise UserError(f"{path}: x_train is {_describe(train.x)}, x_test {_describe(test.x)}; save both alike")
    for name, of in (("labels", "y"), ("vectors", "cond"), ("captions", "captions"), ("embeddings", "embeddings")):
        if (getattr(train, name) is None) != (getattr(test, name) is None):
            raise UserError(
                f"{path}: only one of x_train and x_test has {name}; save {of}_train and {of}_test, or neither"
            )
    for name in ("vectors", "embeddings"):
        of_train, of_test = (getattr(split, name) for split in (train, test))
        if isinstance(of_train, dict):
            of_train, of_test = of_train["embeddings"], of_test["embeddings"]
        if of_train is not None and of_train.shape[1:] != of_test.shape[1:]:
            raise UserError(f"{path}: {name} are {of_train.shape} and {of_test.shape}; save both splits' alike")


def _labels(path: Path, key: str, y: np.ndarray, n: int) -> np.ndarray:
    if y.shape != (n,) or y.dtype.kind not in "iu":
        raise UserError(f"{path}: {key} is {_describe(y)}; labels must be {n} integers, one for each example")
    if n and (y.min() < 0 or y.max() >= 2**31 - 1):
        raise UserError(f"{path}: {key} has values from {y.min()} to {y.max()}; labels count from 0")
    return y.astype(np.int32)


def _describe(x: Any) -> str:
    return f"{x.dtype} of shape {x.shape}"
