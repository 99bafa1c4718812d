"""Checkpoints of a small state: whole or not there, whatever stops a save or a removal."""

import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.run import checkpoint
from experiment.run.checkpoint import Checkpoints, Damaged


def state(step: int, value: float = 0.0) -> dict[str, Any]:
    return {"params": {"w": jnp.full(3, value)}, "ema": {"w": jnp.full(3, value + 1)}, "step": jnp.int32(step)}


LIKE = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
WINDOW = {"loss": 0.5, "steps": 3}


def folders(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.directory.iterdir())


def saved(folder: Path, *steps: int, keep: int = 9) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(state(step, step), WINDOW)
    return checkpoints


def test_what_was_saved_comes_back_with_the_window(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path / "checkpoints", 3, 7)
    restored = checkpoints.restore(LIKE, [].append)
    assert restored is not None and restored[1] == {"step": 7, "window": WINDOW}
    jax.tree.map(np.testing.assert_array_equal, restored[0], state(7, 7))
    only, _ = checkpoints.read(3, {"ema": LIKE["ema"]})
    jax.tree.map(np.testing.assert_array_equal, only, {"ema": state(3, 3)["ema"]})
    assert Checkpoints(tmp_path / "none").restore(LIKE, [].append) is None


def test_a_step_that_is_there_stays_and_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, 10, keep=2)
    checkpoints.save(state(10, 77.0), WINDOW)
    assert folders(checkpoints) == ["10", "2"]
    np.testing.assert_array_equal(checkpoints.read(10, LIKE)[0]["params"]["w"], 10.0)


def test_a_removal_that_is_cut_short_leaves_no_checkpoint_with_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    checkpoints.keep = 1
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, **_: next(Path(path).rglob("sha256.json")).unlink())
        checkpoints.save(state(3), WINDOW)
    assert checkpoints.steps() == [3] and len(folders(checkpoints)) == 3
    checkpoints.clean()
    assert folders(checkpoints) == ["3"]


def test_a_save_that_is_cut_short_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 1)

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "_write_digests", killed)
        checkpoints.save(state(2), WINDOW)
    assert checkpoints.steps() == [1] and len(folders(checkpoints)) == 2
    checkpoints.clean()
    assert folders(checkpoints) == ["1"]
    checkpoints.save(state(2), WINDOW)
    assert checkpoints.steps() == [1, 2]


def test_only_who_trains_sets_a_damaged_one_aside(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    next((tmp_path / "2" / "params").rglob("*manifest*")).write_bytes(b"")
    for repair, left in ((False, ["1", "2"]), (True, ["1", "2.damaged"])):
        lines: list[str] = []
        restored = checkpoints.restore(LIKE, lines.append, repair=repair)
        assert restored is not None and int(restored[0]["step"]) == 1
        assert len(lines) == 1 and "step 2 is damaged" in lines[0] and "using that of step 1" in lines[0]
        assert folders(checkpoints) == left
    shutil.rmtree(tmp_path / "1" / "ema")
    with pytest.raises(Damaged, match="is missing"):
        checkpoints.read(1, LIKE)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read .*: restore one from a copy, or train into"):
        checkpoints.restore(LIKE, [].append)


def digests_of(root: Path, change: Any) -> None:
    path = root / "2" / "sha256.json"
    path.write_text(change(path.read_text()))


def replaced(root: Path, make: Any, name: str = "params/_METADATA") -> None:
    path = root / "2" / name
    path.unlink()
    make(path)


DAMAGE: dict[str, Any] = {
    "a name that leads elsewhere": lambda r: digests_of(r, lambda t: t.replace('"params/', '"/arams/', 1)),
    "a name of another folder": lambda r: digests_of(r, lambda t: t.replace('"meta/', '"../../../', 1)),
    "a name with a NUL": lambda r: digests_of(r, lambda t: t.replace('"params/', '"params\\u0000', 1)),
    "a wild name": lambda r: digests_of(r, lambda t: t.replace('"_CHECK', '"\\u001b[2J' + "x" * 10**6, 1)),
    "digests nested deep": lambda r: digests_of(r, lambda t: "[" * 10**5),
    "a number for the digests": lambda r: digests_of(r, lambda t: "3"),
    "numbers for digests": lambda r: digests_of(r, lambda t: '{"meta/metadata": 3}'),
    "a number of 5,000 digits": lambda r: digests_of(r, lambda t: "9" * 5000),
    "no digests": lambda r: (r / "2" / "sha256.json").unlink(),
    "a pipe for the digests": lambda r: replaced(r, os.mkfifo, "sha256.json"),
    "a pipe for a file": lambda r: replaced(r, os.mkfifo),
    "a folder for a file": lambda r: replaced(r, Path.mkdir),
    "a link to itself": lambda r: replaced(r, lambda path: path.symlink_to(path)),
    "a device for a file": lambda r: replaced(r, lambda path: path.symlink_to("/dev/zero")),
    "a file more": lambda r: (r / "2" / "params" / "more").touch(),
    "an empty folder": lambda r: [shutil.rmtree(r / "2"), (r / "2").mkdir()],
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("two"), 1, 2).directory


@pytest.mark.parametrize("case", DAMAGE)
def test_whatever_the_damage_the_one_before_is_used(case: str, two: Path, tmp_path: Path) -> None:
    shutil.copytree(two, tmp_path / "copy")
    DAMAGE[case](tmp_path / "copy")
    lines: list[str] = []
    restored = Checkpoints(tmp_path / "copy").restore(LIKE, lines.append)
    assert restored is not None and int(restored[0]["step"]) == 1
    (line,) = lines
    assert "step 2 is damaged" in line and line.isprintable() and len(line) < 600


def test_any_byte_may_change(two: Path, tmp_path: Path) -> None:
    """A flipped bit, wherever, is seen, or changes nothing that is read."""
    rng = np.random.default_rng(0)
    files = sorted(path.relative_to(two) for path in (two / "2").rglob("*") if path.is_file())
    outcomes = set()
    shutil.copytree(two, tmp_path / "copy")
    for name in [*files, *[Path("2/sha256.json")] * 30]:
        path = tmp_path / "copy" / name
        whole = path.read_bytes()
        if not whole:
            continue
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] = rng.choice(list(b'/\0."{}[]\\9aA\xff'))
        path.write_bytes(changed)
        restored = Checkpoints(tmp_path / "copy").restore({"ema": LIKE["ema"]}, [].append)
        path.write_bytes(whole)
        assert restored is not None
        step = restored[1]["step"]
        jax.tree.map(np.testing.assert_array_equal, restored[0]["ema"], state(step, step)["ema"])
        outcomes.add(step)
    assert outcomes == {1, 2}


@pytest.mark.parametrize("name", ["²", "٣", "007", "-1", "1e9", "9" * 200, "1_000", " 4"])
def test_only_what_a_save_names_is_a_checkpoint(name: str, two: Path, tmp_path: Path) -> None:
    shutil.copytree(two, tmp_path / "copy")
    (tmp_path / "copy" / name).mkdir()
    checkpoints = Checkpoints(tmp_path / "copy")
    assert checkpoints.steps() == [1, 2]
    restored = checkpoints.restore(LIKE, [].append)
    assert restored is not None and int(restored[0]["step"]) == 2


def test_a_file_where_checkpoints_go_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(UserError, match="checkpoints is a file, where checkpoints go: move it away"):
        checkpoints.clean()
    with pytest.raises(UserError, match=r"cannot write the checkpoint of step 3 into .* \(File exists\): make room"):
        checkpoints.save(state(3), WINDOW)
    assert checkpoints.steps() == []


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=23))  # the state has 24 bytes
    with pytest.raises(UserError, match=r"the checkpoint of step 2 into .* \(No space left on device\): make room"):
        checkpoints.save(state(2), WINDOW)
    assert folders(checkpoints) == ["1"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    checkpoints.save(state(2), WINDOW)
    assert checkpoints.steps() == [1, 2]
