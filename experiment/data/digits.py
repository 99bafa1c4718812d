"""scikit-learn's digits as a tensorflow-datasets builder: 1,797 real 8x8 handwritten digits with 17 grey levels.

The test set of Alpaydin and Kaynak's Optical Recognition of Handwritten Digits (UCI, 1998); scikit-learn ships it, so
there is nothing to download.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiment.common.errors import UserError
from experiment.data.dataset import Dataset, Split
from experiment.data.tfds_sets import quiet

LEVELS = 17
TRAIN, TEST = 1500, 297
SHUFFLE_SEED = 1797  # of np.random.RandomState, whose stream is frozen (NEP 19): the held-out digits never change


class NoiseCompassDigits(tfds.core.GeneratorBasedBuilder):
    """The builder of the digits: each has an image, uint8 (8, 8, 1) with levels 0..16, and a label.

    Its splits, train (1,500) and test (297), are those of a fixed shuffle.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8)
        label = tfds.features.ClassLabel(num_classes=10)
        return tfds.core.DatasetInfo(
            builder=self,
            description="scikit-learn's 8x8 handwritten digits, 17 grey levels, in a fixed shuffle",
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            disable_shuffling=True,  # ours below is the one shuffle
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        order = np.random.RandomState(SHUFFLE_SEED).permutation(TRAIN + TEST)
        return {"train": self._generate_examples(order[:TRAIN]), "test": self._generate_examples(order[TRAIN:])}

    def _generate_examples(self, index: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits as sklearn_digits

        digits: Any = sklearn_digits()
        for position, i in enumerate(index):
            image = digits.images[i].astype(np.uint8)[..., None]
            yield position, {"image": image, "label": int(digits.target[i])}


def load_digits(cache: Path) -> Dataset:
    """Load the digits, prepared under `cache` on first use (a few seconds) and read from there ever after.

    Any number of processes may call this at once. Raises UserError where the folder cannot be written or is damaged.
    """
    target = cache / NoiseCompassDigits.name / str(NoiseCompassDigits.VERSION)
    with quiet():
        try:
            if not target.is_dir():
                _prepare(cache, target)
        except OSError as error:
            raise UserError(
                f"cannot write the digits to the cache folder {cache} ({error.strerror}): "
                "set data.cache to a writable folder"
            ) from error
        try:
            train, test = _read(cache, "train"), _read(cache, "test")
        except Exception as error:  # array_record, protobuf and decoder each raise their own
            raise UserError(f"the prepared digits are damaged: delete {target} and run again") from error
    if (len(train), len(test)) != (TRAIN, TEST):
        raise UserError(f"the prepared digits are incomplete: delete {target} and run again")
    return Dataset("digits", train, test, levels=LEVELS, num_classes=10)


def _prepare(cache: Path, target: Path) -> None:
    """Write the set to a folder of this process's own, then rename that to `target`: it is whole or absent."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".preparing-") as own:
        builder = NoiseCompassDigits(data_dir=own, file_format="array_record")
        with contextlib.redirect_stdout(None):  # tfds prints that it "downloads"; nothing is downloaded
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(builder.data_dir, target)
        except OSError:
            if not target.is_dir():  # if it is there, another process was faster, with the same bytes
                raise


def _read(cache: Path, split: str) -> Split:
    source: Any = tfds.data_source(NoiseCompassDigits.name, split=split, data_dir=cache, download=False)
    examples = source.__getitems__(range(len(source)))
    return Split(np.stack([e["image"] for e in examples]), np.array([e["label"] for e in examples], np.int32))
