"""The run directory: one process at a time, and the provenance of all that trained in it."""

import os
from pathlib import Path
from typing import Any

import pytest

from experiment.config import check_config, load_config
from experiment.errors import UserError
from experiment.run import directory
from experiment.run.directory import DataShape, RunDirectory


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
    assert beside["data_shape"] == {"shape": [2], "levels": None, "num_classes": 0}
