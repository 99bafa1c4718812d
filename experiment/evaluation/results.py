"""The contents of a report, as frozen records that are read by attribute, and `plain`, which makes JSON's values.

A field whose default is None is an optional part: where it is None, the JSON has no such key.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiment.evaluation.settings import Settings

QUALITY, MEMORISATION = "quality", "memorisation"  # the kinds of metrics: the first compare distributions


@dataclass(frozen=True)
class DataDescription:
    """The data set of a report; `train` and `test` are numbers of examples."""

    name: str
    shape: list[int]
    levels: int | None
    num_classes: int
    train: int
    test: int


@dataclass(frozen=True, kw_only=True)
class Protocol(Settings):
    """The settings, with the points compared on each side, the splits behind each floor, and the classifiers' folds."""

    compared: int
    splits: int
    folds: int

    @classmethod
    def of_config(cls) -> list[str]:
        """The names of the settings, which alone config.eval has."""
        return Settings.of_config()


@dataclass(frozen=True)
class MetricDescription:
    """A metric's kind, its name for readers and its meaning; one of quality has its `origin` (`metrics.Metric`) too."""

    kind: str
    label: str
    meaning: str
    origin: float | None = None


@dataclass(frozen=True)
class Spread:
    """Values with their mean and standard deviation.

    sd is None for a single value, and both are None where one of the values is.
    """

    mean: float | None
    sd: float | None
    values: list[float | None]


@dataclass(frozen=True)
class Floor(Spread):
    """A metric between random parts of the data, `size` points on each side."""

    size: int


@dataclass(frozen=True)
class Value(Spread):
    """A metric of samples over the seeds.

    excess: the mean above the floor's, in the floor's standard deviations; None where that is undefined.
    """

    excess: float | None


@dataclass(frozen=True)
class SamplerResult:
    """A sampler's settings, its cost for the samples of one seed, and its metrics by name."""

    settings: dict[str, Any]
    nfe: float
    seconds: float
    compile_seconds: float
    metrics: dict[str, Value]


@dataclass(frozen=True)
class CurvePoint:
    """A sampler at one budget; None is that of a solver which chooses its own steps."""

    budget: int | None
    nfe: float
    metrics: dict[str, Value]


@dataclass(frozen=True)
class Curve:
    """A sampler's points by rising NFE.

    inside: for each quality metric the NFE from which on the sampler stays within the floor's band, or None.
    """

    points: list[CurvePoint]
    inside: dict[str, float | None]


@dataclass(frozen=True)
class ExactRow:
    """A sampler at one budget against a known distribution; what the sampler does not have is None."""

    nfe: float
    discretisation: float | None
    total: float | None
    kl: float | None
    kl_early: float | None
    kl_late: float | None


@dataclass(frozen=True)
class ExactResult:
    """The errors that are known without a noise floor where the data's distribution is: rows by rising budget."""

    meaning: str
    score_error: float
    samplers: dict[str, list[ExactRow]]


@dataclass(frozen=True)
class GuidancePoint:
    """Samples at one scale of guidance: their distance to the data, and the share that is what was asked for.

    obeyed: None without classes.
    """

    scale: float
    nfe: float
    distance: Value
    obeyed: float | None


@dataclass(frozen=True)
class GuidanceResult:
    """Quality and obedience over the scale of guidance, for `n` samples in `steps` steps of each method.

    methods: the name of the method of each kind; points: of each kind, by rising scale. recognised: the share of the
    held-out examples of which the classifier that finds `obeyed` finds the class.
    """

    n: int
    steps: int
    methods: dict[str, str]
    points: dict[str, list[GuidancePoint]]
    floor: Floor
    recognised: float | None


@dataclass(frozen=True)
class BoundResult:
    """The variational bound of the SDE's model, and its three terms, in the likelihood's unit."""

    mean: float
    se_images: float
    prior: float
    reconstruction: float
    diffusion: float
    se_times_at_most: float
    times: int
    of: str


@dataclass(frozen=True)
class ChainResult:
    """The ELBO of a discrete chain's model, and its three terms, in the likelihood's unit.

    draws: of the chain's steps, for each example; None, as se_draws, where all steps are taken.
    """

    mean: float
    se_images: float
    prior: float
    denoising: float
    reconstruction: float
    se_draws: float | None
    steps: int
    draws: int | None
    betas: str
    variance: str
    of: str


@dataclass(frozen=True)
class LikelihoodResult:
    """The likelihood of held-out data in `unit`, with its error budget (`experiment.evaluation.likelihood`)."""

    unit: str
    mean: float
    se_images: float
    se_probes: float | None
    se_dequantization: float | None
    tolerance_change: float | None
    prior_mismatch: float
    n: int
    probes: int
    k: int
    dequantization: str | None
    nfe: float
    seconds_per_example: float
    compiled_too: bool
    caveat: str
    bound: BoundResult | None = None
    chain: ChainResult | None = None


@dataclass(frozen=True)
class Calibration:
    """Where held-out truths stand among draws given their condition (`experiment.evaluation.calibration`).

    p: of each coordinate, that its ranks are uniform; NaN where there are too few. coverage: of each level, by
    coordinate, the share of truths in the central interval; se: the standard error it has where draws are exact.
    """

    sampler: str
    n: int
    draws: int
    p: list[float]
    coverage: dict[str, list[float]]
    se: dict[str, float]


@dataclass(frozen=True)
class Report:
    """Everything that was measured, by the names of report.json.

    left_out: metrics that the data do not allow, each with the reason. curves: empty without budgets. exact: None where
    the data's distribution is not known. calibration: of vectors that are told a vector. guidance: None where it was
    not asked for.
    """

    dataset: DataDescription
    checkpoint_step: int
    score: str
    protocol: Protocol
    notes: list[str]
    metrics: dict[str, MetricDescription]
    left_out: dict[str, str]
    floors: dict[str, Floor]
    samplers: dict[str, SamplerResult]
    curves: dict[str, Curve]
    exact: ExactResult | None
    likelihood: LikelihoodResult
    calibration: Calibration | None = None
    guidance: GuidanceResult | None = None

    def metrics_of(self, kind: str) -> dict[str, MetricDescription]:
        """The metrics of one kind, by name."""
        return {name: metric for name, metric in self.metrics.items() if metric.kind == kind}

    def to_json(self) -> dict[str, Any]:
        """The report in JSON's values: its part of report.json, where an unknown `exact` is an empty object."""
        return {**plain(self), "exact": plain(self.exact) or {}}


def plain(value: Any) -> Any:
    """The value in what JSON knows: no records, no NumPy, no tuples, and None where a number is not finite."""
    if dataclasses.is_dataclass(value):
        known = {f.name: (getattr(value, f.name), f.default) for f in dataclasses.fields(value)}
        return {name: plain(v) for name, (v, default) in known.items() if not (v is None and default is None)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
