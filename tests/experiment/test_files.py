"""Files that are replaced whole or not at all, and where prepared data are kept."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from experiment.errors import UserError
from experiment.files import (
    cache_folder,
    check_folder,
    set_aside,
    user_path,
    write_bytes,
    write_json,
    write_npz,
)


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


@pytest.mark.parametrize("text", ["~nobody_of_this_name/x", "a\0b", "~" + "x" * 5000, "\ud800"])
def test_what_is_no_path_is_told(text: str) -> None:
    with pytest.raises(UserError, match="is no path") as error:
        user_path(text)
    assert len(str(error.value)) < 300


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
