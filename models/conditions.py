"""What a network can be told beside the noise: a class, a vector, a text, or embeddings of one computed elsewhere.

A kind of condition says how its batch looks, what "nothing" is in it, and which module reads it. "Nothing" is a
condition like any other, which training with `cond_dropout` teaches:

    Label       (n,) int                                              num_classes
    Vector      (n, m) float                                          a row of NaN
    Text        (n, up to length) int, bytes, -1 for none             the empty caption
    Embeddings  {"embeddings": (n, l, d) float, "mask": (n, l) bool}  no token
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.attention import Linear, keeps_variance
from models.text import PAD, WIDTH, TextEncoder

EMBED = jax.nn.initializers.normal(1.0)


class Told(NamedTuple):
    """What a condition tells a network: a vector (n, width), and of a text tokens (n, l, features), mask (n, l)."""

    vector: jax.Array
    tokens: jax.Array | None = None
    mask: jax.Array | None = None


class Augmented(NamedTuple):
    """A condition, or None, and how each image was augmented, (n, 9), as a network with `augmented` takes it.

    Samples are drawn without it, as of images that were left alone: all zeros.
    """

    cond: Any
    labels: jax.Array


class Augmentation(nnx.Module):
    """What a network makes of how images were augmented, (n, 9) -> (n, width), float32: no bias, and 0 at the start.

    So images that were left alone give what the network gives without, bit for bit. It draws no random number, so that
    all other weights start as without. Karras et al. 2022, arXiv:2206.00364, appendix F.2.
    """

    def __init__(self, width: int, labels: int = 9):
        self.kernel = nnx.Param(jnp.zeros((labels, width), jnp.float32))

    def __call__(self, labels: jax.Array) -> jax.Array:
        return labels.astype(jnp.float32) @ self.kernel[...]


class Kind(Protocol):
    """A kind of condition. Hashable: it is part of a network's architecture."""

    @property
    def token_features(self) -> int:
        """Features of each token that a network may attend to; 0 where there are none."""
        ...

    def nothing(self) -> Any:
        """One row's worth of "nothing"."""
        ...

    def is_nothing(self, cond: Any) -> jax.Array:
        """Tell which rows are "nothing", (n,) bool."""
        ...

    def reader(self, width: int, rngs: nnx.Rngs) -> Any:
        """The module that turns a batch of conditions into what the network is `Told`."""
        ...


@dataclass(frozen=True)
class Label:
    """One of num_classes classes."""

    num_classes: int
    token_features: int = 0

    def nothing(self) -> np.ndarray:
        return np.asarray(self.num_classes, np.int32)

    def is_nothing(self, cond: Any) -> jax.Array:
        return cond == self.num_classes

    def reader(self, width: int, rngs: nnx.Rngs) -> Any:
        raise ValueError("a network is told a class by its table of labels: give it num_classes")


@dataclass(frozen=True)
class Vector:
    """A vector of `size` numbers of unit scale."""

    size: int
    token_features: int = 0

    def nothing(self) -> np.ndarray:
        return np.full(self.size, np.nan, np.float32)

    def is_nothing(self, cond: Any) -> jax.Array:
        return jnp.all(jnp.isnan(cond), axis=-1)

    def reader(self, width: int, rngs: nnx.Rngs) -> "VectorReader":
        return VectorReader(self, width, rngs=rngs)


@dataclass(frozen=True)
class Text:
    """A caption of at most `length` bytes."""

    length: int
    token_features: int = WIDTH

    def nothing(self) -> np.ndarray:
        return np.full(self.length, PAD, np.int32)

    def is_nothing(self, cond: Any) -> jax.Array:
        return jnp.all(cond == PAD, axis=-1)

    def reader(self, width: int, rngs: nnx.Rngs) -> "TextReader":
        return TextReader(self, width, rngs=rngs)


@dataclass(frozen=True)
class Embeddings:
    """At most `length` tokens of `size` features each, from an encoder of the user's, and a mask of those there are."""

    length: int
    size: int
    token_features: int = WIDTH

    def nothing(self) -> dict[str, np.ndarray]:
        shape = (self.length, self.size)
        return {"embeddings": np.zeros(shape, np.float32), "mask": np.zeros(self.length, bool)}

    def is_nothing(self, cond: Any) -> jax.Array:
        return ~jnp.any(cond["mask"], axis=-1)

    def reader(self, width: int, rngs: nnx.Rngs) -> "EmbeddingsReader":
        return EmbeddingsReader(self, width, rngs=rngs)


class VectorReader(nnx.Module):
    """W silu(V c) of vectors c, (n, size) -> (n, width); a learned row for those that are NaN throughout.

    Another NaN gives NaN.
    """

    def __init__(self, kind: Vector, width: int, *, rngs: nnx.Rngs):
        self.kind = kind
        self.inner = Linear(kind.size, width, scale=keeps_variance(kind.size, width), rngs=rngs)
        self.outer = Linear(width, width, rngs=rngs)
        self.missing = nnx.Param(EMBED(rngs.params(), (width,), jnp.float32))

    def __call__(self, cond: Any) -> Told:
        size = self.kind.size
        if getattr(cond, "ndim", 0) != 2 or cond.shape[1] != size or not jnp.issubdtype(cond.dtype, jnp.floating):
            raise ValueError(f"cond must hold {size} floats for each example, shape (n, {size}); it is {_words(cond)}")
        missing = self.kind.is_nothing(cond)[:, None]
        h = self.outer(nnx.silu(self.inner(jnp.where(missing, 0.0, cond))))
        return Told(jnp.where(missing, self.missing[...], h))


class TextReader(nnx.Module):
    """Captions as their encoder's tokens, and a vector of the first, which stands for the whole."""

    def __init__(self, kind: Text, width: int, *, rngs: nnx.Rngs):
        self.encoder = TextEncoder(kind.length, rngs=rngs)
        self.whole = Linear(WIDTH, width, rngs=rngs)

    def __call__(self, cond: Any) -> Told:
        if getattr(cond, "ndim", 0) != 2 or not jnp.issubdtype(cond.dtype, jnp.integer):
            raise ValueError(f"cond must hold a caption's bytes for each example, (n, l) int; it is {_words(cond)}")
        tokens, mask = self.encoder(cond)
        return Told(self.whole(tokens[:, 0]), tokens, mask)


class EmbeddingsReader(nnx.Module):
    """The user's tokens in our width after one that is always there, and a vector of their mean.

    What lies where the mask is False is not read. Fewer tokens than `length` are filled up, so that padding outside
    does not change a bit.
    """

    def __init__(self, kind: Embeddings, width: int, *, rngs: nnx.Rngs):
        self.kind = kind
        self.features = Linear(kind.size, WIDTH, rngs=rngs)
        self.whole = Linear(WIDTH, width, rngs=rngs)
        self.first = nnx.Param(EMBED(rngs.params(), (WIDTH,), jnp.float32))

    def __call__(self, cond: Any) -> Told:
        embeddings, mask = self._checked(cond)
        more = self.kind.length - mask.shape[1]
        mask = jnp.pad(mask, ((0, 0), (0, more)))
        embeddings = jnp.where(mask[:, :, None], jnp.pad(embeddings, ((0, 0), (0, more), (0, 0))), 0.0)
        given = jnp.where(mask[:, :, None], self.features(embeddings), 0.0)
        first = jnp.broadcast_to(self.first[...][None, None], (len(mask), 1, WIDTH))
        mean = given.sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)[:, None]
        tokens = jnp.concatenate([first, given], axis=1)
        return Told(self.whole(first[:, 0] + mean), tokens, jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True))

    def _checked(self, cond: Any) -> tuple[jax.Array, jax.Array]:
        length, size = self.kind.length, self.kind.size
        if not isinstance(cond, Mapping) or set(cond) != {"embeddings", "mask"}:
            raise ValueError(f"cond must be a dict of embeddings (n, l, {size}) and mask (n, l); it is {_words(cond)}")
        embeddings, mask = cond["embeddings"], cond["mask"]
        if embeddings.ndim != 3 or embeddings.shape[2] != size or embeddings.shape[1] > length:
            raise ValueError(f"embeddings must be (n, at most {length}, {size}); they are {_words(embeddings)}")
        if mask.shape != embeddings.shape[:2] or mask.dtype != jnp.bool_:
            raise ValueError(f"mask must be bool {embeddings.shape[:2]}; it is {_words(mask)}")
        return embeddings, mask


def _words(cond: Any) -> str:
    return f"{cond.dtype} {cond.shape}" if hasattr(cond, "dtype") else f"a {type(cond).__name__}"


def nothing_rows(kind: Kind, n: int) -> Any:
    """A batch of n rows of "nothing"."""
    return jax.tree.map(lambda row: jnp.broadcast_to(jnp.asarray(row), (n, *row.shape)), kind.nothing())


@dataclass(frozen=True)
class AlwaysTold:
    """A network's `apply`, of one that was never trained on "nothing": it refuses it instead of answering at random.

    cond=None raises ValueError, and a row of "nothing" gives NaN.
    """

    apply: Any
    kind: Kind

    def __call__(self, params: Any, x: jax.Array, c_noise: jax.Array, cond: Any = None, key: Any = None) -> jax.Array:
        told = cond.cond if isinstance(cond, Augmented) else cond
        if told is None:
            raise ValueError(
                'cond is None, and this network was trained without train.cond_dropout, so it knows no "nothing": '
                "give cond a row for each sample, or train with --config.train.cond_dropout=0.1"
            )
        y = self.apply(params, x, c_noise, cond, key)
        return jnp.where(self.kind.is_nothing(told).reshape(-1, *[1] * (y.ndim - 1)), jnp.nan, y)


def label_table(num_classes: int, width: int, rngs: nnx.Rngs) -> nnx.Param:
    """A row of `width` for each class, and one for "nothing"."""
    return nnx.Param(EMBED(rngs.params(), (num_classes + 1, width), jnp.float32))


def label_rows(table: jax.Array, cond: jax.Array | None, n: int) -> jax.Array:
    """The table's rows for cond, (n,) int, as (n, width).

    They are the last row, "nothing", for None, and NaN for a label that does not exist.

    Raises ValueError for a cond that is not one integer for each example.
    """
    last = len(table) - 1
    if cond is None:
        cond = jnp.full((n,), last, jnp.int32)
    if getattr(cond, "shape", None) != (n,) or not jnp.issubdtype(cond.dtype, jnp.integer):
        raise ValueError(f"cond must hold one integer label per example, shape {(n,)}; it is {_words(cond)}")
    known = (cond >= 0) & (cond <= last)
    return jnp.where(known[:, None], table.at[cond].get(mode="clip"), jnp.nan)


def check_untold(cond: Any) -> None:
    """Raise ValueError when a condition is given to a network without one."""
    if cond is not None:
        raise ValueError(
            "cond was given to a network without conditions: build it with a kind or num_classes, or pass cond=None"
        )
