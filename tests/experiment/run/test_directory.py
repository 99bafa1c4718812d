"""The run directory: one process at a time, and the provenance of all that trained in it."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.config import check_config, load_config
from experiment.data.dataset import Dataset, Split
from experiment.run import directory
from experiment.run.directory import DataShape, RunDirectory, data_shape_of, with_absolute_path


def test_one_process_at_a_time_holds_it_and_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("123456789012")  # a longer number, of one that is gone
    with RunDirectory(tmp_path).lock():
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
        with pytest.raises(UserError, match=rf"\(pid {os.getpid()}\) is training in .*choose another --workdir"):
            RunDirectory(tmp_path).lock().__enter__()
    with RunDirectory(tmp_path).lock():
        pass


def test_the_provenance_of_each_version_that_trained_is_kept_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = RunDirectory(tmp_path), check_config({})
    listed: list[Any] = []
    for commit in ("a", "a", "b", "b"):
        monkeypatch.setattr(directory, "provenance", lambda commit=commit: {"git_commit": commit})
        run.write_config(config, DataShape((2,), None, 0))
        (tmp_path / "checkpoints" / "1").mkdir(parents=True, exist_ok=True)
        beside = load_config(run.config_path)[1]
        listed.append([p["git_commit"] for p in (*beside["earlier_provenance"], beside["provenance"])])
    assert listed == [["a"], ["a"], ["a", "b"], ["a", "b"]]
    assert beside["data_shape"] == {"shape": [2], "levels": None, "num_classes": 0, "class_counts": []}


def given_to(path: Path, **data: Any) -> Any:
    return with_absolute_path(check_config({"data": {"path": str(path), **data}}))


def begun(workdir: Path, config: Any, data: DataShape) -> RunDirectory:
    """A run that has trained on such data."""
    run = RunDirectory(workdir)
    run.write_config(config, data)
    (workdir / "checkpoints" / "1").mkdir(parents=True)
    return run


def test_the_data_s_path_is_kept_whole_and_does_not_depend_on_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.npz").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = begun(tmp_path / "run", given_to(Path("x.npz")), DataShape((2,), None, 0))
    assert load_config(run.config_path)[0].data.path == str(tmp_path / "x.npz")
    monkeypatch.chdir(tmp_path / "elsewhere")
    run.check_belongs(given_to(tmp_path / "x.npz"))
    with pytest.raises(UserError, match=r"belongs to another config: data\.path"):
        run.check_belongs(given_to(Path("x.npz")))


def test_data_that_moved_may_be_at_another_place_if_they_are_the_same(tmp_path: Path) -> None:
    seen = DataShape((2,), None, 2, (6, 3))
    (tmp_path / "new.npz").touch()
    run = begun(tmp_path / "run", given_to(tmp_path / "old.npz"), seen)
    run.check_belongs(given_to(tmp_path / "new.npz"))  # nothing is at the old place
    run.check_data(seen)
    with pytest.raises(UserError, match=r"belongs to another config: data\.crop 0 -> 4; undo"):
        run.check_belongs(given_to(tmp_path / "new.npz", crop=4))
    for other in (DataShape((3,), None, 2, (6, 3)), DataShape((2,), 17, 2, (6, 3)), DataShape((2,), None, 2, (6, 4))):
        with pytest.raises(UserError, match=r"the data are .* now, and .* was trained on vectors of 2, 2 classes"):
            run.check_data(other)


def test_the_data_s_facts_are_those_of_the_data(tmp_path: Path) -> None:
    labels = np.array([1, 1, 0, 3], np.int32)
    data = Dataset("d", Split(np.zeros((4, 5, 6, 1), np.uint8), labels), Split(np.zeros((1, 5, 6, 1), np.uint8)), 17, 4)
    found = DataShape.of(data)
    assert found == DataShape((5, 6, 1), 17, 4, (1, 2, 0, 1))
    run = begun(tmp_path, check_config({}), found)
    assert data_shape_of(run.config_path, load_config(run.config_path)[1]) == found


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        7,
        {},
        {"shape": []},
        {"shape": [0], "levels": None, "num_classes": 0},
        {"shape": [2], "levels": None},
        {"shape": [2.5], "levels": None, "num_classes": 0},
        {"shape": "88", "levels": 17, "num_classes": 0},
        {"shape": [10**15], "levels": None, "num_classes": 0},
        {"shape": [2], "levels": None, "num_classes": 2, "class_counts": [1]},
        {"shape": [2], "levels": None, "num_classes": 2, "class_counts": [0, 0]},
    ],
)
def test_facts_that_cannot_be_are_damage(damaged: Any) -> None:
    beside = {} if damaged is None else {"data_shape": damaged}
    with pytest.raises(UserError, match=r"does not say which data the run is of \(data_shape\): restore it"):
        data_shape_of(Path("run/config.json"), beside)
