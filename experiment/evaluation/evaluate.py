"""One checkpoint, several samplers, one report: quality, cost, memorisation, and the likelihood of held-out data.

The protocol is that of an honest comparison: the same weights, SDE, final denoising and dtype for every sampler; seed s
gives every sampler the same x_T; samples are held against random parts of the data, of the same size as the parts whose
distance from each other is the floor, and seed s against the same part for every sampler.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiment.common.progress import say_start, whole
from experiment.evaluation.calibration import calibrated, calibration, calibration_seconds
from experiment.evaluation.comparison import SPLITS, compare, comparison_seconds, points_each_side
from experiment.evaluation.curves import quality_curve
from experiment.evaluation.drawing import Drawn, Kept, Strip, draw_point, draw_share, draw_strip, sample_key
from experiment.evaluation.guidance_curve import guidance_curve, guidance_seconds, guidance_share, scales_of
from experiment.evaluation.known_distribution import exact_errors, with_exact_score
from experiment.evaluation.likelihood import (
    LikelihoodSettings,
    count_of_examples,
    folder_of,
    likelihood,
    likelihood_seconds,
    likelihood_share,
)
from experiment.evaluation.opening import open_run, samplers_of
from experiment.evaluation.points import Point, points_at, settings_of
from experiment.evaluation.results import (
    QUALITY,
    Calibration,
    Curve,
    CurvePoint,
    DataDescription,
    Protocol,
    Report,
    SamplerResult,
    Value,
)
from experiment.evaluation.settings import FOLDS, Settings
from experiment.run.load import Run
from experiment.run.sampling import check_samples_fit, expected_seconds, told
from sde_lib import ExactScore

Array = np.ndarray

FULL_N, FULL_SEEDS = 1024, 3  # what a report for others to read should have; less is noted in it


@dataclass(frozen=True)
class Arrays:
    """The arrays that only the pictures of a report need.

    samples: of each sampler the first seed's, levels or vectors, and data the same of the reference; strips: of each
    sampler; likelihood: (n,) bits/dim or nats of the held-out examples; ranks: (n, d) of the calibration, where there
    is one.
    """

    samples: dict[str, Array]
    data: Array
    strips: dict[str, Strip]
    likelihood: Array
    ranks: Array | None = None


@dataclass(frozen=True)
class Evaluation:
    """A report, and the arrays behind its pictures."""

    report: Report
    arrays: Arrays


@dataclass(frozen=True)
class Measured:
    """A point's samples, and their metrics by name."""

    drawn: Drawn
    metrics: dict[str, Value]


def evaluate(
    run: Any,
    samplers: Mapping[str, Any],
    settings: Settings | None = None,
    budgets: Sequence[int] = (),
    scales: Sequence[float] = (),
    kept: Kept | None = None,
) -> Evaluation:
    """Measure each sampler {name: sampler} on the run's score, then the likelihood of the held-out split.

    run: has config, dataset, score_fn, scaling, shape and step, as `load_run` gives it; an exact score will do for a
    network. settings: None for those of the run's config.
    budgets: score calls, besides the final denoising, that every fixed-step sampler is measured at, for curves of
    quality over NFE; its own number of steps gives way to the largest. A solver that chooses its steps stays one point.
    kept: where what is drawn is kept: a killed evaluation goes on, and other processes do their share (`Asked.share`).
    Raises UserError where an adaptive solver gives up, a sampler cannot spend a budget, or the data are too few.
    """
    settings = settings or Settings.from_config(run.config)
    points = points_at(samplers, budgets)
    held_out = _of_likelihood(settings)
    compared = points_each_side(run, settings)  # what is wrong with the data is said before hours of sampling
    count_of_examples(run, held_out)
    check_samples_fit(settings.n, run.shape, settings.seeds * len(points))
    last = {point.name: point for point in points}  # of each sampler, at its largest budget
    with whole(_expected_seconds(run, points, settings, scales)):
        drawn = [draw_point(run, point, settings, kept) for point in points]
        comparison = compare(run, [d.samples for d in drawn], settings)
        strips = {name: draw_strip(run, point.sampler, settings.seed) for name, point in last.items()}
        guidance = guidance_curve(run, scales, settings, kept) if scales else None
        of_held_out, values, _ = _likelihood(run, held_out, kept)
        of_pairs, ranks = _calibration(run, points, settings)
    measured = [Measured(*pair) for pair in zip(drawn, comparison.values, strict=True)]
    by_name = {name: [m for m in measured if m.drawn.point.name == name] for name in samplers}
    at_most = {name: of_name[-1] for name, of_name in by_name.items()}  # at the largest budget
    quality = [name for name, metric in comparison.metrics.items() if metric.kind == QUALITY]
    report = Report(
        dataset=_describe(run.dataset),
        checkpoint_step=int(run.step),
        score="the exact score of the data" if isinstance(run.score_fn, ExactScore) else "EMA weights",
        protocol=Protocol(**dataclasses.asdict(settings), compared=compared, splits=SPLITS, folds=FOLDS),
        notes=_notes(run, settings, compared),
        metrics=comparison.metrics,
        left_out=comparison.left_out,
        floors=comparison.floors,
        samplers={name: _sampler_result(m) for name, m in at_most.items()},
        curves={name: _curve(of_name, quality) for name, of_name in by_name.items()} if budgets else {},
        exact=exact_errors(run, drawn, sample_key(settings.seed)),
        likelihood=of_held_out,
        calibration=of_pairs,
        guidance=guidance,
    )
    samples = {name: m.drawn.levels for name, m in at_most.items()}
    reference = getattr(run.dataset, settings.reference)
    data = reference.x[np.random.RandomState(settings.seed).permutation(len(reference))[: settings.n]]
    return Evaluation(report, Arrays(samples, data, strips, values, ranks))


@dataclass(frozen=True)
class Asked:
    """What is to be evaluated, as of `evaluate`."""

    run: Any
    samplers: Mapping[str, Any]
    settings: Settings
    budgets: Sequence[int]
    scales: Sequence[float]

    def evaluated(self, kept: Kept | None = None) -> Evaluation:
        """Evaluate it, and say first what is done."""
        run, settings = self.run, self.settings
        seconds = _expected_seconds(run, points_at(self.samplers, self.budgets), settings, self.scales)
        say_start(
            f"evaluate {run.workdir} at step {run.step}: {', '.join(self.samplers)}; {settings.n:,} samples of "
            f"{settings.seeds} seed(s) each, then the likelihood of {settings.likelihood_n:,} examples"
            f"{told(run, seconds)}"
        )
        return evaluate(run, self.samplers, settings, self.budgets, self.scales, kept)

    def share(self, kept: Kept) -> None:
        """Do the share of a process that is not the first one: of the samples, then of the likelihood."""
        for point in points_at(self.samplers, self.budgets):
            draw_share(self.run, point, self.settings, kept)
        guidance_share(self.run, self.scales, self.settings, kept)
        held_out = _of_likelihood(self.settings)
        folder = folder_of(self.run, held_out, kept.folder)
        likelihood_share(self.run, held_out, folder, kept.place, budget=False)


def _likelihood(run: Any, settings: LikelihoodSettings, kept: Kept | None) -> Any:
    folder = folder_of(run, settings, kept.folder) if kept else None
    return likelihood(run, settings, folder, budget=False, place=kept.place if kept else None)


def asked_of_run(
    workdir: str,
    names: Sequence[str] | None = None,
    given: Mapping[str, int | None] | None = None,
    budgets: Sequence[int] = (),
    exact_score: bool = False,
    scales: Sequence[float] | None = None,
    data: str = "",
    cache: str = "",
) -> Asked:
    """Load a run directory: its samplers of those names, None for the config's, with the `given` settings.

    given: settings that go over those of config.eval where they are not None. exact_score: measure the samplers with
    the data's exact score instead of the network. scales: of guidance; None for those of `scales_of`. data, cache: as
    for `load_run`.

    Raises UserError for a missing run, an unknown sampler, or a setting out of its range.
    """
    run, settings = open_run(workdir, Settings, given or {}, names, data=data, cache=cache)
    scales = scales_of(run, scales, exact_score)
    run = with_exact_score(run) if exact_score else run
    return Asked(run, samplers_of(run, names), settings, budgets, scales)


def evaluate_run(
    workdir: str, names: Sequence[str] | None = None, given: Mapping[str, int | None] | None = None
) -> tuple[Run, Evaluation]:
    """Evaluate a run directory, as `asked_of_run` has it."""
    asked = asked_of_run(workdir, names, given)
    return asked.run, asked.evaluated()


def _expected_seconds(run: Any, points: Sequence[Point], settings: Settings, scales: Sequence[float]) -> float:
    """About how long an evaluation will take: only its parts' proportions matter to the bar."""
    draws = sum(expected_seconds(run, point.sampler, settings.n * settings.seeds) for point in points)
    metrics = comparison_seconds(run, len(points), settings)
    guidance = guidance_seconds(run, scales, settings)
    pairs = calibration_seconds(run, points[0].sampler, settings.n)
    return draws + metrics + guidance + likelihood_seconds(run, _of_likelihood(settings)) + pairs


def _calibration(run: Any, points: Sequence[Point], settings: Settings) -> tuple[Calibration | None, Array | None]:
    """The calibration of the first sampler, at its largest budget, where the run has one."""
    if not calibrated(run):
        return None, None
    name = points[0].name
    sampler = [point.sampler for point in points if point.name == name][-1]
    return calibration(run, name, sampler, settings.n, settings.batch_size, settings.seed)


def _of_likelihood(settings: Settings) -> LikelihoodSettings:
    return LikelihoodSettings(
        n=settings.likelihood_n,
        probes=settings.probes,
        batch_size=settings.batch_size,
        rtol=settings.rtol,
        atol=settings.atol,
        seed=settings.seed,
    )


def _sampler_result(measured: Measured) -> SamplerResult:
    drawn = measured.drawn
    settings = settings_of(drawn.point.sampler)
    return SamplerResult(settings, drawn.nfe, drawn.seconds, drawn.compile_seconds, measured.metrics)


def _curve(measured: Sequence[Measured], quality: Sequence[str]) -> Curve:
    return quality_curve([CurvePoint(m.drawn.point.budget, m.drawn.nfe, m.metrics) for m in measured], quality)


def _describe(dataset: Any) -> DataDescription:
    return DataDescription(
        name=dataset.name,
        shape=list(dataset.shape),
        levels=dataset.levels,
        num_classes=dataset.num_classes,
        train=len(dataset.train),
        test=len(dataset.test),
    )


def _notes(run: Any, settings: Settings, compared: int) -> list[str]:
    """Say, in a sentence for each, where this report tells less than it could."""
    notes = []
    if run.scaling.units is not None:
        what = "coordinate" if len(run.shape) == 1 else "channel"
        notes.append(
            f"Distances are between standardised examples: each {what} less its mean, over its standard deviation. "
            "Pictures of samples and the likelihood are in the units of the data."
        )
    if settings.n < FULL_N:
        notes.append(f"Fewer samples than the usual {FULL_N:,} were drawn: {settings.n:,} for each sampler and seed.")
    if compared < settings.n:
        notes.append(
            f"Of each seed's {settings.n:,} samples {compared:,} are compared, with as many examples: the "
            f"{settings.reference} split holds no more than that twice, and the floor needs two parts that share no "
            "example."
        )
    if settings.seeds < FULL_SEEDS:
        word = "One sample seed was" if settings.seeds == 1 else f"{settings.seeds} sample seeds were"
        without = "; there is no standard deviation over seeds." if settings.seeds == 1 else "."
        notes.append(f"{word} used, not {FULL_SEEDS}{without}")
    if settings.likelihood_n < len(run.dataset.test):
        notes.append(
            f"The likelihood is of {settings.likelihood_n:,} of the {len(run.dataset.test):,} held-out examples."
        )
    return notes
