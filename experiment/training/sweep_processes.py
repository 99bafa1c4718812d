"""The processes of a sweep: each run is trained by train.py in one of its own, and what they come to is told.

A process ends where the sweep does, however that ends, and saves a checkpoint before: the same sweep repeated goes on.
"""

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from experiment.common.errors import UserError, one_line, shown
from experiment.common.files import lock_file
from experiment.common.progress import duration, progress, say_start
from experiment.config import check_config
from experiment.run.directory import RunDirectory, with_absolute_path
from experiment.run.log import read_metrics
from experiment.training.loop import Signals
from experiment.training.sweep_runs import FILE, SweepRun

CHECKOUT = Path(__file__).parents[2]
LOGS = "logs"
POLL = 0.1  # seconds between two looks at the processes
FAILED = 2  # the exit status where some runs failed


class Process(Protocol):
    """A run that is being trained."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, in their folder, and the keys that the command line set for all of them."""

    folder: Path
    runs: Sequence[SweepRun]
    common: Mapping[str, str]

    def command(self, run: SweepRun) -> list[str]:
        """The command that trains the run, and goes on with it: train.py with its flags."""
        texts = {**self.common, **run.texts}
        keys = [f"--config.{key}={text}" for key, text in texts.items()]
        return [str(CHECKOUT / "train.py"), f"--config={self.folder / FILE}", f"--workdir={self.path(run)}", *keys]

    def path(self, run: SweepRun) -> Path:
        """The run's directory."""
        return self.folder / run.name

    def log(self, run: SweepRun) -> Path:
        """The file that takes what training the run prints."""
        return self.folder / LOGS / f"{run.name}.txt"

    def is_trained(self, run: SweepRun) -> bool:
        """Tell whether the run has been trained to its last step.

        Raises UserError where its directory is of another config, or cannot be read.
        """
        directory = RunDirectory(self.path(run))
        steps = directory.checkpoints.steps()
        if not steps:
            return False
        config = directory.with_its_sizes(with_absolute_path(check_config(run.config)))
        directory.check_belongs(config)
        return bool(steps[-1] >= config.train.steps)


def start_process(planned: Sweep, run: SweepRun, environment: Mapping[str, str]) -> Process:
    """Train the run in a process that ends where this one does; what it prints goes to its log."""
    command = [sys.executable, str(Path(__file__).with_name("swept.py")), *planned.command(run)]
    with open(planned.log(run), "ab") as log:
        # In a session of its own a ctrl-C of the terminal reaches the sweep alone, which asks its runs to stop.
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def environment_of(slot: int, at_once: int, given: Mapping[str, str]) -> dict[str, str]:
    """The environment of one of several runs at once: its share of the GPUs that are visible, or of each one's memory.

    What the user has set of the memory stays.
    """
    if at_once == 1:
        return dict(given)
    devices = [name for name in given.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if len(devices) >= at_once:
        return {**given, "CUDA_VISIBLE_DEVICES": ",".join(devices[slot::at_once])}
    sharing = -(-at_once // max(len(devices), 1))  # runs on one device
    own = {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if devices else {}
    return {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / sharing:.2f}", **given, **own}


class SweepTraining:
    """The runs that wait, those that are being trained, and how the others ended."""

    def __init__(self, planned: Sweep, at_once: int, start: Callable[..., Process], environment: Mapping[str, str]):
        self._sweep, self._start, self._environment = planned, start, environment
        self._at_once = at_once
        self._waiting: list[SweepRun] = []
        self._active: dict[int, tuple[SweepRun, Process, float, int]] = {}  # by slot, with the start and the log's size
        self._trained: list[SweepRun] = []
        self._failed: list[SweepRun] = []
        self._told: set[SweepRun] = set()

    def run(self) -> int:
        """Train them all, or until a signal comes. Returns the exit status."""
        for run in self._sweep.runs:
            self._sort(run)
        count, before = len(self._sweep.runs), len(self._trained)
        done = f", of which {before} are trained already" if before else ""
        say_start(f"sweep of {count} runs in {self._sweep.folder}{done}; {self._at_once} at once")
        stopping = False
        with Signals() as signals, progress(count, "sweep", "run") as work:
            signals.listen()
            while self._active or (self._waiting and not stopping):
                if signals.received and not stopping:
                    stopping = True
                    for _, process, *_ in self._active.values():
                        process.terminate()
                if not stopping:
                    self._fill()
                self._reap(stopping)
                work.at(len(self._trained) + len(self._failed))
                time.sleep(POLL)
        return self._end(signals.received)

    def _sort(self, run: SweepRun) -> None:
        """Put the run where it belongs: among those that wait, the trained or the failed ones."""
        try:
            (self._trained if self._sweep.is_trained(run) else self._waiting).append(run)
        except UserError as error:
            self._fail(run, str(error))

    def _fail(self, run: SweepRun, reason: str) -> None:
        self._failed.append(run)
        tqdm.write(shown(f"{run.name}: failed: {reason}", 1000), file=sys.stderr)

    def _fill(self) -> None:
        """Start runs while there is room. One that another process is training waits for that one's end."""
        for run in list(self._waiting):
            free = [slot for slot in range(self._at_once) if slot not in self._active]
            if not free:
                return
            if self._is_held(run):
                continue
            self._waiting.remove(run)
            if run in self._told:  # the other process may have finished it
                self._sort(run)
                if run not in self._waiting:
                    continue
                self._waiting.remove(run)
            log = self._sweep.log(run)
            size = log.stat().st_size if log.exists() else 0
            environment = environment_of(free[0], self._at_once, self._environment)
            try:
                process = self._start(self._sweep, run, environment)
            except OSError as error:
                self._fail(run, f"its process cannot be started ({error.strerror}): make room, or see {log}")
                continue
            self._active[free[0]] = run, process, time.monotonic(), size

    def _is_held(self, run: SweepRun) -> bool:
        path = self._sweep.path(run) / ".lock"
        if not path.exists():
            return False
        with open(path, "a") as file:
            try:
                lock_file(file, path.parent)
                return False
            except BlockingIOError:
                if run not in self._told:
                    self._told.add(run)
                    tqdm.write(f"{run.name}: another process is training it: waiting for that one", file=sys.stderr)
                return True

    def _reap(self, stopping: bool) -> None:
        """Take note of the runs that have ended."""
        for slot, (run, process, since, size) in list(self._active.items()):
            status = process.poll()
            if status is None:
                continue
            del self._active[slot]
            if status == 0:
                self._trained.append(run)
                last = (read_metrics(self._sweep.path(run)) or [{}])[-1]
                loss = f", loss {last['loss']:.4f}" if isinstance(last.get("loss"), float) else ""
                told = f"{run.name}: trained, step {last.get('step', '?')}{loss}, {duration(time.monotonic() - since)}"
                tqdm.write(f"{told} ({len(self._trained)} of {len(self._sweep.runs)})", file=sys.stdout)
                sys.stdout.flush()
            elif not (stopping and status in (128 + signal.SIGTERM, -signal.SIGTERM)):
                self._fail(run, _reason(self._sweep.log(run), size, status))

    def _end(self, received: int) -> int:
        count, trained = len(self._sweep.runs), len(self._trained)
        if received:
            name = signal.Signals(received).name
            print(f"{name}: {trained} of {count} runs are trained; the same command goes on", file=sys.stderr)
            return 128 + received
        print(f"{trained} of {count} runs are trained: {self._sweep.folder}")
        if self._failed:
            logs = self._sweep.folder / LOGS
            print(f"{len(self._failed)} failed, whose output is in {logs}; the same command tries them again")
            return FAILED
        print(f"next: python -m experiment.compare {shlex.quote(str(self._sweep.folder))}")
        return 0


def _reason(log: Path, since: int, status: int) -> str:
    """Why a process failed: the last line that it printed, or the signal that killed it."""
    if status < 0:
        name = signal.Signals(-status).name
        return f"it was killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
    try:
        with open(log, "rb") as file:
            file.seek(max(since, log.stat().st_size - 4000))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return one_line(lines[-1], 500) if lines else f"exit status {status}"
