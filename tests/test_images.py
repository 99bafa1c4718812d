import io
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from experiment.data import load_dataset
from experiment.errors import UserError

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (12, 6, 5, 3), np.uint8)


def png(pixels, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, "png")
    return buffer.getvalue()


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return str(root)


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


def flat(prefix=""):
    return {f"{prefix}{i:02}.png": png(pixels) for i, pixels in enumerate(PIXELS)}


def classes(prefix=""):
    return {f"{prefix}{'bac'[i % 3]}/{i:02}.png": png(pixels) for i, pixels in enumerate(PIXELS)}


def own_splits(held_out="test"):
    return {f"{'train' if i < 8 else held_out}/{'bac'[i % 3]}/{i:02}.png": png(p) for i, p in enumerate(PIXELS)}


def pairs(dataset):
    """Every (image, label) of both splits."""
    splits = (dataset.train, dataset.test)
    return sorted((x.tobytes(), y) for s in splits for x, y in zip(s.x, s.labels, strict=True))


def mistake(path):
    with pytest.raises(UserError) as error:
        load_dataset("digits", path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_class_folders_become_labels_in_sorted_order(tmp_path):
    dataset = load_dataset("", write(tmp_path, {**classes(), "README.txt": b"!", ".hidden/x.png": b"!"}))
    assert dataset.num_classes == 3 and dataset.levels == 256 and dataset.shape == (6, 5, 3)
    assert pairs(dataset) == sorted((x.tobytes(), "abc".index("bac"[i % 3])) for i, x in enumerate(PIXELS))
    assert (len(dataset.train), len(dataset.test)) == (11, 1)


def test_flat_folder_has_no_labels_and_keeps_the_order_of_names(tmp_path):
    dataset = load_dataset("", write(tmp_path, flat()))
    assert dataset.train.labels is None and dataset.num_classes == 0
    order = {x.tobytes(): i for i, x in enumerate(PIXELS)}
    train = [order[x.tobytes()] for x in dataset.train.x]
    assert train == sorted(train) and len({*train, *(order[x.tobytes()] for x in dataset.test.x)}) == 12


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_train_and_test_folders_are_the_splits(tmp_path, held_out):
    dataset = load_dataset("", write(tmp_path, own_splits(held_out)))
    by_class = sorted(range(8), key=lambda i: ("bac"[i % 3], i))
    np.testing.assert_array_equal(dataset.train.x, PIXELS[by_class])
    assert sorted(x.tobytes() for x in dataset.test.x) == sorted(x.tobytes() for x in PIXELS[8:])
    assert pairs(dataset) == sorted((x.tobytes(), "abc".index("bac"[i % 3])) for i, x in enumerate(PIXELS))


@pytest.mark.parametrize("files", [flat(), classes(), own_splits(), flat("all/of/it/"), classes("train/")])
def test_zip_equals_folder(tmp_path, files):
    folder = load_dataset("", write(tmp_path / "folder", files))
    packed = load_dataset("", write_zip(tmp_path / "packed.zip", files))
    for a, b in ((folder.train, packed.train), (folder.test, packed.test)):
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.labels, b.labels)
    assert folder.num_classes == packed.num_classes


def test_folder_of_zips_is_their_union(tmp_path):
    files = own_splits()
    (tmp_path / "zips").mkdir()
    for split in ("train", "test"):
        part = {"__MACOSX/x.png": b"!", **{name: content for name, content in files.items() if name.startswith(split)}}
        write_zip(tmp_path / "zips" / f"our-{split}.zip", part)
    union = load_dataset("", str(tmp_path / "zips"))
    folder = load_dataset("", write(tmp_path / "folder", files))
    np.testing.assert_array_equal(union.train.x, folder.train.x)
    np.testing.assert_array_equal(union.test.labels, folder.test.labels)


def test_linked_class_folders_are_followed_and_loops_end(tmp_path):
    wanted = pairs(load_dataset("", write(tmp_path / "elsewhere", classes())))
    (tmp_path / "set").mkdir()
    for name in "abc":
        os.symlink(tmp_path / "elsewhere" / name, tmp_path / "set" / name)
    os.symlink(tmp_path / "set", tmp_path / "set" / "a" / "loop")
    assert pairs(load_dataset("", str(tmp_path / "set"))) == wanted


@pytest.mark.parametrize("mode, channels", [("L", 1), ("1", 1), ("P", 3), ("RGBA", 3), ("CMYK", 3)])
def test_pixel_modes(tmp_path, mode, channels):
    for i in range(2):
        image = Image.fromarray(PIXELS[i]).convert(mode)
        image.save(tmp_path / f"{i}.tif")
    dataset = load_dataset("", str(tmp_path))
    wanted = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(6, 5, channels)
    assert any(np.array_equal(x, wanted) for x in (*dataset.train.x, *dataset.test.x))


def test_odd_size_is_named_even_when_it_comes_first(tmp_path):
    line = mistake(write(tmp_path, {**flat(), "0.png": png(np.zeros((4, 7, 3), np.uint8))}))
    assert "/0.png is" in line and "4x7" in line and "expected 6x5" in line


def test_greyscale_among_colour_is_named(tmp_path):
    line = mistake(write(tmp_path, {**flat(), "05.png": png(PIXELS[5, :, :, 0])}))
    assert "05.png is greyscale among colour" in line


@pytest.mark.parametrize("kind", ["text", "empty", "truncated"])
@pytest.mark.parametrize("packed", [False, True])
def test_unreadable_image_is_named(tmp_path, kind, packed):
    whole = png(PIXELS[3])
    content = {"text": b"no image", "empty": b"", "truncated": whole[: len(whole) - 40]}[kind]
    files = {**flat(), "03.png": content}
    line = mistake(write_zip(tmp_path / "set.zip", files) if packed else write(tmp_path, files))
    assert "cannot read image" in line and "03.png" in line


def test_sixteen_bit_and_transparent_images_are_named(tmp_path):
    line = mistake(write(tmp_path / "deep", {**flat(), "07.png": png(np.full((6, 5), 300, np.uint16))}))
    assert "07.png has pixels of mode I;16" in line
    glass = png(np.dstack([PIXELS[7], np.full((6, 5), 100, np.uint8)]))
    assert "07.png has transparent pixels" in mistake(write(tmp_path / "glass", {**flat(), "07.png": glass}))


def test_layouts_in_doubt(tmp_path):
    assert "99.png lies beside class folders" in mistake(write(tmp_path / "beside", {**classes(), "99.png": png(PIXELS[0])}))
    outside = {**own_splits(), "extra/x.png": png(PIXELS[0])}
    assert "x.png lies outside train and test" in mistake(write(tmp_path / "outside", outside))
    for copy in ("a", "b"):
        (tmp_path / "twice").mkdir(exist_ok=True)
        write_zip(tmp_path / "twice" / f"{copy}.zip", flat())
    assert "00.png is there twice" in mistake(str(tmp_path / "twice"))


def test_nothing_to_read(tmp_path):
    assert "does not exist" in mistake(str(tmp_path / "nowhere"))
    (tmp_path / "bare").mkdir()
    assert "no images in" in mistake(str(tmp_path / "bare"))
    assert "no images in" in mistake(write_zip(tmp_path / "bare.zip", {"README.txt": b"!"}))
    assert "at least 2" in mistake(write(tmp_path / "one", {"1.png": png(PIXELS[0])}))
    assert "neither a folder" in mistake(write(tmp_path / "file", {"x.csv": b"1"}) + "/x.csv")


def test_damaged_zip_is_named(tmp_path):
    path = write_zip(tmp_path / "set.zip", flat())
    whole = open(path, "rb").read()
    for content in (b"", b"no zip", whole[: len(whole) // 2]):
        with open(path, "wb") as file:
            file.write(content)
        assert "cannot read" in mistake(path) and "set.zip" in mistake(path)
    with open(path, "wb") as file:  # whole directory, one byte of one image changed
        file.write(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    assert "cannot read image" in mistake(path) and "00.png" in mistake(path)


@pytest.mark.parametrize("name", ["../escape.png", "a/../../escape.png", "/etc/escape.png", "..\\escape.png", "C:/x.png"])
def test_zip_that_reaches_outside_itself_is_refused(tmp_path, name):
    line = mistake(write_zip(tmp_path / "set.zip", {**flat(), name: png(PIXELS[0])}))
    assert "reaches outside the zip" in line


def test_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("experiment.images.MAX_BYTES", 2**20)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    path = write_zip(tmp_path / "set.zip", {**flat(), "99.png": bytes(2**20 + 1)})
    assert os.path.getsize(path) < 2**14
    assert "99.png unpacks to 1048577 bytes" in mistake(path)
