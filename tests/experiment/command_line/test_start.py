"""Before a command's imports: a missing package is one line, and Ctrl-C at any moment is silent."""

import sys
import time

import pytest

from experiment.command_line.start import NEEDED
from tests.commands import ROOT, fresh


@pytest.mark.parametrize("command", ["train.py", "experiment/latents.py"])
@pytest.mark.parametrize("missing", [("absl",), ("tensorboardX", "optax"), NEEDED])
def test_a_missing_package_is_one_line_with_the_remedy(command: str, missing: tuple[str, ...]) -> None:
    block = f"import sys; sys.modules.update(dict.fromkeys({missing!r})); sys.argv = [{command!r}]; import runpy; "
    told = fresh("-c", block + f"runpy.run_path({command!r}, run_name='__main__')").mistake
    first = next(name for name in NEEDED if name in missing)
    more = f" and {len(missing) - 1} more packages" if len(missing) > 1 else ""
    assert told.startswith(f"{first}{more} not installed: ") and f"pip install -e '{ROOT}[app]'" in told


# A shell starts what runs in the background deaf to the signal, and these tests with it.
START = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import experiment.command_line.start; "
)
PRESS = "import os, signal; press = lambda *_: os.kill(os.getpid(), signal.SIGINT); "
MOMENTS = {
    "in an import": "type('Finder', (), {'find_spec': press})()",
    "in a destructor": "type('Rubbish', (), {'__del__': press})() and None",
    "in a callback of the collector": "gc.callbacks.append(press) or gc.collect() or None",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment_is_silent_and_not_forgotten(moment: str) -> None:
    """Python's own handler prints a traceback in the first, and in the others a warning, and goes on."""
    code = f"{START} import gc, sys; {PRESS} sys.meta_path.insert(0, {MOMENTS[moment]}); "
    done = fresh("-c", code + "sys.meta_path.remove(None) if None in sys.meta_path else None; import absl; print('on')")
    assert (done.status, done.out, done.err) == (130, "", "")


def test_ctrl_c_while_a_program_is_compiled_does_not_wait_for_it() -> None:
    """A call that takes its time outside of Python, as a compilation does."""
    code = f"{START} import ctypes, threading, time; {PRESS} threading.Timer(0.2, press).start(); "
    start = time.monotonic()
    done = fresh("-c", code + "ctypes.CDLL(None).usleep(20_000_000); print('on')")
    assert (done.status, done.out, done.err) == (130, "", "") and time.monotonic() - start < 15


def test_training_that_listens_answers_itself() -> None:
    code = f"{START} import time; {PRESS} from experiment.training.loop import Signals; "
    listen = "signals = Signals(); signals.listen(); press(); time.sleep(0.3); print(signals.received)"
    done = fresh("-c", code + listen)
    assert (done.status, done.out, done.err) == (0, "2\n", "")


def test_ctrl_c_after_a_command_has_ended_changes_nothing() -> None:
    code = f"{PRESS} import atexit, sys; from experiment import cli; atexit.register(press); "
    done = fresh("-c", code + "sys.argv = ['x']; cli.run_app(lambda: print('done'))")
    assert (done.status, done.out, done.err) == (0, "done\n", "")


def test_a_process_that_ignores_the_signal_goes_on_ignoring_it() -> None:
    """As one does that a shell starts in the background."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import experiment.command_line.start; "
        "print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    )
    assert fresh("-c", code).out.strip() == "True"


def test_what_is_needed_is_what_the_extra_installs() -> None:
    """Each is found here, where all is installed, and none is of the standard library."""
    assert not set(NEEDED) & sys.stdlib_module_names
    assert fresh("-c", "import experiment.command_line.start").status == 0
