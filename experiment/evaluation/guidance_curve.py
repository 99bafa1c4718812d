"""Quality and obedience over the scale of guidance, by the SDE and by the ODE, which sample two distributions of it.

What is drawn is told what held-out examples are told. Where these have classes it is held, class by class, against as
many examples of the data, and a classifier that was fitted to the training split tells how many samples are of the
class that was asked for; without classes all of them are held against all of the data.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from experiment.build.samplers import make_sampler
from experiment.common.errors import UserError
from experiment.evaluation.comparison import SPLITS, against, floor_of
from experiment.evaluation.drawing import FlatPoints, Kept, Wanted, draw_examples, flat_points, in_parts
from experiment.evaluation.metrics import ClassFeatures, Points, disjoint_parts, sliced_wasserstein
from experiment.evaluation.results import GuidancePoint, GuidanceResult
from experiment.evaluation.settings import Settings
from experiment.run.conditions import DROP_REMEDY, NO_DROPOUT, conditions_of
from experiment.run.guidance import Guidance, guided
from experiment.run.sampling import expected_seconds

Array = np.ndarray

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
METHODS = {"SDE": "sde_dpmpp_2m", "ODE": "dpmpp_2m"}
STEPS = 40
MOST = 500  # samples at each scale: the classes' means of small distances need no more
LEAST = 5  # points on each side of the distance within a class


def read_scales(texts: Sequence[str] | None) -> list[float] | None:
    """Numbers from the flag's texts, without repetition, rising. Raises UserError for one that is none."""
    try:
        scales = None if texts is None else sorted({float(text) for text in texts})
    except ValueError:
        scales = [math.nan]
    if texts and scales is not None and not all(map(math.isfinite, scales)):
        raise UserError(f"--guidance={','.join(texts)[:80]}: give numbers, as in --guidance=1,2,3; 1 is no guidance")
    return scales


def scales_of(run: Any, given: Sequence[float] | None, exact_score: bool = False) -> list[float]:
    """The scales to measure: those given; for None SCALES where the run can be guided and its data have classes.

    Raises UserError for a run that cannot be guided.
    """
    if given and exact_score:
        raise UserError("--guidance: the exact score is told nothing that could guide it: leave out --exact_score")
    if given is None:
        can = run.config.model.condition != "none" and run.config.train.cond_dropout and not exact_score
        return list(SCALES) if can and run.dataset.num_classes > 1 else []
    if given and run.config.model.condition == "none":
        raise UserError(
            "--guidance: this run's network is told nothing that could guide it: leave it out, or train with "
            "--config.model.condition"
        )
    if given and not run.config.train.cond_dropout:
        raise UserError(f"--guidance: {NO_DROPOUT}: leave it out, or {DROP_REMEDY}")
    return list(given)


def guidance_seconds(run: Any, scales: Sequence[float], settings: Settings) -> float:
    """About how long the curve takes."""
    methods = [make_sampler(name, run.config, steps=STEPS) for name in METHODS.values()]
    runs = [guided(run, Guidance(scale)) for scale in scales]
    return sum(expected_seconds(one, method, min(settings.n, MOST)) for one in runs for method in methods)


def guidance_curve(run: Any, scales: Sequence[float], settings: Settings, kept: Kept | None = None) -> GuidanceResult:
    """Draw at each scale, by the SDE and by the ODE, from the same x_T, and measure. kept: see `draw_examples`.

    Raises UserError for a run that cannot be guided.
    """
    test, reference = run.dataset.test, getattr(run.dataset, settings.reference)
    rows = _told_rows(run, settings)
    n = len(rows)
    classes = test.labels is not None and run.dataset.num_classes > 1
    asked, labels = (
        (test.labels[rows], reference.labels) if classes else (np.zeros(n, int), np.zeros(len(reference), int))
    )
    features = ClassFeatures(FlatPoints(run, run.dataset.train.x), run.dataset.train.labels) if classes else None
    distances, size = _distances_within(FlatPoints(run, reference.x), labels, asked, settings.seed)
    floor = floor_of(distances(None), size)
    samplers: dict[str, list[GuidancePoint]] = {name: [] for name in METHODS}
    for scale, name, wanted in _wanted(run, scales, settings):
        draws = draw_examples(wanted, kept)
        drawn = flat_points(run, draws.data)
        obeyed = None if features is None else features.accuracy(drawn, asked)
        samplers[name].append(GuidancePoint(scale, draws.nfe, against(distances(drawn), floor), obeyed))
    known = None if features is None else features.accuracy(FlatPoints(run, test.x), test.labels)
    return GuidanceResult(n, STEPS, dict(METHODS), samplers, floor, known)


def guidance_share(run: Any, scales: Sequence[float], settings: Settings, kept: Kept) -> None:
    """Draw this process's share of the curve's samples."""
    for _, _, wanted in _wanted(run, scales, settings):
        in_parts(wanted, kept, run.scaling.to_data)


def _told_rows(run: Any, settings: Settings) -> Array:
    """The held-out examples whose conditions the samples are told, one for each sample."""
    order = np.random.RandomState(settings.seed).permutation(len(run.dataset.test))
    return np.resize(order, min(settings.n, MOST))


def _wanted(run: Any, scales: Sequence[float], settings: Settings) -> Iterator[tuple[float, str, Wanted]]:
    """The samples of each scale by each of METHODS, whose name is given."""
    rows = _told_rows(run, settings)
    cond = conditions_of(run, run.dataset.test, rows)
    for scale in scales:
        for name, method in METHODS.items():
            guidance, sampler = Guidance(scale), make_sampler(method, run.config, steps=STEPS)
            what, seed, size = f"{method} at guidance {scale:g}", settings.seed, settings.batch_size
            yield scale, name, Wanted(guided(run, guidance), sampler, what, seed, len(rows), size, cond, guidance)


def _distances_within(
    real: Points, labels: Array, asked: Array, seed: int
) -> tuple[Callable[[Array | None], list[float]], int]:
    """Sliced W2 within each class, its mean over the classes, for each of SPLITS random halves of the data.

    labels, asked: the classes of the data real (m, d), and of samples (n, d). Where each class has too few points, all
    count as of one.

    Returns:
        distances: of samples to one half of the data; of None, for the floor, of the other half to it.
        size: the points on each side, of all classes.
    """
    each = [(np.flatnonzero(labels == c), np.flatnonzero(asked == c)) for c in np.unique(asked)]
    enough = [pair for pair in each if min(len(pair[0]) // 2, len(pair[1])) >= LEAST]
    sets = enough or [(np.arange(len(labels)), np.arange(len(asked)))]
    sizes = [min(len(data) // 2, len(ours)) for data, ours in sets]
    parts = [disjoint_parts(len(data), size, SPLITS, seed) for (data, _), size in zip(sets, sizes, strict=True)]

    def distances(drawn: Array | None) -> list[float]:
        found = np.zeros((SPLITS, len(sets)))
        for i, ((data, ours), size) in enumerate(zip(sets, sizes, strict=True)):
            for split, (a, b) in enumerate(parts[i]):
                other = real[data[b]] if drawn is None else drawn[ours[:size]]
                found[split, i] = sliced_wasserstein(real[data[a]], other)
        return [float(mean) for mean in found.mean(axis=1)]

    return distances, sum(sizes)
