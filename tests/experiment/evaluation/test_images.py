"""Images that are read some at a time are the images, whatever they lie in."""

from pathlib import Path

import numpy as np
import pytest

from experiment.data.npz import load_npz, mapped_images
from experiment.data.scaling import Scaling
from experiment.evaluation.images import Images


def pictures(n: int, levels: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(n).integers(0, levels, (n, 8, 6, channels), dtype=np.uint8)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_batches_are_the_grey_values_of_all_parts_in_order(levels: int, tmp_path: Path) -> None:
    first, second = pictures(7, levels), pictures(5, levels)
    np.save(tmp_path / "first.npy", first)
    mapped = np.asarray(np.load(tmp_path / "first.npy", mmap_mode="r"))  # as the image cache maps its files
    images = Images([mapped, second], levels)
    expected = Scaling(levels).to_uint8(np.concatenate([first, second]))
    assert len(images) == 12 and images.shape == (12, 8, 6, 3)
    for size in (1, 4, 50):
        batches = list(images.batches(size))
        assert all(len(batch) <= size and batch.dtype == np.uint8 for batch in batches)
        np.testing.assert_array_equal(np.concatenate(batches), expected)
    np.testing.assert_array_equal(np.asarray(images), expected)
    np.testing.assert_array_equal(mapped, first)  # what was given back is still there
    changed = np.load(tmp_path / "first.npy", mmap_mode="c")  # a map with changes of its own is left alone
    changed[:] = 0
    assert not np.concatenate(list(Images([changed], levels).batches(2))).any() and not changed.any()


def test_the_images_of_an_npz_are_unpacked_as_they_would_be_loaded(tmp_path: Path) -> None:
    x, grey = pictures(30, 256), pictures(30, 256, 1)[..., 0]
    for arrays in ({"images": x}, {"arr_0": grey}, {"x_train": x[:20], "x_test": x[20:], "y_train": np.zeros(20, int)}):
        np.savez(tmp_path / "some.npz", **arrays)
        (tmp_path / "unpacked").mkdir(exist_ok=True)
        found = mapped_images(tmp_path / "some.npz", tmp_path / "unpacked")
        assert found is not None
        whole = np.asarray(Images(found))
        if "y_train" in arrays:
            np.testing.assert_array_equal(whole, x)
            continue
        data = load_npz(tmp_path / "some.npz")
        held = [*data.train.x, *data.test.x]
        assert sorted(z.tobytes() for z in whole) == sorted(z.tobytes() for z in held)


def test_what_is_not_plainly_images_is_left_to_the_loader(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    x = pictures(20, 16)
    for arrays in (
        {"x": x, "levels": np.array(16)},
        {"x": x.astype(float)},
        {"x": x.transpose(0, 3, 1, 2)},
        {"other": x},
        {"x": x[0, 0]},
    ):
        np.savez(path, **arrays)
        assert mapped_images(path, tmp_path) is None, arrays.keys()
    path.write_bytes(path.read_bytes()[:200])
    assert mapped_images(path, tmp_path) is None
