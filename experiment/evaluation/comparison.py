"""Samples of several samplers against the data, beside the noise floor: quality, and memorisation."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiment.common.errors import UserError
from experiment.common.progress import progress
from experiment.evaluation.drawing import FlatPoints
from experiment.evaluation.known_distribution import exact_metrics
from experiment.evaluation.metrics import (
    AUC,
    AUC_MLP,
    ENERGY,
    MEMORISATION_METRICS,
    SLICED_W2,
    ClassFeatures,
    Metric,
    Points,
    class_metric,
    comparison_size,
    disjoint_parts,
    memorisation,
    nearest_distances,
)
from experiment.evaluation.results import MEMORISATION, QUALITY, Floor, MetricDescription, Spread, Value
from experiment.evaluation.settings import MIN_SIZE, Settings

Array = np.ndarray

SPLITS = 10  # random splits of the data behind each floor
HELD_OUT_SPLITS = 100  # behind the floor of memorisation, which costs nothing


@dataclass(frozen=True)
class Comparison:
    """The metrics and their floors by name, and the values of each set of samples, in the order that they were given.

    left_out: metrics that the data do not allow, each with the reason.
    """

    metrics: dict[str, MetricDescription]
    left_out: dict[str, str]
    floors: dict[str, Floor]
    values: list[dict[str, Value]]


def points_each_side(run: Any, settings: Settings) -> int:
    """The number of samples, and of examples of the data, that a comparison takes.

    Raises UserError where the run's data cannot be read or are too few.
    """
    count = len(getattr(run.dataset, settings.reference))
    size = comparison_size(settings.n, count)
    if size < MIN_SIZE:
        raise UserError(
            f"the {settings.reference} split of {run.dataset.name} has {count} examples, too few to compare with:"
            f" at least {2 * MIN_SIZE} are needed"
        )
    return size


def comparison_seconds(run: Any, sets: int, settings: Settings) -> float:
    """About how long the comparison of so many samplers takes, of values of about eight metrics each."""
    values = 8 * (SPLITS + sets * settings.seeds)
    return values * (0.2 + 2e-6 * points_each_side(run, settings) * int(np.prod(run.dataset.shape)))


def compare(run: Any, sets: Sequence[Sequence[Array]], settings: Settings) -> Comparison:
    """Hold sets of samples, each with an array (n, d) for every seed, against the run's data, read some at a time.

    Seed s of every set meets the same part of the data. Raises UserError where the data are too few.
    """
    train, test = FlatPoints(run, run.dataset.train.x), FlatPoints(run, run.dataset.test.x)
    metrics, left_out = _metrics(run, train, test)
    described = {name: MetricDescription(QUALITY, m.label, m.meaning, m.origin) for name, m in metrics.items()}
    described |= {
        name: MetricDescription(MEMORISATION, label, meaning) for name, (label, meaning) in MEMORISATION_METRICS.items()
    }
    quality_floors, quality = _quality(sets, {"train": train, "test": test}[settings.reference], metrics, run, settings)
    memory_floors, memory = _memorisation(sets, train, test, settings.seed)
    values = [{**ours, **others} for ours, others in zip(quality, memory, strict=True)]
    return Comparison(described, left_out, {**quality_floors, **memory_floors}, values)


def _quality(
    sets: Sequence[Sequence[Array]], real: Points, metrics: dict[str, Metric], run: Any, settings: Settings
) -> tuple[dict[str, Floor], list[dict[str, Value]]]:
    """The floors, and each set's values: the samples take the place of one of two disjoint parts of the data."""
    size = points_each_side(run, settings)
    parts = disjoint_parts(len(real), size, max(SPLITS, settings.seeds), settings.seed)
    floors: dict[str, Floor] = {}
    values: list[dict[str, Value]] = [{} for _ in sets]
    seconds = comparison_seconds(run, len(sets), settings)
    with progress(len(metrics) * (SPLITS + len(sets) * settings.seeds), "metrics", "value", seconds) as work:

        def measure(metric: Metric, x: Array, y: Array) -> float:
            value = metric.statistic(x, y)
            work.update()
            return value

        for name, metric in metrics.items():
            floors[name] = floor_of([measure(metric, real[a], real[b]) for a, b in parts[:SPLITS]], size)
            for of_set, seeds in zip(values, sets, strict=True):
                found = [measure(metric, real[a], x[:size]) for x, (a, _) in zip(seeds, parts, strict=False)]
                of_set[name] = against(found, floors[name])
    return floors, values


def _metrics(run: Any, train: Points, test: Points) -> tuple[dict[str, Metric], dict[str, str]]:
    """The metrics that the data allow, and for those that they do not, why."""
    metrics = {
        "sliced_w2": SLICED_W2,
        "energy": ENERGY,
        "auc": AUC,
        "auc_mlp": AUC_MLP,
        **exact_metrics(run.dataset.distribution),
    }
    name = f"fd_{run.dataset.name}"
    if run.dataset.levels is None:
        kind = "vectors" if train.shape[1:] == run.dataset.shape else "floats"
        return metrics, {name: f"{kind} need no features: the other metrics see them as they are"}
    if run.dataset.train.labels is None or run.dataset.num_classes < 2:
        return metrics, {name: "the data have no labels to train a feature classifier on"}
    features = ClassFeatures(train, run.dataset.train.labels)
    metric = class_metric(run.dataset.name, features)
    accuracy = features.accuracy(test, run.dataset.test.labels)
    told = f" The classifier labels {accuracy:.1%} of held-out examples correctly."
    return {**metrics, name: dataclasses.replace(metric, meaning=metric.meaning + told)}, {}


def _memorisation(
    sets: Sequence[Sequence[Array]], train: Points, test: Points, seed: int
) -> tuple[dict[str, Floor], list[dict[str, Value]]]:
    """The floors, half of the held-out data against the other half, and each set's values."""
    held_out = nearest_distances(test, train)
    half = len(test) // 2
    parts = [memorisation(held_out[a], held_out[b]) for a, b in disjoint_parts(len(test), half, HELD_OUT_SPLITS, seed)]
    floors = {name: floor_of([part[name] for part in parts], half) for name in MEMORISATION_METRICS}
    found = [[memorisation(nearest_distances(x, train), held_out) for x in seeds] for seeds in sets]
    return floors, [
        {name: against([of_seed[name] for of_seed in seeds], floors[name]) for name in floors} for seeds in found
    ]


def spread(values: Sequence[float | None]) -> Spread:
    """The values with their mean and standard deviation (n - 1)."""
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return Spread(None, None, list(values))
    return Spread(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None, list(values))


def floor_of(values: Sequence[float | None], size: int) -> Floor:
    """The floor that these values of a metric make, at `size` points on each side."""
    return Floor(**vars(spread(values)), size=size)


def against(values: Sequence[float | None], floor: Floor) -> Value:
    """The values with the excess of their mean over the floor's, in the floor's standard deviations."""
    found = spread(values)
    if found.mean is None or floor.mean is None or not floor.sd:
        return Value(**vars(found), excess=None)
    return Value(**vars(found), excess=(found.mean - floor.mean) / floor.sd)
