"""The figures of likelihoods and latents, in the look of `base.py`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import chi2

from experiment.plots.base import (
    COLOURS,
    FAINT,
    FLOOR,
    INK,
    NARROW,
    SCATTER_POINTS,
    WIDE,
    Array,
    draw_cloud,
    literal,
    panels_in_a_row,
    png,
)
from experiment.plots.examples import series_limits, show_example
from experiment.plots.limits import common_limit, common_ranges


def bound_over_log_snr(log_snr: Array, per_time: Array) -> bytes:
    """Draw the variational bound's integrand over log SNR, which shows at which noise the bound is lost.

    The curve has the mean and standard error in equal parts of the range.
    """
    edges = np.linspace(log_snr.min(), log_snr.max(), 33)
    part = np.clip(np.digitize(log_snr.ravel(), edges) - 1, 0, 31)
    count = np.bincount(part, minlength=32)
    values = per_time.ravel()
    mean, square = (np.bincount(part, powers, minlength=32) / count for powers in (values, values**2))
    se = np.sqrt(np.maximum(square - mean**2, 0) / count)

    middle = 0.5 * (edges[1:] + edges[:-1])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.fill_between(middle, mean - se, mean + se, color=COLOURS[0], alpha=0.3, lw=0, label="± 1 standard error")
        axes.plot(middle, mean, color=COLOURS[0], lw=1.8, label="½ |ε - ε̂|²")
        axes.set(xlabel="log SNR (much noise at the left)", ylabel="nats per unit of log SNR", ylim=(0, None))
        axes.legend()

    return png(draw, 8.2, 3.0)


def elbo_over_steps(steps: int, step: Array, kl: Array, se: Array, terms: Mapping[str, float], unit: str) -> bytes:
    """Draw the KLs of a chain's steps, which show at which steps the ELBO is lost.

    They have their standard errors, and stand between the reconstruction's and the prior's term. terms: prior,
    denoising and reconstruction as a whole.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.fill_between(step, np.maximum(kl - se, 0.1 * kl), kl + se, color=COLOURS[0], alpha=0.3, lw=0)
        label = f"KL of each step ± 1 standard error; {terms['denoising']:.4g} in all"
        axes.plot(step, kl, "o-", ms=3, color=COLOURS[0], lw=1.3, label=label)
        label = f"reconstruction, {terms['reconstruction']:.4g}"
        axes.plot(1, terms["reconstruction"], "D", ms=7, color=COLOURS[1], label=label)
        axes.plot(steps + 1, terms["prior"], "s", ms=7, color=COLOURS[2], label=f"prior, {terms['prior']:.2g}")
        axes.set(xlabel="step of the chain (much noise at the right)", ylabel=f"{unit} of one step", yscale="log")
        if steps > 100:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:,.0f}")
        else:
            axes.locator_params(axis="x", integer=True)
        axes.legend(loc="lower left")

    return png(draw, 8.2, 3.4)


def likelihood_histogram(values: Array, unit: str, mean: float, se: float, *, narrow: bool = False) -> bytes:
    """Draw a histogram of the held-out examples' values, with their mean and its ± 1 standard error."""
    bins = "fd" if len(values) > 30 else 10

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.hist(values, bins=bins, color=COLOURS[0], alpha=0.75, edgecolor="white", lw=0.4)
        axes.axvspan(mean - se, mean + se, color=COLOURS[1], alpha=0.35, lw=0, label=f"± 1 standard error, {se:.3g}")
        axes.axvline(mean, color=COLOURS[1], lw=1.8, label=f"mean {mean:.4g} {unit}")
        axes.set(xlabel=f"{unit} of a held-out example", ylabel=f"examples (of {len(values):,})")
        axes.grid(axis="x", visible=False)
        axes.legend()

    return png(draw, NARROW if narrow else WIDE, 3.0)


def rank_curves(ranks: Array, draws: int, *, narrow: bool = False) -> bytes:
    """Draw the distribution function of each column of the ranks (n, d), 0 to draws, less that of uniform ranks."""
    n, places = len(ranks), draws + 1
    uniform = np.arange(places + 1) / places
    band = 1.96 * np.sqrt(uniform * (1 - uniform) / n)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.fill_between(uniform, -band, band, color=FLOOR, alpha=0.3, lw=0, label="exact draws, 95 %")
        for i, column in enumerate(ranks.T):
            share = np.cumsum(np.bincount(column, minlength=places)) / n
            label = f"coordinate {i + 1}" if ranks.shape[1] <= len(COLOURS) else None
            axes.plot(uniform, np.append(0.0, share) - uniform, color=COLOURS[i % len(COLOURS)], lw=1.3, label=label)
        axes.set(xlabel="rank of the truth, as a share", ylabel="share below, less uniform", xlim=(0, 1))
        figure.legend(loc="outside upper center", ncols=2 if narrow else 4, fontsize=8.5)

    return png(draw, NARROW if narrow else WIDE, 3.0)


def image_paths(rows: Mapping[str, Array], weight: Array) -> bytes:
    """Draw paths between two examples as rows {name: (k, *shape)}, a column for each weight of the second one.

    The examples are those of `show_example`.
    """

    def draw(figure: Figure) -> None:
        parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
        for part, (name, images) in zip(parts, rows.items(), strict=True):
            _image_line(part, images, [f"{w:.3g}" for w in weight], f"{name}, with the weight of the second image")

    return png(draw, max(4.1, 0.92 * len(weight) + 0.2), 1.4 * len(rows))


def _image_line(figure: Any, images: Array, captions: Sequence[str], title: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=9.5)
    limits = series_limits(images) if images.ndim == 3 else None
    for axes, image, caption in zip(panels_in_a_row(figure, len(images)), images, captions, strict=True):
        show_example(axes, image, limits)
        axes.spines[:].set(visible=True, color=FAINT)  # a white image would have no edge
        axes.set_xlabel(caption, fontsize=8.5, labelpad=1)


def vector_path(path: Array, latents: Array, data: Array, std: float, *, square: bool = True) -> bytes:
    """Draw the first two coordinates of a path (k, d) between two vectors, on the data, and of the path's latents.

    std: that of the prior, two of whose coordinates lie in the circles with probability 1/2 and 95 %. square: as for
    `scatter`.
    """
    circles = {"half of the prior": std * math.sqrt(2 * math.log(2)), "95 % of it": std * math.sqrt(2 * math.log(20))}

    def draw(figure: Figure) -> None:
        left, right = panels_in_a_row(figure, 2)
        draw_cloud(left, data, (common_limit if square else common_ranges)([data, path]), FLOOR)
        reach = 1.1 * max(*circles.values(), float(np.abs(latents[:, :2]).max()))
        right.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        angle = np.linspace(0, 2 * np.pi, 200)
        for (name, radius), style in zip(circles.items(), ("--", ":"), strict=True):
            right.plot(radius * np.cos(angle), radius * np.sin(angle), color=FLOOR, lw=1.2, ls=style, label=name)
        for axes, points in ((left, path), (right, latents)):
            x, y = points[:, 0], points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
            axes.plot(x[[0, -1]], y[[0, -1]], color=COLOURS[1], lw=1.3, ls="--", label="straight line")
            axes.plot(x, y, "o-", color=COLOURS[0], lw=1.6, ms=4, label="path")
            axes.plot(x[0], y[0], "s", color=INK, ms=8, label="first")
            axes.plot(x[-1], y[-1], "D", color=INK, ms=8, label="second")
        left.set(title="data (grey) and the path", xlabel="x₁", ylabel="x₂")
        right.set(title="latents at t_max", xlabel="z₁", ylabel="z₂")
        entries = {text: h for axes in (left, right) for h, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=6, fontsize=9)

    return png(draw, 8.6, 4.7)


def typicality(reference: Mapping[str, Any], tested: Mapping[str, Any], dim: int, examples: Array, count: int) -> bytes:
    """Draw histograms of both sets' scores, and below them the `count` most and least typical tested examples.

    Args:
        reference, tested: name, z (n,) of the log-density and latent_z (n,) of the latent's squared norm.
        dim: the number of the latent's entries: under the model its squared norm has the chi-squared distribution.
        examples: the tested ones, as `show_example` takes them, or vectors (n, d), which become one cloud with z as its
        colour.
        count: how many images at each end.
    """
    order, images = np.argsort(np.abs(tested["z"])), examples.ndim > 2

    def expected(edges: Array) -> Array:
        return chi2.cdf(dim + math.sqrt(2 * dim) * edges, dim)

    def draw(figure: Figure) -> None:
        top, bottom = cast(Any, figure.subfigures(2, 1, height_ratios=(3.0, 2.7 if images else 4.0)))
        left, right = panels_in_a_row(top, 2)
        _two_histograms(left, reference, tested, "z", None)
        _two_histograms(right, reference, tested, "latent_z", expected)
        left.set(xlabel="log p(x): sd above the reference's mean", ylabel="share of the examples")
        right.set(xlabel="|latent|²: sd above the prior's mean")
        entries = {text: h for axes in (left, right) for h, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        top.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=3, fontsize=9)
        if not images:
            return _scored_cloud(bottom, examples, tested["z"])
        ends = {"most": order[:count], "least": order[::-1][:count]}
        for part, (name, which) in zip(bottom.subfigures(2, 1), ends.items(), strict=True):
            captions = [f"{z:+.2f}" for z in tested["z"][which]]
            _image_line(
                part, examples[which], captions, f"{name} typical: {literal(tested['name'])}, with the z of log p"
            )

    return png(draw, 8.6, 5.7 if images else 7.2)


def _two_histograms(
    axes: Axes, reference: Mapping[str, Any], tested: Mapping[str, Any], key: str, expected: Any
) -> None:
    """Draw both histograms on one scale, which is logarithmic beyond ten standard deviations.

    expected: the distribution function of the model, or None.
    """
    both = np.concatenate([reference[key], tested[key]])
    edges = np.linspace(both.min(), both.max(), 25)
    if float(np.abs(both).max()) > 10:
        edges = np.sinh(np.linspace(np.arcsinh(both.min()), np.arcsinh(both.max()), 49))
        decades = [sign * digit * 10.0**k for sign in (-1, 1) for k in range(9) for digit in (1, 3)]
        ticks = [tick for tick in sorted([0.0, *decades]) if both.min() <= tick <= both.max()]
        axes.set_xscale("asinh", linear_width=1.0)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    for part, colour in ((reference, COLOURS[0]), (tested, COLOURS[1])):
        share = np.histogram(part[key], edges)[0] / len(part[key])
        filled = part is reference
        axes.stairs(
            share, edges, fill=filled, color=colour, alpha=0.45 if filled else 1.0, lw=1.6, label=literal(part["name"])
        )
    if expected is not None:
        axes.stairs(np.diff(expected(edges)), edges, color=INK, lw=1.2, ls="--", label="|latent|² under the model")
    axes.grid(axis="x", visible=False)


def _scored_cloud(figure: Any, points: Array, z: Array) -> None:
    axes, shown = figure.subplots(), slice(SCATTER_POINTS)
    second = points[shown, 1] if points.shape[1] > 1 else np.zeros(len(points[shown]))
    found = axes.scatter(points[shown, 0], second, c=z[shown], s=14, lw=0, cmap="cividis")
    axes.set(xlabel="x₁", ylabel="x₂")
    if np.ptp(points[shown, 0]) < 5 * np.ptp(second) < 25 * np.ptp(points[shown, 0]):
        axes.set_aspect("equal", adjustable="datalim")  # in units of their own, a line would be left of one of them
    figure.colorbar(found, ax=axes, label="z of log p")
