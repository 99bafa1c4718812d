"""What samples of a run are told: what a user asked for by label, prompt or file, or what its data are told.

Where nothing is asked for, classes come as often as in the training data, and vectors and captions are drawn from the
held-out examples; the condition of sample i depends on (seed, i) alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiment.build.conditions import condition_kind
from experiment.common.errors import UserError
from experiment.common.files import user_path
from experiment.data.conditions import byte_rows, condition_rows
from experiment.data.dataset import Split
from experiment.data.npz import embeddings_in, read_npz
from experiment.run.sampling import class_labels
from models import Embeddings, Kind, Label, Text, Vector

Array = np.ndarray

NO_DROPOUT = "this run was trained without dropping conditions"
DROP_REMEDY = "train with --config.train.cond_dropout=0.1"


@dataclass(frozen=True)
class Asked:
    """What a user wants samples to be told: classes in turn, prompts in turn, or what a file holds."""

    label: Sequence[int] | None = None
    prompt: Sequence[str] | None = None
    cond: Any = None

    @property
    def flags(self) -> list[str]:
        """The names of those that are given."""
        return [name for name in ("label", "prompt", "cond") if getattr(self, name) is not None]


def kind_of_run(run: Any) -> Kind | None:
    """What the run's network is told."""
    return condition_kind(run.config, getattr(run, "data_shape", None) or run.dataset)


def conditions(run: Any, n: int, seed: int, asked: Asked | None = None) -> Any:
    """The conditions of n samples, a pytree of arrays with n rows; None for a network that is told nothing.

    Raises UserError for what the run's network cannot be told.
    """
    asked = asked or Asked()
    if len(asked.flags) > 1:
        raise UserError(f"--{asked.flags[0]} and --{asked.flags[1]} say what samples are of: leave one of them out")
    condition = run.config.model.condition
    if asked.flags and asked.flags[0] not in FLAGS[condition]:
        raise _other_condition(asked.flags[0], condition)
    if condition in ("none", "label") and asked.cond is None:
        return class_labels(run, n, seed, asked.label)
    kind = kind_of_run(run)
    if asked.prompt is not None:
        return _prompts(run, kind, asked.prompt, n)
    if asked.cond is not None:
        return FILES[type(kind)](run, kind, *_named(asked.cond), n)
    test = run.dataset.test
    index = np.random.RandomState(seed).randint(len(test), size=n)
    return condition_rows(kind, test.rows(index))


def told_or_nothing(run: Any, n: int, asked: Asked) -> Any:
    """What was asked for, as `conditions`; where nothing was, None, which tells the network nothing.

    Raises UserError also where the network never learned what nothing is.
    """
    if asked.flags:
        return conditions(run, n, 0, asked)
    condition = run.config.model.condition
    if condition != "none" and not run.config.train.cond_dropout:
        flags = " or ".join(f"--{flag}" for flag in FLAGS[condition])
        raise UserError(f"{NO_DROPOUT}, so it must be told what each is of: give {flags}, or {DROP_REMEDY}")
    return None


FLAGS = {"none": (), "label": ("label",), "vector": ("cond",), "text": ("prompt", "cond")}
WANTED = {"label": "label", "prompt": "text", "cond": "vector"}


def _other_condition(flag: str, condition: str) -> UserError:
    told = {"none": "nothing", "label": "classes", "vector": "vectors", "text": "texts"}[condition]
    instead = f"--{FLAGS[condition][0]} is its own" if FLAGS[condition] else "it takes none"
    what = "is not told classes" if flag == "label" and condition == "none" else f"is told {told}"
    return UserError(
        f"--{flag}: this run's network {what}, {instead}: leave it out, or train with "
        f"--config.model.condition={WANTED[flag]}"
    )


def _prompts(run: Any, kind: Kind | None, prompts: Sequence[str], n: int) -> Array:
    if not isinstance(kind, Text):
        raise UserError("--prompt: this run's network is told embeddings of texts: give them in a file, as --cond=FILE")
    rows = byte_rows(prompts, kind.length, "--prompt {}" if len(prompts) > 1 else "--prompt")
    _check_told(run, kind, rows, "--prompt is empty")
    return rows[np.arange(n) % len(rows)]


def _check_told(run: Any, kind: Kind, cond: Any, what: str) -> None:
    """Raises UserError for a row of "nothing" where the network never learned what that is."""
    if not run.config.train.cond_dropout and bool(np.any(np.asarray(kind.is_nothing(cond)))):
        raise UserError(
            f"{what}, and {NO_DROPOUT}, so it knows no samples of anything: give a condition, or {DROP_REMEDY}"
        )


def _vectors(run: Any, kind: Any, name: str, arrays: Mapping[str, Array], n: int) -> Array:
    if "observations" in arrays:
        return _observations(kind, name, arrays, n)
    if "cond" not in arrays:
        raise UserError(f"{name}: there is no cond among {', '.join(arrays) or 'no arrays'}: save it so")
    cond = arrays["cond"]
    if cond.dtype.kind not in "iuf" or cond.ndim not in (1, 2) or cond.shape[-1:] != (kind.size,):
        raise UserError(
            f"{name}: cond is {cond.dtype} of shape {cond.shape}; this run is told vectors of {kind.size}: save "
            f"({kind.size},) for all samples, or ({n}, {kind.size})"
        )
    cond = np.tile(cond, (n, 1)) if cond.ndim == 1 else cond
    _check_count(name, len(cond), n)
    missing = np.isnan(cond).all(axis=1)
    if not np.isfinite(cond[~missing]).all():
        raise UserError(f"{name}: a value is not finite: mend it; a row of NaN throughout tells nothing")
    _check_told(run, kind, cond, f"{name} has a row of NaN")
    return cond


def _observations(kind: Any, name: str, arrays: Mapping[str, Array], n: int) -> Array:
    """Several independent observations (m, size) of every sample: (n, m, size), or (n, size) of a single one."""
    if "cond" in arrays:
        raise UserError(f"{name} has cond and observations: save cond for a condition each, or observations for all")
    given = arrays["observations"]
    if given.dtype.kind not in "iuf" or given.ndim != 2 or len(given) < 1 or given.shape[1] != kind.size:
        raise UserError(
            f"{name}: observations are {given.dtype} of shape {given.shape}; this run is told vectors of {kind.size}: "
            f"save (m, {kind.size}), a row for each observation"
        )
    if not np.isfinite(given).all():
        raise UserError(f"{name}: a value of observations is not finite: mend it, or leave its row out")
    return np.repeat(given[None] if len(given) > 1 else given, n, axis=0)


def _embeddings(run: Any, kind: Any, name: str, arrays: Mapping[str, Array], n: int) -> dict[str, Array]:
    if "embeddings" not in arrays:
        raise UserError(f"{name}: there are no embeddings among {', '.join(arrays) or 'no arrays'}: save them so")
    if arrays["embeddings"].ndim == 2 and "mask" in arrays and arrays["mask"].ndim == 1:
        arrays = {key: np.tile(arrays[key], (n, *[1] * arrays[key].ndim)) for key in ("embeddings", "mask")}
    found = embeddings_in(name, arrays, "", None)
    _, length, size = found["embeddings"].shape
    if size != kind.size or length > kind.length:
        raise UserError(
            f"{name}: embeddings are {found['embeddings'].shape}; this run takes (n, at most {kind.length}, "
            f"{kind.size}): compute them as those that it was trained on"
        )
    _check_count(name, len(found["mask"]), n)
    _check_told(run, kind, found, f"{name} has a row without tokens")
    more = [(0, 0), (0, kind.length - length)]  # so that "nothing" has rows of the same shape
    return {"embeddings": np.pad(found["embeddings"], [*more, (0, 0)]), "mask": np.pad(found["mask"], more)}


def _check_count(name: str, rows: int, n: int) -> None:
    if rows != n:
        raise UserError(f"{name} has {rows} rows, and {n} samples are asked for: give --n={rows}, or one row")


def _named(cond: Any) -> tuple[str, Mapping[str, Array]]:
    """What --cond is called in a mistake, and its arrays: of a file, or as they are given from Python."""
    if isinstance(cond, Mapping):
        return "cond", {key: np.asarray(rows) for key, rows in cond.items()}
    if not isinstance(cond, str | Path):
        return "cond", {"cond": np.asarray(cond)}
    path = user_path(cond, "--cond")
    if not path.is_file():
        raise UserError(f"--cond={path}: there is no such file: give an .npz")
    return f"--cond={path}", read_npz(path)


def _captions(run: Any, kind: Any, name: str, arrays: Mapping[str, Array], n: int) -> Array:
    raise UserError(f"{name}: this run's network reads texts itself: give --prompt")


FILES: dict[type, Callable[..., Any]] = {Vector: _vectors, Text: _captions, Embeddings: _embeddings}


def conditions_of(run: Any, split: Split, index: Array) -> Any:
    """What the network is told of these examples of a split; None where it is told nothing."""
    kind = condition_kind(run.config, run.dataset)
    return None if kind is None else condition_rows(kind, split.rows(index))


def arrays_of(kind: Kind | None, cond: Any, labels: str = "labels", texts: str = "prompts") -> dict[str, Array]:
    """Conditions as arrays for a file: labels or texts, by these names; cond or observations; embeddings and mask."""
    if cond is None:
        return {}
    if isinstance(kind, Text):
        return {texts: np.array([bytes(row[row >= 0].astype(np.uint8)).decode(errors="replace") for row in cond])}
    if isinstance(kind, Embeddings):
        return dict(cond)
    if isinstance(kind, Vector) and np.ndim(cond) == 3:
        return {"observations": np.asarray(cond[0])}
    return {labels if isinstance(kind, Label) else "cond": np.asarray(cond)}


def take(cond: Any, index: Any) -> Any:
    """These rows of every array; None of None."""
    return jax.tree.map(lambda rows: rows[index], cond)
