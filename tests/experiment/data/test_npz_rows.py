"""A large .npz, which is unpacked once and mapped: the same as one that is read into memory, and never in it."""

import mmap
import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.data import npz_rows, stored
from experiment.data.dataset import Dataset
from experiment.data.load import load_dataset
from experiment.data.scaling import Scaled, Scaling
from experiment.data.units import Units
from tests.experiment.data.test_npz import CAPTIONS, EMBEDDED, GREY, IMAGES, LABELS, LIES, MISTAKES, VECTORS

FIELDS = (np.random.default_rng(3).normal(size=(40, 5, 6, 2)) * [2, 30] + [1, 900]).astype(np.float32)
SETS = {
    "images": {"x": IMAGES, "labels": LABELS},
    "greyscale of 17 levels": {"images": GREY, "levels": 17},
    "float64 that becomes float32": {"x": VECTORS, "cond": VECTORS[:, :2]},
    "float64 that stays": {"x": VECTORS + 1e6},
    "float32 fields": {"arr_0": FIELDS},
    "half precision": {"x": FIELDS.astype(np.float16)},
    "integers": {"x": (FIELDS * 1000).astype(np.int64)},
    "bytes as vectors": {"x": IMAGES.reshape(40, -1)},
    "big-endian": {"x": FIELDS.astype(">f4")},
    "a split of its own": {"x_train": FIELDS[:30], "x_test": FIELDS[30:].astype(np.float64), "x": VECTORS},
    "captions": {"x": VECTORS, "captions": CAPTIONS, **EMBEDDED},
    "captions of splits": {
        f"{name}_{part}": rows[of]
        for name, rows in {"x": IMAGES, **EMBEDDED}.items()
        for part, of in (("train", slice(30)), ("test", slice(30, 40)))
    },
    "embeddings that are of no split": {"x_train": IMAGES[:30], "x_test": IMAGES[30:], **EMBEDDED},
    "a split of images": {"x_train": IMAGES[:30], "y_train": LABELS[:30], "x_test": IMAGES[30:], "y_test": LABELS[30:]},
}


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on every file is large, and read a row or two at once."""

    def set_limits() -> None:
        monkeypatch.setattr(npz_rows, "LARGE", 1)
        monkeypatch.setattr(npz_rows, "_READ", 150)

    return set_limits


def same(a: Any, b: Any) -> None:
    """Hold each array of two data sets to the last bit, and each number."""
    if isinstance(a, dict):
        for name, value in a.items():
            same(value, b[name])
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    elif hasattr(a, "__dict__"):
        for name, value in vars(a).items():
            same(value, vars(b)[name])
    else:
        assert a == b


def is_mapped(x: Any) -> bool:
    while isinstance(x, np.ndarray):
        x = x.base
    return isinstance(x, mmap.mmap)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", SETS)
def test_what_is_mapped_is_what_was_read(
    name: str, save: Any, tmp_path: Path, large: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "ROWS", 7)  # the constants are sums over several blocks
    path = tmp_path / "set.npz"
    save(path, **SETS[name])
    whole = load_dataset("", str(path))
    assert not is_mapped(whole.train.x) and os.listdir(tmp_path) == ["set.npz"]
    large()
    first = load_dataset("", str(path))
    monkeypatch.setattr(npz_rows, "_unpack", lambda *_: pytest.fail("unpacked again"))
    for found in (first, load_dataset("", str(path))):
        same(found, whole)
        assert is_mapped(found.train.x) and is_mapped(found.test.x) and not found.train.x.flags.writeable
        assert found.train.embeddings is None or is_mapped(found.train.embeddings["embeddings"])


@pytest.mark.parametrize("case", [*MISTAKES, *LIES])
def test_a_mistake_is_told_as_of_a_small_file(case: str, tmp_path: Path, large: Any) -> None:
    path = tmp_path / "set.npz"
    if case in LIES:
        content, words = LIES[case]
        path.write_bytes(content)
    else:
        arrays, words = MISTAKES[case]
        np.savez(path, **arrays)
    large()
    with pytest.raises(UserError) as error:
        load_dataset("", str(path))
    line = str(error.value)
    assert words in line and str(path) in line and "\n" not in line
    assert case in MISTAKES or not list(tmp_path.glob("*/*/train.npy"))


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"embeddings": EMBEDDED["embeddings"]}, "embeddings has no mask: save mask beside it"),
        ({**EMBEDDED, "mask": EMBEDDED["mask"] * 1.0}, "mask is float64"),
        ({**EMBEDDED, "embeddings": EMBEDDED["embeddings"] * np.inf}, "NaN or infinity where mask is true"),
        ({**EMBEDDED, "embeddings": VECTORS}, "embeddings must be floats (40, l, d)"),
        ({name: rows[:39] for name, rows in EMBEDDED.items()}, "embeddings must be floats (40, l, d)"),
    ],
)
def test_wrong_embeddings_are_told_as_of_a_small_file(arrays: Any, said: str, tmp_path: Path, large: Any) -> None:
    large()
    np.savez(tmp_path / "set.npz", x=VECTORS, **arrays)
    with pytest.raises(UserError, match=re.escape(said)):
        loaded(tmp_path / "set.npz")


def test_embeddings_follow_their_mask(tmp_path: Path, large: Any) -> None:
    """Another mask shows other tokens, and those of one split alone are refused."""
    large()
    path = tmp_path / "set.npz"
    for mask in (EMBEDDED["mask"], ~EMBEDDED["mask"]):
        np.savez(path, x=VECTORS, embeddings=EMBEDDED["embeddings"], mask=mask)
        told = loaded(path).train.embeddings
        np.testing.assert_array_equal((np.asarray(told["embeddings"]) != 0).all(axis=-1), told["mask"])
    alone = {"embeddings_train": EMBEDDED["embeddings"][:30], "mask_train": EMBEDDED["mask"][:30]}
    np.savez(path, x_train=VECTORS[:30], x_test=VECTORS[30:], **alone)
    with pytest.raises(UserError, match="only one of x_train and x_test has embeddings"):
        loaded(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_examples_are_never_in_memory(save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading 8 MB of float64, and going over them standardised, allocates less than a quarter of it."""
    for module, name, limit in (
        (npz_rows, "LARGE", 2**22),
        (npz_rows, "_READ", 2**17),
        (stored, "BLOCK", 2**17),
        (stored, "NUMBERS", 2**14),
    ):
        monkeypatch.setattr(module, name, limit)
    path = tmp_path / "set.npz"
    save(path, x=np.random.default_rng(0).normal(size=(1000, 16, 16, 4)))
    tracemalloc.start()
    dataset = load_dataset("", str(path))
    scaled = Scaled(Scaling(None, units=dataset.units), dataset.train.x)
    mean = sum(x.sum() for x in scaled.blocks()) / np.prod(scaled.shape)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert abs(mean) < 1e-5 and scaled.shape == (900, 16, 16, 4)
    assert peak < 2e6
    rows = np.array([[3, 5], [800, 1]])
    np.testing.assert_array_equal(scaled[rows], dataset.units.to_model(np.array(dataset.train.x))[rows])


def loaded(path: Path) -> Dataset:
    return load_dataset("", str(path))


def test_what_is_stored_and_damaged_is_made_again(tmp_path: Path, large: Any, capfd: Any) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, x=FIELDS)
    whole = loaded(path)
    large()
    loaded(path)
    for name in ("train.npy", "test.npy", "units.npy", "record.json"):
        file = tmp_path / "set.npz.noise_compass" / "examples" / name
        content = bytearray(file.read_bytes())
        content[-9] ^= 1
        file.write_bytes(content)
        same(loaded(path), whole)
        said = capfd.readouterr().err
        assert "unpacking" in said and "again: what is stored in" in said and "is damaged" in said
        same(loaded(path), whole)
        assert not capfd.readouterr().err


def test_a_changed_file_is_unpacked_again(tmp_path: Path, large: Any, capfd: Any) -> None:
    large()
    path = tmp_path / "set.npz"
    np.savez(path, x=IMAGES)
    before = loaded(path)
    changed = IMAGES.copy()
    changed[7, 0, 0, 0] ^= 1
    np.savez(path, x=changed)
    after = loaded(path)
    assert (np.asarray(after.train.x) != before.train.x).sum() + (np.asarray(after.test.x) != before.test.x).sum() == 1
    assert "again: the arrays have changed" in capfd.readouterr().err


def test_columns_are_read_into_memory(tmp_path: Path, large: Any) -> None:
    """An array in Fortran's order has no rows that lie together."""
    large()
    path = tmp_path / "set.npz"
    np.savez(path, x=np.asfortranarray(FIELDS))
    found = loaded(path)
    assert not is_mapped(found.train.x) and sorted(os.listdir(tmp_path)) == ["set.npz"]
    assert sorted(x.tobytes() for part in (found.train, found.test) for x in part.x) == sorted(
        x.tobytes() for x in FIELDS
    )


def test_without_a_place_to_write_it_is_read_into_memory_and_says_so(tmp_path: Path, large: Any, capfd: Any) -> None:
    path, home = tmp_path / "set.npz", tmp_path / "home"
    np.savez(path, x=FIELDS)
    whole = loaded(path)
    large()
    (tmp_path / "set.npz.noise_compass").write_text("no folder")
    home.mkdir(mode=0o555)
    same(loaded(path), whole)
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and f"{path} is read into memory whole" in said and "set data.cache" in said


def test_constants_of_a_large_example_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of many numbers have fewer rows, and the last ones may be few."""
    x = FIELDS[:37]
    whole = Units.of(x)
    monkeypatch.setattr(stored, "NUMBERS", 300)
    found = Units.of(x)
    np.testing.assert_allclose(found.mean, x.astype(float).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std, x.astype(float).std(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std, whole.std, rtol=1e-13)
