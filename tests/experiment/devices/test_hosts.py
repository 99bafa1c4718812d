"""Two processes of four simulated devices each train as one process does, survive what stops them, and leave
together.
"""

import fcntl
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiment.config import load_config
from experiment.run.checkpoint import Checkpoints
from experiment.run.load import load_run
from experiment.run.log import read_metrics
from experiment.training.trainer import Trainer
from tests.commands import ROOT, Command, Done, train_flags, trained
from tests.experiment.devices.test_sharding import losses, on_eight
from tests.experiment.training.test_resume import assert_same_run

KEYS: dict[str, Any] = {
    "model_width": 64,
    "train_batch_size": 32,
    "train_log_every": 2,
    "train_lr": 0.01,
    "train_checkpoint_every": 10,
    "train_steps": 40,
    "train_fsdp": 2,
    "train_keep": 9,
    "sample_batch_size": 10,
}

# The command, with a second host that is slow to leave: the first must not go before it.
SLOW_TO_LEAVE = """
import os, runpy, sys, time
import experiment.training.loop
say = experiment.training.loop.say

def slowly(line, file=None):
    if "stopped after" in line and os.environ["JAX_PROCESS_ID"] == "1":
        time.sleep(2)
    say(line, file)

experiment.training.loop.say = slowly
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def hosts(**env: str) -> list[dict[str, str]]:
    """The environments of two processes that meet at a free port."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    return [{**common, "JAX_PROCESS_ID": str(process), **env} for process in range(2)]


def start_pair(*argv: str) -> list[Command]:
    return [Command(*argv, **env) for env in hosts()]


def end(pair: list[Command]) -> list[Done]:
    return [command.wait() for command in pair]


def stop_when(pair: list[Command], ready: Callable[[], bool], number: int, to: tuple[int, ...]) -> list[Done]:
    pair[0].until(ready)
    for host in to:
        pair[host].send(number)
    return end(pair)


def saved(workdir: Path) -> list[int]:
    return Checkpoints(workdir / "checkpoints").steps()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two hosts that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    first, second = end(start_pair(*train_flags(workdir, **KEYS)))
    assert (first.status, second.status) == (0, 0), (first.err, second.err)
    assert "8 cpu device(s) of 2 hosts" in first.out
    assert first.err == second.err == "" and "step" not in second.out  # the second host says nothing
    return workdir


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("one") / "run"
    trained(workdir, **{**KEYS, "train_fsdp": 1, "train_steps": 50})
    return workdir


def test_two_hosts_train_as_one(whole: Path, one: Path) -> None:
    expected = losses(one)[:20]
    assert expected.std() > 0.01 and len(losses(whole)) == 20
    np.testing.assert_allclose(losses(whole), expected, rtol=1e-4)


@pytest.mark.parametrize("devices", [1, 8])
def test_what_two_hosts_saved_goes_on_elsewhere(devices: int, whole: Path, one: Path, tmp_path: Path) -> None:
    workdir = Path(shutil.copytree(whole, tmp_path / "run"))
    more = {**KEYS, "train_steps": 50}
    if devices == 8:
        assert on_eight(workdir, **{**more, "train_fsdp": 8}).status == 0
    else:
        assert load_run(workdir).step == 40
        trained(workdir, **{**more, "train_fsdp": 1})
    assert saved(workdir)[-2:] == [40, 50]  # it went on, and did not begin again
    np.testing.assert_allclose(losses(workdir), losses(one), rtol=1e-4)


def test_stopped_and_killed_hosts_end_where_the_uninterrupted_ones_end(whole: Path, tmp_path: Path) -> None:
    workdir, slow = tmp_path / "run", tmp_path / "slow.py"
    slow.write_text(SLOW_TO_LEAVE)
    for rows, host in ((2, 1), (8, 0)):
        pair = start_pair(str(slow), *train_flags(workdir, **KEYS))
        first, second = stop_when(pair, lambda rows=rows: len(read_metrics(workdir)) >= rows, signal.SIGTERM, (host,))
        assert (first.status, second.status) == (143, 143), (first.err, second.err)
        assert f"SIGTERM: stopped after step {saved(workdir)[-1]}," in first.err and second.err == ""
        assert 2 * rows <= saved(workdir)[-1] < 40
    killed = stop_when(
        start_pair(*train_flags(workdir, **KEYS)),
        lambda: any(workdir.glob("checkpoints/30*unfinished*")) or 30 in saved(workdir),
        signal.SIGKILL,
        (0, 1),
    )
    assert [done.status for done in killed] == [-signal.SIGKILL] * 2
    assert [done.status for done in end(start_pair(*train_flags(workdir, **KEYS)))] == [0, 0]
    config, _ = load_config(whole / "config.json")
    with config.unlocked():
        config.train.fsdp = 1  # this process has one device
    assert_same_run(whole, workdir, Trainer(config, load_run(whole).dataset).like)


def test_a_mistake_is_told_on_every_host(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    for done in end(start_pair(*train_flags(workdir, **{**KEYS, "train_batch_size": 20}))):
        assert "must be divisible by config.train.accumulate x devices, 1 x 8" in done.mistake
    assert not workdir.exists()
    workdir.mkdir()
    with open(workdir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        first, second = end(start_pair(*train_flags(workdir, **KEYS)))
    assert first.mistake.startswith("another process") and second.mistake.startswith("host 0: another process")


# Samples, shared out

DRAW = [str(ROOT / "sample.py"), "--sampler=ddim", "--n=200", "--steps=20"]


def samples_of(folder: Path) -> bytes:
    assert not (folder / "parts").exists()
    return (folder / "samples.npz").read_bytes()


@pytest.fixture(scope="module")
def drawn(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The samples that one process draws alone, with as many devices as each of two has."""
    folder = tmp_path_factory.mktemp("alone") / "samples"
    done = Command(*DRAW, f"--workdir={whole}", f"--out={folder}", XLA_FLAGS=hosts()[0]["XLA_FLAGS"]).wait()
    assert done.status == 0, done.err
    return samples_of(folder)


# The command, which waits after each part, so that it can be killed on the way.
SLOW_PARTS = """
import runpy, sys, time
import experiment.run.samples as samples
draw_rows = samples.draw_rows

def slowly(*given):
    time.sleep(0.1)
    return draw_rows(*given)

samples.draw_rows = slowly
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("killed", (0, 1))
def test_the_samples_of_two_processes_are_those_of_one_whichever_is_killed(
    killed: int, whole: Path, drawn: bytes, tmp_path: Path
) -> None:
    slow, folder = tmp_path / "slow.py", tmp_path / "samples"
    slow.write_text(SLOW_PARTS)
    argv = [*DRAW, f"--workdir={whole}", f"--out={folder}"]
    pair = start_pair(str(slow), *argv)
    done = stop_when(pair, lambda: len(list(folder.glob("parts/*/*.npz"))) >= 4, signal.SIGKILL, (killed,))
    assert [it.status for it in done] == ([-signal.SIGKILL, 0] if killed == 0 else [0, -signal.SIGKILL]), done
    if killed == 0:  # the other one has drawn all the rest, and the same command puts it together
        assert len(list(folder.glob("parts/*/*.npz"))) == 20 and not (folder / "samples.npz").exists()
        assert "process 1 of 2 has drawn its share" in done[1].out
        parts = {path.name: path.stat().st_mtime_ns for path in folder.glob("parts/*/*.npz")}
        again = Command(*argv, XLA_FLAGS=hosts()[0]["XLA_FLAGS"]).wait()
        assert again.status == 0 and len(parts) == 20, again.err
    assert samples_of(folder) == drawn


JOIN = """
from experiment import cli
from experiment.devices.hosts import joined
with cli.mistakes_in_one_line(), joined(timeout=1):
    pass
"""


def test_an_environment_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "join.py").write_text(JOIN)
    first, second = hosts()
    port = first["JAX_COORDINATOR_ADDRESS"].partition(":")[2]
    mistakes = {
        "JAX_NUM_PROCESSES is set, and JAX_COORDINATOR_ADDRESS is not": {"JAX_NUM_PROCESSES": "2"},
        "is set, and JAX_PROCESS_ID is not": {**first, "JAX_PROCESS_ID": ""},
        "'localhost': give the first host's name": {**first, "JAX_COORDINATOR_ADDRESS": "localhost"},
        "JAX_PROCESS_ID is '2': number": {**first, "JAX_PROCESS_ID": "2"},
        "JAX_NUM_PROCESSES is 'two'": {**first, "JAX_NUM_PROCESSES": "two"},
        "nobody answers there": second,
    }
    commands = {text: Command(str(tmp_path / "join.py"), **env) for text, env in mistakes.items()}
    for text, command in commands.items():
        assert text in command.wait().mistake
    with socket.create_server(("", int(port))):
        assert "choose another port" in Command(str(tmp_path / "join.py"), **first).wait().mistake


def test_a_run_is_sampled_on_one_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from experiment.common.errors import UserError

    for name, value in hosts()[0].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="runs on one host"):
        load_run(tmp_path)
