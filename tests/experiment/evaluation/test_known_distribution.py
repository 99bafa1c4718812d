"""Evaluation against a known distribution: every number has a closed form here."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiment.common.errors import UserError
from experiment.config import whole_config
from experiment.data.load import load_dataset
from experiment.evaluation.drawing import Drawn
from experiment.evaluation.known_distribution import draws_noise, entropy, exact_errors, exact_metrics, with_exact_score
from experiment.evaluation.points import Point
from experiment.evaluation.results import ExactResult
from experiment.plots import evaluation as report_plots
from experiment.report.tables import exact_rows
from experiment.run.directory import DataShape
from experiment.run.load import Run
from sde_lib import VP, EulerMaruyama, ExactScore, GaussianMixture, PredictorCorrector, ProbabilityFlow, sample
from sde_lib.samplers import DDIM, AdaptiveSDE, SDEDPMSolverPP2M, UniPC, gaussian_kl, pulse

VARIANCES = np.array([0.5, 0.09])
LAW = GaussianMixture(np.ones(1), [[0.2, -0.4]], np.diag(VARIANCES)[None])
OTHER = GaussianMixture(np.ones(1), [[0.2, -0.4]], np.diag([0.6, 0.08])[None])
APART = GaussianMixture([0.7, 0.3], [[-20.0, 0.0], [20.0, 0.0]], np.stack([np.diag([1.0, 0.25]), 0.5 * np.eye(2)]))
N, KEY = 512, jax.random.key(3)


def run_of(score_law: Any) -> Any:
    return SimpleNamespace(
        dataset=SimpleNamespace(distribution=LAW, name="ours"), score_fn=ExactScore(score_law, VP()), shape=(2,)
    )


def drawn(name: str, sampler: Any, score_law: Any) -> Drawn:
    result = sample(sampler, ExactScore(score_law, VP()), KEY, N, (2,))
    x = np.asarray(result.x, float)
    return Drawn(Point(name, None, sampler), [x], x, result.nfe, seconds=1.0, compile_seconds=1.0)


def errors(run: Any, *points: Drawn) -> ExactResult:
    found = exact_errors(run, points, KEY)
    assert found is not None
    return found


def test_entropy_of_a_gaussian_and_of_peaks_far_apart() -> None:
    of_gaussian = lambda variances: 0.5 * np.sum(np.log(2 * np.pi * np.e * np.asarray(variances)))  # noqa: E731
    assert entropy(LAW) == pytest.approx(of_gaussian(VARIANCES), abs=1e-5)
    peaks = 0.7 * of_gaussian([1.0, 0.25]) + 0.3 * of_gaussian([0.5, 0.5])
    assert entropy(APART) == pytest.approx(peaks - 0.7 * np.log(0.7) - 0.3 * np.log(0.3), abs=1e-5)


def test_entropy_of_peaks_that_overlap_is_the_mean_of_minus_log_p() -> None:
    law = load_dataset("mixture").distribution
    x = law.sample(jax.random.key(0), 200_000)
    log_p = np.asarray(law.log_prob(x), float)
    assert entropy(law) == pytest.approx(-log_p.mean(), abs=4 * log_p.std() / 200_000**0.5)


@pytest.mark.parametrize("stretch", [0.8, 1.0, 1.1])
def test_the_log_density_gap_of_stretched_samples(stretch: float) -> None:
    # E[-log p] - H of x = m + s (x' - m) is d (s² - 1)/2.
    x = np.asarray(LAW.sample(jax.random.key(1), 100_000))
    mean = np.asarray(LAW.means[0])
    gap = exact_metrics(LAW)["nll_gap"].statistic(x, mean + stretch * (x - mean))
    assert gap == pytest.approx(abs(stretch**2 - 1), abs=0.015)


def test_mode_weights_are_compared_by_total_variation() -> None:
    assert "mode_weights" not in exact_metrics(LAW) and exact_metrics(None) == {}
    metric = exact_metrics(APART)["mode_weights"]
    points = np.repeat(np.asarray(APART.means), [60, 40], axis=0)
    assert metric.statistic(points, points) == pytest.approx(0.1, abs=1e-6)
    assert metric.statistic(points, points[:60]) == pytest.approx(0.3, abs=1e-6)


def test_with_the_exact_score_all_error_is_discretisation() -> None:
    found = errors(
        run_of(LAW),
        *(drawn("ddim", DDIM(steps=n), LAW) for n in (16, 32)),
        drawn("denoised", UniPC(steps=200, denoise=True), LAW),
        drawn("em", EulerMaruyama(steps=10), LAW),
    )
    assert found.score_error < 1e-5
    few, more = found.samplers["ddim"]
    assert few.total == pytest.approx(few.discretisation, rel=1e-4)
    assert few.discretisation / more.discretisation == pytest.approx(2, rel=0.1)  # DDIM's order is 1
    assert (
        found.samplers["denoised"][0].total < 1e-4
    )  # held against denoised samples: the noise of t_min alone is 0.014
    (em,) = found.samplers["em"]
    assert em.discretisation is em.total is None
    assert em.kl == pytest.approx(
        gaussian_kl(EulerMaruyama(steps=10), VP(), LAW.means[0], np.diag(VARIANCES)), rel=1e-3
    )


def test_the_score_error_is_the_distance_of_two_flows() -> None:
    # The flow of N(m, v) carries x_T to alpha m + (x_T - alpha_T m) sqrt((alpha² v + sigma²)/(alpha_T² v + sigma_T²))
    # along each axis.
    found = errors(run_of(OTHER), drawn("unipc", UniPC(steps=60), OTHER))
    sde, start = VP(), np.asarray(VP().prior((2,)).std)
    ends = []
    for v in (VARIANCES, np.array([0.6, 0.08])):
        total = lambda t, v=v: sde.alpha(t) ** 2 * v + sde.sigma(t) ** 2  # noqa: E731
        ends.append(np.sqrt(total(sde.t_min) / total(sde.t_max)) * start)
    expected = np.sqrt(np.sum((ends[0] - ends[1]) ** 2))
    assert found.score_error == pytest.approx(expected, rel=4 / np.sqrt(2 * N))
    (row,) = found.samplers["unipc"]
    assert row.total == pytest.approx(found.score_error, rel=1e-2) and row.discretisation < 1e-3


def test_the_kl_of_scores_that_are_wrong_early_and_late() -> None:
    sampler = SDEDPMSolverPP2M(steps=20, denoise=True)
    (row,) = errors(run_of(LAW), drawn("s", sampler, LAW)).samplers["s"]
    gaussian = VP(), LAW.means[0], np.diag(VARIANCES)
    assert row.kl == pytest.approx(gaussian_kl(replace(sampler, denoise=False), *gaussian), rel=1e-3)
    late = gaussian_kl(SDEDPMSolverPP2M(steps=512), *gaussian, error=pulse(1.5, 3.5, 0.3))
    assert row.kl_late == pytest.approx(late, rel=1e-3)
    assert row.kl_early != row.kl_late


def test_no_kl_on_a_mixture_and_nothing_without_a_known_distribution() -> None:
    run = run_of(APART)
    run.dataset.distribution = APART
    (row,) = errors(run, drawn("em", EulerMaruyama(steps=4), APART)).samplers["em"]
    assert row.kl is row.kl_early is None
    run.dataset.distribution = None
    assert exact_errors(run, [], KEY) is None


@pytest.mark.parametrize(
    "sampler, noisy",
    [
        (DDIM(), False),
        (DDIM(eta=0.3), True),
        (ProbabilityFlow(), False),
        (PredictorCorrector(), True),
        (AdaptiveSDE(), True),
        (EulerMaruyama(eta=0.0), False),
    ],
)
def test_which_samplers_draw_noise(sampler: Any, noisy: bool) -> None:
    assert draws_noise(sampler, VP()) == noisy


def test_the_table_leaves_out_what_is_not_known_and_the_curves_are_drawn(tmp_path: Path) -> None:
    points = [drawn("ddim", DDIM(steps=n), OTHER) for n in (8, 16)]
    found = errors(run_of(OTHER), *points, drawn("pc", PredictorCorrector(steps=8), OTHER))
    header, *cells = exact_rows(found)
    assert header == [
        "sampler",
        "NFE",
        "discretisation error",
        "total error",
        "KL, exact score",
        "KL, wrong early",
        "KL, wrong late",
    ]
    assert [row[:2] for row in cells] == [["ddim", "8"], ["ddim", "16"]]
    (tmp_path / "exact.png").write_bytes(report_plots.exact_curves(found))
    assert np.std(Image.open(tmp_path / "exact.png").convert("L")) > 10


def test_the_exact_score_takes_the_network_s_place() -> None:
    config = whole_config({})
    config.data.name = "mixture"
    other = ExactScore(OTHER, VP(beta_max=15.0))
    run = Run(Path("unused"), config, other, 1, DataShape((2,), None, 8))  # type: ignore[arg-type]  # a score is a score
    exact = with_exact_score(run)
    x = jnp.asarray([[0.3, 0.4]])
    np.testing.assert_allclose(
        exact.score_fn(x, 0.3), ExactScore(load_dataset("mixture").distribution, VP(beta_max=15.0))(x, 0.3)
    )
    config.data.name = "two_moons"
    with pytest.raises(UserError, match="two_moons is not known; it is of gaussian, mixture"):
        with_exact_score(Run(Path("unused"), config, other, 1, DataShape((2,), None, 2)))  # type: ignore[arg-type]
