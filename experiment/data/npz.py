"""`.npz` files: images of levels, or numbers in any units; with or without conditions, or a split of their own."""

import dataclasses
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiment.common.errors import UserError, one_line, quoted, shown
from experiment.common.files import arrays_in, open_regular
from experiment.data.dataset import Dataset, Split, class_count, fixed_split
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


def load_npz(path: Path) -> Dataset:
    """Load a data set from x (or images, data, arr_0) and, if there are, labels (or label, y, arr_1).

    uint8 (n, h, w, c) or (n, h, w) are images with levels, 256 or the optional integer `levels`. Other numbers have
    none, and are standardised (`Units`): vectors (n, d), series (n, l, c), fields (n, h, w, c), volumes (n, d, h, w,
    c); integers (n, h, w) are fields of one channel, as images are. With x_train and x_test (y_train, y_test) these are
    the splits, otherwise a fixed tenth is held out.

    Told of each example may be cond, (n,) integers, which are labels, or (n, m) floats; captions, (n,) strings; and of
    captions embeddings (n, l, d) with their mask (n, l). With a split each is named as x is: cond_train, cond_test.

    Raises UserError for an unreadable file, pickled objects, a wrong dtype or shape, channels that come first, NaN,
    and values outside the levels.
    """
    arrays = read_npz(path)
    levels = _levels(path, arrays)
    if "x_train" in arrays and "x_test" in arrays:
        train, test = (_named_split(path, arrays, part, levels) for part in ("train", "test"))
        if train.x.shape[1:] != test.x.shape[1:] or (train.x.dtype == np.uint8) != (test.x.dtype == np.uint8):
            raise UserError(f"{path}: x_train is {_describe(train.x)}, x_test {_describe(test.x)}; save both alike")
        for name, of in (("labels", "y"), ("vectors", "cond"), ("captions", "captions"), ("embeddings", "embeddings")):
            if (getattr(train, name) is None) != (getattr(test, name) is None):
                raise UserError(
                    f"{path}: only one of x_train and x_test has {name}; save {of}_train and {of}_test, or neither"
                )
        check_alike(path, train, test)
    else:
        x_key = next((k for k in DATA_KEYS if k in arrays), None)
        if x_key is None:
            names = ", ".join(shown(name, 60) for name in list(arrays)[:5])
            raise UserError(f"{path}: no data among {names or 'no arrays'}; name them x, images or arr_0")
        x = _data(path, x_key, arrays[x_key], levels)
        told = _told(path, arrays, len(x))
        train, test = fixed_split(x, told.pop("labels"), str(path), **told)
    count, name = class_count(train, test, source=str(path)), shown(path.stem)
    cond_units = None if train.vectors is None else Units.of(train.vectors)
    if train.x.dtype == np.uint8:
        return Dataset(name, train, test, levels=levels, num_classes=count, cond_units=cond_units)
    units = _units(path, train.x)
    train, test = (dataclasses.replace(split, x=split.x.astype(units.dtype, copy=False)) for split in (train, test))
    return Dataset(name, train, test, levels=None, num_classes=count, units=units, cond_units=cond_units)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read the file's arrays, by name. Raises UserError where it is damaged, holds Python objects, or is no .npz."""
    try:
        with open_regular(path) as file:
            if file.read(6) == b"\x93NUMPY":
                raise UserError(
                    f"{path} is a single array, an .npy under the name of an .npz; save it with numpy.savez"
                )
            with zipfile.ZipFile(file) as archive:
                return arrays_in(archive, available())
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{path} does not fit into this machine's memory: make it smaller, or use a folder") from None
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for what is damaged
        pickled = "pickle" in str(error)
        reason = "holds Python objects" if pickled else f"is damaged or no .npz file ({one_line(error, 100)})"
        raise UserError(f"cannot read {path}: it {reason}; save plain arrays with numpy.savez") from error


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


def _named_split(path: Path, arrays: dict[str, np.ndarray], part: str, levels: int) -> Split:
    x = _data(path, f"x_{part}", arrays[f"x_{part}"], levels)
    return Split(x, **_told(path, arrays, len(x), f"_{part}"))


def _levels(path: Path, arrays: dict[str, np.ndarray]) -> int:
    value = arrays.get("levels", np.array(256))
    if value.size != 1 or value.dtype.kind not in "iu" or not 2 <= int(value.item()) <= 256:
        raise UserError(f"{path}: levels must be one integer from 2 to 256, not {quoted(value)}")
    return int(value.item())


def _data(path: Path, key: str, x: np.ndarray, levels: int) -> np.ndarray:
    """Check x and return it as uint8 (n, h, w, c), or as floats (n, d) or (n, ..., c)."""
    images, numbers = x.dtype == np.uint8 and x.ndim in (3, 4), x.dtype.kind in "iuf" and 2 <= x.ndim <= 5
    if not images and not numbers:
        raise UserError(f"{path}: {key} is {_describe(x)}; {TAKES}")
    if x.size == 0:
        raise UserError(f"{path}: {key} is empty, of shape {x.shape}; save at least 2 examples")
    if x.ndim > 2 and x.dtype.kind in "iu" and x.dtype.itemsize > 2 and 0 <= x.min() <= x.max() < 256:
        raise UserError(
            f"{path}: {key} is {_describe(x)}, with values from {x.min()} to {x.max()}; save images as uint8, numbers "
            "as floats"
        )
    if x.ndim == 3 and x.dtype.kind in "iu":
        x = x[..., None]
    if x.ndim > 2 and x.shape[1] <= 4 and x.shape[-1] >= 8 and x.shape[1] < min(x.shape[2:]):
        order = ", ".join(map(str, (0, *range(2, x.ndim), 1)))
        raise UserError(
            f"{path}: {key} has shape {x.shape}: channels come last, so save {key}.transpose({order})"
            " (or, if they do, vectors: reshape(len(x), -1))"
        )
    if images:
        if x.max() >= levels:
            raise UserError(
                f"{path}: {key} has the value {x.max()}, outside its levels 0..{levels - 1}; correct one of them"
            )
        return x
    with np.errstate(over="ignore"):  # a longdouble beyond float64 becomes inf, and is named below
        x = x.astype(np.float32 if x.dtype.itemsize <= 2 or x.dtype == np.float32 else np.float64, copy=False)
    bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
    if len(bad):
        raise UserError(f"{path}: {key} has NaN or infinity in {len(bad)} row(s), first in row {bad[0]}; drop them")
    return x


def _units(path: Path, x: np.ndarray) -> Units:
    """The units of the training examples x. Raises UserError where their variance is beyond float64."""
    if max(abs(float(x.min())), abs(float(x.max()))) > LARGEST:
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
    if mask is None:
        raise UserError(
            f"{path}: {key} has no mask: save {of_mask} beside it, (n, l) bool, which is true where there is a token"
        )
    if (
        embeddings.ndim != 3
        or embeddings.dtype.kind != "f"
        or not embeddings.size
        or len(embeddings) != (n or len(embeddings))
    ):
        rows = "n" if n is None else n
        raise UserError(f"{path}: {key} is {_describe(embeddings)}; embeddings must be floats ({rows}, l, d)")
    if mask.shape != embeddings.shape[:2] or mask.dtype != bool:
        raise UserError(f"{path}: {of_mask} is {_describe(mask)}; it must be bool {embeddings.shape[:2]}")
    embeddings = np.where(mask[:, :, None], embeddings, 0).astype(np.float32)
    if not np.isfinite(embeddings).all():
        raise UserError(f"{path}: {key} has NaN or infinity where {of_mask} is true; drop these rows")
    return {"embeddings": embeddings, "mask": mask}


def check_alike(path: Path, train: Split, test: Split) -> None:
    """Raises UserError where the conditions of both splits are of different shapes."""
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


def _describe(x: np.ndarray) -> str:
    return f"{x.dtype} of shape {x.shape}"
