"""What is shown of a command's progress, on a terminal and elsewhere."""

import io
import sys

import pytest

from experiment.common import progress as module
from experiment.common.progress import duration, progress, say_start, whole


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test sets, in a process that has said nothing yet."""
    now = [0.0]
    module._SAID_START.set(False)
    monkeypatch.setattr(module, "perf_counter", lambda: now[0])
    return now


def test_off_a_terminal_lines_come_more_and_more_seldom_with_the_time_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    say_start("em: 1,000 samples")
    with progress(1000, "em") as work:
        for done in range(1, 1001):
            clock[0] = done * 1.0
            work.update()
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "em: 1,000 samples"
    assert lines[0] == "em: 1% after 10 s"  # it may have been compiling
    assert lines[1] == "em: 2% after 20 s, about 16 min left"
    at = [int(line.split("%")[0].removeprefix("em: ")) for line in lines]
    assert at == sorted(at) and 10 < len(lines) < 40
    assert lines[-1].endswith("s left")


def test_a_short_command_prints_its_first_line_alone(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    say_start("em")
    with progress(64, "em") as work:
        clock[0] = 9.0
        work.at(32)
        work.at(64)
    assert capsys.readouterr().out == "em\n"


def test_what_is_called_from_python_prints_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress(64, "em") as work:
        clock[0] = 100.0
        work.at(32)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_one_bar_tells_that_it_compiles_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    say_start("not here")
    with progress(64, "em", "example") as work:
        work.note("compiling")
        work.note("")
        work.at(12.8)
        work.at(64)
    shown = terminal.getvalue().split("\r")
    assert any(text.startswith("em, compiling:   0%") for text in shown)
    assert "100%" in shown[-1] and "64/64" in shown[-1] and "example/s" in shown[-1]


def test_a_whole_is_one_bar_of_its_parts_by_their_expected_time(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with whole(seconds=40.0):
        with progress(10, "em", seconds=30.0) as work:
            work.at(5)
            work.note("half")
        with progress(4, "metrics", seconds=10.0) as work:
            work.at(2)
            work.note("now")
            work.at(4)
    shown = terminal.getvalue().split("\r")
    assert any(text.startswith("em, half:  38%") for text in shown)  # half of thirty of forty
    assert any(text.startswith("metrics, now:  88%") for text in shown)
    assert terminal.getvalue().count("\n") == 1 and "metrics, now: 100%" in shown[-1]


def test_a_whole_off_a_terminal_is_told_as_one(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    say_start("both")
    with whole(seconds=40.0):
        for name in ("em", "ode"):
            with progress(2, name, seconds=20.0) as work:
                clock[0] += 15.0
                work.at(1)
                clock[0] += 15.0
    assert capsys.readouterr().out.splitlines() == [
        "both",
        "em: 25% after 15 s, about 45 s left",
        "ode: 50% after 30 s, about 30 s left",
        "ode: 75% after 45 s, about 15 s left",
    ]


@pytest.mark.parametrize(
    "seconds, words", [(0.2, "1 s"), (8.4, "8 s"), (119, "119 s"), (150, "2.5 min"), (4000, "67 min"), (9000, "2.5 h")]
)
def test_durations_are_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
