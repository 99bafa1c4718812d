"""The directory of one run: what lies in it, who may write it, and which config it belongs to."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiment.build.objects import takes_gaussian
from experiment.common.errors import UserError, one_line
from experiment.common.files import lock_file, user_path, write_npz
from experiment.common.provenance import provenance
from experiment.config import FOLLOWING, FREE_ON_RESUME, differences, filled, flatten, load_config, save_config
from experiment.data.dataset import Dataset
from experiment.data.gaussian import fit_gaussian
from experiment.data.scaling import Scaled, Scaling
from experiment.data.units import Units
from experiment.run.checkpoint import Checkpoints


@dataclass(frozen=True)
class DataShape:
    """The facts about the data that building a network and drawing samples need, as config.json keeps them.

    class_counts: how many training examples each class has; () without labels, and of runs that did not note it.
    mean, std: those of `Units`; None for data that are not standardised. cond_mean, cond_std: of the vectors that are
    told; None without. captioned, embedding_shape: as of `Dataset`; None without.
    """

    shape: tuple[int, ...]
    levels: int | None
    num_classes: int
    class_counts: tuple[int, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    cond_mean: tuple[float, ...] | None = None
    cond_std: tuple[float, ...] | None = None
    captioned: bool | None = None
    embedding_shape: tuple[int, int] | None = None

    @classmethod
    def of(cls, dataset: Dataset) -> "DataShape":
        """The facts about this data set."""
        labels = dataset.train.labels
        counts = () if labels is None else np.bincount(labels, minlength=dataset.num_classes).tolist()
        found: dict[str, Any] = {}
        for prefix, units in (("", dataset.units), ("cond_", dataset.cond_units)):
            if units is not None and (not prefix or units.std.min() > 0):  # unused ones may be constant
                found |= {f"{prefix}mean": tuple(units.mean.tolist()), f"{prefix}std": tuple(units.std.tolist())}
        found |= {"captioned": dataset.captioned or None, "embedding_shape": dataset.embedding_shape}
        return cls(tuple(dataset.shape), dataset.levels, dataset.num_classes, tuple(counts), **found)

    @classmethod
    def of_json(cls, found: dict[str, Any]) -> "DataShape":
        """The facts as config.json has them. Raises KeyError, TypeError or ValueError for what they cannot be."""
        shape, levels, classes = tuple(found["shape"]), found["levels"], found["num_classes"]
        counts = tuple(found.get("class_counts", ()))
        wanted = {*shape, classes, *counts} | ({2} if levels is None else {levels})
        if found.keys() - {field.name for field in dataclasses.fields(cls)}:  # of a later version
            raise ValueError
        if not shape or not all(type(number) is int and 0 <= number < 2**40 for number in wanted):
            raise ValueError
        if 0 in shape or (counts and (len(counts) != classes or not sum(counts))):
            raise ValueError
        of_x, of_cond = _constants(found, ""), _constants(found, "cond_")
        if of_x[0] and len(of_x[0]) != shape[-1]:
            raise ValueError
        captioned, embedded = found.get("captioned"), found.get("embedding_shape")
        if captioned not in (None, True) or not (embedded is None or _is_embedding_shape(embedded)):
            raise ValueError
        return cls(shape, levels, classes, counts, *of_x, *of_cond, captioned, embedded and tuple(embedded))

    @property
    def units(self) -> Units | None:
        """The data's units, None where they are not standardised."""
        return _units(self.mean, self.std)

    @property
    def cond_units(self) -> Units | None:
        """The units of the vectors that are told, None without."""
        return _units(self.cond_mean, self.cond_std)

    @property
    def vector_size(self) -> int:
        """The numbers of the vector told of each example; 0 for none."""
        return len(self.cond_mean or ())

    def words(self) -> str:
        """Say what the data are."""
        shape = "x".join(map(str, self.shape))
        plain = "vectors" if len(self.shape) == 1 else "floats"
        kind = f"{plain} of {shape}" if self.levels is None else f"images of {shape} with {self.levels} levels"
        return f"{kind}, {self.num_classes} classes" if self.num_classes else kind


def _constants(found: dict[str, Any], prefix: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """A mean and a std of config.json, finite, the latter positive; both None where there are none."""
    mean, std = (found.get(f"{prefix}{name}") for name in ("mean", "std"))
    if mean is None and std is None:
        return None, None
    mean, std = tuple(map(float, mean)), tuple(map(float, std))  # type: ignore[arg-type]  # TypeError for None
    if not mean or len(mean) != len(std) or not np.all(np.isfinite([mean, std])) or min(std) <= 0:
        raise ValueError
    return mean, std


def _is_embedding_shape(found: Any) -> bool:
    return isinstance(found, list | tuple) and len(found) == 2 and all(type(n) is int and 0 < n < 2**31 for n in found)


def _units(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Units | None:
    return None if mean is None else Units(np.asarray(mean, np.float64), np.asarray(std, np.float64))


def data_shape_of(path: Path, beside: Any) -> DataShape:
    """The facts about the data in what config.json, at `path`, holds beside the config.

    Raises UserError where they are missing or cannot be.
    """
    try:
        return DataShape.of_json(beside["data_shape"])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} does not say which data the run is of (data_shape): restore it from a copy, or train into "
            "another --workdir"
        ) from None


def with_absolute_path(config: Any) -> Any:
    """The config, with the paths of its data and of the runs that it starts from independent of the current folder."""
    with config.unlocked():
        if config.data.path:
            config.data.path = str(user_path(config.data.path, "data.path").absolute())
        for name in ("start", "teacher"):
            if config.train[name]:
                config.train[name] = str(user_path(config.train[name], f"train.{name}").absolute())
    return config


class RunDirectory:
    """The files of one run: config.json, checkpoints/, snapshots/ (of power_ema), metrics.jsonl, tensorboard/."""

    def __init__(self, workdir: str | Path, keep: int = 1):
        self.path = user_path(workdir, "run directory")
        self.config_path, self.gaussian_path = self.path / "config.json", self.path / "gaussian.npz"
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep)
        self.snapshots = Checkpoints(self.path / "snapshots", keep=sys.maxsize)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for this process. Raises UserError when another does; a lock dies with its process.

        Of a new run that a UserError ends before its log begins, nothing is left, neither files nor folders.
        """
        made = (self.path / ".lock", self.config_path, self.gaussian_path)
        new = [path for path in (*made, self.path, *self.path.absolute().parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"cannot write the run directory {self.path} ({error.strerror}): choose another --workdir"
            ) from None
        try:
            try:
                lock_file(file, self.path)
            except BlockingIOError:
                owner = os.read(file, 32).decode(errors="replace").strip() or "unknown"
                raise UserError(
                    f"another process (pid {owner}) is training in {self.path}: wait for it, stop it, or choose "
                    "another --workdir"
                ) from None
            except OSError as error:
                raise UserError(
                    f"cannot lock the run directory {self.path} ({error.strerror}): choose another --workdir"
                ) from None
            os.ftruncate(file, 0)
            os.write(file, str(os.getpid()).encode())
            try:
                yield
            except UserError:
                if not (self.path / "metrics.jsonl").exists():
                    with contextlib.suppress(OSError):  # a folder with other files stays
                        for path in new:
                            path.unlink(missing_ok=True) if path in made else path.rmdir()
                raise
        finally:
            os.close(file)

    def check_belongs(self, config: Any) -> None:
        """Check that the directory's checkpoints, if any, are of this config. Raises UserError with the difference.

        Data that are no longer where they were may be at another place: `check_data` looks whether they are the same.
        """
        steps = self.checkpoints.steps()
        if not steps:  # nothing was trained, so there is nothing to mix up
            return
        if not self.config_path.exists():
            raise UserError(
                f"{self.path} has checkpoints but no config.json: restore it, or train into another --workdir"
            )
        saved = with_absolute_path(load_config(self.config_path)[0])
        moved = saved.data.path and config.data.path and not user_path(saved.data.path, "data.path").exists()
        changed = differences(saved, config, (*FREE_ON_RESUME, "data.path") if moved else FREE_ON_RESUME)
        if changed:
            same_network = not any(change.startswith("model.") for change in changed)
            start = f", from this run's weights with --config.train.start={self.path}" if same_network else ""
            raise UserError(
                f"run directory {self.path} belongs to another config: {'; '.join(changed)};"
                f" undo the change to go on with this run, or train into another --workdir{start}"
            )

    def check_data(self, data: DataShape) -> None:
        """Check that the data are those that the directory's checkpoints, if any, saw. Raises UserError otherwise."""
        if not self.checkpoints.steps():
            return
        before = data_shape_of(self.config_path, load_config(self.config_path)[1])
        known = not before.class_counts or before.class_counts == data.class_counts
        if (data.shape, data.levels) != (before.shape, before.levels) or not known:
            raise UserError(
                f"the data are {data.words()} now, and {self.path} was trained on {before.words()}: give the data of "
                "this run, or train into another --workdir"
            )
        pairs = ((before.units, data.units), (before.cond_units, data.cond_units))
        if any(old and new and not old.near(new) for old, new in pairs):
            raise UserError(
                f"the data have another mean or standard deviation now than those that {self.path} was trained on: "
                "give the data of this run, or train into another --workdir"
            )

    def with_its_sizes(self, config: Any) -> Any:
        """The config with the values that the run was begun with, where it leaves them to the data."""
        if not self.checkpoints.steps() or not self.config_path.exists():
            return config
        kept = flatten(load_config(self.config_path)[0])
        return filled(config, {name: kept[name] for name in FOLLOWING})

    def in_its_units(self, dataset: Dataset) -> Dataset:
        """The data set in the units that the run was begun with, those of this data set for a new run."""
        if not self.checkpoints.steps():
            return dataset
        kept = data_shape_of(self.config_path, load_config(self.config_path)[1])
        return replace(dataset, units=kept.units, cond_units=kept.cond_units or dataset.cond_units)

    def gaussian(self, config: Any, dataset: Dataset | None = None) -> dict[str, np.ndarray]:
        """The Gaussian that the run's parameterisation starts from: kept, or of a new run's data; {} where it has none.

        Raises UserError where the run's own cannot be read.
        """
        if not takes_gaussian(config):
            return {}
        if dataset is not None and not self.checkpoints.steps():
            scaling = Scaling(dataset.levels, config.data.centered, dataset.units)
            return fit_gaussian(Scaled(scaling, dataset.train.x))
        try:
            with np.load(self.gaussian_path) as saved:
                return dict(saved)
        except Exception as error:  # numpy and zipfile raise many kinds
            raise UserError(
                f"{self.gaussian_path}, which the run's score starts from, cannot be read ({one_line(error)}): restore "
                "it from a copy, or train into another --workdir"
            ) from None

    def write_config(
        self,
        config: Any,
        data: DataShape,
        started_from: dict[str, Any] | None = None,
        gaussian: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write config.json: the config, the data's shape, the provenance; the run's earlier ones stay listed.

        started_from: the run and step whose weights it began with; a run that was begun keeps what is written of it.
        gaussian: that of `gaussian`, which goes to a file of its own.
        """
        if gaussian is not None and takes_gaussian(config):
            write_npz(self.gaussian_path, **gaussian)
        origin = provenance()
        earlier: list[Any] = []
        if self.config_path.exists() and self.checkpoints.steps():
            beside = load_config(self.config_path)[1]
            started_from = beside.get("started_from")
            earlier = [
                p for p in [*beside.get("earlier_provenance", []), beside.get("provenance")] if p and p != origin
            ]
        begun = {"started_from": started_from} if started_from else {}
        facts = {name: value for name, value in vars(data).items() if value is not None or name == "levels"}
        save_config(
            self.config_path,
            config,
            data_shape=facts,
            provenance=origin,
            earlier_provenance=earlier,
            **begun,
        )
