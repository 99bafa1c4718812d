import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiment.common.errors import UserError
from experiment.data import image_cache
from experiment.data import image_files as images
from experiment.data import stored as stored_arrays
from experiment.data.batches import batch_indices
from experiment.data.load import load_dataset
from experiment.devices.sharding import make_mesh, put_rows
from tests.experiment.data.test_image_files import PIXELS, classes, flat, pairs, png, write, write_zip

WANTED = sorted((x.tobytes(), "abc".index("bac"[i % 3])) for i, x in enumerate(PIXELS))


@pytest.fixture
def no_decoding(monkeypatch):
    """Calling it forbids decoding from then on."""
    return lambda: monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded"))


@pytest.fixture
def decoded(monkeypatch):
    """The names of the images that are decoded, as they are."""
    names: list[str] = []
    decode_image = images.decode_image
    monkeypatch.setattr(images, "decode_image", lambda name, *rest: names.append(name) or decode_image(name, *rest))
    return names


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "set", classes())


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def stored(tmp_path, settings="crop0_size0"):
    return tmp_path / "set.noise_compass" / settings


# Once


@pytest.mark.parametrize("packed", [False, True])
def test_second_start_opens_no_image(tmp_path, packed, no_decoding):
    path = write_zip(tmp_path / "set.zip", classes()) if packed else write(tmp_path / "set", classes())
    first = load_dataset("", path)
    no_decoding()
    second = load_dataset("", path)
    assert pairs(first) == pairs(second) == WANTED
    assert (second.name, second.levels, second.num_classes) == ("set", 256, 3)
    for a, b in ((first.train, second.train), (first.test, second.test)):
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.labels, b.labels)


def test_second_start_reads_no_image_file(path):
    load_dataset("", path)
    for file in Path(path).rglob("*.png"):  # other bytes under the same name, size and time
        found = file.stat()
        file.write_bytes(bytes(found.st_size))
        os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert pairs(load_dataset("", path)) == WANTED


def test_both_splits_are_read_only_slices_of_one_mapped_file(tmp_path, path):
    dataset = load_dataset("", path)
    for split in (dataset.train, dataset.test):
        base = split.x
        while base.base is not None and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap) and base.filename == stored(tmp_path) / "images.npy"
        with pytest.raises(ValueError, match="read-only"):
            split.x[0] = 0
    np.testing.assert_array_equal(
        np.load(stored(tmp_path) / "images.npy"), np.concatenate([dataset.train.x, dataset.test.x])
    )


def test_batches_and_devices_read_the_mapped_rows(path):
    train = load_dataset("", path).train
    index = batch_indices(seed=1, step=2, batch_size=5, n=len(train))
    x, labels = train.x[index], train.labels[index]
    assert {(a.tobytes(), b) for a, b in zip(x, labels, strict=True)} <= set(WANTED)
    rows = np.array([7, 0, 7, 3] * 2)
    np.testing.assert_array_equal(put_rows(rows, train.x, make_mesh()), np.array(train.x)[rows])


def test_several_starts_at_once_decode_once(path, decoded, capfd):
    barrier, results = threading.Barrier(4), []

    def start():
        barrier.wait()
        results.append(pairs(load_dataset("", path)))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [WANTED] * 4 and len(decoded) == 12
    said = capfd.readouterr().err
    assert not said.replace(f"another process is decoding {path}: waiting for it\n", "")


def test_one_that_waited_for_a_failure_decodes_itself(tmp_path, path, monkeypatch, capfd):
    """The first fails and takes the folder away that the second waits for."""
    started, waiting = threading.Event(), threading.Event()
    plan = images._plan

    def failing(*args):
        monkeypatch.setattr(images, "_plan", plan)
        started.set()
        waiting.wait()
        time.sleep(0.05)
        raise UserError("no")

    monkeypatch.setattr(images, "_plan", failing)
    errors = []

    def first():
        with pytest.raises(UserError, match="no") as error:
            load_dataset("", path)
        errors.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    started.wait()
    monkeypatch.setattr("builtins.print", lambda *args, **_: waiting.set())  # "waiting for it"
    assert pairs(load_dataset("", path)) == WANTED
    thread.join()
    assert errors and stored(tmp_path).exists()


# Whole and fresh, or decoded again


def cut(file):
    file.write_bytes(file.read_bytes()[:-7])


def flip(file):
    whole = file.read_bytes()
    file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])


def empty(file):
    file.write_bytes(b"")


def lengthen(file):
    file.write_bytes(file.read_bytes() + b"\0")


def one_more_for_training(file):
    content = json.loads(file.read_text())
    content["record"]["train"] -= 1
    file.write_text(json.dumps(content))


DAMAGE = [
    (name, how) for name in ("images.npy", "labels.npy", "record.json") for how in (cut, flip, empty, Path.unlink)
]
DAMAGE += [
    ("images.npy", lengthen),
    ("record.json", one_more_for_training),
    ("record.json", lambda file: file.write_text("[]")),
]


@pytest.mark.parametrize("name, how", DAMAGE)
def test_what_is_damaged_is_decoded_again_and_said_so_in_one_line(tmp_path, path, name, how, no_decoding, capfd):
    load_dataset("", path)
    how(stored(tmp_path) / name)
    assert pairs(load_dataset("", path)) == WANTED
    said = capfd.readouterr().err
    assert (
        said.startswith(f"decoding {path} again: what is stored in {stored(tmp_path)} is damaged (")
        and said.count("\n") == 1
    )
    assert ("images.npy has another length" in said) == (name == "images.npy" and how in (cut, empty, lengthen))
    no_decoding()
    assert pairs(load_dataset("", path)) == WANTED
    assert capfd.readouterr().err == ""


def test_every_block_has_its_turn(tmp_path, path, monkeypatch, capfd):
    """Of a set too large to be checked whole, some blocks are, others each time."""
    monkeypatch.setattr(stored_arrays, "BLOCK", 100)  # 12 images of 90 bytes: 11 blocks
    monkeypatch.setattr(stored_arrays, "CHECKED", 2)
    load_dataset("", path)
    assert len(json.loads((stored(tmp_path) / "record.json").read_text())["record"]["blocks"]) == 11
    whole = (stored(tmp_path) / "images.npy").read_bytes()
    (stored(tmp_path) / "images.npy").write_bytes(whole[:-350] + b"????" + whole[-346:])
    starts = 1
    while "is damaged" not in capfd.readouterr().err:
        load_dataset("", path)
        starts += 1
        assert starts < 200  # found at one start of 5.5 on average
    assert (stored(tmp_path) / "images.npy").read_bytes() == whole


CHANGES = {
    "content": lambda root: (root / "a" / "01.png").write_bytes(png(PIXELS[5]) + b"\0"),
    "time": lambda root: os.utime(root / "a" / "01.png", ns=(1, 1)),
    "more": lambda root: shutil.copy(root / "a" / "01.png", root / "a" / "99.png"),
    "fewer": lambda root: (root / "a" / "01.png").unlink(),
    "name": lambda root: (root / "a" / "10.png").rename(
        root / "b" / "!.png"
    ),  # after all of a and before all of b, as it was
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_source_is_decoded_again_and_replaces_what_was_stored(tmp_path, path, change, capfd):
    before = pairs(load_dataset("", path))
    CHANGES[change](Path(path))
    after = pairs(load_dataset("", path))
    assert "its images have changed" in capfd.readouterr().err
    shutil.copytree(path, tmp_path / "fresh")
    assert after == pairs(load_dataset("", str(tmp_path / "fresh"))) and (after == before) == (change == "time")
    assert [p.name for p in stored(tmp_path).parent.iterdir() if p.name != ".lock"] == ["crop0_size0"]


def test_changed_zip_is_decoded_again_and_a_copied_one_is_not(tmp_path, decoded):
    path = write_zip(tmp_path / "set.zip", classes())
    load_dataset("", path)
    os.utime(path, ns=(1, 1))
    load_dataset("", path)
    assert len(decoded) == 12
    write_zip(tmp_path / "set.zip", {**classes(), "a/01.png": png(PIXELS[2])})
    assert pairs(load_dataset("", path)) != WANTED and len(decoded) == 24


def test_each_setting_is_stored_by_itself(tmp_path, path, decoded):
    shapes = {(0, 0, False): (6, 5, 3), (4, 0, False): (4, 4, 3), (0, 3, False): (3, 3, 3), (5, 3, True): (3, 3, 3)}
    for _ in range(2):
        for (crop, size, skip), shape in shapes.items():
            assert load_dataset("", path, crop=crop, size=size, skip_unreadable=skip).shape == shape
    assert len(decoded) == 12 * len(shapes)
    names = {p.name for p in stored(tmp_path).parent.iterdir()}
    assert names == {".lock", "crop0_size0", "crop4_size0", "crop0_size3", "crop5_size3_skip_unreadable"}


def test_other_version_of_decoding_decodes_again(path, decoded, monkeypatch):
    load_dataset("", path)
    monkeypatch.setattr(image_cache, "VERSION", 0)
    load_dataset("", path)
    assert len(decoded) == 24


def test_what_killed_processes_left_is_removed(tmp_path, path):
    left = stored(tmp_path, ".building-x")
    (left / "whole").mkdir(parents=True)
    (left / "whole" / "images.npy").write_bytes(b"half")
    load_dataset("", path)
    assert not left.exists()


def test_failure_leaves_what_was_there(tmp_path, path):
    (Path(path) / "a" / "01.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="1 image cannot be read"):
        load_dataset("", path)
    assert not stored(tmp_path).parent.exists()
    load_dataset("", path, skip_unreadable=True)
    assert len(np.load(stored(tmp_path, "crop0_size0_skip_unreadable") / "images.npy")) == 11
    with pytest.raises(UserError, match="1 image cannot be read"):
        load_dataset("", path)
    assert {p.name for p in stored(tmp_path).parent.iterdir()} == {".lock", "crop0_size0_skip_unreadable"}


# Where


def block_by_file(tmp_path):
    (tmp_path / "set.noise_compass").write_text("not a folder")


def block_by_mode(tmp_path):
    (tmp_path / "cache").mkdir()
    tmp_path.chmod(0o555)


@pytest.mark.parametrize("block", [block_by_file, block_by_mode])
def test_where_the_place_beside_cannot_be_written_the_cache_folder_is_used(tmp_path, path, block, decoded):
    block(tmp_path)
    try:
        for _ in range(2):
            assert pairs(load_dataset("", path, str(tmp_path / "cache"))) == WANTED
        assert len(decoded) == 12 and not stored(tmp_path).exists()
        (place,) = (tmp_path / "cache" / "images").iterdir()
        assert place.name.startswith("set-") and (place / "crop0_size0" / "images.npy").is_file()
    finally:
        tmp_path.chmod(0o755)


def test_no_place_at_all(tmp_path, path):
    block_by_file(tmp_path)
    with pytest.raises(
        UserError, match=r"cannot write the decoded images of .*: set data.cache to a writable folder"
    ) as error:
        load_dataset("", path, str(tmp_path / "set.noise_compass" / "cache"))
    assert "\n" not in str(error.value)


def test_too_little_space_is_said_before_anything_is_decoded_in_vain(tmp_path, path, monkeypatch, capfd):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(UserError, match="1080 bytes needed, 1000 free"):
        load_dataset("", path, str(tmp_path / "cache"))
    assert {p.name for p in tmp_path.iterdir()} <= {"set", "cache"}


def test_sets_of_one_name_do_not_meet_in_the_cache_folder(tmp_path):
    for i, name in enumerate(("one", "two")):
        folder = tmp_path / name
        write(folder / "set", {f"{j}.png": png(PIXELS[i]) for j in range(3)})
        block_by_file(folder)
    for _ in range(2):
        for i, name in enumerate(("one", "two")):
            dataset = load_dataset("", str(tmp_path / name / "set"), str(tmp_path / "cache"))
            np.testing.assert_array_equal(dataset.train.x[0], PIXELS[i])


def test_stored_images_are_no_part_of_a_set_around_them(tmp_path):
    write(tmp_path / "all" / "set", flat())
    load_dataset("", str(tmp_path / "all" / "set"))
    assert len(load_dataset("", str(tmp_path / "all")).train) == 11
