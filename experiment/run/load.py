"""The way from a run's directory to the mathematics: `load_score`, and `load_run` for all that is known of the run."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from experiment.build.objects import abstract_network, build_score, check_names
from experiment.config import load_config
from experiment.data.dataset import Dataset
from experiment.data.load import configured_dataset
from experiment.data.scaling import Scaling
from experiment.devices.hosts import one_host_only, say
from experiment.devices.sharding import OverBatch, mesh_here, weight_shardings
from experiment.errors import UserError, one_line, quoted
from experiment.run.directory import DataShape, RunDirectory
from sde_lib import NetworkScore


@dataclass(frozen=True)
class Run:
    """A trained run: its config, and the score with the EMA weights of step `step`.

    `shape`, `levels` and `num_classes` are those of its data.
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
        """The data that the run was trained on, loaded at first use."""
        return configured_dataset(self.config)

    @property
    def scaling(self) -> Scaling:
        """The map between the data's levels and the model's space."""
        return Scaling(self.levels, self.config.data.centered)


def load_run(workdir: str | Path) -> Run:
    """Load the run in workdir, with the EMA weights of its newest whole checkpoint.

    Only reads, so training may go on meanwhile. Raises UserError when there is no run, or none of its checkpoints can
    be read.
    """
    directory = RunDirectory(workdir)
    one_host_only("sampling, and whatever else reads a run,")
    config, data = read_config(directory)
    apply, shapes = abstract_network(config, data)
    restored = directory.checkpoints.restore({"ema": weights_like(config, shapes)}, say)
    if restored is None:
        raise UserError(
            f"run directory {workdir} has no checkpoint yet; wait for its training to save one, or {_make_one(workdir)}"
        )
    state, meta = restored
    score_fn = build_score(config, OverBatch(apply, mesh_here(config.train.fsdp)), state["ema"])
    return Run(directory.path, config, score_fn, int(meta["step"]), data.shape, data.levels, data.num_classes)


def _make_one(workdir: str | Path) -> str:
    return f"make one with: python train.py --workdir={workdir}"


def read_config(directory: RunDirectory) -> tuple[Any, DataShape]:
    """Read config.json.

    Returns:
        config: the run's config, checked.
        data: the shape of its data.

    Raises UserError when there is no run.
    """
    if not directory.config_path.is_file():
        kind = "is not a run directory (it has no config.json)" if directory.path.exists() else "does not exist"
        raise UserError(f"run directory {directory.path} {kind}; {_make_one(directory.path)}")
    config, beside = load_config(directory.config_path)
    check_names(config)
    return config, _data_shape(directory, beside.get("data_shape"))


def _data_shape(directory: RunDirectory, saved: Any) -> DataShape:
    try:
        data = DataShape(**{**saved, "shape": tuple(saved["shape"])})
        numbers = (*data.shape, 1 if data.levels is None else data.levels, data.num_classes)
        if not data.shape or not all(isinstance(n, int) and 0 <= n < 2**31 for n in numbers):
            raise ValueError(f"data_shape is {quoted(saved)}")
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{directory.config_path} does not say which data the run is of ({one_line(error)}): restore it from a copy"
        ) from None
    return data


def weights_like(config: Any, shapes: Any) -> Any:
    """Add to the weights' shapes and dtypes how to place them on this host's devices, wherever they were trained."""
    shardings = weight_shardings(mesh_here(config.train.fsdp), shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def load_score(workdir: str | Path) -> NetworkScore:
    """Load the run's score: its EMA weights, SDE and parameterisation as one pytree, called as score_fn(x, t)."""
    return load_run(workdir).score_fn
