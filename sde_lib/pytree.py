"""Frozen dataclasses as pytrees."""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.tree_util import GetAttrKey

T = TypeVar("T", bound=type)


def register_dataclass(cls: T, static: tuple[str, ...] = ()) -> T:
    """Make a dataclass a pytree: its fields are leaves, except those named in `static`.

    Unlike `jax.tree_util.register_dataclass`, whose tree structures of two classes with as many fields compare equal
    (jax 0.10 and 0.11: a cached trace of one class then runs for another, VP's for VE), structures registered this way
    are compared with their class; and rebuilding an instance does not run its checks, which placeholders would fail.
    """
    fields = [field.name for field in dataclasses.fields(cls) if field.name not in static]

    def flatten_with_keys(instance: object) -> tuple[list[tuple[GetAttrKey, Any]], tuple[Any, ...]]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(instance, name)) for name in fields]
        return children, tuple(getattr(instance, name) for name in static)

    def flatten(instance: object) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(instance, name) for name in fields], tuple(getattr(instance, name) for name in static)

    def unflatten(structure: tuple[Any, ...], children: Iterable[Any]) -> Any:
        instance: Any = object.__new__(cls)
        for name, value in zip((*fields, *static), (*children, *structure), strict=True):
            object.__setattr__(instance, name, value)
        return instance

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    cls.__repr__ = _repr  # type: ignore[method-assign, assignment]
    return cls


def _repr(self: Any) -> str:
    """The fields as a dataclass shows them, but arrays by their dtype and shape: a score holds a network's weights."""
    shown = (f"{field.name}={_brief(getattr(self, field.name))}" for field in dataclasses.fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _brief(value: Any) -> str:
    if isinstance(value, (jax.Array, np.ndarray)):
        known = value.size == 1 and not isinstance(value, jax.core.Tracer)
        return repr(value.item()) if known else f"{value.dtype}{list(value.shape)}"
    leaves = jax.tree.leaves(value)
    if isinstance(value, (dict, list, tuple)) and any(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves):
        return f"<{len(leaves)} arrays of {sum(np.size(leaf) for leaf in leaves):,} numbers>"
    return repr(value)
