"""Image sets of tensorflow-datasets by name, read without TensorFlow through `tfds.data_source`.

Reading needs a set that was prepared as array_record or parquet. Preparing a public set downloads it and mostly needs
TensorFlow: that is left to the user, and the error says how. A set's images are decoded once: see image_cache.py.
"""

import contextlib
import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image
from tensorflow_datasets.core.utils import tqdm_utils

from experiment.common.errors import UserError, one_line, quoted
from experiment.data.dataset import MOST_PER_CLASS, Dataset, fixed_order
from experiment.data.image_cache import Plan, Row, Source, decoded_once
from experiment.data.image_decoding import Recipe, fit

_NAME = re.compile(r"\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?")  # name, name/config, name:version, name/config:version
HELD_OUT = ("test", "validation")  # the first of these that a set has is its held-out split


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep tensorflow-datasets' progress bars, warnings and prints off the terminal; errors still show."""
    verbosity, bars = logging.get_verbosity(), tqdm_utils._active
    logging.set_verbosity(logging.ERROR)
    tqdm_utils.display_progress_bar(False)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        logging.set_verbosity(verbosity)
        tqdm_utils.display_progress_bar(bars)


def load_named(name: str, prepared: str, known: tuple[str, ...], recipe: Recipe, cache: Path) -> Dataset:
    """Load the set `name` (also name/config:version) from `prepared`, or from tensorflow-datasets' own data folder.

    Levels 256, labels where the set has them. A set without "test" or "validation" is split 90/10.
    `known` are the names outside tensorflow-datasets, for the message. `cache`: see `decoded_once`.

    Raises UserError for a set whose name is unknown (with the nearest one), that is not prepared (with the command),
    that holds no images, or images of several sizes that the recipe leaves, or images smaller than the crop.
    """
    if not _NAME.fullmatch(name):  # also keeps out tfds' "namespace:name", which would reach for the network
        raise UserError(_unknown(name, known))
    with quiet():
        folders = [prepared, None] if prepared else [None]
        builders = [b for folder in folders if (b := _builder(name, folder)) is not None]
        if not builders:
            raise UserError(_unknown(name, known))
        builder = next((b for b in builders if b.is_prepared()), None)
        if builder is None:
            raise UserError(_not_prepared(name, [b.data_dir for b in builders]))
        return _load(name, builder, recipe, cache)


def load_prepared(folder: Path, recipe: Recipe, cache: Path) -> Dataset:
    """Load the prepared set that lies in `folder` (the one with dataset_info.json), whatever its name."""
    with quiet():
        try:
            builder = tfds.builder_from_directory(folder)
        except Exception as error:  # damaged json: tfds lets every kind of error through
            raise UserError(f"cannot read the tensorflow-datasets folder {folder}: {one_line(error)}") from error
        return _load(builder.name, builder, recipe, cache)


def _builder(name: str, data_dir: str | None) -> Any | None:
    """The builder of `name` over `data_dir` (None: tfds' own folder); None where neither code nor files know it."""
    try:
        return tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        return None
    except Exception as error:  # unknown configs and versions, missing imports: AssertionError, ValueError, ...
        raise UserError(f"tensorflow-datasets cannot open data set {name!r}: {one_line(error)}") from error


def _unknown(name: str, known: tuple[str, ...]) -> str:
    names = [*known, *tfds.list_builders(with_community_datasets=False)]
    near = difflib.get_close_matches(name[:100], names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return (
        f"unknown data set {quoted(name)}{hint} there are {', '.join(known)}, any image set of "
        "tensorflow-datasets, and folders, zips and .npz files through data.path"
    )


def _not_prepared(name: str, folders: list[str]) -> str:
    return (
        f"data set {name!r} is not prepared (looked in {' and '.join(folders)}): "
        "pip install -e '.[tfds-prepare]', then run "
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', file_format='array_record').download_and_prepare()\", "
        "or point data.path at a folder, zip or .npz of images"
    )


def _load(name: str, builder: Any, recipe: Recipe, cache: Path) -> Dataset:
    folder = Path(builder.data_dir)
    files = sorted((file.name, file.stat()) for file in folder.iterdir())
    identity = [f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in files]
    # Without skip_unreadable: a damaged record ends the reading of its file, so it cannot be left out.
    recipe = Recipe(recipe.crop, recipe.size)
    return decoded_once(Source(folder, name, identity), recipe, cache, lambda: _plan(name, builder, recipe))


def _plan(name: str, builder: Any, recipe: Recipe) -> Plan:
    with _damage(name, builder):
        features, supervised = builder.info.features, builder.info.supervised_keys or ()
        image, label = _image_key(name, features, supervised), _label_key(name, features, supervised)
        available = {s: builder.info.splits[s].num_examples for s in builder.info.splits}
        _check_numbers(builder, features[label] if label else None, sum(available.values()))
        classes = features[label].names if label and features[label].num_classes else []
    if not available.get("train"):
        raise UserError(f"data set {name!r} has no train split, only {', '.join(available) or 'none'}; choose another")
    held_out = next((s for s in HELD_OUT if available.get(s)), None)
    # The parts to read, one after another: (split of tfds, indices of its examples, whether they are held out).
    if held_out is None:
        train, test = fixed_order(available["train"], f"data set {name!r}")
        parts = [("train", train, False), ("train", test, True)]
    else:
        parts = [("train", np.arange(available["train"]), False), (held_out, np.arange(available[held_out]), True)]
    with _damage(name, builder):
        sources = {split: _source(name, builder, split) for split, *_ in parts}

    def rows() -> Iterator[Row]:
        first: np.ndarray | None = None
        for split, index, is_held_out in parts:
            for i in index:
                shown = f"image {i} of {split} of data set {name!r}"
                with _damage(name, builder):
                    example = sources[split][int(i)]
                    pixels, number = _fit(shown, example[image], recipe), int(example[label]) if label else -1
                    if classes and not -1 <= number < len(classes):
                        raise ValueError(f"{shown} is of class {number}, of {len(classes)}")
                first = pixels if first is None else first
                if pixels.shape != first.shape:
                    raise UserError(
                        f"{shown} is {_size(pixels)}, image {parts[0][1][0]} of train is {_size(first)}: "
                        "images of one size are needed, so resize them with --config.data.size="
                    )
                yield Row(pixels, number, is_held_out)

    return Plan(rows(), sum(len(index) for _, index, _ in parts), tuple(classes))


def _check_numbers(builder: Any, label: Any | None, examples: int) -> None:
    """Raise ValueError where the set says of itself more than its files can hold, or than a network can tell apart."""
    files = [file.stat().st_size for file in Path(builder.data_dir).iterdir()]
    shards = sum(len(split.shard_lengths) for split in builder.info.splits.values())
    if examples > sum(files) or shards > len(files):
        raise ValueError(f"it says {examples} examples in {shards} files, and there are {len(files)}")
    if label and label.num_classes and label.num_classes > max(1000, MOST_PER_CLASS * examples):
        raise ValueError(f"it says {label.num_classes} classes for {examples} examples")


@contextlib.contextmanager
def _damage(name: str, builder: Any) -> Iterator[None]:
    """Turn any error caused by a missing or corrupted record into a one-line UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"data set {name!r} in {builder.data_dir} is damaged: {one_line(error)}; delete it and prepare it again"
        ) from error


def _fit(shown: str, pixels: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Crop and resize pixels (h, w, c) after the recipe."""
    channels = pixels.shape[-1]
    if not recipe.crop and not recipe.size:
        return pixels
    if channels not in (1, 3):
        raise UserError(
            f"{shown} has {channels} channels: only grey and colour are cropped and resized; "
            "leave data.crop and data.size at 0"
        )
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    fitted = np.asarray(fit(shown, image, recipe))
    return fitted.reshape(*fitted.shape[:2], channels)


def _image_key(name: str, features: Any, supervised: tuple[Any, ...]) -> str:
    """The name of the set's uint8 feature with three axes: tfds' Image, or a Tensor of that kind."""
    kinds: Any = (tfds.features.Image, tfds.features.Tensor)
    found = {
        key for key, of in features.items() if isinstance(of, kinds) and of.np_dtype == np.uint8 and len(of.shape) == 3
    }
    if not found:
        raise UserError(
            f"data set {name!r} holds no uint8 images, only {', '.join(sorted(features))}; choose an image set"
        )
    return _chosen(name, "images", found, (*supervised, "image"))


def _label_key(name: str, features: Any, supervised: tuple[Any, ...]) -> str | None:
    found = {key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)}
    return _chosen(name, "labels", found, (*supervised[::-1], "label")) if found else None


def _chosen(name: str, what: str, found: set[str], preferred: tuple[Any, ...]) -> str:
    """Choose one of the features `found`: the first that is preferred, or the only one.

    Features come in another order in each process, so none may be taken for standing first.
    """
    for key in preferred:
        if isinstance(key, str) and key in found:
            return key
    if len(found) > 1:
        raise UserError(
            f"data set {name!r} has several {what}, {', '.join(sorted(found))}, and does not say which are meant: "
            "save those you want as an .npz, and give it as data.path"
        )
    return next(iter(found))


def _source(name: str, builder: Any, split: str) -> Any:
    """The split's examples, by index."""
    try:
        return builder.as_data_source(split=split)
    except NotImplementedError as error:  # prepared, but as tfrecord
        raise UserError(
            f"data set {name!r} in {builder.data_dir} is prepared as {builder.info.file_format.value}, "
            "which only TensorFlow reads; delete it and prepare it again with file_format='array_record'"
        ) from error


def _size(x: np.ndarray) -> str:
    return "x".join(map(str, x.shape))
