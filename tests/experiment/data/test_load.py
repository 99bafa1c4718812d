import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from experiment.common.errors import UserError
from experiment.config import check_config, whole_config
from experiment.data.batches import batch_indices
from experiment.data.load import DATASETS, configured_dataset, load_dataset

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def test_digits_are_scikit_learns_each_once(cache):
    ours, theirs = load_dataset("digits", cache=cache), load_digits()
    assert (len(ours.train), len(ours.test)) == (1500, 297)
    assert (ours.shape, ours.levels, ours.num_classes) == ((8, 8, 1), 17, 10)
    assert ours.train.x.dtype == np.uint8 and ours.train.labels.dtype == np.int32
    # All 1,797 images differ, so equal sorted lists mean: each once, none in both splits, each with its own label.
    pairs = [(x.tobytes(), y) for s in (ours.train, ours.test) for x, y in zip(s.x, s.labels, strict=True)]
    wanted = [(x.tobytes(), y) for x, y in zip(theirs.images.astype(np.uint8), theirs.target, strict=True)]
    assert len({x for x, _ in wanted}) == 1797
    assert sorted(pairs) == sorted(wanted)


def test_digits_shuffle_is_the_one_written_down(cache):
    order = np.random.RandomState(1797).permutation(1797)
    ours, images = load_dataset("digits", cache=cache), load_digits().images[..., None]
    np.testing.assert_array_equal(ours.train.x, images[order[:1500]])
    np.testing.assert_array_equal(ours.test.x, images[order[1500:]])


def snapshot(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (Path(folder), *Path(folder).rglob("*"))}


def test_second_load_writes_nothing(cache):
    first = load_dataset("digits", cache=cache)
    before = snapshot(cache)
    second = load_dataset("digits", cache=cache)
    assert snapshot(cache) == before
    np.testing.assert_array_equal(first.train.x, second.train.x)


def test_several_processes_prepare_at_once_in_silence(tmp_path):
    code = "from experiment.data.load import load_dataset; print(int(load_dataset('digits').train.x.sum()))"
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    args = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen(args, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [(*p.communicate(), p.returncode) for p in processes]
    total = str(int(load_dataset("digits", cache=str(tmp_path / "noise_compass")).train.x.sum()))
    assert results == [(total + "\n", "", 0)] * 2
    assert [p.name for p in (tmp_path / "noise_compass").iterdir()] == ["noise_compass_digits"]


def test_faster_process_wins_and_the_slower_one_reads_its_set(tmp_path, monkeypatch):
    from experiment.data import digits

    def overtaken(source, target):  # another process finishes while this one is about to rename
        if "incomplete" in str(source):  # tfds' own rename, inside our temporary folder
            return rename(source, target)
        monkeypatch.setattr(os, "rename", rename)
        digits.load_digits(tmp_path)
        overtaken.first = snapshot(target)
        rename(source, target)

    rename = os.rename
    monkeypatch.setattr(os, "rename", overtaken)
    assert len(digits.load_digits(tmp_path).train) == 1500
    assert snapshot(tmp_path / "noise_compass_digits" / "1.0.0") == overtaken.first


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    line = mistake("digits", cache=str(tmp_path / "file" / "cache"))
    assert str(tmp_path / "file") in line and "set data.cache" in line


@pytest.mark.parametrize(
    "pattern, content", [("*train.array_record*", b""), ("*test.array_record*", None), ("*.json", b"{")]
)
def test_damaged_cache_is_named(tmp_path, cache, pattern, content):
    load_dataset("digits", cache=cache)
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)
    for file in (copy / "noise_compass_digits").rglob(pattern):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    line = mistake("digits", cache=str(copy))
    assert "damaged" in line and f"delete {copy}" in line


def mistake(name, **settings):
    with pytest.raises(UserError) as error:
        load_dataset(name, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("typed, meant", [("digit", "digits"), ("two_moon", "two_moons"), ("cifar_10", "cifar10")])
def test_unknown_name_gets_the_nearest_and_the_list(typed, meant):
    line = mistake(typed)
    assert f"did you mean {meant!r}?" in line and all(name in line for name in DATASETS)


@pytest.mark.parametrize("name", ["no such set", "../digits", "gs://bucket/x", "huggingface:mnist", "a/b/c"])
def test_names_that_are_no_names(name):
    assert "unknown data set" in mistake(name)


def test_without_a_name_and_a_path_there_are_no_data():
    assert "no data are given: set config.data.path" in mistake("")


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("settings", [{"crop": 4}, {"size": 4}])
def test_what_comes_as_it_is_is_neither_cropped_nor_resized(name, settings):
    line = mistake(name, **settings)
    assert f"{name!r} comes as it is" in line and "data.size to 0" in line


def test_arrays_are_neither_cropped_nor_resized(tmp_path):
    np.savez(tmp_path / "set.npz", x=np.zeros((4, 8, 8, 3), np.uint8))
    for settings in ({"crop": 4}, {"size": 4}):
        assert "set.npz are taken as they are" in mistake("", path=str(tmp_path / "set.npz"), **settings)


def test_every_key_of_the_data_reaches_the_loader(monkeypatch):
    config = check_config(whole_config({}))
    with config.unlocked():
        config.data.update(name="n", path="p", cache="c", crop=5, size=3, skip_unreadable=True, simulations=7)
    monkeypatch.setattr("experiment.data.load.load_dataset", lambda *args, **kwargs: (args, kwargs))
    wanted = {"crop": 5, "size": 3, "skip_unreadable": True, "simulations": 7}
    assert configured_dataset(config) == (("n", "p", "c"), wanted)


# A set of tensorflow-datasets


class TinyColours(tfds.core.GeneratorBasedBuilder):
    """Twelve 4x5 colour images in train, three in validation."""

    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        features = {
            "id": tfds.features.Scalar(np.int64),
            "image": tfds.features.Tensor(shape=(4, 5, 3), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=["red", "green", "blue", "grey"]),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 12), "validation": self._generate_examples(12, 15)}

    def _generate_examples(self, first, last):
        for i in range(first, last):
            yield i, {"id": i, "image": tiny(i), "label": i % 3}


class TinyVectors(TinyColours):
    def _info(self):
        features = {"x": tfds.features.Tensor(shape=(3,), dtype=np.float32)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, first, last):
        yield 0, {"x": np.zeros(3, np.float32)}


class TinyPairs(TinyColours):
    """Sets with two kinds of images and two of labels; `supervised` and the names are the subclasses'."""

    IMAGES, LABELS = ("left", "right"), ("fine", "coarse")
    SUPERVISED: tuple[str, str] | None = None

    def _info(self):
        images = {name: tfds.features.Tensor(shape=(4, 5, 3), dtype=np.uint8) for name in self.IMAGES}
        labels = {name: tfds.features.ClassLabel(num_classes=4 + i) for i, name in enumerate(self.LABELS)}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(images | labels),
            supervised_keys=self.SUPERVISED,
            disable_shuffling=True,
        )

    def _generate_examples(self, first, last):
        for i in range(first, last):
            images = {name: tiny(i + 100 * k) for k, name in enumerate(self.IMAGES)}
            yield i, images | {name: (i + k) % 3 for k, name in enumerate(self.LABELS)}


class TinyPairsSupervised(TinyPairs):
    SUPERVISED = ("right", "coarse")


class TinyPairsTurned(TinyPairs):
    SUPERVISED = ("coarse", "right")


class TinyPairsUsual(TinyPairs):
    IMAGES, LABELS = ("annotation", "image"), ("attribute", "label")


class TinyPairsMasked(TinyPairs):
    IMAGES, LABELS = ("picture", "mask"), ()
    SUPERVISED = ("picture", "mask")


class TinyPairsAlone(TinyPairs):
    IMAGES, LABELS = ("photo",), ("kind",)


class TinyPairsOneImage(TinyPairs):
    IMAGES = ("photo",)


class TinyPhotos(TinyColours):
    """Twelve encoded PNGs in train, and no other split."""

    SIZES = ((4, 5),)

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3))}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 12)}

    def _generate_examples(self, first, last):
        for i in range(first, last):
            height, width = self.SIZES[i % len(self.SIZES)]
            buffer = io.BytesIO()
            Image.fromarray(tiny(i)[:height, :width]).save(buffer, "png")
            buffer.seek(0)
            yield i, {"image": buffer}


class TinyMixedPhotos(TinyPhotos):
    SIZES = ((4, 5), (3, 3))


def tiny(i):
    return np.random.default_rng(i).integers(0, 256, (4, 5, 3), np.uint8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    for builder in (TinyColours, TinyVectors, TinyPhotos, TinyMixedPhotos, TinyPairs, *TinyPairs.__subclasses__()):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def assert_is_tiny(dataset):
    assert (dataset.shape, dataset.levels, dataset.num_classes) == ((4, 5, 3), 256, 4)
    np.testing.assert_array_equal(dataset.train.x, [tiny(i) for i in range(12)])
    np.testing.assert_array_equal(dataset.test.x, [tiny(i) for i in range(12, 15)])
    np.testing.assert_array_equal(dataset.train.labels, np.arange(12) % 3)


def test_tfds_set_by_name(prepared):
    assert_is_tiny(load_dataset("tiny_colours", cache=prepared))
    assert_is_tiny(load_dataset("tiny_colours:1.2.0", cache=prepared))


def test_tfds_set_by_name_needs_neither_its_code_nor_tensorflow(prepared):
    code = (
        "import sys; from experiment.data.load import load_dataset\n"
        f"d = load_dataset('tiny_colours', cache={prepared!r})\n"
        "print(d.train.x.sum(), len(d.test), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    total = sum(int(tiny(i).sum()) for i in range(12))
    assert (done.stdout, done.stderr) == (f"{total} 3 False\n", "")


def test_tfds_set_by_its_folder(prepared):
    assert_is_tiny(load_dataset("", prepared + "/tiny_colours/1.2.0"))


def test_tfds_set_that_is_not_prepared(tmp_path):
    line = mistake("cifar10", cache=str(tmp_path))
    assert "pip install -e '.[tfds-prepare]'" in line and "tfds.builder('cifar10'" in line and "data.path" in line
    assert not list(tmp_path.iterdir())


def test_tfds_set_without_images(prepared):
    assert "holds no uint8 images, only x" in mistake("tiny_vectors", cache=prepared)


def test_tfds_set_of_encoded_images_without_held_out_split(prepared, capfd):
    dataset = load_dataset("tiny_photos", cache=prepared)
    assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (11, 1, 0)
    assert {x.tobytes() for s in (dataset.train, dataset.test) for x in s.x} == {tiny(i).tobytes() for i in range(12)}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name, image, label",
    [("supervised", 1, 1), ("turned", 1, 1), ("usual", 1, 1), ("masked", 0, None), ("alone", 0, 0)],
)
def test_tfds_features_are_chosen_by_name(prepared, name, image, label):
    """Not by their order, which in a prepared set is another in each process."""
    for backwards in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if backwards:
                items = tfds.features.FeaturesDict.items
                patch.setattr(tfds.features.FeaturesDict, "items", lambda self: list(items(self))[::-1])  # noqa: B023
            dataset = load_dataset("", f"{prepared}/tiny_pairs_{name}/1.2.0", cache=f"{prepared}/{backwards}")
        shutil.rmtree(f"{prepared}/tiny_pairs_{name}/1.2.0.noise_compass")
        np.testing.assert_array_equal(dataset.train.x, [tiny(i + 100 * image) for i in range(12)])
        if label is None:
            assert dataset.train.labels is None
        else:
            np.testing.assert_array_equal(dataset.train.labels, (np.arange(12) + label) % 3)
            assert dataset.num_classes == 4 + label


def test_tfds_features_in_doubt_are_listed(prepared):
    line = mistake("tiny_pairs", cache=prepared)
    assert "has several images, left, right, and does not say which" in line and "as an .npz" in line
    assert "has several labels, coarse, fine, and" in mistake("tiny_pairs_one_image", cache=prepared)


def test_tfds_set_of_several_sizes(prepared):
    line = mistake("tiny_mixed_photos", cache=prepared)
    assert (
        "image 1 of train of data set 'tiny_mixed_photos' is 3x3x3, image 0 of train is 4x5x3" in line
        and "--config.data.size=" in line
    )
    line = mistake("tiny_mixed_photos", cache=prepared, crop=4)
    assert "image 1 of train" in line and "smaller than the crop" in line and "at most 3" in line


def test_tfds_images_are_cropped_and_resized(prepared):
    cropped = load_dataset("tiny_mixed_photos", cache=prepared, crop=3)
    found = {x.tobytes() for s in (cropped.train, cropped.test) for x in s.x}
    assert found == {(tiny(i)[:3, :3] if i % 2 else tiny(i)[:3, 1:4]).tobytes() for i in range(12)}
    resized = load_dataset("tiny_colours", cache=prepared, crop=4, size=2)
    wanted = np.array([tiny(i)[:, :4].reshape(2, 2, 2, 2, 3).mean((1, 3)) for i in range(15)])
    assert (
        np.abs(np.concatenate([resized.train.x, resized.test.x]) - wanted).max() <= 1
    )  # Pillow rounds after each axis


def test_tfds_set_is_decoded_once(prepared, tmp_path):
    shutil.copytree(prepared + "/tiny_photos", tmp_path / "tiny_photos")
    first = load_dataset("tiny_photos", cache=str(tmp_path))
    assert (tmp_path / "tiny_photos" / "1.2.0.noise_compass" / "crop0_size0" / "images.npy").is_file()
    for file in (tmp_path / "tiny_photos" / "1.2.0").glob(
        "*array_record*"
    ):  # other bytes under the same name, size and time
        found = file.stat()
        file.write_bytes(bytes(found.st_size))
        os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    for name, path in (("tiny_photos", ""), ("tiny_photos:1.2.0", ""), ("", str(tmp_path / "tiny_photos" / "1.2.0"))):
        second = load_dataset(name, path, str(tmp_path))
        np.testing.assert_array_equal(second.train.x, first.train.x)
        np.testing.assert_array_equal(second.test.x, first.test.x)
    file.write_bytes(bytes(100))
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert "is damaged" in mistake("tiny_photos", cache=str(tmp_path))


def test_tfds_set_in_a_format_that_only_tensorflow_reads(prepared, tmp_path):
    copy = tmp_path / "tiny_colours"
    shutil.copytree(prepared + "/tiny_colours", copy)
    info = copy / "1.2.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    line = mistake("tiny_colours", cache=str(tmp_path))
    assert "is prepared as tfrecord" in line and "file_format='array_record'" in line


@pytest.mark.parametrize(
    "file, old, new",
    [
        ("dataset_info.json", '"12"', f'"{10**12}"'),
        ("dataset_info.json", '"12"', ", ".join(['"1"'] * 100_000)),
        ("features.json", '"numClasses": "4"', f'"numClasses": "{10**12}"'),
        ("features.json", '"numClasses": "4"', '"numClasses": "2"'),
    ],
)
def test_tfds_set_that_says_more_than_it_has(prepared, tmp_path, file, old, new):
    copy = tmp_path / "tiny_colours"
    shutil.copytree(prepared + "/tiny_colours", copy)
    path = copy / "1.2.0" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    for names in copy.rglob("*labels.txt"):
        names.unlink()
    line = mistake("", path=str(copy / "1.2.0"), cache=str(tmp_path / "cache"))
    assert "is damaged" in line and ("it says" in line or "of class 2, of 2" in line)


def test_tfds_version_that_there_is_not(prepared):
    assert "cifar10:9.9.9" in mistake("cifar10:9.9.9", cache=prepared)


def test_damaged_tfds_set_is_named(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    for file in (tmp_path / "copy" / "tiny_colours").rglob("*train.array_record*"):
        file.write_bytes(file.read_bytes()[:1000])
    assert "is damaged" in mistake("tiny_colours", cache=str(tmp_path / "copy"))


# Batches


@pytest.mark.parametrize("n, batch_size", [(10, 3), (10, 10), (10, 25), (7, 1), (1, 4), (64, 48)])
def test_every_epoch_has_every_example_exactly_once(n, batch_size):
    epochs = 6
    steps = -(-epochs * n // batch_size)
    row = np.concatenate([batch_indices(3, step, batch_size, n) for step in range(steps)])[: epochs * n]
    for epoch in row.reshape(epochs, n):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))


def test_batches_are_a_pure_function_of_seed_and_step():
    forwards = [batch_indices(0, step, 32, 100) for step in range(40)]
    for step in np.random.default_rng(0).permutation(40):  # any order, with other runs in between
        batch_indices(1, int(step), 7, 100)
        again = batch_indices(0, int(step), 32, 100)
        np.testing.assert_array_equal(again, forwards[step])
        again[:] = -1  # a caller that scribbles on its batch spoils no later one


def test_epochs_and_seeds_shuffle_afresh():
    n = 1000
    rows = [batch_indices(seed, step, n, n) for seed in (0, 1, -1, 2**63) for step in range(4)]
    for i, a in enumerate(rows):
        for b in rows[:i]:
            assert np.mean(a == b) < 0.02  # two independent shuffles agree in about one place


def test_where_an_example_comes_is_uniform():
    n, epochs = 8, 4000
    places = np.array([np.argsort(batch_indices(0, epoch, n, n)) for epoch in range(epochs)])
    counts = np.array([np.bincount(column, minlength=n) for column in places.T])
    chi2 = np.sum((counts - epochs / n) ** 2 / (epochs / n))  # (n - 1)² = 49 degrees of freedom, sd about 10
    assert 20 < chi2 < 90


def test_nonsense_is_refused():
    for arguments in ((0, -1, 4, 10), (0, 0, 0, 10), (0, 0, 4, 0)):
        with pytest.raises(ValueError, match="need n >= 1"):
            batch_indices(*arguments)
