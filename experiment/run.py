"""A run: the directory that `train` writes, and the bridge back from it to the mathematics, `load_score`."""

import contextlib
import fcntl
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from experiment.build.objects import abstract_network, build_score, check_names
from experiment.checkpoint import Checkpoints
from experiment.config import FREE_ON_RESUME, check_config, differences, load_config, save_config
from experiment.data.load import Dataset, configured_dataset
from experiment.data.scaling import Scaling
from experiment.devices.hosts import all_or_none, joined, one_host_only
from experiment.devices.sharding import OverBatch, mesh_here, weight_shardings
from experiment.errors import UserError
from experiment.provenance import provenance
from experiment.runlog import RunLog
from experiment.trainer import NotFinite, Progress, Trainer, empty_window
from sde_lib import NetworkScore


def _first_host() -> bool:
    """Whether this process is the one that writes what is not an array."""
    return jax.process_index() == 0


def _say(line: str, file: Any = None) -> None:
    """One line on stderr, or on `file`, from the first host; a progress bar moves out of its way."""
    if _first_host():
        tqdm.write(line, file=file or sys.stderr)


@dataclass(frozen=True)
class DataShape:
    """What a network must know of its data, as config.json remembers it."""

    shape: tuple[int, ...]
    levels: int | None
    num_classes: int


class RunDirectory:
    """The files of one run: config.json, checkpoints/, snapshots/ (of power_ema), metrics.jsonl, tensorboard/."""

    def __init__(self, workdir: str | Path, keep: int = 1):
        self.path = Path(workdir).expanduser()
        self.config_path = self.path / "config.json"
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep)
        self.snapshots = Checkpoints(self.path / "snapshots", keep=sys.maxsize)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for this process. Raises UserError when another does; a lock dies with its process."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"cannot write the run directory {self.path} ({error.strerror}): choose another --workdir"
            ) from None
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(file, 32).decode(errors="replace").strip() or "unknown"
                raise UserError(
                    f"another process (pid {owner}) is training in {self.path}: wait for it, stop it, or choose "
                    "another --workdir"
                ) from None
            os.ftruncate(file, 0)
            os.write(file, str(os.getpid()).encode())
            yield
        finally:
            os.close(file)

    def check_belongs(self, config: Any) -> None:
        """Raises UserError, with the difference, when the directory holds checkpoints of another config."""
        steps = self.checkpoints.steps()
        if not steps:  # nothing was trained, so there is nothing to mix up
            return
        if not self.config_path.exists():
            raise UserError(
                f"{self.path} has checkpoints but no config.json: restore it, or train into another --workdir"
            )
        changed = differences(load_config(self.config_path)[0], config, FREE_ON_RESUME)
        if changed:
            raise UserError(
                f"run directory {self.path} belongs to another config: {'; '.join(changed)};"
                " undo the change to go on with this run, or train into another --workdir"
            )

    def write_config(self, config: Any, data: DataShape) -> None:
        """config.json: the config, the data's shape, the provenance; earlier ones of the run stay listed."""
        origin = provenance()
        earlier: list[Any] = []
        if self.config_path.exists() and self.checkpoints.steps():
            beside = load_config(self.config_path)[1]
            earlier = [
                p for p in [*beside.get("earlier_provenance", []), beside.get("provenance")] if p and p != origin
            ]
        save_config(self.config_path, config, data_shape=vars(data), provenance=origin, earlier_provenance=earlier)


class Signals:
    """From `listen` to the end of its block the first SIGTERM or SIGINT only asks to stop; a second one acts as
    usual.
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
        """Not before training is ready to answer: until then a signal ends the process as usual."""
        if threading.current_thread() is threading.main_thread():  # a notebook's thread may not set handlers
            self._before = {n: signal.signal(n, self._ask) for n in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, *_: object) -> None:
        self._restore()

    def here(self) -> bool:
        """Whether this process, when it is the only one, was asked to stop."""
        return bool(self.received) and jax.process_count() == 1

    def anywhere(self) -> bool:
        """Whether any host was asked to stop: all must leave at the same step."""
        if jax.process_count() > 1:
            heard = int(np.max(multihost_utils.process_allgather(np.int32(self.received))))
            if not heard:  # one that came while the hosts were talking counts next time, on all of them
                return False
            self.received = heard
        return bool(self.received)


def train(config: Any, workdir: str | Path) -> int:
    """Train config into workdir, from its newest checkpoint on. The same call again resumes, or says it is done.

    Returns the exit status: 0, or 128 + n when signal n stopped it, after a checkpoint. Raises UserError for whatever
    the user can mend.
    """
    with Signals() as signals, joined(), contextlib.ExitStack() as stack:
        with all_or_none():
            config = check_config(config)
            check_names(config)
            directory = RunDirectory(workdir, config.train.keep)
            directory.check_belongs(config)
            dataset = configured_dataset(config)
            trainer = Trainer(config, dataset)
            if _first_host():
                stack.enter_context(directory.lock())
                directory.check_belongs(config)
                directory.checkpoints.clean()
                directory.snapshots.clean()
        signals.listen()
        restored = directory.checkpoints.restore(trainer.like, _say, repair=True)
        state, window = (restored[0], restored[1]["window"]) if restored else (trainer.initial_state(), empty_window())
        step = int(state["step"])
        with config.unlocked():
            config.train.steps = max(config.train.steps, step)
        with all_or_none():
            if _first_host():
                directory.write_config(config, DataShape(tuple(dataset.shape), dataset.levels, dataset.num_classes))
        if step >= config.train.steps:
            _say(f"{directory.path} is trained: step {step}", sys.stdout)
            return 0
        hosts = f" of {jax.process_count()} hosts" if jax.process_count() > 1 else ""
        devices = f"{trainer.mesh.size} {jax.default_backend()} device(s){hosts}"
        _say(f"{directory.path}: {trainer.weights:,} weights on {devices}, from step {step}", sys.stdout)
        log = stack.enter_context(RunLog(directory.path, step)) if _first_host() else None
        return _train(trainer, trainer.run(state, window, signals.here), directory, log, signals, step)


def _train(
    trainer: Trainer,
    progress: Iterator[Progress],
    directory: RunDirectory,
    log: RunLog | None,
    signals: Signals,
    start: int,
) -> int:
    """Log, save and draw what the training loop yields."""
    settings, checkpoints = trainer.config.train, directory.checkpoints
    hidden = None if log else True  # None: shown on a terminal
    with tqdm(
        total=settings.steps, initial=start, unit="step", disable=hidden, dynamic_ncols=True, desc="train"
    ) as bar:
        try:
            for now in progress:
                if now.row and log:
                    log.write(now.row)
                    bar.set_postfix_str(
                        f"loss {now.row['loss']:.4f}, {now.row['images_per_second']:.0f} images/s", refresh=False
                    )
                    if bar.disable:
                        print(
                            f"step {now.step}  loss {now.row['loss']:.4f}  {now.row['images_per_second']:.0f} images/s",
                            flush=True,
                        )
                bar.update(now.step - bar.n)
                if settings.power_ema and (now.step % settings.snapshot_every == 0 or now.step == settings.steps):
                    directory.snapshots.save({name: now.state[name] for name in ("power_ema", "step")}, {})
                stopped = signals.anywhere()
                if stopped or now.step % settings.checkpoint_every == 0 or now.step == settings.steps:
                    checkpoints.save(now.state, now.window)
                if stopped and now.step < settings.steps:
                    bar.close()
                    name = signal.Signals(signals.received).name
                    _say(
                        f"{name}: stopped after step {now.step}, checkpoint saved; the same command goes on from there"
                    )
                    return 128 + signals.received
        except NotFinite as error:
            bar.close()
            steps = checkpoints.steps()
            kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "nothing was saved"
            raise UserError(
                f"training stopped: {error}; {kept}; try a lower config.train.lr (now {settings.lr:g}) with another "
                "--workdir"
            ) from None
    _say(f"{directory.path} is trained: step {settings.steps}", sys.stdout)
    return 0


@dataclass(frozen=True)
class Run:
    """A trained run.

    `score_fn` has the EMA weights of step `step`; `shape`, `levels` and `num_classes` are those of its data.
    """

    workdir: Path
    config: Any
    score_fn: NetworkScore
    step: int
    shape: tuple[int, ...]
    levels: int | None
    num_classes: int

    @cached_property
    def dataset(self) -> Dataset:
        """The data it was trained on, loaded at first use."""
        return configured_dataset(self.config)

    @property
    def scaling(self) -> Scaling:
        """Between the data's levels and the model's space."""
        return Scaling(self.levels, self.config.data.centered)


def load_run(workdir: str | Path) -> Run:
    """The run in workdir, with the EMA weights of its newest whole checkpoint. Only reads, so it may run on.

    Raises UserError when there is no run, or none of its checkpoints can be read.
    """
    directory = RunDirectory(workdir)
    one_host_only("sampling, and whatever else reads a run,")
    config, data = read_config(directory)
    restored = directory.checkpoints.restore({"ema": weights_like(config, data)}, _say)
    if restored is None:
        raise UserError(
            f"run directory {workdir} has no checkpoint yet; wait for its training to save one, or {_make_one(workdir)}"
        )
    state, meta = restored
    score_fn = build_score(config, data, state["ema"])
    return Run(
        directory.path,
        config,
        replace(score_fn, apply=OverBatch(score_fn.apply, mesh_here(config.train.fsdp))),
        int(meta["step"]),
        data.shape,
        data.levels,
        data.num_classes,
    )


def _make_one(workdir: str | Path) -> str:
    return f"make one with: python train.py --workdir={workdir}"


def read_config(directory: RunDirectory) -> tuple[Any, DataShape]:
    """The run's checked config, and its data's shape. Raises UserError when there is no run."""
    if not directory.config_path.is_file():
        kind = "is not a run directory (it has no config.json)" if directory.path.exists() else "does not exist"
        raise UserError(f"run directory {directory.path} {kind}; {_make_one(directory.path)}")
    config, beside = load_config(directory.config_path)
    check_names(config)
    return config, DataShape(**{**beside["data_shape"], "shape": tuple(beside["data_shape"]["shape"])})


def weights_like(config: Any, data: DataShape) -> Any:
    """The weights' shapes and dtypes, to be restored on this host's devices, whatever devices they were trained on."""
    _, shapes = abstract_network(config, data)
    shardings = weight_shardings(mesh_here(config.train.fsdp), shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def load_score(workdir: str | Path) -> NetworkScore:
    """The run's score: its EMA weights, SDE and parameterisation as one pytree, called as score_fn(x, t)."""
    return load_run(workdir).score_fn
