"""`.npz` files: images of levels, or numbers in any units; with or without labels, or a split of their own."""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np

from experiment.data.dataset import Dataset, Split, class_count, fixed_split
from experiment.data.units import Units
from experiment.devices.memory import available
from experiment.errors import UserError, one_line, quoted, shown
from experiment.files import arrays_in, open_regular

DATA_KEYS = ("x", "images", "data", "arr_0")  # arr_0 and arr_1 are what numpy.savez(file, x, labels) writes
LABEL_KEYS = ("labels", "label", "y", "arr_1")
LARGEST = 1e150  # of values whose variance a float64 holds
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

    Raises UserError for an unreadable file, pickled objects, a wrong dtype or shape, channels that come first, NaN,
    and values outside the levels.
    """
    arrays = read_npz(path)
    levels = _levels(path, arrays)
    if "x_train" in arrays and "x_test" in arrays:
        train, test = (_named_split(path, arrays, part, levels) for part in ("train", "test"))
        if train.x.shape[1:] != test.x.shape[1:] or (train.x.dtype == np.uint8) != (test.x.dtype == np.uint8):
            raise UserError(f"{path}: x_train is {_describe(train.x)}, x_test {_describe(test.x)}; save both alike")
        if (train.labels is None) != (test.labels is None):
            raise UserError(f"{path}: only one of x_train and x_test has labels; save y_train and y_test, or neither")
    else:
        x_key = next((k for k in DATA_KEYS if k in arrays), None)
        if x_key is None:
            names = ", ".join(shown(name, 60) for name in list(arrays)[:5])
            raise UserError(f"{path}: no data among {names or 'no arrays'}; name them x, images or arr_0")
        y_key = next((k for k in LABEL_KEYS if k in arrays), None)
        x = _data(path, x_key, arrays[x_key], levels)
        labels = _labels(path, y_key, arrays[y_key], len(x)) if y_key else None
        train, test = fixed_split(x, labels, str(path))
    count, name = class_count(train, test, source=str(path)), shown(path.stem)
    if train.x.dtype == np.uint8:
        return Dataset(name, train, test, levels=levels, num_classes=count)
    units = _units(path, train.x)
    train, test = (dataclasses.replace(split, x=split.x.astype(units.dtype, copy=False)) for split in (train, test))
    return Dataset(name, train, test, levels=None, num_classes=count, units=units)


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


def _named_split(path: Path, arrays: dict[str, np.ndarray], part: str, levels: int) -> Split:
    x = _data(path, f"x_{part}", arrays[f"x_{part}"], levels)
    key = next((f"{stem}_{part}" for stem in LABEL_KEYS if f"{stem}_{part}" in arrays), None)
    return Split(x, _labels(path, key, arrays[key], len(x)) if key else None)


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


def _labels(path: Path, key: str, y: np.ndarray, n: int) -> np.ndarray:
    if y.shape != (n,) or y.dtype.kind not in "iu":
        raise UserError(f"{path}: {key} is {_describe(y)}; labels must be {n} integers, one for each example")
    if n and (y.min() < 0 or y.max() >= 2**31 - 1):
        raise UserError(f"{path}: {key} has values from {y.min()} to {y.max()}; labels count from 0")
    return y.astype(np.int32)


def _describe(x: np.ndarray) -> str:
    return f"{x.dtype} of shape {x.shape}"
