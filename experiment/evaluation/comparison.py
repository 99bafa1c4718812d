"""Samples of several samplers against the data, beside the noise floor: quality, and memorisation."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiment.errors import UserError
from experiment.evaluation.known_distribution import exact_metrics
from experiment.evaluation.metrics import (
    AUC,
    AUC_MLP,
    ENERGY,
    MEMORISATION,
    MIN_SIZE,
    SLICED_W2,
    ClassFeatures,
    Metric,
    class_metric,
    comparison_size,
    disjoint_parts,
    memorisation,
    nearest_distances,
)
from experiment.sampling import progress

Array = np.ndarray

SPLITS = 10  # random splits of the data behind each floor
HELD_OUT_SPLITS = 100  # behind the floor of memorisation, which costs nothing
QUALITY = "quality"  # the kind of metric that compares laws; the other is "memorisation"


def flat_points(run: Any, levels: Array) -> Array:
    """Examples as flat float64 vectors: each level at its bin's centre in the model's space, or the vectors
    themselves.
    """
    return np.asarray(run.scaling.to_model(levels), np.float64).reshape(len(levels), -1)


def points_each_side(run: Any, settings: Any) -> int:
    """How many samples and data a comparison takes. Raises UserError where the run's data cannot be read or are too
    few.
    """
    count = len(getattr(run.dataset, settings.reference))
    size = comparison_size(settings.n, count)
    if size < MIN_SIZE:
        raise UserError(
            f"the {settings.reference} split of {run.dataset.name} has {count} examples, too few to compare with:"
            f" at least {2 * MIN_SIZE} are needed"
        )
    return size


def compare(run: Any, points: Mapping[str, list[Array]], settings: Any) -> tuple[int, dict[str, Any]]:
    """(points on each side, {metrics, floors, samplers, left_out})."""
    size = points_each_side(run, settings)
    train, test = flat_points(run, run.dataset.train.x), flat_points(run, run.dataset.test.x)
    real = {"train": train, "test": test}[settings.reference]
    metrics, left_out = _metrics(run, train, test)
    parts = disjoint_parts(len(real), size, max(SPLITS, settings.seeds), settings.seed)
    count = len(metrics) * (SPLITS + len(points) * settings.seeds)
    floors: dict[str, Any] = {}
    samplers: dict[str, dict[str, Any]] = {name: {} for name in points}
    with progress(count, "metrics", "value") as bar:
        for metric_name, metric in metrics.items():
            floor = [_counted(bar, metric, real[a], real[b]) for a, b in parts[:SPLITS]]
            floors[metric_name] = {**spread(floor), "size": size}
            for name, seeds in points.items():
                # Both sides disjoint by construction in the floor; here the samples take the place of the second part.
                values = [_counted(bar, metric, real[a], x[:size]) for x, (a, _) in zip(seeds, parts, strict=False)]
                samplers[name][metric_name] = against(spread(values), floors[metric_name])
    described = {
        name: {"kind": QUALITY, "label": m.label, "meaning": m.meaning, "origin": m.origin}
        for name, m in metrics.items()
    }
    _memorisation(points, train, test, floors, samplers, settings)
    described |= {
        name: {"kind": "memorisation", "label": label, "meaning": meaning}
        for name, (label, meaning) in MEMORISATION.items()
    }
    return size, {"metrics": described, "left_out": left_out, "floors": floors, "samplers": samplers}


def _counted(bar: Any, metric: Metric, x: Array, y: Array) -> float:
    bar.update(1)
    return metric.statistic(x, y)


def _metrics(run: Any, train: Array, test: Array) -> tuple[dict[str, Metric], dict[str, str]]:
    """The metrics that the data allow, and for those that they do not, why."""
    metrics = {
        "sliced_w2": SLICED_W2,
        "energy": ENERGY,
        "auc": AUC,
        "auc_mlp": AUC_MLP,
        **exact_metrics(run.dataset.law),
    }
    name = f"fd_{run.dataset.name}"
    if run.dataset.levels is None:
        return metrics, {name: "vectors need no features: the other metrics see them as they are"}
    if run.dataset.train.labels is None or run.dataset.num_classes < 2:
        return metrics, {name: "the data have no labels to train a feature classifier on"}
    features = ClassFeatures(train, run.dataset.train.labels)
    metric = class_metric(run.dataset.name, features)
    told = f" That classifier tells {features.accuracy(test, run.dataset.test.labels):.1%} of held-out examples."
    return {**metrics, name: dataclasses.replace(metric, meaning=metric.meaning + told)}, {}


def _memorisation(
    points: Mapping[str, list[Array]],
    train: Array,
    test: Array,
    floors: dict[str, Any],
    samplers: dict[str, dict[str, Any]],
    settings: Any,
) -> None:
    """Adds nn_ratio and nn_close; their floor is half of the held-out data against the other half."""
    held_out = nearest_distances(test, train)
    halves = disjoint_parts(len(test), len(test) // 2, HELD_OUT_SPLITS, settings.seed)
    floor = [memorisation(held_out[a], held_out[b]) for a, b in halves]
    values = {
        name: [memorisation(nearest_distances(x, train), held_out) for x in seeds] for name, seeds in points.items()
    }
    for key in MEMORISATION:
        floors[key] = {**spread([f[key] for f in floor]), "size": len(test) // 2}
        for name, found in values.items():
            samplers[name][key] = against(spread([f[key] for f in found]), floors[key])


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """{mean, sd, values}; sd is None for a single value, and both are None where a value is."""
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return {"mean": None, "sd": None, "values": list(values)}
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": float(np.mean(known)), "sd": sd, "values": known}


def against(value: dict[str, Any], floor: dict[str, Any]) -> dict[str, Any]:
    """The value with `excess`, its mean above the floor's in floor standard deviations; None where that is
    undefined.
    """
    known = value["mean"] is not None and floor["mean"] is not None and floor["sd"]
    return {**value, "excess": (value["mean"] - floor["mean"]) / floor["sd"] if known else None}
