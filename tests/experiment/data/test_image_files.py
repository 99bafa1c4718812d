import io
import os
import socket
import struct
import sys
import threading
import time
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from experiment.common.errors import UserError
from experiment.data import image_files as images
from experiment.data.dataset import fixed_split
from experiment.data.image_decoding import Recipe
from experiment.data.load import load_dataset

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


def mistake(path, **settings):
    with pytest.raises(UserError) as error:
        load_dataset("digits", path, **settings)
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
    for split, wanted in zip((dataset.train, dataset.test), fixed_split(PIXELS, None, ""), strict=True):
        np.testing.assert_array_equal(split.x, wanted.x)


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
    assert (
        line.startswith("1 image cannot be read") and "03.png" in line and "--config.data.skip_unreadable=True" in line
    )


def test_unreadable_images_are_counted_and_left_out_when_asked(tmp_path, capfd):
    bad = {"train/b/03.png": png(PIXELS[3])[:-40], "train/a/04.png": b"", "test/c/11.png": b"no image"}
    path = write(tmp_path, {**own_splits(), **bad})
    assert mistake(path).startswith("3 images cannot be read, first ") and "a/04.png" in mistake(path)
    assert capfd.readouterr().err == ""
    for _ in range(2):  # decoded, and from what is stored
        dataset = load_dataset("", path, skip_unreadable=True)
        line = f"3 images that cannot be read left out of {tmp_path.stem}, first {tmp_path}/train/a/04.png\n"
        assert capfd.readouterr().err == line
        np.testing.assert_array_equal(dataset.train.x, PIXELS[[1, 7, 0, 6, 2, 5]])
        np.testing.assert_array_equal(dataset.train.labels, [0, 0, 1, 1, 2, 2])
        np.testing.assert_array_equal(dataset.test.x, PIXELS[[10, 9, 8]])
        np.testing.assert_array_equal(dataset.test.labels, [0, 1, 2])


def test_nothing_but_unreadable_images(tmp_path):
    path = write(tmp_path, {f"{i}.png": b"no image" for i in range(5)})
    assert mistake(path).startswith("5 images cannot be read")
    assert "no readable image left" in mistake(path, skip_unreadable=True)


def test_sixteen_bit_and_transparent_images_are_named(tmp_path):
    line = mistake(write(tmp_path / "deep", {**flat(), "07.png": png(np.full((6, 5), 300, np.uint16))}))
    assert "07.png has pixels of mode I;16" in line
    glass = png(np.dstack([PIXELS[7], np.full((6, 5), 100, np.uint8)]))
    assert "07.png has transparent pixels" in mistake(write(tmp_path / "glass", {**flat(), "07.png": glass}))


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to itself", "link to nowhere", "too large"])
def test_what_is_no_file_is_counted_with_the_unreadable(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("experiment.data.image_files.MAX_BYTES", 2**16)
    path, name = write(tmp_path / "set", flat()), tmp_path / "set" / "xx.png"
    if kind == "pipe":
        os.mkfifo(name)
    elif kind == "socket":
        monkeypatch.chdir(name.parent)
        socket.socket(socket.AF_UNIX).bind(name.name)
    elif kind == "too large":
        name.write_bytes(bytes(2**16 + 1))
    else:
        name.symlink_to({"device": "/dev/zero", "link to itself": name}.get(kind, tmp_path / "nowhere"))
    line = mistake(path)
    assert line.startswith("1 image cannot be read") and "xx.png" in line
    assert len(load_dataset("", path, skip_unreadable=True).train) == 11


@pytest.mark.parametrize("name", ["set.zip", "set.npz", "set"])
def test_a_pipe_or_a_device_is_no_data(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert "is a pipe or a device" in mistake(str(tmp_path / name))
    (tmp_path / f"device-{name}").symlink_to("/dev/zero")
    assert "is a pipe or a device" in mistake(str(tmp_path / f"device-{name}"))
    os.mkfifo(tmp_path / "folder.zip")
    assert "no images" in mistake(str(tmp_path))


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_of_kinds_that_are_not_read_are_counted(tmp_path, packed, capfd):
    files = {**classes(), "a/1.heic": b"!", "b/2.JXL": b"!", "notes.txt": b"!", "a/._3.heic": b"!"}
    path = write_zip(tmp_path / "set.zip", files) if packed else write(tmp_path, files)
    assert len(load_dataset("", path).train) == 11
    line = capfd.readouterr().err
    assert line.count("\n") == 1 and "2 files that are not read (.heic, .jxl) left out of" in line and "1.heic" in line
    only = write(tmp_path / "only", {"1.heic": b"!"})
    assert "no images in" in mistake(only) and capfd.readouterr().err == ""


def test_a_wild_name_is_escaped_where_it_is_said(tmp_path, capfd):
    files = {**flat(), "a\x1b[2J.png": b"no image", "b\n.heic": b"!"}
    line = mistake(write(tmp_path, files))
    assert r"a\x1b[2J.png" in line and line.isprintable()
    capfd.readouterr()
    for _ in range(2):
        load_dataset("", str(tmp_path), skip_unreadable=True)
        said = capfd.readouterr().err
        assert r"a\x1b[2J.png" in said and r"b\n.heic" in said and said.replace("\n", "").isprintable()


def test_folders_nested_deep_are_looked_through(tmp_path, monkeypatch):
    dataset = load_dataset("", write_zip(tmp_path / "set.zip", flat("d/" * 2000)))
    assert len(dataset.train) == 11
    deep = tmp_path / "/".join("d" * 200)
    assert len(load_dataset("", write(deep, flat())).train) == 11
    (tmp_path / "set.zip").unlink()
    assert load_dataset("", str(tmp_path)).shape == (6, 5, 3)


def test_layouts_in_doubt(tmp_path):
    assert "99.png lies beside class folders" in mistake(
        write(tmp_path / "beside", {**classes(), "99.png": png(PIXELS[0])})
    )
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


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_threads_do_not_mix_up_the_members_of_a_zip(tmp_path, monkeypatch, compression):
    """An intact zip has no unreadable image. Extra fields, which many tools write, made Python 3.12.1 and 3.13.0 seek
    from wherever another thread had left the file.
    """
    monkeypatch.setattr(images, "AHEAD", 1)  # one image a task
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    interval = sys.getswitchinterval()
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for i in range(600):
            member = zipfile.ZipInfo(f"{i:03}.png")
            member.extra = struct.pack("<HHIB", 0x5455, 5, 0, 0)  # a time stamp
            archive.writestr(member, png(PIXELS[i % 12]), compression)
    try:
        sys.setswitchinterval(1e-6)
        dataset = load_dataset("", str(path))
    finally:
        sys.setswitchinterval(interval)
    assert len(dataset.train) + len(dataset.test) == 600
    assert {x.tobytes() for x in dataset.train.x} == {x.tobytes() for x in PIXELS}


def test_one_thread_at_a_time_reads_a_zip(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "AHEAD", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    reading = threading.Lock()
    read = zipfile.ZipFile.read

    def alone(archive, member):
        assert reading.acquire(blocking=False), "two threads read"
        time.sleep(0.001)
        reading.release()
        return read(archive, member)

    monkeypatch.setattr(zipfile.ZipFile, "read", alone)
    assert len(load_dataset("", write_zip(tmp_path / "set.zip", flat())).train) == 11


def test_damaged_zip_is_named(tmp_path):
    path = write_zip(tmp_path / "set.zip", flat())
    whole = open(path, "rb").read()
    for content in (b"", b"no zip", whole[: len(whole) // 2]):
        with open(path, "wb") as file:
            file.write(content)
        assert "cannot read" in mistake(path) and "set.zip" in mistake(path)
    with open(path, "wb") as file:  # whole directory, one byte of one image changed
        file.write(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    assert "1 image cannot be read" in mistake(path) and "00.png" in mistake(path)
    start = whole.index(b"06.png")
    with open(
        path, "wb"
    ) as file:  # whole directory, but 50 bytes are missing in the middle: what lies before them is not found
        file.write(whole[:start] + whole[start + 50 :])
    assert "7 images cannot be read" in mistake(path) and "00.png" in mistake(path)


@pytest.mark.parametrize(
    "name", ["../escape.png", "a/../../escape.png", "/etc/escape.png", "..\\escape.png", "C:/x.png"]
)
def test_zip_that_reaches_outside_itself_is_refused(tmp_path, name):
    line = mistake(write_zip(tmp_path / "set.zip", {**flat(), name: png(PIXELS[0])}))
    assert "reaches outside the zip" in line


def test_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("experiment.data.image_files.MAX_BYTES", 2**20)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    path = write_zip(tmp_path / "set.zip", {**flat(), "99.png": bytes(2**20 + 1)})
    assert os.path.getsize(path) < 2**14
    assert "99.png unpacks to 1048577 bytes" in mistake(path)


def test_zip_bomb_of_many_members_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("experiment.data.image_files.MAX_BYTES", 2**20)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    path = write_zip(tmp_path / "set.zip", {**flat(), **{f"{i}.bmp": bytes(2**19) for i in range(8)}})
    assert "set.zip unpacks to over 100 times its size" in mistake(path)


def promising(width, height):
    """A PNG of a few bytes whose header promises width x height pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + png(PIXELS[0])[33:]
    )


@pytest.mark.parametrize("side", [8193, 12000, 20000])  # Pillow says nothing, warns, raises
def test_image_of_too_many_pixels_is_a_mistake_whatever_pillow_thinks(tmp_path, side, recwarn):
    path = write(tmp_path, {**flat(), "07.png": promising(side, side)})
    for settings in ({}, {"size": 4}, {"skip_unreadable": True}):
        assert "07.png has more than 67108864 pixels" in mistake(path, **settings)
    assert not recwarn.list


# Crop and size


def only(tmp_path, pixels, **settings):
    """What becomes of one image."""
    path = write(tmp_path / "only", {f"{i}.png": png(pixels) for i in range(2)})
    dataset = load_dataset("", path, **settings)
    np.testing.assert_array_equal(dataset.train.x, dataset.test.x)
    return dataset.train.x[0]


def test_crop_is_central(tmp_path):
    rows, columns = np.mgrid[:218, :178].astype(np.uint8)
    cropped = only(tmp_path, np.dstack([rows, columns, rows]), crop=140)  # CelebA's
    np.testing.assert_array_equal(cropped[:, 0, 0], np.arange(39, 179))
    np.testing.assert_array_equal(cropped[0, :, 1], np.arange(19, 159))


def test_halving_is_by_means_and_the_same_size_is_untouched(tmp_path):
    np.testing.assert_array_equal(only(tmp_path / "as it is", PIXELS[0][:5], size=5), PIXELS[0][:5])
    grey = rng.integers(0, 256, (16, 16), np.uint8)
    halved = only(tmp_path / "halved", grey, size=8)[..., 0]
    assert np.abs(halved - grey.reshape(8, 2, 8, 2).mean((1, 3))).max() <= 1  # Pillow rounds after each axis


def test_resizing_keeps_a_ramp_and_does_not_alias(tmp_path):
    ramp = np.broadcast_to(np.arange(96, dtype=np.uint8) * 2, (96, 96))
    inner = only(tmp_path / "ramp", ramp, size=36)[4:-4, 4:-4, 0].astype(float)
    wanted = 2 * ((np.arange(36) + 0.5) * 96 / 36 - 0.5)  # centres of the new pixels on the old ones
    assert np.abs(inner - wanted[4:-4]).max() <= 1.5
    stripes = np.broadcast_to(np.array([0, 255], np.uint8).repeat(1), (96, 48, 2)).reshape(96, 96)
    inner = only(tmp_path / "stripes", stripes, size=60)[4:-4, 4:-4, 0].astype(float)
    assert np.abs(inner - 127.5).max() < 32  # dropping columns instead would leave 0 and 255


def test_shorter_side_becomes_the_size_and_the_centre_is_kept(tmp_path):
    wide = np.zeros((12, 60, 3), np.uint8)
    wide[:, 24:36] = 200
    assert (only(tmp_path / "wide", wide, size=6) == 200).all()
    assert (only(tmp_path / "tall", wide.swapaxes(0, 1), size=6) == 200).all()
    framed = np.full((30, 30, 3), 9, np.uint8)
    framed[5:25, 5:25] = 100
    assert (only(tmp_path / "framed", framed, crop=20, size=10) == 100).all()  # first the crop, then the size


def test_images_of_several_sizes_are_welcome_when_they_are_resized_or_cropped(tmp_path):
    files = {f"{i}.png": png(np.full((20 + i, 30 - i, 3), 10 * i, np.uint8)) for i in range(8)}
    path = write(tmp_path, files)
    assert "expected" in mistake(path)
    for settings, side in (({"size": 8}, 8), ({"crop": 12}, 12), ({"crop": 12, "size": 6}, 6)):
        dataset = load_dataset("", path, **settings)
        assert dataset.shape == (side, side, 3)
        assert sorted(int(x[0, 0, 0]) for s in (dataset.train, dataset.test) for x in s.x) == list(range(0, 80, 10))
        assert all((x == x[0, 0, 0]).all() for x in dataset.train.x)


def test_crop_larger_than_an_image_and_a_line_of_pixels_are_named(tmp_path):
    files = {**{f"{i}.png": png(np.zeros((9, 9, 3), np.uint8)) for i in range(4)}, "4.png": png(PIXELS[0])}
    line = mistake(write(tmp_path / "small", files), crop=7)
    assert "4.png is 6x5" in line and "smaller than the crop" in line and "at most 5" in line
    files["4.png"] = png(np.zeros((1, 60_000, 3), np.uint8))
    assert "4.png is too elongated" in mistake(write(tmp_path / "line", files), size=64)


def test_greyscale_among_colour_is_named_when_resized_too(tmp_path):
    path = write(tmp_path, {**flat(), "05.png": png(PIXELS[5, :, :, 0])})
    assert "05.png is greyscale among colour" in mistake(path, size=4)


# Decoding


def test_decoding_runs_a_bounded_number_of_images_ahead(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    read = []
    content = png(np.zeros((8, 8, 3), np.uint8))
    files = [images.ImageFile((str(i),), str(i), "", lambda i=i: read.append(i) or content) for i in range(6000)]
    rows = images.decode(files, Recipe())
    next(rows)
    before = -1
    while len(read) > before:  # until the threads have nothing left to do
        before = len(read)
        time.sleep(0.3)
    rows.close()
    # 25 headers, and tasks of 256 images: one that is used, at most two waiting for each thread, one under way in each
    assert 256 <= len(read) <= 25 + 256 * (2 + 3 * 4)


def texts(prefix="", suffix=".txt"):
    return {f"{prefix}{i:02}{suffix}": f" caption {i}\n".encode() for i in range(len(PIXELS))}


@pytest.mark.parametrize("packed", [False, True])
def test_a_text_beside_each_image_is_its_caption(tmp_path, packed, capsys):
    files = {**flat("photos/"), **texts("photos/"), "photos/notes.txt": b"nobody's"}
    path = write_zip(tmp_path / "a.zip", files) if packed else write(tmp_path / "a", files)
    of = {pixels.tobytes(): f"caption {i}" for i, pixels in enumerate(PIXELS)}
    for _ in range(2):  # decoded, then from what is kept
        dataset = load_dataset("", path, str(tmp_path / "cache"))
        for split in (dataset.train, dataset.test):
            assert [of[x.tobytes()] for x in split.x] == split.captions.tolist()
    if not packed:  # a caption that changes is read again
        write(tmp_path / "a", {"photos/03.txt": b"another one"})
        found = load_dataset("", path, str(tmp_path / "cache"))
        assert "another one" in {*found.train.captions, *found.test.captions}
    assert "captions" not in capsys.readouterr().err


def test_captions_that_some_images_lack_are_left_out_and_it_is_said(tmp_path, capsys):
    files = {**flat(), **{name: text for name, text in texts().items() if name != "05.txt"}}
    assert load_dataset("", write(tmp_path / "a", files)).train.captions is None
    assert "left out: 1 of 12 images have none, first" in capsys.readouterr().err
    files = {**flat(), **texts(), "07.txt": b"\xff\xfe"}
    with pytest.raises(UserError, match=r"the caption of .*07.png cannot be read .*: write it in UTF-8"):
        load_dataset("", write(tmp_path / "b", files))
