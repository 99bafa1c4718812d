"""The training of a run: what is logged, saved and said while the training loop goes on, and how it stops."""

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from experiment.build.objects import check_names
from experiment.command_line.interrupts import leave_to_handlers
from experiment.common.errors import UserError
from experiment.config import check_config
from experiment.data.load import configured_dataset
from experiment.devices.hosts import all_or_none, first_host, joined, say
from experiment.run.directory import DataShape, RunDirectory, with_absolute_path
from experiment.run.log import RunLog
from experiment.run.tracking import check_tracker
from experiment.training.memory import check_state, check_step, out_of_memory
from experiment.training.preview import Preview
from experiment.training.sizing import follow_data
from experiment.training.start import start_of
from experiment.training.trainer import NotFinite, Progress, State, Trainer
from experiment.training.unused import check_data_keys, unused_keys, unused_line


class Signals:
    """A block in which, once `listen` is called, the first SIGTERM or SIGINT only asks training to stop.

    A second one acts as usual.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def _ask(self, number: int, frame: Any) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def __enter__(self) -> "Signals":
        return self

    def listen(self) -> None:
        """Start to catch signals. Until this call, made when training is ready to answer, they end the process."""
        if threading.current_thread() is threading.main_thread():  # a notebook's thread may not set handlers
            leave_to_handlers()
            self._before = {n: signal.signal(n, self._ask) for n in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, *_: object) -> None:
        self._restore()

    def here(self) -> bool:
        """Tell whether this process, when it is the only one, was asked to stop."""
        return bool(self.received) and jax.process_count() == 1

    def anywhere(self) -> bool:
        """Tell whether any host was asked to stop: all must leave at the same step."""
        if jax.process_count() > 1:
            heard = int(np.max(multihost_utils.process_allgather(np.int32(self.received))))
            if not heard:  # one that came while the hosts were talking counts next time, on all of them
                return False
            self.received = heard
        return bool(self.received)


def train(config: Any, workdir: str | Path, given: Iterable[str] = ()) -> int:
    """Train config into workdir, from its newest checkpoint on. The same call again resumes, or says it is done.

    given: the keys that the command line sets; one that the chosen classes do not take is a mistake. One that a config
        file sets in vain, as a difference from another config may, is told in a line.

    Returns the exit status: 0, or 128 + n when signal n stopped training, after a checkpoint. Raises UserError for
    every mistake that the user can mend.
    """
    with Signals() as signals, joined(), contextlib.ExitStack() as stack, out_of_memory(config):
        with all_or_none():
            config = with_absolute_path(check_config(config))
            check_names(config)
            if first_host():
                check_tracker(config.train.log)
            directory = RunDirectory(workdir, config.train.keep)
            config = directory.with_its_sizes(config)
            directory.check_belongs(config)
            begun = bool(directory.checkpoints.steps())
            start = None if begun else start_of(config, directory.path)
            config = start.config if start else config
            # A run that was begun goes on by the same command, whatever that sets in vain.
            unused = unused_keys(config, () if begun else given)
            dataset = configured_dataset(config)
            check_data_keys(dataset, () if begun else given)
            directory.check_data(DataShape.of(dataset))
            dataset = directory.in_its_units(dataset)
            config = follow_data(config, dataset)
            gaussian = start.gaussian() if start else directory.gaussian(config, dataset)
            trainer = Trainer(config, dataset, gaussian=gaussian)
            check_state(trainer)
        weights = start.weights(dataset, trainer.like["ema"]) if start else None
        with all_or_none():
            if first_host():
                stack.enter_context(directory.lock())
                directory.check_belongs(config)
                directory.checkpoints.clean()
                directory.snapshots.clean()
        restored = directory.checkpoints.restore(trainer.like, say, repair=True)
        state, window = restored or (trainer.initial_state(weights), {"window": trainer.empty_window()})
        step = int(state["step"])
        with config.unlocked():
            config.train.steps = max(config.train.steps, step)
        with all_or_none():
            if first_host():
                directory.write_config(config, DataShape.of(dataset), start.origin() if start else None, gaussian)
        if step < config.train.steps:
            if unused:
                say(unused_line(config, unused))
            say(_first_line(trainer, directory.path, step), sys.stdout)
            if start:
                say(f"{directory.path}: {start.line(config)}", sys.stdout)
            stopped = _Training(trainer, directory, signals).run(state, window["window"], step)
            if stopped:
                return stopped
        say(_last_lines(directory.path, config.train.steps), sys.stdout)
        return 0


def _first_line(trainer: Trainer, path: Path, step: int) -> str:
    """Say what is trained, on what, where, and from which step to which."""
    config, data = trainer.config, trainer.dataset
    hosts = f" of {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    devices = f"{trainer.weights:,} weights on {trainer.mesh.size} {jax.default_backend()} device(s){hosts}"
    what = f"{config.model.name} ({config.model.parameterization}, {config.sde.name}) on {data.name}"
    examples = f"{len(data.train):,} examples of size {' x '.join(map(str, data.shape))}"
    return f"{path}: {devices}, from step {step} to {config.train.steps:,}: {what}, {examples}"


def _last_lines(path: Path, step: int) -> str:
    """Say that the run is trained, and which commands come next, ready to paste."""
    checkout = os.path.relpath(Path(__file__).parents[2])
    workdir = shlex.quote(str(path))
    sample, evaluate = (shlex.quote(os.path.normpath(f"{checkout}/{name}.py")) for name in ("sample", "evaluate"))
    return (
        f"{path} is trained: step {step}\n"
        f"next: python {sample} --workdir={workdir} --n=64\n"
        f"      python {evaluate} --workdir={workdir}"
    )


class _Training:
    """What is logged, saved and shown of what the training loop yields."""

    def __init__(self, trainer: Trainer, directory: RunDirectory, signals: Signals):
        self._trainer, self._directory, self._signals = trainer, directory, signals
        self._log: RunLog | None = None
        self._preview = Preview(trainer)
        self._unit = "examples" if trainer.dataset.levels is None else "images"

    def run(self, state: State, window: dict[str, float], start: int) -> int:
        """Train to the last step. Returns 0, or 128 + n when signal n stopped it."""
        settings = self._trainer.config.train
        shown = {"unit": "step", "dynamic_ncols": True, "desc": "compiling"}
        shown["disable"] = None if first_host() else True  # None: shown on a terminal
        with tqdm(total=settings.steps, initial=start, **shown) as bar, contextlib.ExitStack() as stack:

            def called(step: int) -> None:
                if bar.n == start:
                    bar.set_description("train", refresh=False)
                    bar.unpause()  # the time of compilation is no step's
                bar.update(step - bar.n)

            try:
                with all_or_none():
                    check_step(self._trainer, state, window, start)  # compiles: until then a signal ends the process
                self._signals.listen()
                if first_host():
                    self._log = stack.enter_context(RunLog(self._directory.path, start, settings.log))
                    self._log.show_config(self._trainer.config, start)
                for now in self._trainer.run(state, window, self._signals.here, called):
                    self._write(now, bar)
                    if self._save(now) and now.step < settings.steps:
                        bar.close()
                        name = signal.Signals(self._signals.received).name
                        say(
                            f"{name}: stopped after step {now.step}, checkpoint saved; the same command goes on from"
                            " there"
                        )
                        return 128 + self._signals.received
            except NotFinite as error:
                bar.close()
                raise self._not_finite(error) from None
        return 0

    def _write(self, now: Progress, bar: Any) -> None:
        """Log the row that is due, on every host that takes part in its preview, and show it."""
        if not now.row:
            return
        row, picture = now.row, None
        if self._preview.due(now.step):
            row = {**row, **self._preview.held_out_losses(now.state)}
            picture = self._preview.picture(now.state)
        if not self._log:
            return
        self._log.write(row)
        if picture:
            self._log.show_samples(picture, now.step)
        words = [f"loss {row['loss']:.4f}", f"{row['images_per_second']:.0f} {self._unit}/s"]
        if "held_out_loss" in row:
            words.insert(1, f"held out {row['held_out_loss']:.4f}")
        if "held_out_loss_without_condition" in row:
            words.insert(2, f"without condition {row['held_out_loss_without_condition']:.4f}")
        bar.set_postfix_str(", ".join(words), refresh=False)
        if bar.disable:
            print(f"step {now.step}  {'  '.join(words)}", flush=True)

    def _save(self, now: Progress) -> bool:
        """Save what is due. Returns whether a signal asks training to stop."""
        settings, last = self._trainer.config.train, self._trainer.config.train.steps
        if settings.power_ema and (now.step % settings.snapshot_every == 0 or now.step == last):
            self._directory.snapshots.save({name: now.state[name] for name in ("power_ema", "step")}, {})
        stopped = self._signals.anywhere()
        if stopped or now.step % settings.checkpoint_every == 0 or now.step == last:
            self._directory.checkpoints.save(now.state, now.window)
        return stopped

    def _not_finite(self, error: NotFinite) -> UserError:
        steps = self._directory.checkpoints.steps()
        kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "nothing was saved"
        lr = self._trainer.config.train.lr
        return UserError(
            f"training stopped: {error}; {kept}; try a lower config.train.lr (now {lr:g}) with another --workdir"
        )
