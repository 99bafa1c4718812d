"""The one door to the data: a data set by name or by path."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from experiment.common.errors import UserError, choose
from experiment.common.files import cache_folder, user_path
from experiment.data.dataset import Dataset
from experiment.data.image_decoding import Recipe
from experiment.data.image_files import load_images
from experiment.data.npz import load_npz
from experiment.data.simulators import SIMULATORS, load_simulations
from experiment.data.toys import TOYS, load_toy

__all__ = ["DATASETS", "configured_dataset", "load_dataset"]


def _digits(cache: str) -> Dataset:
    from experiment.data.digits import load_digits  # imports tensorflow-datasets, which takes a second

    return load_digits(cache_folder(cache))


def _toy(name: str, cache: str) -> Dataset:
    return load_toy(name)


# Every name that is ours; any other is looked up in tensorflow-datasets. A loader takes data.cache.
DATASETS: dict[str, Callable[[str], Dataset]] = {"digits": _digits, **{name: partial(_toy, name) for name in TOYS}}


def configured_dataset(config: Any) -> Dataset:
    """Load the data set that config.data describes: its name, path, cache, crop, size and so on.

    The digits have captions where config.model.condition asks for text; some of them are then left out of training.
    """
    data = config.data
    options = {name: data[name] for name in ("crop", "size", "skip_unreadable", "simulations")}
    dataset = load_dataset(data.name, data.path, data.cache, **options)
    if config.model.condition == "text" and data.name == "digits" and not data.path:
        from experiment.data.digit_captions import captioned

        return captioned(dataset)
    return dataset


def load_dataset(
    name: str,
    path: str = "",
    cache: str = "",
    *,
    crop: int = 0,
    size: int = 0,
    skip_unreadable: bool = False,
    simulations: int = 0,
) -> Dataset:
    """Load the data set `name`, or, where `path` is given, the one that lies there (`name` is then unused).

    Args:
        name: one of DATASETS, or any prepared image set of tensorflow-datasets.
        path: a folder or zip of images, an .npz, or the folder of a prepared tensorflow-datasets set.
        cache: where prepared data lie; "" is noise_compass in the user's cache folder.
        crop: pixels per side of a central crop, before anything else; 0 is none. Like `size`, it is for image files and
            for tensorflow-datasets' images. With either, images may be of several sizes.
        size: pixels per side of the squares that come out, resized by the shorter side; 0 is none.
        skip_unreadable: leave damaged image files out, counted on stderr, instead of stopping.
        simulations: how many pairs of parameters and observations the simulator `name` draws; 0 for other data.

    Raises UserError for an unknown name (with the names there are), for bad data, and for a crop or size of data that
    cannot be resized.
    """
    recipe = Recipe(crop, size, skip_unreadable)
    if simulations:
        if path:
            raise UserError(f"data.path is {path}, and data.simulations {simulations}: set one of them, not both")
        choose(SIMULATORS, name, "a simulator, data.name with data.simulations")
        _no_resizing(recipe, f"simulator {name!r} gives vectors")
        return load_simulations(name, simulations)
    if not path and name in SIMULATORS and name not in TOYS:
        raise UserError(f"{name} is a simulator: set config.data.simulations to how many it draws, such as 10000")
    if path:
        return _from_path(user_path(path, "data.path"), cache_folder(cache), recipe)
    if not name:
        raise UserError(
            "no data are given: set config.data.path to a folder, zip or .npz, or config.data.name to a set's name"
        )
    if name in DATASETS or name in TOYS:  # the second for one that a module of the user's added
        _no_resizing(recipe, f"data set {name!r} comes as it is")
        return DATASETS.get(name, partial(_toy, name))(cache)
    from experiment.data.tfds_sets import load_named

    prepared = str(user_path(cache, "data.cache")) if cache else ""
    return load_named(name, prepared, tuple(DATASETS), recipe, cache_folder(cache))


def _from_path(path: Path, cache: Path, recipe: Recipe) -> Dataset:
    if not path.exists():
        raise UserError(f"data.path {path} does not exist; give a folder or zip of images, or an .npz file")
    if (path / "dataset_info.json").is_file():
        from experiment.data.tfds_sets import load_prepared

        return load_prepared(path, recipe, cache)
    kind = path.suffix.lower()
    if not path.is_dir() and not path.is_file():
        raise UserError(f"data.path {path} is a pipe or a device; give a folder or zip of images, or an .npz file")
    if path.is_dir() or kind == ".zip":
        return load_images(path, recipe, cache)
    if kind == ".npz":
        _no_resizing(recipe, f"the arrays of {path} are taken as they are")
        return load_npz(path, cache)
    raise UserError(f"data.path {path} is neither a folder, nor a .zip, nor an .npz file; give one of these")


def _no_resizing(recipe: Recipe, why: str) -> None:
    if recipe.crop or recipe.size:
        raise UserError(
            f"{why}: set config.data.crop and config.data.size to 0, or data.path to a folder or zip of images"
        )
