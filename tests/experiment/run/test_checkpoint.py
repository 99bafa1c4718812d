"""Checkpoints of a small state: whole or not there, whatever stops a save or a removal."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiment.errors import UserError
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
