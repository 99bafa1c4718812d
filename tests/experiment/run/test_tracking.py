"""The log at wandb or mlflow, by stand-ins that write down how they are called; the packages are not needed here.

With wandb 0.31 and mlflow 3.17 themselves the same was seen by hand, offline and on a file store.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiment.common.errors import UserError
from experiment.config import check_config
from experiment.run.log import RunLog
from experiment.run.tracking import TRACKERS, check_tracker
from experiment.training.loop import train


class Service:
    """What both packages are asked for, and the rows that each run has there, by its id."""

    entities = SimpleNamespace(
        Param=lambda key, value: (key, value), Metric=lambda key, value, time, step: (key, value, step)
    )

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[str, float, int]]] = {}
        self.params: dict[str, str] = {}
        self.pictures: list[int] = []
        self.ended: list[bool] = []
        self.fails = False
        self.config = SimpleNamespace(update=lambda flat, allow_val_change: self.params.update(flat))

    # wandb's
    def init(self, project: str, name: str, id: str, resume: str, dir: str) -> Any:
        assert (project, name, resume) == ("noise_compass", "run", "allow")
        self.rows.setdefault(id, [])
        self.id = id
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        if self.fails:
            raise OSError("no route to host")
        if "samples" in values:
            self.pictures.append(step)
        else:
            self.rows[self.id] += [(key, value, step) for key, value in values.items()]

    def Image(self, pixels: Any) -> Any:
        return pixels

    def finish(self, exit_code: int) -> None:
        self.ended.append(not exit_code)

    # mlflow's
    def MlflowClient(self) -> "Service":
        return self

    def get_experiment_by_name(self, name: str) -> None:
        assert name == "noise_compass"

    def create_experiment(self, name: str) -> str:
        return "1"

    def create_run(self, experiment: str, run_name: str) -> Any:
        self.rows["of-the-server"] = []
        return SimpleNamespace(info=SimpleNamespace(run_id="of-the-server"))

    def update_run(self, run: str, status: str) -> None:
        assert run in self.rows and status == "RUNNING"

    def get_run(self, run: str) -> Any:
        return SimpleNamespace(data=SimpleNamespace(params=self.params))

    def log_dict(self, run: str, config: Any, file: str) -> None:
        assert file == "config.json" and config["train"]["steps"]

    def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
        if self.fails:
            raise OSError("no route to host")
        assert len(params) <= 100 and not {key for key, _ in params} & self.params.keys()  # they never change there
        self.params |= dict(params)
        self.rows[run] += metrics

    def log_image(self, run: str, pixels: Any, artifact_file: str) -> None:
        self.pictures.append(int(artifact_file.removeprefix("samples/step").removesuffix(".png")))

    def set_terminated(self, run: str, status: str) -> None:
        self.ended.append(status == "FINISHED")


@pytest.fixture(params=TRACKERS)
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Service]:
    found = Service()
    monkeypatch.setitem(sys.modules, request.param, found)  # type: ignore[arg-type]
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return request.param, found


def log_rows(workdir: Path, start: int, name: str, steps: range) -> None:
    with RunLog(workdir, start, name) as log:
        log.show_config(check_config({}), start)
        for step in steps:
            log.write({"step": step, "loss": 0.5 * step})


def test_a_run_that_goes_on_goes_on_there_and_logs_each_row_once(service: tuple[str, Service], tmp_path: Path) -> None:
    name, found = service
    run = tmp_path / "run"
    run.mkdir()
    log_rows(run, 0, name, range(1, 6))
    log_rows(run, 3, name, range(4, 9))  # from the checkpoint of step 3: 4 and 5 are there
    ((_, rows),) = found.rows.items()
    assert rows == [("train/loss", 0.5 * step, step) for step in range(1, 9)]
    assert found.params["train.lr"] in (1e-3, "0.001") and found.ended == [True, True]


def test_a_run_that_is_followed_later_has_its_whole_log(service: tuple[str, Service], tmp_path: Path) -> None:
    name, found = service
    run = tmp_path / "run"
    run.mkdir()
    log_rows(run, 0, "", range(1, 6))
    assert found.rows == {} and not (run / "tracking.json").exists()
    log_rows(run, 3, name, range(4, 7))
    assert [step for _, _, step in next(iter(found.rows.values()))] == [1, 2, 3, 4, 5, 6]


def test_a_service_that_fails_is_told_once_and_training_goes_on(
    service: tuple[str, Service], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, found = service
    run = tmp_path / "run"
    run.mkdir()
    with RunLog(run, 0, name) as log:
        found.fails = True
        log.write({"step": 1, "loss": 1.0})
        log.write({"step": 2, "loss": 1.0})
        found.fails = False
        log.write({"step": 3, "loss": 1.0})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name} does not take the log (no route to host): training goes on")
    assert [step for _, _, step in next(iter(found.rows.values()))] == [3]
    with pytest.raises(RuntimeError), RunLog(run, 3, name):
        raise RuntimeError
    assert found.ended == [True, False]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_not_there_is_refused_before_anything_is_trained(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]  # as where it is not installed
    config = check_config({"train": {"log": name}, "data": {"name": "nowhere"}})
    with pytest.raises(UserError, match=f"config.train.log is {name}, which is not installed .*: pip install {name}"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setitem(sys.modules, name, SimpleNamespace())  # type: ignore[arg-type]  # a folder of that name
    with pytest.raises(UserError, match="no package of that name has"):
        check_tracker(name)
    check_tracker("")


def test_a_service_that_cannot_be_opened_is_a_mistake(
    service: tuple[str, Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, found = service

    def closed(*_: Any, **__: Any) -> Any:
        raise ValueError("no API key")

    monkeypatch.setattr(found, TRACKERS[name][1], closed)
    with pytest.raises(UserError, match=r"cannot be opened \(no API key\): mend its settings"):
        RunLog(tmp_path, 0, name)
    assert list(tmp_path.iterdir()) == []
