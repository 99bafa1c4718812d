"""Ranks of held-out truths among draws: uniform for the exact posterior, and for no other width or place."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiment.config import whole_config
from experiment.data.dataset import Dataset, Split
from experiment.data.scaling import Scaling
from experiment.data.units import Units
from experiment.evaluation.calibration import (
    DRAWS,
    LEVELS,
    adjusted,
    calibrated,
    calibration,
    coverage,
    ranks_of,
    uniformity,
)
from experiment.evaluation.evaluate import evaluate
from experiment.evaluation.settings import Settings
from experiment.report.report import write_report
from experiment.report.tables import text_table
from sde_lib import VP
from sde_lib.pytree import register_dataclass
from sde_lib.samplers import DPMSolverPP2M

SDE = VP(t_min=1e-4)
PAIRS = 400
NOISE = np.array([0.5, 2.0])  # of c given x, where x is N(0, I) in the model's space
STD = NOISE / np.sqrt(1 + NOISE**2)
UNITS = Units(np.array([4.0, -1.0]), np.array([10.0, 0.1]))
SAMPLER = DPMSolverPP2M(steps=25)


@register_dataclass
@dataclass(frozen=True)
class Posterior:
    """The exact score of x given c, or of a posterior `width` times as wide, `shift` of its deviations aside."""

    width: Any
    shift: Any
    sde: Any = SDE

    def __call__(self, x: jax.Array, t: Any, cond: jax.Array) -> jax.Array:
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        mean = cond / (1 + jnp.asarray(NOISE, x.dtype)[None] ** 2) + self.shift * STD[None]
        return -(x - alpha * mean) / (alpha**2 * (self.width * STD[None]) ** 2 + sigma**2)


def run_of(width: float, shift: float, workdir: Path | None = None) -> Any:
    rng = np.random.default_rng(5)
    z = rng.standard_normal((PAIRS + 100, 2))
    cond = (z + NOISE * rng.standard_normal(z.shape)).astype(np.float32)
    x = UNITS.to_data(z)
    held_out = PAIRS + 40  # more than are asked for
    train, test = Split(x[held_out:], vectors=cond[held_out:]), Split(x[:held_out], vectors=cond[:held_out])
    return SimpleNamespace(
        config=whole_config({"model": {"condition": "vector"}}),
        dataset=Dataset("pairs", train, test, None, units=UNITS, cond_units=Units.of(cond)),
        score_fn=Posterior(jnp.float32(width), jnp.float32(shift)),
        scaling=Scaling(None, units=UNITS),
        shape=(2,),
        workdir=workdir,
        step=1,
    )


def found(width: float, shift: float) -> Any:
    return calibration(run_of(width, shift), "dpmpp_2m", SAMPLER, PAIRS, 8000, seed=0)[0]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The report of the exact posterior, and its page."""
    run = run_of(1.0, 0.0, tmp_path_factory.mktemp("run"))
    few = {"n": PAIRS, "seeds": 1, "batch_size": 8000, "likelihood_n": 4, "rtol": 1e-3, "atol": 1e-3}
    evaluation = evaluate(run, {"dpmpp_2m": SAMPLER}, Settings.from_config(run.config, **few))
    return evaluation, write_report(run, evaluation, run.workdir / "report")[0]


def test_exact_posteriors_have_uniform_ranks_and_the_intervals_their_coverage(exact: Any) -> None:
    told = exact[0].report.calibration
    assert (told.sampler, told.n, told.draws) == ("dpmpp_2m", PAIRS, DRAWS) and min(told.p) > 0.01
    for level in LEVELS:
        error = told.se[f"{level:g}"]
        assert error == pytest.approx(np.sqrt(level * (1 - level) / PAIRS))
        np.testing.assert_allclose(told.coverage[f"{level:g}"], level, atol=4 * error)


@pytest.mark.parametrize(("width", "shift"), [(0.75, 0.0), (1.35, 0.0), (1.0, 0.4), (1.0, -0.4)])
def test_a_wrong_width_or_place_is_found(width: float, shift: float) -> None:
    told = found(width, shift)
    assert max(told.p) < 1e-3
    if shift == 0:
        narrow = np.array(told.coverage["0.8"]) < 0.8 - 3 * told.se["0.8"]
        wide = np.array(told.coverage["0.8"]) > 0.8 + 3 * told.se["0.8"]
        assert narrow.all() if width < 1 else wide.all()


def test_the_report_tells_every_coordinate(exact: Any) -> None:
    evaluation, page = exact
    told = json.loads((page.parent / "report.json").read_text())["calibration"]
    assert len(told["p"]) == 2 and set(told["coverage"]) == {"0.5", "0.8", "0.9", "0.95"}
    assert (page.parent / "calibration.png").is_file()
    text = page.read_text()
    assert "<h2>Calibration</h2>" in text and "in the central 95%" in text
    for share in told["coverage"]["0.9"]:
        assert f"<td>{share:.1%}</td>" in text
    assert "calibration of dpmpp_2m, 400 held-out conditions of 79 draws each" in text_table(evaluation.report).replace(
        "\n  ", " "
    )


def test_ranks_count_the_draws_below_in_every_coordinate_and_share_out_ties() -> None:
    draws = np.array([[[1.0, 5.0], [2.0, 4.0], [3.0, 3.0]]])
    np.testing.assert_array_equal(ranks_of(np.array([[2.5, 2.0]]), draws), [[2, 0]])
    whole = np.random.default_rng(0).integers(0, 3, size=(2000, DRAWS + 1, 1)).astype(float)
    ranks = ranks_of(whole[:, 0], whole[:, 1:])
    assert ranks.min() == 0 and ranks.max() == DRAWS and uniformity(ranks, DRAWS)[0] > 0.01


def test_the_levels_are_whole_numbers_of_ranks() -> None:
    every = np.arange(DRAWS + 1)[:, None]
    assert [float(coverage(every, DRAWS, level)[0]) for level in LEVELS] == pytest.approx(LEVELS)


def test_p_is_uniform_for_uniform_ranks_and_unknown_for_few() -> None:
    ranks = np.random.default_rng(1).integers(0, DRAWS + 1, size=(300, 400))
    p = uniformity(ranks, DRAWS)
    assert np.abs(np.sort(p) - (np.arange(400) + 0.5) / 400).max() < 0.09  # Kolmogorov and Smirnov's at 0.3 %
    assert np.isnan(uniformity(ranks[:9], DRAWS)).all()


def test_holm_s_rule() -> None:
    # Worked by hand: 0.01 x 4, 0.02 x 3, then 0.021 x 2 = 0.042, which may not be below its forerunner, and 0.9.
    found = adjusted(np.array([0.9, 0.01, np.nan, 0.021, 0.02]))
    np.testing.assert_allclose(found, [0.9, 0.04, np.nan, 0.06, 0.06], rtol=1e-12)
    np.testing.assert_allclose(adjusted(np.full(3, 0.5)), 1.0)
    # Where all hold, the least is below 0.05 in 5 % of cases: 1 - (1 - 0.05/10)^10 for independent tests.
    p = np.random.default_rng(0).uniform(size=(4000, 10))
    share = np.mean([adjusted(row).min() < 0.05 for row in p])
    assert share == pytest.approx(1 - (1 - 0.005) ** 10, abs=4 * np.sqrt(0.05 / 4000))


def test_it_is_of_vectors_that_are_told_vectors() -> None:
    run = run_of(1.0, 0.0)
    assert calibrated(run)
    assert not calibrated(SimpleNamespace(**{**vars(run), "config": whole_config({})}))
    assert not calibrated(SimpleNamespace(**{**vars(run), "shape": (4, 4, 1)}))
