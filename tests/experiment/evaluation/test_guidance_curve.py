"""Quality and obedience over the scale of guidance, on exact scores: the distributions that are drawn are known."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from experiment.common.errors import UserError
from experiment.config import whole_config
from experiment.data.dataset import Dataset, Split
from experiment.data.scaling import Scaling
from experiment.devices.hosts import Place
from experiment.evaluation import evaluate as evaluation
from experiment.evaluation.drawing import Kept
from experiment.evaluation.evaluate import Asked
from experiment.evaluation.guidance_curve import guidance_curve, read_scales, scales_of
from experiment.evaluation.results import GuidanceResult, plain
from experiment.evaluation.settings import Settings
from experiment.plots.evaluation import guidance_curves
from experiment.report.tables import guidance_rows
from experiment.run import samples as run_samples
from experiment.run.sampling import draw_rows
from sde_lib import VP
from tests.oracles import ClassScore

MEAN, STD = 0.5, 0.5  # of the two classes, N(± MEAN, STD²) in each of two entries, and of nothing N(0, 1)
CONFIG = {"model": {"condition": "label"}, "train": {"cond_dropout": 0.1}}
SETTINGS = SimpleNamespace(n=400, seed=0, batch_size=400, reference="train")


@dataclass(frozen=True)
class ExactRun:
    """A run whose network knows the classes exactly."""

    config: Any
    dataset: Dataset
    score_fn: Any
    scaling: Scaling = Scaling(None)  # noqa: RUF009 - immutable
    shape: tuple[int, ...] = (2,)
    step: int = 1


def run_of(config: Any, labelled: bool = True) -> ExactRun:
    rng = np.random.default_rng(0)
    labels = np.arange(6000) % 2
    x = (MEAN * (1 - 2 * labels)[:, None] + STD * rng.standard_normal((6000, 2))).astype(np.float32)
    train, test = (Split(x[part], labels[part].astype(np.int32)) for part in (slice(4000), slice(4000, None)))
    dataset = Dataset("classes", train, test, None, 2)
    means, stds = np.array([[MEAN], [-MEAN], [0.0]]), np.array([[STD], [STD], [1.0]])
    return ExactRun(whole_config(config), dataset, ClassScore(VP(t_min=1e-4), means * np.ones(2), stds * np.ones(2)))


@pytest.fixture(scope="module")
def found() -> GuidanceResult:
    return guidance_curve(run_of(CONFIG), [1.0, 2.0, 4.0], SETTINGS)


def law(kind: str, g: float) -> tuple[float, float]:
    """The mean and standard deviation of each entry under guidance of N(m, v) past N(0, 1): docs/guidance.md."""
    v = STD**2
    z, w = np.polynomial.legendre.leggauss(300)
    u = np.exp(25 * z)
    du, log_a = 25 * w * u, g * np.log1p(u / v) + (1 - g) * np.log1p(u)
    b = g * MEAN / (v + u)
    if kind == "ODE":
        return float(np.sum(0.5 * b * np.exp(-0.5 * log_a) * du)), v ** (g / 2)
    return float(np.sum(b * np.exp(-log_a) * du)), float(np.sum(np.exp(-2 * log_a) * du)) ** 0.5


@pytest.mark.parametrize("kind", ["SDE", "ODE"])
def test_distance_and_obedience_are_those_of_the_distributions_that_are_drawn(found: GuidanceResult, kind: str) -> None:
    """A classifier at 0 finds x of N(m, s²) in two entries with the probability Phi(sqrt(2) m/s).

    The floor adds to a distance as noise does.
    """
    assert law("SDE", 1.0) == pytest.approx((MEAN, STD), rel=1e-3)
    for point in found.points[kind]:
        mean, std = law(kind, point.scale)
        assert point.obeyed == pytest.approx(norm.cdf(2**0.5 * mean / std), abs=0.04)
        exact = np.linalg.norm([mean - MEAN, std - STD, found.floor.mean])
        assert point.distance.mean == pytest.approx(exact, abs=0.05)
        assert point.nfe == (41 if point.scale == 1 else 82)
    assert found.recognised == pytest.approx(norm.cdf(2**0.5), abs=0.03)


def test_obedience_rises_and_quality_falls_and_the_ode_s_falls_more(found: GuidanceResult) -> None:
    for points in found.points.values():
        assert np.all(np.diff([point.obeyed for point in points]) >= 0) and points[-1].obeyed > points[0].obeyed
        assert points[0].distance.excess < 2 and points[1].distance.excess > 5
        assert np.all(np.diff([point.distance.mean for point in points]) > 0.05)
    at_2 = {kind: points[1].distance.mean for kind, points in found.points.items()}
    assert at_2["ODE"] > at_2["SDE"] + 0.05


def test_without_classes_all_of_the_data_are_one(found: GuidanceResult) -> None:
    run = run_of(CONFIG)
    one = replace(run, dataset=replace(run.dataset, num_classes=1))
    result = guidance_curve(one, [1.0], SETTINGS)
    assert result.recognised is None and result.points["SDE"][0].obeyed is None
    assert result.floor.size == 400
    assert len(guidance_rows(result)[1][0].cells) == 4
    assert guidance_curves(result).startswith(b"\x89PNG")


def test_it_is_told_in_rows(found: GuidanceResult) -> None:
    header, rows = guidance_rows(found)
    assert header[0] == "guidance" and [row.name for row in rows] == ["1", "2", "4", "data"]
    assert all(len(row.cells) == len(header) - 1 for row in rows)
    assert [cell.outside for cell in rows[2].cells] == [False, True, False, False, True, False]
    assert plain(found)["points"]["ODE"][2]["scale"] == 4


def test_curves_are_there_where_labels_were_dropped_or_where_they_are_asked_for() -> None:
    run = run_of(CONFIG)
    assert scales_of(run, None) == [1.0, 1.5, 2.0, 3.0, 5.0]
    assert scales_of(run, None, exact_score=True) == scales_of(run, []) == []
    assert scales_of(run, [2.0]) == [2.0]
    assert scales_of(replace(run, dataset=replace(run.dataset, num_classes=0)), None) == []
    never = run_of({"model": {"condition": "label"}})
    assert scales_of(never, None) == []
    with pytest.raises(UserError, match=r"cond_dropout=0\.1"):
        scales_of(never, [2.0])
    with pytest.raises(UserError, match="leave out --exact_score"):
        scales_of(run, [2.0], exact_score=True)


def test_scales_are_read_from_the_flag() -> None:
    assert read_scales(None) is None and read_scales([]) == [] and read_scales(["3", "1", "3.0"]) == [1.0, 3.0]
    for texts in (["2", "x"], ["nan"], ["inf"]):
        with pytest.raises(UserError, match="give numbers"):
            read_scales(texts)


def test_a_killed_curve_is_read_and_not_drawn_anew_and_others_do_their_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its third batch of four, gone on with by another process, and then read: the same to the bit."""
    run = run_of(CONFIG)
    settings = Settings.from_config(run.config, n=40, batch_size=20, seeds=1)
    whole, draws = guidance_curve(run, [3.0], settings), []

    def counted(*given: Any, **more: Any) -> Any:
        draws.append(given[3])
        if len(draws) == 3:
            raise KeyboardInterrupt
        return draw_rows(*given, **more)

    monkeypatch.setattr(run_samples, "draw_rows", counted)
    with pytest.raises(KeyboardInterrupt):
        guidance_curve(run, [3.0], settings, Kept(tmp_path, Place()))
    asked = Asked(run, {}, settings, (), (3.0,))
    monkeypatch.setattr(evaluation, "likelihood_share", lambda *_, **__: None)
    asked.share(Kept(tmp_path, Place(1, 2, "job")))
    assert draws == [0, 20, 0, 20, 0]  # its own part first, and none that is there
    monkeypatch.setattr(run_samples, "draw_rows", None)  # nothing is left to draw
    found = guidance_curve(run, [3.0], settings, Kept(tmp_path, Place(0, 2, "job")))
    assert plain(found) == plain(whole)
