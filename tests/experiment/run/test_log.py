"""The run's log: rows on disk as they come, and none twice after a restart."""

import json
from pathlib import Path

from experiment.run.log import METRICS, RunLog, read_metrics


def row(step: int) -> dict[str, float]:
    return {"step": step, "loss": 1 / step}


def test_a_row_is_on_disk_once_it_is_written(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        for step in (10, 20):
            log.write(row(step))
            assert read_metrics(tmp_path)[-1] == row(step)


def test_a_log_that_is_opened_again_drops_what_the_checkpoint_does_not_have(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        for step in (10, 20, 30):
            log.write(row(step))
    with RunLog(tmp_path, 20) as log:  # the checkpoint of step 20 has the row of step 20
        assert read_metrics(tmp_path) == [row(10), row(20)]
        log.write(row(25))
    assert read_metrics(tmp_path) == [row(10), row(20), row(25)]


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    (tmp_path / METRICS).write_text("".join(json.dumps(row(step)) + "\n" for step in (10, 20))[:-5])
    assert read_metrics(tmp_path) == [row(10)]
    with RunLog(tmp_path, 20) as log:
        log.write(row(20))
    assert read_metrics(tmp_path) == [row(10), row(20)]


def test_tensorboard_has_the_numbers_of_a_row(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        log.write({"step": 10, "loss": 0.5, "lr": 0.1})
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert content.count(b"train/loss") == content.count(b"train/lr") == 1 and b"train/step" not in content
