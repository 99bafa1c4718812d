"""Whatever stops a run, the same command goes on, and ends bit for bit where the uninterrupted run ends."""

import fcntl
import random
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiment import load_score
from experiment.common.errors import UserError
from experiment.config import load_config
from experiment.run.checkpoint import Checkpoints
from experiment.run.load import load_run
from experiment.run.log import read_metrics
from experiment.training.loop import train as train_here
from experiment.training.trainer import Trainer
from tests.commands import Done, fresh, start_train, train, train_flags, trained

# 97 divides neither the log's interval nor the last step: a checkpoint falls inside an open row.
# So is what the log shows of the run, once.
KEYS: dict[str, Any] = {"train_steps": 400, "train_checkpoint_every": 97, "train_keep": 2, "train_preview_every": 390}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done = fresh(*train_flags(workdir, **KEYS))
    assert done.status == 0 and done.err == "", done.err
    return workdir


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture(scope="module")
def like(whole: Path) -> Any:
    return Trainer(load_config(whole / "config.json")[0], load_run(whole).dataset).like


def state_of(workdir: Path, like: Any, lines: list[str] | None = None) -> dict[str, Any]:
    restored = Checkpoints(workdir / "checkpoints").restore(like, [].append if lines is None else lines.append)
    assert restored is not None
    return restored[0]


def assert_same_run(one: Path, other: Path, like: Any) -> None:
    a, b = state_of(one, like), state_of(other, like)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
    assert [timeless(row) for row in read_metrics(one)] == [timeless(row) for row in read_metrics(other)]


def timeless(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "images_per_second"}


def stop_when(workdir: Path, ready: Callable[[], bool], number: int = signal.SIGKILL) -> Done:
    command = start_train(workdir, **KEYS)
    command.until(ready)
    command.send(number)
    return command.wait()


def saving(workdir: Path) -> bool:
    return any(workdir.glob("checkpoints/*unfinished*"))


def saved(workdir: Path) -> list[int]:
    return Checkpoints(workdir / "checkpoints").steps()


def test_killed_runs_end_where_the_uninterrupted_one_ends(whole: Path, tmp_path: Path, like: Any) -> None:
    workdir = tmp_path / "run"
    assert stop_when(workdir, lambda: saving(workdir)).status == -signal.SIGKILL  # during the first save
    assert saved(workdir) == []
    assert stop_when(workdir, lambda: len(saved(workdir)) == 2 and saving(workdir)).status == -signal.SIGKILL
    before = saved(workdir)
    assert before, "a kill during a save lost the checkpoints before it"
    pause = random.Random(0).uniform(0.0, 0.3)
    later = stop_when(workdir, lambda: saved(workdir)[-1:] > before[-1:] and not time.sleep(pause))
    assert later.status == -signal.SIGKILL
    trained(workdir, **KEYS)
    assert_same_run(whole, workdir, like)
    assert [row["step"] for row in read_metrics(workdir)] == list(range(10, 401, 10))
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["388", "400"]


def test_signals_checkpoint_then_exit(whole: Path, tmp_path: Path, like: Any) -> None:
    workdir = tmp_path / "run"
    for number, rows in ((signal.SIGTERM, 3), (signal.SIGINT, 23)):
        done = stop_when(workdir, lambda rows=rows: len(read_metrics(workdir)) >= rows, number)
        assert done.status == 128 + number
        assert len(done.err.splitlines()) == 1 and signal.Signals(number).name in done.err
        stopped = saved(workdir)[-1]
        assert f"step {stopped}," in done.err and 10 * rows <= stopped < 400
    trained(workdir, **KEYS)
    assert_same_run(whole, workdir, like)


def test_the_same_command_after_the_end_says_so(copied: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in copied.glob("checkpoints/**/*")}
    for steps in (400, 100):  # fewer do not undo what was done
        assert "is trained: step 400" in trained(copied, **{**KEYS, "train_steps": steps}).out
        assert load_config(copied / "config.json")[0].train.steps == 400
    assert {p: p.stat().st_mtime_ns for p in copied.glob("checkpoints/**/*")} == before


def test_more_steps_extend_a_run(copied: Path) -> None:
    trained(copied, **{**KEYS, "train_steps": 430, "train_log_every": 5})
    assert load_run(copied).step == 430
    assert [row["step"] for row in read_metrics(copied)][-7:] == [400, 405, 410, 415, 420, 425, 430]
    assert load_config(copied / "config.json")[0].train.steps == 430


def test_another_config_is_told_with_its_difference(copied: Path) -> None:
    before = (copied / "config.json").read_text()
    assert "train.lr 0.001 -> 0.002" in train(copied, **{**KEYS, "train_lr": 0.002}).mistake
    assert (copied / "config.json").read_text() == before


def test_a_second_process_is_refused(copied: Path) -> None:
    with open(copied / ".lock", "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process" in train(copied, **KEYS).mistake
    trained(copied, **KEYS)


def test_load_score_has_the_ema_weights(whole: Path, like: Any) -> None:
    score_fn = load_score(whole)
    for x, y in zip(jax.tree.leaves(score_fn.params), jax.tree.leaves(state_of(whole, like)["ema"]), strict=True):
        np.testing.assert_array_equal(x, y)
    assert np.isfinite(score_fn(jnp.ones((3, 2)), 0.5)).all()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], None]] = {"gone": Path.unlink, "half": truncate, "flipped": flip}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back(copied: Path, like: Any, damage: str) -> None:
    """Each file of the newest checkpoint in turn: the one before is used."""
    newest = copied / "checkpoints" / "400"
    files = [p for p in sorted(newest.rglob("*")) if p.is_file() and p.stat().st_size]
    for path in files:
        content = path.read_bytes()
        DAMAGES[damage](path)
        lines: list[str] = []
        assert int(state_of(copied, like, lines)["step"]) == 388, f"{path} {damage}"
        assert len(lines) == 1 and "step 400 is damaged" in lines[0] and "\n" not in lines[0]
        path.write_bytes(content)
    assert len(files) > 20 and int(state_of(copied, like)["step"]) == 400


def test_loading_a_run_changes_nothing_in_it(copied: Path) -> None:
    """Its training may go on meanwhile, and is the one that sets a damaged checkpoint aside."""
    truncate(copied / "checkpoints" / "400" / "sha256.json")
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    assert load_run(copied).step == 388
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_a_name_that_changes_in_the_digests_is_damage(copied: Path, like: Any) -> None:
    """Wherever its byte falls: a name that is no item's would leave its file unchecked."""
    digests = copied / "checkpoints" / "400" / "sha256.json"
    digests.write_text(digests.read_text().replace('"params/', '"pArams/', 1))
    lines: list[str] = []
    assert int(state_of(copied, like, lines)["step"]) == 388
    assert len(lines) == 1 and "sha256.json is not whole" in lines[0]


def test_what_orbax_does_not_see_the_digests_see(copied: Path, like: Any) -> None:
    """Weights of another step, as whole as any; and a checkpoint under another step's number."""
    checkpoints = copied / "checkpoints"
    shutil.copytree(checkpoints / "388" / "ema", checkpoints / "400" / "ema", dirs_exist_ok=True)
    lines: list[str] = []
    assert int(state_of(copied, like, lines)["step"]) == 388
    assert "has changed" in lines[0]
    shutil.copytree(checkpoints / "388", checkpoints / "401")
    assert int(state_of(copied, like, lines)["step"]) == 388
    assert any("step 401 is damaged (it is of step 388)" in line for line in lines)


def test_training_goes_on_from_the_checkpoint_before(whole: Path, copied: Path, like: Any) -> None:
    checkpoints = copied / "checkpoints"
    flip(checkpoints / "400" / "opt_state" / "manifest.ocdbt")
    shutil.copytree(checkpoints / "388", checkpoints / "400.unfinished")  # a kill just before the last rename
    shutil.copytree(checkpoints / "388", checkpoints / "291.removed")
    done = trained(copied, **KEYS)
    assert (
        len(done.err.splitlines()) == 1 and "step 400 is damaged" in done.err and "using that of step 388" in done.err
    )
    assert_same_run(whole, copied, like)
    # the damaged one is set aside, not thrown away
    assert sorted(path.name for path in checkpoints.iterdir()) == ["388", "400", "400.damaged"]


def test_no_checkpoint_left_whole_is_told(copied: Path) -> None:
    for path in copied.glob("checkpoints/*/ema"):
        shutil.rmtree(path)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
        load_run(copied)
    assert "can be read" in train(copied, **KEYS).mistake
    assert saved(copied) == [388, 400]


def test_nothing_saved_yet(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist; make one with: python train.py"):
        load_run(tmp_path / "none")
    with pytest.raises(UserError, match=r"no config.json"):
        load_run(tmp_path)
    shutil.copy(whole / "config.json", tmp_path)
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_run(tmp_path)
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "config.json").write_text('{"seed": 0,')
    with pytest.raises(UserError, match="is damaged"):
        load_run(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"checkpoints but no config.json"):
        train_here(load_config(whole / "config.json")[0], tmp_path)


def test_the_first_and_the_last_lines_say_what_is_trained_and_what_comes_next(tmp_path: Path) -> None:
    """The first is there before a step is made; the last are commands that run as they stand, from any folder."""
    workdir = tmp_path / "a run"
    command = start_train(workdir, **{**KEYS, "train_steps": 10**6, "train_log_every": 10**6})
    command.until(lambda: bool(command.out))
    assert not saved(workdir)
    assert command.out.startswith(
        f"{workdir}: 2,482 weights on 1 cpu device(s), from step 0 to 1,000,000: mlp (eps, vp)"
    )
    assert "on checkerboard, 20,000 examples of size 2" in command.out
    command.send(signal.SIGKILL)
    command.wait()
    lines = trained(workdir, train_steps=2).out.splitlines()
    assert lines[-3].endswith("a run is trained: step 2")
    sample, evaluate = (shlex.split(line.removeprefix("next:").strip()) for line in lines[-2:])
    assert sample == ["python", "sample.py", f"--workdir={workdir}", "--n=64"]
    assert evaluate == ["python", "evaluate.py", f"--workdir={workdir}"]
