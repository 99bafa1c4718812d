"""Image sets of tensorflow-datasets by name, read without TensorFlow through `tfds.data_source`.

Reading needs a set that was prepared as array_record or parquet. Preparing a public set downloads it and mostly needs
TensorFlow: that is left to the user, and the error says how.
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
from tensorflow_datasets.core.utils import tqdm_utils

from experiment.dataset import Dataset, Split, fixed_split
from experiment.errors import UserError

_NAME = re.compile(r"\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?")  # name, name/config, name:version, name/config:version
HELD_OUT = ("test", "validation")  # the first of these that a set has is its held-out split


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep tensorflow-datasets' progress bars and warnings off the terminal; errors still show."""
    verbosity, bars = logging.get_verbosity(), tqdm_utils._active
    logging.set_verbosity(logging.ERROR)
    tqdm_utils.display_progress_bar(False)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        tqdm_utils.display_progress_bar(bars)


def load_named(name: str, cache: str, known: tuple[str, ...]) -> Dataset:
    """The set `name` (also name/config:version), prepared under `cache` or under tensorflow-datasets' own data folder.

    Levels 256, labels where the set has them. A set without "test" or "validation" is split 90/10.
    `known` are the names outside tensorflow-datasets, for the message.
    Raises UserError: unknown name (with the nearest), not prepared (with the command), not images, or of several sizes.
    """
    if not _NAME.fullmatch(name):  # also keeps out tfds' "namespace:name", which would reach for the network
        raise UserError(_unknown(name, known))
    with quiet():
        folders = [cache, None] if cache else [None]
        builders = [b for folder in folders if (b := _builder(name, folder)) is not None]
        if not builders:
            raise UserError(_unknown(name, known))
        builder = next((b for b in builders if b.is_prepared()), None)
        if builder is None:
            raise UserError(_not_prepared(name, [b.data_dir for b in builders]))
        return _read(name, builder)


def load_prepared(folder: Path) -> Dataset:
    """The prepared set that lies in `folder` (the one with dataset_info.json), whatever its name."""
    with quiet():
        try:
            builder = tfds.builder_from_directory(folder)
        except Exception as error:  # damaged json: tfds lets every kind of error through
            raise UserError(f"cannot read the tensorflow-datasets folder {folder}: {_one_line(error)}") from error
        return _read(builder.name, builder)


def _builder(name: str, data_dir: str | None) -> Any | None:
    """The builder of `name` over `data_dir` (None: tfds' own folder); None where neither code nor files know it."""
    try:
        return tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        return None
    except Exception as error:  # unknown configs and versions, missing imports: AssertionError, ValueError, ...
        raise UserError(f"tensorflow-datasets cannot open data set {name!r}: {_one_line(error)}") from error


def _unknown(name: str, known: tuple[str, ...]) -> str:
    names = [*known, *tfds.list_builders(with_community_datasets=False)]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return (
        f"unknown data set {name!r}{hint} there are {', '.join(known)}, any image set of tensorflow-datasets, "
        "and folders, zips and .npz files through data.path"
    )


def _not_prepared(name: str, folders: list[str]) -> str:
    return (
        f"data set {name!r} is not prepared (looked in {' and '.join(folders)}): "
        "pip install '.[tfds-prepare]', then run "
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', file_format='array_record').download_and_prepare()\", "
        "or point data.path at a folder, zip or .npz of images"
    )


def _read(name: str, builder: Any) -> Dataset:
    features = builder.info.features
    image, label = _image_key(name, features), _label_key(features)
    available = {s: builder.info.splits[s].num_examples for s in builder.info.splits}
    if not available.get("train"):
        raise UserError(f"data set {name!r} has no train split, only {', '.join(available) or 'none'}; choose another")
    train = _read_split(name, builder, "train", image, label)
    held_out = next((s for s in HELD_OUT if available.get(s)), None)
    if held_out is None:
        train, test = fixed_split(train.x, train.labels, f"data set {name!r}")
    else:
        test = _read_split(name, builder, held_out, image, label)
    if train.x.shape[1:] != test.x.shape[1:]:
        raise UserError(f"data set {name!r} trains on {_size(train.x[0])}, holds out {_size(test.x[0])}; choose another")
    classes = features[label].num_classes if label else 0
    return Dataset(name, train, test, levels=256, num_classes=classes or 0)


def _image_key(name: str, features: Any) -> str:
    """The first uint8 feature of three axes: tfds' Image, or a Tensor of that kind."""
    kinds: Any = (tfds.features.Image, tfds.features.Tensor)
    for key, feature in features.items():
        if isinstance(feature, kinds) and feature.np_dtype == np.uint8 and len(feature.shape) == 3:
            return key
    raise UserError(f"data set {name!r} holds no uint8 images, only {', '.join(features)}; choose an image set")


def _label_key(features: Any) -> str | None:
    return next((key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)), None)


def _read_split(name: str, builder: Any, split: str, image: str, label: str | None) -> Split:
    try:
        source = builder.as_data_source(split=split)
    except NotImplementedError as error:  # prepared, but as tfrecord
        raise UserError(
            f"data set {name!r} in {builder.data_dir} is prepared as {builder.info.file_format.value}, "
            "which only TensorFlow reads; delete it and prepare it again with file_format='array_record'"
        ) from error
    try:
        first = source[0][image]
        x, labels = np.empty((len(source), *first.shape), np.uint8), np.empty(len(source), np.int32)
        for i, example in enumerate(source):
            if example[image].shape != first.shape:
                raise UserError(
                    f"data set {name!r}: image {i} of {split} has {_size(example[image])}, image 0 has {_size(first)}; "
                    "images of one size are needed, so write a folder of resized ones and set data.path"
                )
            x[i] = example[image]
            labels[i] = example[label] if label else 0
    except UserError:
        raise
    except Exception as error:  # a cut or overwritten record surfaces as whatever the decoder makes of it
        raise UserError(
            f"data set {name!r} in {builder.data_dir} is damaged: {_one_line(error)}; delete it and prepare it again"
        ) from error
    hidden = label is None or (labels < 0).any()  # tfds writes -1 for labels that are kept secret
    return Split(x, None if hidden else labels)


def _size(x: np.ndarray) -> str:
    return "x".join(map(str, x.shape))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
