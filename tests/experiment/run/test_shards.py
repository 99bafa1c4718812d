"""Work in parts: whole or absent, each computed once, shared out, and taken over from those that are gone."""

import fcntl
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.devices.hosts import Place, place_of_process
from experiment.run.shards import Part, Shards

N, SIZE = 23, 5


class Work:
    """Shards whose rows are their own numbers, with a list of what was computed."""

    def __init__(self, folder: Path):
        self.done: list[int] = []
        self.shards = Shards(folder, N, SIZE, self.compute, lambda part: len(part["x"]))

    def compute(self, first: int, rows: int) -> Part:
        self.done.append(first)
        return {"x": np.arange(first, first + rows)}

    def rows(self) -> list[int]:
        return [int(x) for part in self.shards.read() for x in part["x"]]


def test_what_is_killed_goes_on_and_each_part_is_computed_once(tmp_path: Path) -> None:
    work = Work(tmp_path / "parts" / "a")

    def killed(first: int, rows: int) -> Part:
        if first == 10:
            raise KeyboardInterrupt
        return work.compute(first, rows)

    with pytest.raises(KeyboardInterrupt):
        Shards(tmp_path / "parts" / "a", N, SIZE, killed, lambda part: len(part["x"])).fill()
    work.shards.fill()
    assert work.rows() == list(range(N)) and work.done == [0, 5, 10, 15, 20]
    work.shards.remove()
    assert list(tmp_path.iterdir()) == []


def test_two_share_out_the_parts_and_one_does_all_where_the_other_is_gone(tmp_path: Path) -> None:
    first, second = Work(tmp_path), Work(tmp_path)
    with open(tmp_path / ".00000005.lock", "w") as lock:  # the second one is at a part
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(0.3, lambda: os.close(os.dup(lock.fileno())) or lock.close()).start()  # and is killed
        first.shards.fill(Place(0, 2, "job"))
    assert first.done == [0, 10, 20, 15, 5]  # its own, the other's, and at last what was freed
    second.shards.fill(Place(1, 2, "job"))
    assert second.done == [] and second.rows() == list(range(N))


def test_one_that_comes_late_leaves_when_the_first_has_all(tmp_path: Path) -> None:
    late = Work(tmp_path / "parts")

    def gone(first: int, rows: int) -> Part:
        late.shards.remove()  # the first one has put them together meanwhile
        return late.compute(first, rows)

    Shards(tmp_path / "parts", N, SIZE, gone, lambda part: len(part["x"])).fill(Place(1, 2, "job"))
    assert late.done == [5] and not (tmp_path / "parts").exists()


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_part_is_set_aside_and_computed_again(
    damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    work = Work(tmp_path)
    work.shards.fill()
    path = tmp_path / "00000010.npz"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:50])
    else:
        np.savez(path, x=np.arange(3))
    assert work.rows() == list(range(N)) and work.done[5:] == [10]
    assert "computed again, for it is damaged" in capfd.readouterr().err
    assert path.with_name("00000010.npz.damaged").exists()


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place()),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"},
            Place(2, 3, "a:1"),
        ),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, Place()),
        (
            {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_JOB_ID": "77"},
            Place(3, 4, "SLURM_JOB_ID 77"),
        ),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, Place()),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "PMIX_NAMESPACE": "j"},
            Place(1, 2, "PMIX_NAMESPACE j"),
        ),
    ],
)
def test_the_environment_says_which_process_this_is(
    environment: dict[str, str], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert place_of_process() == place


def test_an_environment_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    for number in ("", "2", "x"):
        monkeypatch.setenv("SLURM_PROCID", number)
        with pytest.raises(UserError, match="number the processes from 0"):
            place_of_process()
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    with pytest.raises(UserError, match="hosts of a TPU slice"):
        place_of_process()
