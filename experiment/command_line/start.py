"""What a command does before its other imports: from here on Ctrl-C is silent, and a missing package is one line.

import experiment.command_line.start  # noqa: F401
"""

import importlib.util
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from experiment.command_line import INTERRUPTED, MISTAKE

# What the extra `app` installs and every command needs, by the names that are imported. NumPy, jax and diffrax come
# with the library.
NEEDED = (
    "absl",
    "ml_collections",
    "flax",
    "optax",
    "orbax",
    "scipy",
    "sklearn",
    "matplotlib",
    "PIL",
    "threadpoolctl",
    "tqdm",
    "tensorboardX",
    "tensorflow_datasets",
    "array_record",
)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def end_in_silence() -> None:
    """Let Ctrl-C end the process at once, with status 130 and without a word.

    Python's own KeyboardInterrupt may arise in an import, in a destructor or at exit, where it is printed and, in a
    destructor, forgotten. To end at any moment is safe: every file is written under another name and renamed when
    whole. Training asks for signals itself once it has something to save. A process that ignores the signal, as one
    started in the background does, goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    signal.signal(signal.SIGINT, _end)
    # Python calls a handler between two of its own steps; a compilation is one step, of a minute at times. So a thread
    # hears of the signal too.
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_hear, args=(heard,), daemon=True).start()


def _hear(pipe: int) -> None:
    """End the process when the signal comes, for as long as its handler is ours."""
    while number := os.read(pipe, 1):
        if number[0] == signal.SIGINT and signal.getsignal(signal.SIGINT) is _end:
            os._exit(INTERRUPTED)


def check_installed() -> None:
    """Exit with status 2 and one line where a package of the extra `app` is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        more = f" and {len(missing) - 1} more packages" if missing[1:] else ""
        install = f"pip install -e '{Path(__file__).parents[2]}[app]'"
        print(f"{missing[0]}{more} not installed: give {sys.executable} what is missing, by {install}", file=sys.stderr)
        sys.exit(MISTAKE)


end_in_silence()
check_installed()
