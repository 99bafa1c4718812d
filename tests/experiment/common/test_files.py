"""Files that are replaced whole or not at all, and where prepared data are kept."""

import errno
import fcntl
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiment.common.errors import UserError
from experiment.common.files import (
    cache_folder,
    check_folder,
    read_regular,
    set_aside,
    user_path,
    write_bytes,
    write_json,
    write_npz,
)
from experiment.data.load import load_dataset
from experiment.run.directory import RunDirectory
from tests.commands import fresh


def test_the_new_content_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on the way" / "file"
    for content in (b"a longer one", b"short"):
        write_bytes(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_whatever_stops_a_write_the_old_content_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full just before the file would be whole, and then the renaming fails."""
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(
                UserError, match=r"cannot write .*file \(No space left.*: choose another folder, or make"
            ):
                write_bytes(path, b"new")
        assert path.read_bytes() == b"old"


def test_the_content_is_on_disk_before_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stops just after the renaming must not leave an empty file under the name."""
    calls = []
    for call in ("fsync", "replace"):
        real = getattr(os, call)
        monkeypatch.setattr(os, call, lambda *a, call=call, real=real: (calls.append(call), real(*a)))
    write_bytes(tmp_path / "file", b"new")
    assert calls == ["fsync", "replace"]


def test_numbers_that_are_not_finite_are_no_json(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", {"a": float("nan")})
    assert (tmp_path / "file.json").read_text() == '{\n  "a": 1\n}\n'


def test_arrays_come_back_by_name(tmp_path: Path) -> None:
    write_npz(tmp_path / "file.npz", x=np.arange(6).reshape(2, 3), y=np.float32(2.5))
    with np.load(tmp_path / "file.npz") as found:
        assert set(found.files) == {"x", "y"} and found["y"] == np.float32(2.5)
        np.testing.assert_array_equal(found["x"], [[0, 1, 2], [3, 4, 5]])


def test_the_cache_folder_is_the_one_given_or_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/large/cache")
    assert cache_folder("~/mine") == Path("/home/someone/mine")
    assert cache_folder() == Path("/large/cache/noise_compass")
    for unset in (lambda: monkeypatch.setenv("XDG_CACHE_HOME", ""), lambda: monkeypatch.delenv("XDG_CACHE_HOME")):
        unset()
        assert cache_folder() == Path("/home/someone/.cache/noise_compass")


@pytest.mark.parametrize(
    "given, said",
    [
        ("~nosuchuser/x", "home directory"),
        ("x" * 300, "File name too long"),
        ("a/" * 3000, "File name too long"),
        ("a\0b", "null"),
        ("gs://bucket/run", "is a URL"),
        ("s3://bucket/run", "is a URL"),
        ("http://host/x.npz", "is a URL"),
        ("hf://someone/model", "is a URL"),
        ("file:///tmp/x", "is a URL"),
        (Path("gs://bucket/run"), "is a URL"),
        (f"loop{os.sep}x", "symbolic links"),
        ("~" + "x" * 5000, "home directory"),
        ("\ud800", "surrogates"),
    ],
)
def test_what_can_be_no_path_is_one_line_and_leaves_no_folder(
    given: str | Path, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    for use in (
        lambda: user_path(given, "--out"),
        lambda: RunDirectory(given),
        lambda: load_dataset("", str(given)),
        lambda: load_dataset("digits", cache=str(given)),
    ):
        with pytest.raises(UserError) as caught:
            use()
        line = str(caught.value)
        assert said in line and len(line) < 600 and line.isprintable()
    assert os.listdir() == ["loop"]


def test_paths_that_are_right_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    bytes_of_no_text = os.fsdecode(b"\xff\xfe")
    (tmp_path / "file").touch()
    for given, wanted in {
        "~/x": tmp_path / "x",
        "a:b/c": Path("a:b/c"),
        "C:/x": Path("C:/x"),
        str(tmp_path / "file" / "x"): tmp_path / "file" / "x",
        bytes_of_no_text: Path(bytes_of_no_text),
    }.items():
        assert user_path(given, "--out") == wanted


def special(tmp_path: Path, kind: str) -> Path:
    """A thing with a name in a folder that is no file."""
    path = tmp_path / "thing"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path, "nowhere": tmp_path / "nowhere"}[kind])
    return path


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "loop", "nowhere", "folder"])
def test_what_never_ends_is_not_read(kind: str, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        read_regular(special(tmp_path, kind), 100)


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    assert read_regular(tmp_path / "file", 100) == bytes(100)
    with pytest.raises(OSError, match="more than 99 bytes"):
        read_regular(tmp_path / "file", 99)


@pytest.mark.parametrize("number", ["ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "no fcntl"])
def test_a_file_system_without_locks_is_said_and_used(
    number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise OSError(getattr(errno, number), "no locks")

    if number == "no fcntl":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", refused)
    with RunDirectory(tmp_path / "run").lock():
        line = capfd.readouterr().err
        assert line.count("\n") == 1 and f"{tmp_path / 'run'} lies where files cannot be locked" in line
    for i in range(2):
        Image.new("L", (2, 2)).save(tmp_path / f"{i}.png")
    assert len(load_dataset("", str(tmp_path)).train) == 1
    assert "cannot be locked" in capfd.readouterr().err


def test_another_fault_of_a_lock_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", failed)
    with (
        pytest.raises(UserError, match=r"cannot lock .* \(Input/output error\): choose another --workdir"),
        RunDirectory(tmp_path / "run").lock(),
    ):
        pass


def test_nothing_that_reads_or_trains_needs_fcntl() -> None:
    """Windows has none."""
    code = "import sys; sys.modules['fcntl'] = None; import experiment.run.load, experiment.training.loop"
    done = fresh("-c", code)
    assert done.status == 0, done.err


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    check_folder(tmp_path / "new" / "folder")
    check_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["mine/folder", "mine", "new/" + "a" * 300])
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match=r"cannot write to .*: choose another folder"):
        check_folder(tmp_path / name)
    assert (tmp_path / "mine").read_text() == "mine"


def test_files_set_aside_are_never_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    for content in ("first", "second", "third"):
        folder.mkdir(exist_ok=True)
        (folder / "report.json").write_text(content)
        (folder / "mine").write_text("mine")
        set_aside(folder, ["report.json", "not there"], "n64")
    kept = sorted(path for path in tmp_path.iterdir() if path != folder)
    assert [path.name for path in kept] == ["report_n64", "report_n64_2", "report_n64_3"]
    assert [(path / "report.json").read_text() for path in kept] == ["first", "second", "third"]
    assert [path.name for path in folder.iterdir()] == ["mine"]
