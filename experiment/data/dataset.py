"""The `Dataset` of two `Split`s that every source of data gives, and a fixed split for sources that have none."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from experiment.common.errors import UserError
from experiment.data.units import Units

SPLIT_SEED = 20240229  # written down: the same images are held out on every machine, in every run
TEST_FRACTION = 0.1
FEW_EXAMPLES = 20  # with so few, each may be a class of its own
MOST_PER_CLASS = 10  # class numbers for each class that occurs


@dataclass(frozen=True, eq=False)
class Split:
    """The examples x and what is told of each, each of it None where it is not: labels, vectors, captions, embeddings.

    x: uint8 levels (n, h, w, c), or floats in the user's units: vectors (n, d), series (n, l, c), fields (n, h, w, c)
    or volumes (n, d, h, w, c).

    labels: int32 (n,). vectors: floats (n, m), in the user's units. captions: strings (n,). embeddings: of captions,
    {"embeddings": float32 (n, l, d), "mask": bool (n, l)}.

    x may lie in a file, mapped into memory: x[rows] reads those rows, and nothing may be written to it.
    """

    x: np.ndarray
    labels: np.ndarray | None = None
    vectors: np.ndarray | None = None
    captions: np.ndarray | None = None
    embeddings: dict[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: np.ndarray) -> "Split":
        """The examples of these numbers, with what is told of each."""

        def taken(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[index]

        embeddings = None if self.embeddings is None else {name: v[index] for name, v in self.embeddings.items()}
        return Split(self.x[index], taken(self.labels), taken(self.vectors), taken(self.captions), embeddings)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named set of images (levels 2..256) or floats (levels None) with classes 0..num_classes-1 (0: no labels).

    distribution: the exact distribution of the vectors, a `sde_lib.GaussianMixture`, where it is known. units: those of
    the floats, by which they are standardised; None for what has unit scale by construction. cond_units: those of the
    vectors that are told.
    """

    name: str
    train: Split
    test: Split
    levels: int | None
    num_classes: int = 0
    distribution: Any = None
    units: Units | None = None
    cond_units: Units | None = None

    @property
    def vector_size(self) -> int:
        """The numbers of the vector told of each example; 0 for none."""
        return 0 if self.train.vectors is None else self.train.vectors.shape[1]

    @property
    def captioned(self) -> bool:
        """Whether each example has a caption."""
        return self.train.captions is not None

    @property
    def embedding_shape(self) -> tuple[int, int] | None:
        """The tokens and features of each caption's embeddings; None for none."""
        return None if self.train.embeddings is None else self.train.embeddings["embeddings"].shape[1:]  # type: ignore[return-value]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example: (d,), (l, c), (h, w, c) or (d, h, w, c)."""
        return self.train.x.shape[1:]


def fixed_order(n: int, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a tenth of n examples (rounded, at least one), always the same ones for a given n.

    Returns:
        train: the indices of the other examples, ascending.
        test: the indices of the held-out examples, ascending.

    Raises UserError, naming the source, where fewer than two examples leave nothing to split.
    """
    if n < 2:
        raise UserError(f"{source} holds {n} example(s); at least 2 are needed, one to train on and one to hold out")
    n_test = max(1, round(TEST_FRACTION * n))
    # RandomState: its stream is frozen by numpy's policy (NEP 19), default_rng's is not.
    order = np.random.RandomState(SPLIT_SEED).permutation(n)
    return np.sort(order[n_test:]), np.sort(order[:n_test])


def some_of(n: int, count: int) -> np.ndarray:
    """Choose n of so many held-out examples, or all where there are fewer: their places, ascending, always the same.

    They are drawn from all, since files often lie class by class; those of a smaller n are among those of a larger one.
    """
    return np.sort(np.random.RandomState(SPLIT_SEED).permutation(count)[:n])


def fixed_split(x: np.ndarray, labels: np.ndarray | None, source: str, **told: Any) -> tuple[Split, Split]:
    """Split x (n, ...), labels (n,), and what else `Split` takes, by `fixed_order`.

    Returns:
        train, test: copies of the chosen rows.

    Raises UserError for fewer than two examples.
    """
    train, test = fixed_order(len(x), source)
    whole = Split(x, labels, **told)
    return whole.rows(train), whole.rows(test)


def class_count(*splits: Split, source: str = "the data") -> int:
    """The number of classes when labels are bare integers: the largest one plus 1; 0 without labels.

    Raises UserError, naming the source, where most of them would be classes without examples: a network is as wide.
    And where most would have one example alone: such labels are numbers to be told, or the examples' own.
    """
    labels = [s.labels for s in splits if s.labels is not None and len(s)]
    if not labels:
        return 0
    examples = sum(map(len, labels))
    present = np.unique(np.concatenate(labels))
    count = int(present[-1]) + 1
    if examples >= FEW_EXAMPLES and 2 * len(present) > examples:
        raise UserError(
            f"{source} has {len(present)} different labels for {examples} examples, which are no classes: "
            "leave them out, or save what is to be told of each example as cond, floats (n, m)"
        )
    if count > MOST_PER_CLASS * len(present):
        raise UserError(
            f"{source} has {len(present)} classes, and labels up to {present[-1]}: "
            "number them from 0, as numpy.unique(labels, return_inverse=True) does"
        )
    return count
