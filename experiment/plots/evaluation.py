"""The report's own figures: denoising strips, quality over samplers and over NFE, the loss.

Their look is that of `experiment.plots.base`. What they show is read by attribute from any object that has it; the
protocols here are satisfied by the records of a report.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from experiment.plots.base import (
    COLOURS,
    FLOOR,
    INK,
    NARROW,
    WIDE,
    Array,
    box_of,
    cycle,
    line_style,
    literal,
    png,
)
from experiment.plots.images import Box, PlacedPicture
from experiment.plots.training import running_median

_BAR = 0.55  # the width of a bar, of the distance of two


class Spread(Protocol):
    """Values with their mean and standard deviation, as far as these are known."""

    @property
    def mean(self) -> float | None: ...
    @property
    def sd(self) -> float | None: ...
    @property
    def values(self) -> Sequence[float | None]: ...


class Metric(Protocol):
    """A metric's name for readers, and its value in the limit of equal distributions."""

    @property
    def label(self) -> str: ...
    @property
    def origin(self) -> float | None: ...


class Measured(Protocol):
    """A sampler's cost, and its metrics by name."""

    @property
    def nfe(self) -> float: ...
    @property
    def metrics(self) -> Mapping[str, Spread]: ...


class Curve(Protocol):
    """A sampler's points by rising NFE."""

    @property
    def points(self) -> Sequence[Measured]: ...


class GuidancePoint(Protocol):
    """Samples at one scale of guidance."""

    @property
    def scale(self) -> float: ...
    @property
    def distance(self) -> Spread: ...
    @property
    def obeyed(self) -> float | None: ...


class GuidanceCurves(Protocol):
    """The points of each kind of sampler by rising scale, and what the data themselves give."""

    @property
    def points(self) -> Mapping[str, Sequence[GuidancePoint]]: ...
    @property
    def floor(self) -> Spread: ...
    @property
    def recognised(self) -> float | None: ...


class ExactRow(Protocol):
    """A sampler at one budget against a known distribution; what it does not have is None."""

    @property
    def nfe(self) -> float: ...
    @property
    def discretisation(self) -> float | None: ...
    @property
    def total(self) -> float | None: ...
    @property
    def kl(self) -> float | None: ...


class Exact(Protocol):
    """The rows of each sampler, and the error of the score alone."""

    @property
    def score_error(self) -> float: ...
    @property
    def samplers(self) -> Mapping[str, Sequence[ExactRow]]: ...


def quality_bars(
    samplers: Mapping[str, Measured],
    metrics: Mapping[str, Metric],
    floors: Mapping[str, Spread],
    *,
    narrow: bool = False,
) -> PlacedPicture:
    """A panel for each metric with a bar for each sampler: mean, sd over seeds, and every seed.

    The floor is a line in a band of ± 2 sd. narrow: one panel under the other, for a page as wide as a telephone. The
    picture's places are the bars' columns, sampler by sampler for each metric.
    """
    drawn: list[Axes] = []

    def panel(axes: Axes, name: str) -> None:
        values = {sampler: found.metrics[name] for sampler, found in samplers.items()}
        _bars(axes, values, floors[name], metrics[name].origin or 0.0)
        labels = [f"{sampler}\n{found.nfe:,.0f} NFE" for sampler, found in samplers.items()]
        axes.set_xticks(range(len(samplers)), labels, fontsize=9)
        axes.set_ylabel(literal(metrics[name].label))

    columns = 1 if narrow else 2

    def draw(figure: Figure) -> None:
        panels = _panels(figure, list(metrics), panel, columns)
        drawn.extend(panels[: len(metrics)])
        handles, labels = panels[0].get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        figure.legend(once.values(), once.keys(), loc="outside upper center", ncols=2 * columns, fontsize=9)

    picture = png(draw, NARROW if narrow else WIDE, 0.5 + 2.7 * math.ceil(len(metrics) / columns))
    return PlacedPicture(picture, [[_column(axes, place)] for axes in drawn for place in range(len(samplers))])


def _column(axes: Axes, place: int) -> Box:
    """The column of the bar at this place, over the height of the axes."""
    low, high = axes.get_xlim()
    left, right = ((place + side * _BAR / 2 - low) / (high - low) for side in (-1, 1))
    return box_of(axes, left, right=right)


def _panels(figure: Figure, names: Sequence[str], panel: Callable[[Axes, str], None], columns: int) -> list[Axes]:
    """Draw a panel for each name, so many in a row."""
    columns = min(len(names), columns)
    panels = figure.subplots(math.ceil(len(names) / columns), columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        panel(axes, name)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    return list(panels)


def _bars(axes: Axes, values: Mapping[str, Spread], floor: Spread, origin: float) -> None:
    places = np.arange(len(values))
    means = [_or_nan(v.mean) for v in values.values()]
    axes.bar(places, np.subtract(means, origin), _BAR, bottom=origin, color=cycle(len(values)), alpha=0.8)
    for place, v in zip(places, values.values(), strict=True):
        seeds = [s for s in v.values if s is not None]
        axes.plot(place + np.linspace(-0.12, 0.12, len(seeds)), seeds, "o", ms=3.5, color=INK, mew=0, label="each seed")
        if v.sd is not None:
            axes.errorbar(place, _or_nan(v.mean), v.sd, color=INK, capsize=5, lw=1.3, label="± 1 sd over seeds")
    low, mean, high = _band(floor)
    axes.axhspan(low, high, color=FLOOR, alpha=0.3, lw=0, label="floor ± 2 sd")
    axes.axhline(mean, color=INK, lw=1.2, ls="--", label="noise floor: data against data")
    axes.grid(axis="x", visible=False)
    axes.axhline(origin, color=FLOOR, lw=0.8)


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def _band(floor: Spread) -> tuple[float, float, float]:
    """The floor's mean - 2 sd, mean, and mean + 2 sd."""
    mean, sd = _or_nan(floor.mean), floor.sd or 0.0
    return mean - 2 * sd, mean, mean + 2 * sd


def quality_curves(
    curves: Mapping[str, Curve],
    metrics: Mapping[str, Metric],
    floors: Mapping[str, Spread],
    *,
    narrow: bool = False,
) -> bytes:
    """A panel for each metric over NFE with a line for each sampler, logarithmic where the metric allows.

    The floor is a band of ± 2 sd. narrow: one panel under the other.
    """

    def panel(axes: Axes, name: str) -> None:
        lowest, _, highest = _band(floors[name])
        drawn = []
        for i, (sampler, curve) in enumerate(curves.items()):
            values = [point.metrics[name] for point in curve.points]
            nfe, means = [point.nfe for point in curve.points], [_or_nan(v.mean) for v in values]
            style = {**line_style(i), "ls": ("-", "--", ":")[i // len(COLOURS) % 3]}
            axes.errorbar(nfe, means, [v.sd or 0.0 for v in values], lw=1.3, ms=4, capsize=2, label=sampler, **style)
            drawn += means
        axes.axhspan(lowest, highest, color=FLOOR, alpha=0.3, lw=0, label="noise floor ± 2 sd")
        axes.set_ylabel(literal(metrics[name].label))
        _calls_axis(axes, every)
        if min(*drawn, lowest) > 0:
            _log_axis(axes)

    every = [point.nfe for curve in curves.values() for point in curve.points]
    columns, ncols = (1, 3) if narrow else (2, 5)

    def draw(figure: Figure) -> None:
        panels = _panels(figure, list(metrics), panel, columns)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=ncols, fontsize=9)

    legend = 0.6 + 0.2 * math.ceil((len(curves) + 1) / ncols)
    return png(draw, NARROW if narrow else WIDE, legend + 2.8 * math.ceil(len(metrics) / columns))


def guidance_curves(found: GuidanceCurves, *, narrow: bool = False) -> bytes:
    """Distance to the data over the scale of guidance, with the floor's band, and the share that obeys, if known.

    narrow: one panel under the other.
    """

    def distance(axes: Axes) -> None:
        low, _, high = _band(found.floor)
        for i, (name, points) in enumerate(found.points.items()):
            values = [point.distance for point in points]
            means, errors = [_or_nan(v.mean) for v in values], [v.sd or 0.0 for v in values]
            scales = [point.scale for point in points]
            axes.errorbar(scales, means, errors, lw=1.3, ms=4, capsize=2, label=name, **line_style(i))
        axes.axhspan(low, high, color=FLOOR, alpha=0.3, lw=0, label="noise floor ± 2 sd")
        axes.set(ylabel="sliced Wasserstein-2" + (", within classes" if found.recognised is not None else ""))
        axes.set_ylim(bottom=0)

    def obeyed(axes: Axes) -> None:
        for i, points in enumerate(found.points.values()):
            shares = [100 * _or_nan(point.obeyed) for point in points]
            axes.plot([point.scale for point in points], shares, lw=1.3, ms=4, **line_style(i))
        axes.axhline(100 * _or_nan(found.recognised), color=INK, lw=1.2, ls="--", label="held-out data")
        axes.set(ylabel="of the class asked for, %")

    panels = [distance] if found.recognised is None else [distance, obeyed]
    columns = 1 if narrow else len(panels)

    def draw(figure: Figure) -> None:
        drawn = figure.subplots(math.ceil(len(panels) / columns), columns, squeeze=False).ravel()
        for axes, panel in zip(drawn, panels, strict=True):
            panel(axes)
            axes.set(xlabel="scale of guidance")
        entries = {text: h for axes in figure.axes for h, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(
            entries.values(), entries.keys(), loc="outside upper center", ncols=2 if narrow else 4, fontsize=9
        )

    if narrow:
        return png(draw, NARROW, 0.8 + 2.8 * len(panels))
    return png(draw, WIDE if len(panels) > 1 else 5.0, 3.4)


def _calls_axis(axes: Axes, calls: Sequence[float]) -> None:
    """A logarithmic axis of score calls, with whole numbers at those that there are, as far as they do not touch."""
    axes.set(xscale="log", xlabel="score calls per sample (NFE)")
    least = (max(calls) / min(calls)) ** 0.13
    shown: list[float] = []
    for value in sorted(set(calls), reverse=True):
        if not shown or shown[-1] / value >= max(least, 1.01):
            shown.append(value)
    axes.set_xticks(shown, [f"{value:,.0f}" for value in shown])
    axes.xaxis.set_minor_locator(NullLocator())


def _log_axis(axes: Axes) -> None:
    """A logarithmic axis of values, with plain numbers that do not touch, however short it is."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    few = high < 8 * low
    axes.yaxis.set_major_locator(MaxNLocator(5) if few else LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def exact_curves(exact: Exact, *, narrow: bool = False) -> bytes:
    """Strong error over NFE, with the exact score and with the run's; on a Gaussian, the exact KL too.

    The score's own error is a line. narrow: one panel under the other.
    """
    panels: dict[str, Callable[[Axes], None]] = {
        "discretisation": lambda axes: _strong_errors(axes, exact),
        "kl": lambda axes: _exact_kls(axes, exact),
    }
    rows = [row for of_sampler in exact.samplers.values() for row in of_sampler]
    shown = [panel for key, panel in panels.items() if any(getattr(row, key) is not None for row in rows)]

    columns = 1 if narrow else len(shown)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(math.ceil(len(shown) / columns), columns, squeeze=False).ravel()
        for axes, panel in zip(panels, shown, strict=True):
            panel(axes)
            _calls_axis(axes, [row.nfe for row in rows])
            _log_axis(axes)
        entries = {text: h for axes in figure.axes for h, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        ncols = 3 if narrow else 5
        figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=ncols, fontsize=9)

    if narrow:
        return png(draw, NARROW, 0.9 + 2.8 * len(shown))
    return png(draw, 4.1 * max(len(shown), 1.4), 3.7)


def _strong_errors(axes: Axes, exact: Exact) -> None:
    for i, (name, rows) in enumerate(exact.samplers.items()):
        known = [row for row in rows if row.discretisation is not None]
        if known:
            nfe = [row.nfe for row in known]
            axes.loglog(nfe, [row.discretisation for row in known], lw=1.3, ms=4, label=name, **line_style(i))
            axes.loglog(nfe, [row.total for row in known], lw=1.3, ms=4, ls="--", **line_style(i))
    if exact.score_error > 0:
        axes.axhline(exact.score_error, color=INK, lw=1.2, ls=":", label="score error")
    axes.set_ylabel("strong error (rms distance)")


def _exact_kls(axes: Axes, exact: Exact) -> None:
    for i, (name, rows) in enumerate(exact.samplers.items()):
        known = [row for row in rows if row.kl is not None]
        if known:
            axes.loglog(
                [row.nfe for row in known], [row.kl for row in known], lw=1.3, ms=4, label=name, **line_style(i)
            )
    axes.set_ylabel("exact KL(sampler || data), nats")


def loss_curve(rows: Sequence[Mapping[str, float]], *, narrow: bool = False) -> bytes:
    """Training loss over steps from rows {"step", "loss"}: as logged, and its running median."""
    steps, loss = (np.array([row[key] for row in rows], float) for key in ("step", "loss"))
    width = max(1, len(loss) // 20) | 1
    smooth = running_median(loss, width)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(steps, loss, color=COLOURS[5], lw=0.8, label="as logged")
        axes.plot(steps, smooth, color=COLOURS[0], lw=1.8, label=f"running median of {width}")
        axes.set(xlabel="training step", ylabel="loss", ylim=_robust_range(loss))
        if loss.min() > 0 and smooth.max() / smooth.min() > 20:
            axes.set(yscale="log")
            axes.autoscale(axis="y")
        axes.legend()

    return png(draw, NARROW if narrow else WIDE, 3.0)


def _robust_range(values: Array) -> tuple[float, float]:
    """The range of the values but for the highest hundredth, with a margin: the first steps would flatten the rest."""
    low, high = float(values.min()), float(np.quantile(values, 0.99))
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin
