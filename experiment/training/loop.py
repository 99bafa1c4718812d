"""The training of a run: what is logged, saved and said while the training loop goes on, and how it stops."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from experiment.build.objects import check_names
from experiment.config import check_config
from experiment.data.load import configured_dataset
from experiment.devices.hosts import all_or_none, first_host, joined, say
from experiment.errors import UserError
from experiment.run.directory import DataShape, RunDirectory, with_absolute_path
from experiment.run.log import RunLog
from experiment.training.trainer import NotFinite, Progress, Trainer, empty_window
from experiment.training.unused import unused_keys, unused_line


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
    with Signals() as signals, joined(), contextlib.ExitStack() as stack:
        with all_or_none():
            config = with_absolute_path(check_config(config))
            check_names(config)
            directory = RunDirectory(workdir, config.train.keep)
            directory.check_belongs(config)
            # A run that was begun goes on by the same command, whatever that sets in vain.
            unused = unused_keys(config, () if directory.checkpoints.steps() else given)
            dataset = configured_dataset(config)
            directory.check_data(DataShape.of(dataset))
            trainer = Trainer(config, dataset)
            if first_host():
                stack.enter_context(directory.lock())
                directory.check_belongs(config)
                directory.checkpoints.clean()
                directory.snapshots.clean()
        signals.listen()
        restored = directory.checkpoints.restore(trainer.like, say, repair=True)
        state, window = (restored[0], restored[1]["window"]) if restored else (trainer.initial_state(), empty_window())
        step = int(state["step"])
        with config.unlocked():
            config.train.steps = max(config.train.steps, step)
        with all_or_none():
            if first_host():
                directory.write_config(config, DataShape.of(dataset))
        if step >= config.train.steps:
            say(f"{directory.path} is trained: step {step}", sys.stdout)
            return 0
        hosts = f" of {jax.process_count()} hosts" if jax.process_count() > 1 else ""
        devices = f"{trainer.mesh.size} {jax.default_backend()} device(s){hosts}"
        if unused:
            say(unused_line(config, unused))
        say(f"{directory.path}: {trainer.weights:,} weights on {devices}, from step {step}", sys.stdout)
        log = stack.enter_context(RunLog(directory.path, step)) if first_host() else None
        return _train(trainer, trainer.run(state, window, signals.here), directory, log, signals, step)


def _train(
    trainer: Trainer,
    progress: Iterator[Progress],
    directory: RunDirectory,
    log: RunLog | None,
    signals: Signals,
    start: int,
) -> int:
    """Log, save and show on the progress bar what the training loop yields. Returns the exit status."""
    settings, checkpoints = trainer.config.train, directory.checkpoints
    hidden = None if log else True  # None: shown on a terminal
    shown = {"unit": "step", "disable": hidden, "dynamic_ncols": True, "desc": "train"}
    with tqdm(total=settings.steps, initial=start, **shown) as bar:
        try:
            for now in progress:
                if now.row and log:
                    log.write(now.row)
                    loss, rate = f"loss {now.row['loss']:.4f}", f"{now.row['images_per_second']:.0f} images/s"
                    bar.set_postfix_str(f"{loss}, {rate}", refresh=False)
                    if bar.disable:
                        print(f"step {now.step}  {loss}  {rate}", flush=True)
                bar.update(now.step - bar.n)
                if settings.power_ema and (now.step % settings.snapshot_every == 0 or now.step == settings.steps):
                    directory.snapshots.save({name: now.state[name] for name in ("power_ema", "step")}, {})
                stopped = signals.anywhere()
                if stopped or now.step % settings.checkpoint_every == 0 or now.step == settings.steps:
                    checkpoints.save(now.state, now.window)
                if stopped and now.step < settings.steps:
                    bar.close()
                    name = signal.Signals(signals.received).name
                    say(f"{name}: stopped after step {now.step}, checkpoint saved; the same command goes on from there")
                    return 128 + signals.received
        except NotFinite as error:
            bar.close()
            steps = checkpoints.steps()
            kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "nothing was saved"
            raise UserError(
                f"training stopped: {error}; {kept}; "
                f"try a lower config.train.lr (now {settings.lr:g}) with another --workdir"
            ) from None
    say(f"{directory.path} is trained: step {settings.steps}", sys.stdout)
    return 0
