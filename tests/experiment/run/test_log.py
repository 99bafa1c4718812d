"""The run's log: rows on disk as they come, and none twice after a restart."""

import json
from pathlib import Path

import pytest

from experiment.common.errors import UserError
from experiment.run.log import METRICS, RunLog, last_rate, read_metrics


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


BAD_LINES = {
    "a number": "3",
    "text": '"step"',
    "nothing": "",
    "a list": "[10]",
    "no step": '{"loss": 1}',
    "a step that is text": '{"step": "10", "loss": 1}',
    "a step of nothing": '{"step": null}',
    "a nested row": '{"step": {"a": 1}}',
    "nested deep": "[" * 10**5,
    "10^400": '{"step": 10, "loss": 1' + "0" * 400 + "}",
    "5,000 digits": '{"step": ' + "9" * 5000 + "}",
    "half a row": '{"step": 10, "lo',
    "no text": "\udcff\x00",
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_damaged_line_is_set_aside_and_said(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps(row(10)), BAD_LINES[case], json.dumps(row(20)), json.dumps(row(30))]
    content = "".join(line + "\n" for line in lines).encode(errors="surrogateescape")
    (tmp_path / METRICS).write_bytes(content)
    assert read_metrics(tmp_path) == [row(10), row(20), row(30)]
    with RunLog(tmp_path, 20) as log:
        log.write(row(25))
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "1 damaged line(s)" in said and "kept as metrics.jsonl.damaged" in said
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == content
    assert read_metrics(tmp_path) == [row(10), row(20), row(25)]
    with RunLog(tmp_path, 25):
        assert capfd.readouterr().err == ""


def test_a_line_cut_short_at_the_end_is_no_damage(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for end in ("", '{"st', json.dumps(row(20))):
        (tmp_path / METRICS).write_text(json.dumps(row(10)) + "\n" + end)
        with RunLog(tmp_path, 10):
            assert read_metrics(tmp_path) == [row(10)]
    assert capfd.readouterr().err == "" and not (tmp_path / "metrics.jsonl.damaged").exists()


def test_a_file_where_the_events_go_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").touch()
    with pytest.raises(UserError, match="tensorboard is a file, where TensorBoard's events go: move it away"):
        RunLog(tmp_path, 0)


def test_the_last_rate_is_of_the_last_row_that_has_one(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "images_per_second": 5.0},
        {"step": 2, "images_per_second": 8.0},
        {"step": 2, "held_out_loss": 1},
    ]
    (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert last_rate(tmp_path) == 8.0
    assert last_rate(tmp_path / "none") is None
    (tmp_path / METRICS).write_text('{"step": 1, "images_per_second": 0}\n{"step": 2, "images_per_second": null}\n')
    assert last_rate(tmp_path) is None
