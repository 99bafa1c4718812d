"""Which kind of condition `config.model.condition` makes of the facts about a data set."""

from collections.abc import Callable
from typing import Any

from experiment.common.errors import UserError
from models import Embeddings, Kind, Label, Text, Vector

FORMATS = "docs/conditions.md has the formats"


def _label(config: Any, facts: Any) -> Kind | None:
    return Label(facts.num_classes) if facts.num_classes else None


def _vector(config: Any, facts: Any) -> Kind | None:
    return Vector(facts.vector_size) if facts.vector_size else None


def _text(config: Any, facts: Any) -> Kind | None:
    if facts.embedding_shape:
        return Embeddings(*facts.embedding_shape)
    return Text(config.model.text_length) if facts.captioned else None


KINDS: dict[str, tuple[Callable[[Any, Any], Kind | None], str]] = {
    "label": (_label, "labels"),
    "vector": (_vector, "vectors (cond in its .npz)"),
    "text": (_text, "captions"),
}


def condition_kind(config: Any, facts: Any) -> Kind | None:
    """The kind of condition that config.model.condition makes of a data set; None for a network that is told nothing.

    facts: a `Dataset`, or what a run remembers of it. Raises UserError where the data have no such condition.
    """
    name = config.model.condition
    if name == "none":
        return None
    find, what = KINDS[name]
    kind = find(config, facts)
    if kind is None:
        source = config.data.path or config.data.name
        older = ", which class_conditional=true also says" if name == "label" else ""
        raise UserError(
            f"config.model.condition is {name}{older}, but {source} has no {what}: set it to none, or give data that "
            f"have; {FORMATS}"
        )
    return kind
