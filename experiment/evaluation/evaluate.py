"""One checkpoint, several samplers, one report: quality beside its noise floor, cost, memorisation, and the likelihood
of held-out data.

The protocol is that of an honest comparison: the same weights, SDE, final denoising and dtype for every sampler; seed s
gives every sampler the same x_T; samples are held against random parts of the data, of the same size as the parts whose
distance from each other is the floor, and seed s against the same part for every sampler.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from experiment.build.samplers import SAMPLERS, check_sampler, make_sampler
from experiment.errors import UserError
from experiment.evaluation.comparison import SPLITS, compare, flat_points, points_each_side
from experiment.evaluation.curves import at_budgets, quality_curves
from experiment.evaluation.known_distribution import Drawn, against_the_law, with_exact_score
from experiment.evaluation.likelihood import LikelihoodSettings, count_of_examples, likelihood
from experiment.evaluation.metrics import MIN_SIZE
from experiment.run.load import Run, load_run
from experiment.sampling import class_labels, draw, draw_batch
from sde_lib import ExactScore

Array = np.ndarray

FULL_N, FULL_SEEDS = 1024, 3  # what a report for others to read should have; less is noted in it
STRIP_IMAGES, STRIP_POINTS, STRIP_FRAMES = 5, 512, 9


@dataclass(frozen=True)
class Settings:
    """How much to measure.

    n: samples per sampler and seed; seeds: how many seeds, counted from `seed`; reference: the split that samples are
        held against;
    likelihood_n: held-out examples (all, if fewer); probes: Hutchinson probes for each; rtol, atol: of the likelihood's
        solve.
    """

    n: int = FULL_N
    seeds: int = FULL_SEEDS
    seed: int = 0
    reference: str = "train"
    likelihood_n: int = 256
    probes: int = 4
    batch_size: int = 128
    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        for name, least in (("n", MIN_SIZE), ("seeds", 1), ("seed", 0), ("likelihood_n", 2), ("probes", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} is {getattr(self, name)}: give at least {least}")


@dataclass(frozen=True)
class Evaluation:
    """report: what goes into report.json, plain values. arrays: what only pictures need.

    arrays: "samples" {sampler: levels or vectors}, "data" the same of the reference, "strips" {sampler: (frames, k,
    *shape) in the model's space, at unit variance}, "times" {sampler: [(t, noise to signal)]}, "likelihood" (n,)
    bits/dim or nats.
    """

    report: dict[str, Any]
    arrays: dict[str, Any]


def evaluate(
    run: Any, samplers: Mapping[str, Any], settings: Settings | None = None, budgets: Sequence[int] = ()
) -> Evaluation:
    """Measure each sampler {name: sampler} on the run's score, then the likelihood of the held-out split.

    `run` has config, dataset, score_fn, scaling, shape and step, as `load_run` gives it; an exact score will do for a
    network.
    budgets: score calls, besides the final denoising, that every fixed-step sampler is measured at, for curves of
    quality over NFE; its own number of steps gives way to the largest. A solver that chooses its steps stays one point.
    Raises UserError where an adaptive solver gives up, a sampler cannot spend a budget, or the data are too few.
    """
    settings = settings or Settings()
    samplers, curves = at_budgets(samplers, budgets)
    held_out = LikelihoodSettings(
        n=settings.likelihood_n,
        probes=settings.probes,
        batch_size=settings.batch_size,
        rtol=settings.rtol,
        atol=settings.atol,
        seed=settings.seed,
    )
    points_each_side(run, settings)  # what is wrong with the data is said before hours of sampling
    count_of_examples(run, held_out)
    drawn = {name: _draw_seeds(run, name, sampler, settings) for name, sampler in samplers.items()}
    labels = {place: f"{place[0]} at {place[1]}" for place in curves}
    at_fewer = {place: _draw_seeds(run, labels[place], sampler, settings) for place, sampler in curves.items()}
    points = {name: d.points for name, d in drawn.items()} | {labels[place]: d.points for place, d in at_fewer.items()}
    compared, found = compare(run, points, settings)
    of_curves = {
        place: {"nfe": d.cost["nfe"], "metrics": found["samplers"].pop(labels[place])} for place, d in at_fewer.items()
    }
    for name, sampler in samplers.items():
        found["samplers"][name] = {
            "settings": settings_of(sampler),
            **drawn[name].cost,
            "metrics": found["samplers"][name],
        }
    of_budgets = {
        name: [Drawn(curves[place], d.cost["nfe"], d.points[0]) for place, d in at_fewer.items() if place[0] == name]
        + [Drawn(sampler, drawn[name].cost["nfe"], drawn[name].points[0])]
        for name, sampler in samplers.items()
    }
    strips = {name: _strip(run, sampler, settings) for name, sampler in samplers.items()}
    of_held_out, values, _ = likelihood(run, held_out, budget=False)
    report = {
        "dataset": _describe(run.dataset),
        "checkpoint_step": int(run.step),
        "score": "the exact score of the data" if isinstance(run.score_fn, ExactScore) else "EMA weights",
        "protocol": {**dataclasses.asdict(settings), "compared": compared, "splits": SPLITS, "folds": 5},
        "notes": _notes(run, settings, compared),
        **found,
        "curves": quality_curves(found, of_curves, max(budgets)) if budgets else {},
        "exact": against_the_law(run, of_budgets, sample_key(settings.seed)),
        "likelihood": of_held_out,
    }
    arrays = {
        "samples": {name: d.levels for name, d in drawn.items()},
        "data": getattr(run.dataset, settings.reference).x[: settings.n],
        "strips": {name: path for name, (path, _) in strips.items()},
        "times": {name: times for name, (_, times) in strips.items()},
        "likelihood": values,
    }
    return Evaluation(plain(report), arrays)


def evaluate_run(
    workdir: str,
    names: Sequence[str] | None = None,
    given: Mapping[str, int | None] | None = None,
    budgets: Sequence[int] = (),
    exact_score: bool = False,
) -> tuple[Run, Evaluation]:
    """`evaluate` a run directory: its config's eval section, but for the samplers' names and the `given` settings that
    are not None.

    exact_score: measure the samplers with the data's exact score instead of the network.

    Raises UserError for a missing run, an unknown sampler, or a setting out of its range.
    """
    for name in names or ():
        check_sampler(name.strip())
    run = load_run(workdir)
    run = with_exact_score(run) if exact_score else run
    section = run.config.eval
    names = [name.strip() for name in (section.samplers if names is None else names) if name.strip()]
    if not names:
        raise UserError(f"--samplers is empty: give some of {', '.join(SAMPLERS)}")
    fields = {f.name for f in dataclasses.fields(Settings)}
    values = {k: v for k, v in section.to_dict().items() if k in fields}
    values |= {k: v for k, v in (given or {}).items() if v is not None}
    samplers = {name: make_sampler(name, run.config) for name in names}
    return run, evaluate(run, samplers, Settings(**values), budgets)


@dataclass(frozen=True)
class _Drawn:
    points: list[Array]  # for each seed (n, d): quantised, in the model's space
    levels: Array  # of the first seed, as the data are
    cost: dict[str, Any]


def sample_key(seed: int) -> jax.Array:
    """The key of a seed's samples, the same for every sampler."""
    return jax.random.key(seed)


def _draw_seeds(run: Any, name: str, sampler: Any, settings: Settings) -> _Drawn:
    """Samples of every seed, and what they cost. The first batch compiles; its time says how long."""
    drawn, nfe, seconds = [], [], []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        labels = class_labels(run, settings.n, seed)
        description = f"{name}, seed {seed - settings.seed + 1}/{settings.seeds}"
        draws = draw(run, sampler, sample_key(seed), settings.n, settings.batch_size, description, labels)
        if not np.isfinite(draws.x).all():
            raise UserError(
                f"{name} drew samples that are not finite: train longer, or give it more steps (config.sample.steps)"
            )
        drawn.append(np.asarray(run.scaling.to_data(draws.x)))
        nfe.append(draws.nfe)
        seconds += draws.batch_seconds
    if len(seconds) == 1:  # the only batch compiled: draw it once more, for the time alone
        labels = class_labels(run, settings.n, settings.seed)
        key = sample_key(settings.seed)
        seconds += draw(run, sampler, key, settings.n, settings.batch_size, f"{name}, timing", labels).batch_seconds
    first, later = seconds[0], float(np.median(seconds[1:]))
    batches = math.ceil(settings.n / min(settings.batch_size, settings.n))
    cost = {"nfe": float(np.mean(nfe)), "seconds": later * batches, "compile_seconds": max(first - later, 0.0)}
    return _Drawn([flat_points(run, levels) for levels in drawn], drawn[0], cost)


def _strip(run: Any, sampler: Any, settings: Settings) -> tuple[Array, list[tuple[float, float]]]:
    """The path of the first samples, each frame at unit variance, x_t/sqrt(alpha² + sigma²), with its (t,
    sigma/alpha).
    """
    count = STRIP_POINTS if run.dataset.levels is None else STRIP_IMAGES
    labels = class_labels(run, count, settings.seed)
    result = draw_batch(run, sampler, sample_key(settings.seed), 0, count, labels, frames=STRIP_FRAMES)
    sde = run.score_fn.sde
    alpha, sigma = (np.array([float(f(t)) for t in result.times]) for f in (sde.alpha, sde.sigma))
    path = np.asarray(result.path)
    scale = np.sqrt(alpha**2 + sigma**2).reshape(-1, *[1] * (path.ndim - 1))
    return path / scale, [(float(t), float(s / a)) for t, s, a in zip(result.times, sigma, alpha, strict=True)]


def _describe(dataset: Any) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "shape": list(dataset.shape),
        "levels": dataset.levels,
        "num_classes": dataset.num_classes,
        "train": len(dataset.train),
        "test": len(dataset.test),
    }


def settings_of(sampler: Any) -> dict[str, Any]:
    """The sampler's class and fields; a function or object among them by its name."""
    fields = {f.name: getattr(sampler, f.name) for f in dataclasses.fields(sampler)}
    simple = {
        k: v if isinstance(v, (int, float, str, type(None))) else getattr(v, "__name__", type(v).__name__)
        for k, v in fields.items()
    }
    return {"class": type(sampler).__name__, **simple}


def _notes(run: Any, settings: Settings, compared: int) -> list[str]:
    """Where this report says less than it could, each in a sentence."""
    notes = []
    if settings.n < FULL_N:
        notes.append(f"Fewer samples than the usual {FULL_N:,} were drawn: {settings.n:,} for each sampler and seed.")
    if compared < settings.n:
        notes.append(
            f"Of each seed's {settings.n:,} samples {compared:,} are compared, with as many examples: the "
            f"{settings.reference} split"
            " holds no more than that twice, and the floor needs two parts that share no example."
        )
    if settings.seeds < FULL_SEEDS:
        word = "One sample seed was" if settings.seeds == 1 else f"{settings.seeds} sample seeds were"
        notes.append(
            f"{word} used, not {FULL_SEEDS}"
            + ("; there is no standard deviation over seeds." if settings.seeds == 1 else ".")
        )
    if settings.likelihood_n < len(run.dataset.test):
        notes.append(
            f"The likelihood is of {settings.likelihood_n:,} of the {len(run.dataset.test):,} held-out examples."
        )
    return notes


def plain(value: Any) -> Any:
    """The value in what JSON knows: no NumPy, no tuples, and None where a number is not finite."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
