"""What a data set tells of each example, as a network takes it: a label, a vector, a caption's bytes, embeddings.

Vectors are in the user's units: `Dataset.cond_units` standardises them, in the trainer or in the score.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiment.common.errors import UserError
from experiment.data.dataset import Split
from models import Embeddings, Kind, Label, Text, Vector
from models.text import PAD, text_tokens

Array = Any


def condition_rows(kind: Kind | None, split: Split) -> Any:
    """A split's conditions as a pytree of arrays with a row for each example; None for no condition."""
    return None if kind is None else ROWS[type(kind)](kind, split)


def _caption_rows(kind: Any, split: Split) -> Array:
    return byte_rows(split.captions if split.captions is not None else (), kind.length, "caption {}")


ROWS: dict[type, Callable[[Any, Split], Any]] = {
    Label: lambda kind, split: split.labels,
    Vector: lambda kind, split: split.vectors,
    Text: _caption_rows,
    Embeddings: lambda kind, split: split.embeddings,
}


def byte_rows(texts: Sequence[str] | np.ndarray, length: int, where: str) -> np.ndarray:
    """Texts as their UTF-8 bytes, (n, length) int32, filled up with -1.

    where: what the text of number {} is called. Raises UserError for one that has more bytes.
    """
    rows = np.full((len(texts), length), PAD, np.int32)
    for i, text in enumerate(texts):
        try:
            rows[i] = text_tokens(str(text), length)
        except UnicodeEncodeError:
            raise UserError(f"{where.format(i)} holds bytes that are no text: write it in UTF-8") from None
        except ValueError as error:
            raise UserError(f"{where.format(i)}: {error}, or train with a larger config.model.text_length") from None
    return rows


def check_cond_units(config: Any, dataset: Any) -> None:
    """Check the units of the vectors that a network is to be told.

    Raises UserError for a column that is constant, or whose spread is too small beside its mean for float32, in which
    a score takes them.
    """
    units = dataset.cond_units if config.model.condition == "vector" else None
    if units is None:
        return
    for column in np.flatnonzero(units.std == 0)[:1]:
        raise UserError(
            f"column {column} of cond of {dataset.name} is {units.mean[column]:g} in all training examples, so it "
            "tells nothing: leave it out"
        )
    if units.dtype != np.float32:
        raise UserError(
            f"cond of {dataset.name} varies too little beside its mean for float32, in which the network takes it: "
            "subtract an offset from it"
        )
