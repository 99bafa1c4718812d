"""Ctrl-C in a command: it ends the process at once and in silence, until training asks to hear of it itself."""

import os
import signal
import threading
from types import FrameType

from experiment.command_line import INTERRUPTED

_heard: list[int] = []  # the pipe that a thread of ours listens to


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def end_in_silence() -> None:
    """Let Ctrl-C end the process at once, with status 130 and without a word.

    Python's own KeyboardInterrupt may arise in an import, in a destructor or at exit, where it is printed and, in a
    destructor, forgotten. To end at any moment is safe: every file is written under another name and renamed when
    whole. A process that ignores the signal, as one started in the background does, goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    signal.signal(signal.SIGINT, _end)
    # Python calls a handler between two of its own steps, and a compilation is one step, of a minute at times. So a
    # thread hears of the signal too.
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    _heard.append(told)
    threading.Thread(target=_hear, args=(heard,), daemon=True).start()


def _hear(pipe: int) -> None:
    while number := os.read(pipe, 1):
        if number[0] == signal.SIGINT and signal.getsignal(signal.SIGINT) is _end:
            os._exit(INTERRUPTED)


def leave_to_handlers() -> None:
    """From now on let signals be answered by their handlers alone. For the main thread."""
    if _heard:
        signal.set_wakeup_fd(-1)
        _heard.clear()
