"""Training that starts from another run: from its averaged weights, with a fresh optimizer."""

from pathlib import Path
from typing import Any

import jax

from experiment.build.objects import MODELS, PARAMETERIZATIONS, abstract_network, parameters
from experiment.common.errors import UserError
from experiment.config import FOLLOWING, FREE_ON_RESUME, differences, filled, flatten
from experiment.devices.hosts import say
from experiment.run.directory import DataShape, RunDirectory
from experiment.run.load import read_config

# Keys of a network that change neither its weights nor what it computes from them.
_OF_TRAINING_ALONE = {"model.dropout", "model.dtype", "model.remat", "model.init_scale", "model.fourier_scale"}
_MOST_TOLD = 6


class Start:
    """The run that config.train.start names.

    `config` is the new run's, with the network's size where it left that to the data. Raises UserError where there is
    no such run, where it is the run in `workdir` itself, and where its network is another one, with the first
    difference.
    """

    def __init__(self, config: Any, workdir: Path):
        self._directory = RunDirectory(config.train.start)
        self.path = self._directory.path.absolute()
        if self.path.resolve() == workdir.resolve():
            raise UserError(f"config.train.start is {workdir}, the run itself: give another --workdir, or leave it out")
        try:
            self._theirs, self._data = read_config(self._directory)
        except UserError as error:
            raise UserError(f"config.train.start: {error}") from None
        kept = flatten(self._theirs)
        self.config = filled(config, {name: kept[name] for name in FOLLOWING if name.startswith("model.")})
        self._refuse(_key_that_differs(self._theirs, self.config))
        self.step = 0

    def _refuse(self, difference: str) -> None:
        if difference:
            raise UserError(
                f"config.train.start: the network of {self.path} is another one, {difference}: make them agree, or"
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
        self._refuse(_weight_that_differs(abstract_network(self._theirs, self._data)[1], like))
        try:
            restored = self._directory.checkpoints.restore({"ema": like}, say)
        except UserError as error:
            raise UserError(f"config.train.start: {error}") from None
        if restored is None:
            raise UserError(f"config.train.start: {self.path} has no checkpoint yet; wait for its training to save one")
        self.step = int(restored[1]["step"])
        return restored[0]["ema"]

    def origin(self) -> dict[str, Any]:
        """What config.json remembers of it."""
        return {"run": str(self.path), "step": self.step}

    def line(self, config: Any) -> str:
        """Say what training starts from, and in what the new run's config differs from that one's."""
        others = differences(self._theirs, config, (*FREE_ON_RESUME, "train.start"))
        more = len(others) - _MOST_TOLD
        told = [*others[:_MOST_TOLD], *([f"{more} more"] if more > 0 else [])]
        differing = f"; the config differs in {', '.join(told)}" if told else ""
        return f"starts from the averaged weights of {self.path}, step {self.step}, with a fresh optimizer{differing}"


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
