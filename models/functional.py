"""A network as a pure function and a plain dict of arrays: split once, then `jax.jit` only."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import nnx

Params = dict[str, Any]


@dataclass(frozen=True)
class Apply:
    """The network's function, `apply(params, x, c_noise, cond=None, key=None)`. Holds the architecture, no arrays.

    Hashable, and equal for two networks of the same class and options: as a static argument it never makes a new set of
    weights compile again. key: for dropout; None is evaluation mode, without dropout.
    """

    graphdef: nnx.GraphDef[nnx.Module]
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # jit hashes its static arguments at every call, and walking the graph takes a millisecond: do it once.
        object.__setattr__(self, "_hash", hash(self.graphdef))

    def __repr__(self) -> str:
        root: Any = self.graphdef.nodes[0]
        return f"Apply({root.type.__name__})"  # the graph has hundreds of lines

    def __hash__(self) -> int:
        return self._hash

    def __call__(
        self,
        params: Params,
        x: jax.Array,
        c_noise: jax.Array,
        cond: Any = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        network: Any = nnx.merge(self.graphdef, params)
        takes_key = "key" in inspect.signature(network.__call__).parameters  # one without dropout need not
        return network(x, c_noise, cond, key) if takes_key else network(x, c_noise, cond)


class OneKey:
    """The same key for every weight, where only shapes are wanted.

    Counting keys while tracing takes ten times as long as all else.
    """

    def __init__(self) -> None:
        self._key = jax.random.key(0)

    def params(self) -> jax.Array:
        return self._key


def split(network: nnx.Module) -> tuple[Apply, Params]:
    """Split a network into (apply, params): params a plain nested dict, string keys and float32 arrays."""
    graphdef, state = nnx.split(network)
    return Apply(graphdef), nnx.to_pure_dict(state)
