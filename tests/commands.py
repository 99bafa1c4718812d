"""The real commands, each in a process of its own, with the tests' compilation cache (conftest.py)."""

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

# A run that compiles in a second or two: a small perceptron on a two-dimensional set.
SMALL = {
    "data.name": "checkerboard",
    "model.width": 16,
    "model.depth": 1,
    "train.batch_size": 16,
    "train.warmup": 5,
    "train.schedule": "constant",
    "train.log_every": 10,
}


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def mistake(self) -> str:
        """The one line that a mistake gets: no more, no less, with status 2."""
        assert self.status == 2, (self.status, self.err)
        assert len(self.err.splitlines()) == 1, self.err
        return self.err


@cache
def _scratch() -> Path:
    path = tempfile.mkdtemp(prefix="noise-compass-tests-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


def environment(**more: str) -> dict[str, str]:
    return {
        **os.environ,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        **more,
    }


def fresh(*argv: str, **env: str) -> Done:
    """A Python command in a fresh interpreter, as a user starts it."""
    done = subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env=environment(**env), capture_output=True, text=True, timeout=120
    )
    return Done(done.returncode, done.stdout, done.stderr)


@cache
def _server() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.fork_commands"]
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.wait)
    assert server.stdin is not None
    atexit.register(server.stdin.close)
    return server


def _ask(**question: Any) -> Any:
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(question) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


class Command:
    """A Python command forked from a process that has imported jax already, which saves seconds."""

    def __init__(self, *argv: str, **env: str):
        self._out, self._err = (tempfile.mkstemp(dir=_scratch())[1] for _ in range(2))
        self.pid = _ask(argv=[str(a) for a in argv], env=env, out=self._out, err=self._err)
        self._status: int | None = None

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return Path(self._out).read_text()

    def running(self) -> bool:
        if self._status is None:
            self._status = _ask(poll=self.pid)
        return self._status is None

    def send(self, number: int) -> None:
        if self.running():
            os.kill(self.pid, number)

    def until(self, ready: Callable[[], bool]) -> None:
        """Wait until ready() or the command's end. Kills it, and fails, when neither comes in two minutes."""
        deadline = time.monotonic() + 120
        while self.running() and not ready():
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"after two minutes: {Path(self._out).read_text()} {Path(self._err).read_text()}")
            time.sleep(0.005)

    def wait(self) -> Done:
        self.until(lambda: False)
        assert self._status is not None
        return Done(self._status, Path(self._out).read_text(), Path(self._err).read_text())


def train_flags(workdir: Path, **keys: object) -> list[str]:
    """train.py's command line; train_steps=3 is --config.train.steps=3, after the small run's. None leaves one out."""
    given = {name.replace("_", ".", 1): value for name, value in keys.items()}
    flags = [f"--config.{name}={value}" for name, value in {**SMALL, **given}.items() if value is not None]
    return [str(ROOT / "train.py"), f"--config={ROOT}/configs/toys.py", f"--workdir={workdir}", *flags]


def start_train(workdir: Path, **keys: object) -> Command:
    return Command(*train_flags(workdir, **keys))


def train(workdir: Path, **keys: object) -> Done:
    return start_train(workdir, **keys).wait()


def trained(workdir: Path, **keys: object) -> Done:
    done = train(workdir, **keys)
    assert done.status == 0, done.err
    return done
