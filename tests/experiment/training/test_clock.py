"""Images per second, on a clock that the test sets."""

import time

import pytest

from experiment.training.clock import Clock


def test_the_rate_leaves_out_compiling_and_the_caller_s_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = Clock(batch_size=32)
    assert clock.cold(1)
    now = 8.0  # the first call of one step takes 8 seconds, most of them to compile
    clock.tick(1)
    assert not clock.cold(1) and clock.cold(5)
    assert clock.rate() == 32 / 8  # nothing else is known yet
    now = 10.0
    clock.tick(1)
    clock.tick(1)
    assert clock.rate() == 2 * 32 / 2
    now = 13.0
    clock.skip(3.0)  # a checkpoint was written
    assert clock.rate() == 2 * 32 / 2
    now = 23.0  # a call of another length compiles anew
    clock.tick(5)
    assert clock.rate() == 5 * 32 / 12
    now = 24.0
    clock.tick(5)
    assert clock.rate() == 5 * 32 / 1
    clock.restart()  # a row was logged
    now = 26.0
    clock.tick(1)
    assert clock.rate() == 32 / 2
