"""Training that starts from another run: from its averaged weights, with a fresh optimizer."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiment.build.objects import MODELS, PARAMETERIZATIONS, abstract_network, parameters
from experiment.common.errors import UserError
from experiment.config import FOLLOWING, FREE_ON_RESUME, differences, filled, flatten
from experiment.devices.hosts import say
from experiment.run.directory import DataShape, RunDirectory
from experiment.run.load import read_config

# Keys of a network that change neither its weights nor what it computes from them.
_OF_TRAINING_ALONE = {"model.dropout", "model.dtype", "model.remat", "model.init_scale", "model.fourier_scale"}
_MOST_TOLD = 6


def start_of(config: Any, workdir: Path) -> "Start | None":
    """The run whose weights a new run in workdir starts from: its teacher, or that of config.train.start, or none."""
    if config.train.teacher:
        return Teacher(config, workdir, "teacher")
    return Start(config, workdir, "start") if config.train.start else None


class Start:
    """The run that config.train.start names, or another key of `train`.

    `config` is the new run's, with the network's size where it left that to the data. Raises UserError where there is
    no such run, where it is the run in `workdir` itself, and where its network is another one, with the first
    difference.
    """

    def __init__(self, config: Any, workdir: Path, key: str = "start"):
        self._directory, self._key = RunDirectory(config.train[key]), f"config.train.{key}"
        self.path = self._directory.path.absolute()
        if self.path.resolve() == workdir.resolve():
            raise UserError(f"{self._key} is {workdir}, the run itself: give another --workdir, or leave it out")
        try:
            self._theirs, self._data = read_config(self._directory)
        except UserError as error:
            raise UserError(f"{self._key}: {error}") from None
        kept = flatten(self._theirs)
        self.config = filled(config, {name: kept[name] for name in FOLLOWING if name.startswith("model.")})
        self._refuse(_key_that_differs(self._theirs, self.config))
        self.step = 0

    def _refuse(self, difference: str, what: str = "network") -> None:
        if difference:
            raise UserError(
                f"{self._key}: the {what} of {self.path} is another one, {difference}: make them agree, or"
                " start from another run"
            )

    def gaussian(self) -> dict[str, Any]:
        """The Gaussian that its parameterisation starts from: what its network has learned is relative to that one."""
        return self._directory.gaussian(self._theirs)

    def weights(self, dataset: Any, like: Any) -> Any:
        """Read the averaged weights of its newest whole checkpoint, whose step is `step` from then on.

        like: the weights wanted, as shapes with dtypes and shardings. Raises UserError where there are none, where
        those are of other names or shapes, and where the data's examples or classes are others.
        """
        self._refuse(_fact_that_differs(self._data, dataset, self.config))
        shapes = abstract_network(self._theirs, self._data)[1]
        of_jumps, theirs = _jumps_that_lack(shapes, like)
        self._refuse(_weight_that_differs(shapes, theirs))
        try:
            restored = self._directory.checkpoints.restore({"ema": theirs}, say)
        except UserError as error:
            raise UserError(f"{self._key}: {error}") from None
        if restored is None:
            raise UserError(f"{self._key}: {self.path} has no checkpoint yet; wait for its training to save one")
        self.step = int(restored[1]["step"])
        return _with_jumps(restored[0]["ema"], of_jumps)

    def origin(self) -> dict[str, Any]:
        """What config.json remembers of it."""
        return {"run": str(self.path), "step": self.step}

    def line(self, config: Any) -> str:
        """Say what training starts from, and in what the new run's config differs from that one's."""
        others = differences(self._theirs, config, (*FREE_ON_RESUME, "train.start", "train.teacher"))
        more = len(others) - _MOST_TOLD
        told = [*others[:_MOST_TOLD], *([f"{more} more"] if more > 0 else [])]
        differing = f"; the config differs in {', '.join(told)}" if told else ""
        return f"starts from the averaged weights of {self.path}, step {self.step}, with a fresh optimizer{differing}"


class Teacher(Start):
    """The run that config.train.teacher names: besides, its score is one of the same data under the same SDE."""

    def __init__(self, config: Any, workdir: Path, key: str = "start"):
        super().__init__(config, workdir, key)
        changes = differences(self._theirs, self.config)
        for section, what in (("sde.", "SDE"), ("data.centered", "scale of the images")):
            self._refuse(next((change for change in changes if change.startswith(section)), ""), what)
        if config.train.cond_dropout and not self._theirs.train.cond_dropout:
            raise UserError(
                f"{self._key}: {self.path} was trained without cond_dropout, and knows nothing without a condition: "
                "leave config.train.cond_dropout out, or give another teacher"
            )

    def weights(self, dataset: Any, like: Any) -> Any:
        pairs = ((self._data.units, dataset.units), (self._data.cond_units, dataset.cond_units))
        for theirs, ours in pairs:
            if (theirs is None) != (ours is None) or (theirs is not None and not theirs.near(ours)):
                raise UserError(f"{self._key}: {self.path} is of data of other units: give a run of these data")
        return super().weights(dataset, like)


def _jumps_that_lack(theirs: Any, ours: Any) -> tuple[dict[tuple[Any, ...], Any], Any]:
    """The weights of jumps, by path, that a flow map's network has and the other has not; and ours without them."""
    there = {path for path, _ in jax.tree.leaves_with_path(theirs)}
    lacking = {path: leaf for path, leaf in jax.tree.leaves_with_path(ours) if path not in there and _is_of_jumps(path)}
    return lacking, _pruned(ours, {tuple(part.key for part in path) for path in lacking})


def _is_of_jumps(path: tuple[Any, ...]) -> bool:
    return any(part.key == "jump" for part in path)


def _pruned(tree: Any, paths: set[tuple[Any, ...]], at: tuple[Any, ...] = ()) -> Any:
    """The nested dict without the leaves at these paths, and without dicts that are then empty."""
    if not isinstance(tree, dict):
        return tree
    kept = {key: _pruned(value, paths, (*at, key)) for key, value in tree.items() if (*at, key) not in paths}
    return {key: value for key, value in kept.items() if value != {}}


def _with_jumps(weights: Any, lacking: dict[tuple[Any, ...], Any]) -> Any:
    """The weights with those of jumps, which are zero until they are learned."""
    for path, leaf in lacking.items():
        inner = weights
        for part in path[:-1]:
            inner = inner.setdefault(part.key, {})
        inner[path[-1].key] = jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding)
    return weights


def _key_that_differs(theirs: Any, ours: Any) -> str:
    """The first of the network's keys that differs, as "model.width 16 -> 32"; "" where none does."""
    taken = {"name", "parameterization", "noise_label", "condition"}
    taken |= {*parameters(MODELS[ours.model.name]), *parameters(PARAMETERIZATIONS[ours.model.parameterization])}
    keys = {f"model.{name}" for name in taken} - _OF_TRAINING_ALONE
    keys |= {"data.centered"} if "centered" in taken else set()
    return next((change for change in differences(theirs, ours) if change.partition(" ")[0] in keys), "")


def _fact_that_differs(theirs: DataShape, dataset: Any, config: Any) -> str:
    if theirs.shape != tuple(dataset.shape):
        there, here = (" x ".join(map(str, shape)) for shape in (theirs.shape, dataset.shape))
        return f"examples of {there} -> {here}"
    if config.model.condition == "label" and theirs.num_classes != dataset.num_classes:
        return f"{theirs.num_classes} classes -> {dataset.num_classes}"
    return ""


def _weight_that_differs(theirs: Any, ours: Any) -> str:
    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree.leaves_with_path(tree)
        return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}

    there, here = shapes(theirs), shapes(ours)
    different = [name for name in dict.fromkeys([*there, *here]) if there.get(name) != here.get(name)]
    return f"weight {different[0]} {there.get(different[0])} -> {here.get(different[0])}" if different else ""
