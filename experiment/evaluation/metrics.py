"""Statistics of samples against data, and their noise floors.

Points are rows: x (n, d), y (m, d), as flat vectors in the model's space.
Images are compared as the quantised pictures that they are, samples and data alike: against real-valued samples any
classifier would tell the grid of levels, not the quality. Every statistic comes with its noise floor, the same
statistic between disjoint random parts of the data at the same size, because most of them are biased upwards at finite
n.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from experiment.evaluation.settings import FOLDS, MIN_SIZE

# scikit-learn is imported where it is used: it takes longer than all else, and no mistake should wait for it.

Array = np.ndarray
Statistic = Callable[[Array, Array], float]

MOST_TO_FIT = 10_000  # examples for the classifier whose features are compared
BLOCK = 2**25  # entries of the data that are in memory at once


class Points(Protocol):
    """Points (n, d): an array, or what gives the rows that are asked for as one."""

    def __len__(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any) -> Array: ...


def blocks(x: Points) -> Iterator[slice]:
    """Slices that cover the points, each of at most BLOCK entries."""
    rows = max(BLOCK // max(x.shape[1], 1), 1)
    return (slice(first, first + rows) for first in range(0, len(x), rows))


@dataclass(frozen=True)
class Metric:
    """A statistic of two equal-sized sets of points, the larger the worse.

    origin: its limit when both sets share a distribution.
    """

    label: str
    meaning: str
    statistic: Statistic
    origin: float = 0.0


def sliced_wasserstein(x: Array, y: Array, projections: int = 256, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance, sqrt(mean over directions theta of W2²(theta·x, theta·y)), in the units of x.

    The directions are uniform on the sphere and fixed by the seed. In one dimension W2² = ∫ (F⁻¹(u) - G⁻¹(u))² du,
    computed exactly from the sorted points, for unequal n too. (Bonneel et al. 2015, doi:10.1007/s10851-014-0506-3.)
    """
    theta = np.random.RandomState(seed).standard_normal((x.shape[1], projections))
    theta /= np.linalg.norm(theta, axis=0)
    edges = np.union1d(np.arange(len(x) + 1) / len(x), np.arange(len(y) + 1) / len(y))
    u = (edges[1:] + edges[:-1]) / 2  # both quantile functions are constant between the edges
    of_x = np.sort(x @ theta, axis=0)[(u * len(x)).astype(int)]
    of_y = np.sort(y @ theta, axis=0)[(u * len(y)).astype(int)]
    return float(np.sqrt(np.mean(np.diff(edges) @ (of_x - of_y) ** 2)))


def energy_distance(x: Array, y: Array) -> float:
    """Energy distance, 2 E|x - y| - E|x - x'| - E|y - y'|, over distinct pairs (Székely and Rizzo 2013).

    Unbiased, so that it may fall below 0.
    """
    between = _distances(x, y) / (len(x) * len(y))
    within = sum(_distances(z, z) / (len(z) * (len(z) - 1)) for z in (x, y))
    return float(2 * between - within)


def _distances(x: Array, y: Array, rows: int = 1024) -> float:
    """Sum of |x_i - y_j|, a block of rows at a time."""
    from sklearn.metrics.pairwise import euclidean_distances

    return sum(float(euclidean_distances(x[i : i + rows], y).sum()) for i in range(0, len(x), rows))


def boosted_trees() -> Any:
    """The sharper of the two classifiers that tell samples from data.

    On 64 pixels the most sensitive of those tried, on generators of rising quality: boosted trees, then extremely
    randomised trees, random forest, support vectors, multilayer perceptron, logistic regression; and, but for the last,
    among the quickest.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_iter=60, learning_rate=0.15, max_leaf_nodes=8, early_stopping=False, random_state=0
    )


def perceptron() -> Any:
    """The more graded classifier, for where trees find nearly all samples out.

    A regularised multilayer perceptron on standardised inputs.
    """
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), MLPClassifier((128,), max_iter=40, alpha=1.0, random_state=0))


def classifier_auc(x: Array, y: Array, classifier: Callable[[], Any] = boosted_trees, seed: int = 0) -> float:
    """Classifier two-sample test: area under the ROC curve on held-out points, the mean over 5 stratified folds.

    1/2 when x and y share a distribution, 1 when they can be told apart at sight (Lopez-Paz and Oquab 2017,
    arXiv:1610.06545). Give equally many of each, and no point twice. Raises ValueError for fewer than 10 on a side.
    """
    from sklearn.model_selection import StratifiedKFold

    if min(len(x), len(y)) < MIN_SIZE:
        raise ValueError(f"classifier_auc: {len(x)} and {len(y)} points; give at least {MIN_SIZE} on each side")
    points, side = np.concatenate([x, y]), np.repeat([0, 1], [len(x), len(y)])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(points, side)
    with _one_thread_if_small(points):
        return float(np.mean([_held_out_auc(classifier(), points, side, *fold) for fold in folds]))


def _one_thread_if_small(points: Array) -> threadpool_limits:
    # Beside other work, threads that share a core wait for each other: up to 40 times slower on a small set.
    return threadpool_limits(1 if points.size < 10_000_000 else None)


def _held_out_auc(model: Any, points: Array, side: Array, fit: Array, held_out: Array) -> float:
    from sklearn.metrics import roc_auc_score

    _fit(model, points[fit], side[fit])
    return float(roc_auc_score(side[held_out], model.predict_proba(points[held_out])[:, 1]))


def _fit(model: Any, x: Array, labels: Array) -> None:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so many passes are the recipe, not a failure to converge
        model.fit(x, labels)


def frechet_distance(mean_x: Array, cov_x: Array, mean_y: Array, cov_y: Array) -> float:
    """Squared W2 of two Gaussians, |mean_x - mean_y|² + tr(C_x + C_y - 2 (C_x^½ C_y C_x^½)^½).

    Dowson and Landau 1982.
    """
    values, vectors = np.linalg.eigh(cov_x)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_y @ root), 0)).sum()
    return float(np.sum((mean_x - mean_y) ** 2) + np.trace(cov_x) + np.trace(cov_y) - 2 * cross)


def frechet(x: Array, y: Array) -> float:
    """`frechet_distance` of the points' means and covariances."""
    moments = [moment for z in (x, y) for moment in (z.mean(0), np.atleast_2d(np.cov(z, rowvar=False)))]
    return frechet_distance(*moments)


class ClassFeatures:
    """Penultimate activations of a small multilayer perceptron that is trained to tell the data's classes.

    The seed is fixed. Called on points (n, d) it gives features (n, 64). A batch changes nothing: each row is computed
    for itself. Of more than 10,000 examples it sees so many, of a fixed draw: all of CIFAR-10 would take minutes and
    change little.
    """

    def __init__(self, x: Points, labels: Array):
        from sklearn.neural_network import MLPClassifier

        seen = np.sort(np.random.default_rng(0).permutation(len(x))[:MOST_TO_FIT])
        points = x[seen]
        self._model = MLPClassifier((128, 64), max_iter=30, alpha=1e-2, random_state=0)
        with _one_thread_if_small(points):
            _fit(self._model, points, labels[seen])

    def __call__(self, x: Array) -> Array:
        for weights, bias in zip(self._model.coefs_[:-1], self._model.intercepts_[:-1], strict=True):
            x = np.maximum(x @ weights + bias, 0)
        return x

    def accuracy(self, x: Points, labels: Array) -> float:
        """The share of the points that it labels correctly."""
        return sum(int(np.sum(self._model.predict(x[rows]) == labels[rows])) for rows in blocks(x)) / len(x)


SLICED_W2 = Metric(
    "sliced Wasserstein-2",
    "Root mean square, over 256 fixed directions, of the distance that mass must move; in the model's space, where "
    "pictures fill [-1, 1].",
    sliced_wasserstein,
)
ENERGY = Metric(
    "energy distance",
    "2E|x-y| - E|x-x'| - E|y-y'| over distinct pairs, in the model's space; unbiased, so about 0, of either sign, "
    "for the same distribution.",
    energy_distance,
)
AUC = Metric(
    "classifier AUC (trees)",
    "How well boosted trees tell samples from data on examples that they were not fitted on: 0.5 not at all, 1 "
    "always (C2ST, 5 folds).",
    classifier_auc,
    origin=0.5,
)
AUC_MLP = Metric(
    "classifier AUC (perceptron)",
    "The same of a multilayer perceptron: less sensitive, and so more graded where trees tell nearly all samples.",
    lambda x, y: classifier_auc(x, y, perceptron),
    origin=0.5,
)


def class_metric(name: str, features: ClassFeatures) -> Metric:
    """Fréchet distance in the features: `fd_<name>`."""
    return Metric(
        f"fd_{name}",
        "Fréchet distance between Gaussians fitted in the 64 penultimate activations of a small classifier trained "
        "on the training split; not comparable with FID.",
        lambda x, y: frechet(features(x), features(y)),
    )


def comparison_size(n: int, real: int) -> int:
    """Points on each side when n samples meet `real` examples, of which the floor takes two disjoint parts."""
    return min(n, real // 2)


def disjoint_parts(real: int, size: int, splits: int, seed: int = 0) -> list[tuple[Array, Array]]:
    """Random pairs of disjoint index sets into `real` examples, `splits` pairs of `size` indices on each side.

    No example is on both sides of a pair, or twice on one. Raises ValueError where two parts do not fit.
    """
    if 2 * size > real:
        raise ValueError(f"disjoint_parts: two parts of {size} do not fit into {real} examples; use comparison_size")
    orders = [np.random.RandomState([seed, split]).permutation(real) for split in range(splits)]
    return [(order[:size], order[size : 2 * size]) for order in orders]


def nearest_distances(x: Points, train: Points) -> Array:
    """The Euclidean distance (n,) of each point to the nearest training example."""
    from sklearn.neighbors import NearestNeighbors

    nearest = np.full(len(x), np.inf)
    for of_train in blocks(train):
        search = NearestNeighbors(n_neighbors=1).fit(train[of_train])
        for rows in blocks(x):
            nearest[rows] = np.minimum(nearest[rows], search.kneighbors(x[rows])[0][:, 0])
    return nearest


def memorisation(to_train: Array, held_out_to_train: Array) -> dict[str, float | None]:
    """Say how much closer samples lie to the training examples than unseen data do, from `nearest_distances` of both.

    nn_ratio: median distance over that of held-out data; 1 like unseen data, towards 0 copies, above 1 away from the
        data.
    nn_close: share of points nearer than 1 in 100 held-out examples is; 0.01 like unseen data. It sees a few copies,
        the median does not.
    """
    median = float(np.median(held_out_to_train))
    return {
        "nn_ratio": float(np.median(to_train)) / median if median > 0 else None,
        "nn_close": float(np.mean(to_train < np.quantile(held_out_to_train, 0.01))),
    }


MEMORISATION_METRICS = {
    "nn_ratio": (
        "distance to nearest training example, relative to held-out data's",
        "Median distance of samples to their nearest training example, over that of held-out data: 1 like unseen "
        "data, towards 0 copies.",
    ),
    "nn_close": (
        "share nearer to the training set than 99 % of held-out data",
        "Share of samples nearer to a training example than all but 1 in 100 held-out examples: about 0.01 like "
        "unseen data.",
    ),
}
