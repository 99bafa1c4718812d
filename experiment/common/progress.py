"""What a command shows of its progress: one bar on a terminal; elsewhere a line at the start and lines on the way.

The pieces of a command's work tell how much of them is done, and where they lie inside `whole` the bar is that of the
whole:

    with whole(seconds=120):
        with progress(1000, "ddim", seconds=40) as work:
            work.at(250)
"""

import contextlib
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from time import perf_counter
from typing import Any, Protocol

FIRST, SHARE = 10.0, 0.2  # seconds before the first line on the way, and the share of what is past until the next
KNOWN = 0.02  # from which share on the past says how long the rest will take: before, it was spent on compiling


def on_terminal() -> bool:
    """Tell whether somebody watches: bars go to stderr."""
    return sys.stderr.isatty()


_SAID_START: ContextVar[bool] = ContextVar("said_start", default=False)


def say_start(line: str) -> None:
    """Print what a command is about to do, where no bar says it; from now on lines on the way follow.

    What is called from Python prints nothing on its own.
    """
    _SAID_START.set(True)
    if not on_terminal():
        print(line, flush=True)


def duration(seconds: float) -> str:
    """The time in words, to the digits that matter: "8 s", "3.5 min", "2.1 h"."""
    for unit, length in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}" if seconds < 10 * length else f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "1 s"


class _Shown(Protocol):
    """A bar, or lines."""

    def at(self, done: float, what: str) -> None: ...

    def close(self) -> None: ...


class _Bar:
    """A bar on a terminal, whose clock goes on while nothing is told."""

    def __init__(self, total: float, unit: str):
        from tqdm import tqdm

        of = "{n:.0f}/{total:.0f} " if unit else ""
        rate = ", {rate_fmt}" if unit else ""
        layout = "{desc}: {percentage:3.0f}%|{bar}| " + of + "[{elapsed}<{remaining}" + rate + "]"
        self._bar: Any = tqdm(total=total, unit=unit, bar_format=layout, dynamic_ncols=True, smoothing=0.1)
        self._closed = threading.Event()
        threading.Thread(target=self._tick, daemon=True).start()

    def _tick(self) -> None:
        while not self._closed.wait(1.0):
            self._bar.refresh()

    def at(self, done: float, what: str) -> None:
        self._bar.update(min(done, self._bar.total) - self._bar.n)
        if what != self._bar.desc:
            self._bar.set_description_str(what)

    def close(self) -> None:
        self._closed.set()
        self._bar.close()


class _Lines:
    """A line now and then, more and more seldom: what is being done, how far it is, how long it will take."""

    def __init__(self, total: float):
        self._total, self._start = total, perf_counter()
        self._next = FIRST

    def at(self, done: float, what: str) -> None:
        past = perf_counter() - self._start
        if past < self._next or not 0 <= done < self._total or not _SAID_START.get():
            return
        self._next = past + max(FIRST, SHARE * past)
        share = done / self._total
        left = f", about {duration(past * (1 - share) / share)} left" if share >= KNOWN else ""
        print(f"{what}: {share:.0%} after {duration(past)}{left}", flush=True)

    def close(self) -> None:
        pass


class Work:
    """A piece of work that tells how much of its total is done."""

    def __init__(self, total: float, what: str, shown: _Shown, before: float, length: float):
        self.total, self.done, self._what, self._note = total, 0.0, what, ""
        self._shown, self._before, self._length = shown, before, length
        self.at(0.0)

    def at(self, done: float) -> None:
        """Tell that so much is done, from the start."""
        self.done = done
        what = f"{self._what}, {self._note}" if self._note else self._what
        self._shown.at(self._before + self._length * min(done / max(self.total, 1e-300), 1.0), what)

    def update(self, more: float = 1.0) -> None:
        """Tell that so much more is done."""
        self.at(self.done + more)

    def note(self, text: str) -> None:
        """Say what is going on, such as "compiling"; "" takes it back."""
        self._note = text
        self.at(self.done)


class _Whole:
    """The bar of a whole command, and how many of its expected seconds are behind it."""

    def __init__(self, shown: _Shown):
        self.shown, self.past = shown, 0.0


_AROUND: ContextVar[_Whole | None] = ContextVar("whole", default=None)


def _show(total: float, unit: str) -> _Shown:
    return _Bar(total, unit) if on_terminal() else _Lines(total)


@contextlib.contextmanager
def whole(seconds: float) -> Iterator[None]:
    """Show one progress of all pieces of work inside, which are expected to take so many seconds together."""
    around = _Whole(_show(seconds, ""))
    token = _AROUND.set(around)
    try:
        yield
    finally:
        _AROUND.reset(token)
        around.shown.close()


@contextlib.contextmanager
def progress(total: float, what: str, unit: str = "sample", seconds: float = 1.0) -> Iterator[Work]:
    """Show the progress of `total` units of work.

    seconds: how long it is expected to take, which is its share of the `whole` around it, if there is one.
    """
    around = _AROUND.get()
    if around is not None:
        yield Work(total, what, around.shown, around.past, seconds)
        around.past += seconds
        return
    shown = _show(total, unit)
    try:
        yield Work(total, what, shown, 0.0, total)
    finally:
        shown.close()
