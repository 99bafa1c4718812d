"""python -m experiment.restore, on a run whose prior is a Gaussian that is known: its figures are those of the exact
posterior, and are not where the noise is misstated.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import experiment.report.restoration
from experiment.common.errors import UserError
from experiment.config import whole_config
from experiment.data.dataset import Dataset, Split, some_of
from experiment.data.scaling import Scaling
from experiment.data.units import Units
from experiment.evaluation.restoration import (
    calibration_of,
    covered,
    draw_given,
    held_out,
    look,
    restore_examples,
    root_of_ratio,
)
from experiment.evaluation.seen import Asked, read_observed, see
from experiment.report.restoration import SETTINGS, notes_of, restore_run
from sde_lib import VP, ExactScore, GaussianMixture, register_dataclass
from sde_lib.inverse import MomentMatching, Proximal
from sde_lib.samplers import SDEDPMSolverPP2M, UniformLogSNR
from tests.commands import ROOT, Command, trained

SHAPE, D, N, K = (4, 4, 1), 16, 240, 7
NOISE, STD, MEAN = 0.4, 2.5, 30.0  # in the model's space; the data are MEAN + STD z
SAMPLER = SDEDPMSolverPP2M(steps=50, grid=UniformLogSNR())
EXACT = MomentMatching(iterations=4)  # as many as there are entries seen, at most


@register_dataclass
@dataclass(frozen=True)
class OnGrid:
    """The score of vectors (n, 16) on the grid (n, 4, 4, 1)."""

    flat: ExactScore

    @property
    def sde(self) -> Any:
        return self.flat.sde

    def __call__(self, x: jax.Array, t: Any, cond: Any = None) -> jax.Array:
        return self.flat(x.reshape(len(x), D), t).reshape(x.shape)


@dataclass(frozen=True)
class Exact:
    """What a command reads of a run, of a Gaussian's exact score."""

    score_fn: Any
    dataset: Dataset
    scaling: Scaling
    config: Any
    workdir: Path = Path("nowhere")
    shape: tuple[int, ...] = SHAPE
    step: int = 7
    levels: int | None = None
    num_classes: int = 0
    seconds_per_call: float = 1e-6
    data_shape: Any = field(default=None)


def gaussian() -> GaussianMixture:
    root = np.random.default_rng(0).normal(size=(D, 5))
    covariance = root @ root.T / 5 + 0.1 * np.eye(D)
    return GaussianMixture([1.0], np.full((1, D), 0.3), covariance[None])


@pytest.fixture(scope="module")
def run() -> Exact:
    data = gaussian()
    z = np.asarray(data.sample(jax.random.key(5), N), float).reshape(N, *SHAPE)
    units = Units(np.array([MEAN]), np.array([STD]))
    split = Split((MEAN + STD * z).astype(np.float32))
    config = whole_config({})
    config.sample.batch_size = N * K  # one batch of one shape
    dataset = Dataset("ours", split, split, None, units=units)
    return Exact(OnGrid(ExactScore(data, VP(t_min=1e-3))), dataset, Scaling(None, units=units), config)


CASES = {"mask": Asked(seen="random", share=0.25), "downsample": Asked(factor=2), "matrix": Asked(matrix="matrix.npy")}


def seen_of(name: str, run: Exact, folder: Path) -> Any:
    np.save(folder / "matrix.npy", np.random.default_rng(3).normal(size=(3, D)))
    asked = CASES[name]
    matrix = asked.matrix and str(folder / asked.matrix)
    return see(name, replace(asked, matrix=matrix), SHAPE, run.scaling)


@pytest.mark.parametrize("name", CASES)
def test_draws_from_the_exact_posterior_are_calibrated_and_others_are_not(
    run: Exact, name: str, tmp_path: Path
) -> None:
    seen, index = seen_of(name, run, tmp_path), np.arange(N)
    noise = float(NOISE * seen.scale.flat[0])  # in the data's units
    found = restore_examples(run, seen, noise, EXACT, SAMPLER, n=N, draws=K)
    figures = calibration_of(found, seen, run.scaling)
    for share, estimate in figures.coverage.items():
        assert abs(estimate.value - share) < 3.5 * estimate.error < 0.06, (share, estimate)
    for estimate in (figures.ratio, figures.residual):
        assert abs(estimate.value - 1) < 3.5 * estimate.error < 0.12, figures
    assert notes_of(run, seen, noise, EXACT, figures) == []
    assert found.jvps == 4 * found.nfe == 4 * SAMPLER.steps
    # The same observations, and a sampler that is told a tenth of their noise, or four times as much.
    truth = held_out(run, index, 0)
    y = look(seen, noise, truth, index, 0)
    np.testing.assert_array_equal(y, found.y)
    narrow, wide = (draw_given(run, seen, y, factor * noise, EXACT, SAMPLER, None, K) for factor in (0.1, 4.0))
    narrow, wide = (calibration_of(replace(one, truth=truth), seen, run.scaling) for one in (narrow, wide))
    assert 0.75 - narrow.coverage[0.75].value > 3 * narrow.coverage[0.75].error
    assert narrow.ratio.value - 1 > 2 * narrow.ratio.error
    assert 1 - wide.residual.value > 20 * wide.residual.error


def test_levels_and_the_model_s_units_give_the_same_draws(run: Exact) -> None:
    """One run knows its data as levels 0..16, the other as numbers in the model's space: y and noise are the same."""
    index, z = np.arange(N), held_out(run, np.arange(N), 0)
    of_levels = replace(run, scaling=Scaling(17))
    of_numbers = replace(run, scaling=Scaling(None))
    found = []
    for one, noise in ((of_levels, NOISE * 17 / 2), (of_numbers, NOISE)):
        seen = see("downsample", Asked(factor=2), SHAPE, one.scaling)
        y = seen.to_model(seen.to_data(look(seen, noise, z, index, 0)))  # by way of a file in the data's units
        found.append(replace(draw_given(one, seen, y, noise, EXACT, SAMPLER, None, K), truth=z))
    np.testing.assert_allclose(found[0].y, found[1].y, atol=1e-6)
    np.testing.assert_allclose(found[0].draws, found[1].draws, atol=1e-4)
    figures = [calibration_of(one, seen, Scaling(levels)) for one, levels in zip(found, (17, None), strict=True)]
    assert figures[0].residual.value == pytest.approx(figures[1].residual.value, rel=1e-5)


@pytest.mark.parametrize("k", [2, 7, 15])
@pytest.mark.parametrize("share", [0.5, 0.75, 0.9])
def test_coverage_over_all_ranks_is_the_share_itself(k: int, share: float) -> None:
    truth = np.arange(k + 1.0)[:, None] - 0.5  # one of each rank among 0..k - 1
    inside = covered(np.broadcast_to(np.arange(k)[None, :, None], (k + 1, k, 1)), truth, share)[:, 0]
    assert inside.mean() == pytest.approx(share, abs=1e-12)
    assert np.all((inside >= 0) & (inside <= 1)) and np.allclose(inside, inside[::-1])
    assert np.all(np.diff(inside[: k // 2 + 1]) >= 0)  # the outermost ranks are left out first
    ties = covered(np.zeros((1, k, 1)), np.zeros((1, 1)), share)
    assert ties.item() == pytest.approx(share, abs=1e-12)  # all are equal: any rank


def test_the_error_of_a_ratio_is_its_spread_over_data_sets() -> None:
    a, b = np.random.default_rng(0).chisquare(2, size=(2, 2000, 50))
    b = b + 0.5 * a
    found = [root_of_ratio(x, y) for x, y in zip(a, b, strict=True)]
    told, spread = np.mean([one.error for one in found]), np.std([one.value for one in found])
    assert told == pytest.approx(spread, rel=0.08)
    assert root_of_ratio(a[0, :1], b[0, :1]).error is None
    assert root_of_ratio(np.ones(3), np.zeros(3)).value is None


@pytest.fixture
def restore(run: Exact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """restore(**flags): the command on the exact run, in a few steps."""

    def command(**given: Any) -> list[str]:
        monkeypatch.setattr(
            experiment.report.restoration, "load_run", lambda *_: replace(run, workdir=tmp_path / "run")
        )
        (tmp_path / "run").mkdir(exist_ok=True)
        few = {"method": "proximal", "n": 2, "draws": 3, "steps": 10, "noise": 1.0, "seed": 0}
        return restore_run("run", {**dict.fromkeys(SETTINGS), **few, **given})

    return command


def test_the_files_hold_what_the_figures_are_of(restore: Any, run: Exact, tmp_path: Path) -> None:
    lines = restore(operator="mask")
    folder = tmp_path / "run" / "restore" / "mask"
    assert lines[-1] == str(folder / "restore.html") and "residual over noise" in lines[-3]
    saved, report = np.load(folder / "restored.npz"), json.loads((folder / "restore.json").read_text())
    draws, truth, opened = saved["draws"], saved["truth"], saved["open"]
    assert draws.shape == (2, 3, *SHAPE) and opened[:, 2:].all() and not opened[:, :2].any()
    np.testing.assert_array_equal(saved["index"], some_of(2, len(run.dataset.test)))
    np.testing.assert_allclose(truth, run.dataset.test.x[saved["index"]], atol=1e-4)  # in the data's units
    np.testing.assert_allclose(saved["mean"], draws.mean(axis=1), rtol=1e-5)
    figures = report["figures"]
    rmse = np.sqrt(np.mean((saved["mean"] - truth)[:, opened] ** 2)) / STD
    assert figures["rmse"]["value"] == pytest.approx(rmse, rel=1e-4)
    left = (saved["y"][:, None] - draws)[:, :, ~opened] / 1.0
    assert figures["residual_over_noise"]["value"] == pytest.approx(np.sqrt(np.mean(left**2)), rel=1e-3)
    assert report["nfe"] == 11 and report["jvps"] == 0 and report["step"] == 7 and report["versions"]["jax"]
    assert "mask" in report["operator"] and report["noise"] == 1.0 and report["method"] == repr(Proximal())
    page = (folder / "restore.html").read_text()
    assert page.count("<img") == 1 and "coverage of the central 75%" in page and lines[-3].split()[3] in page
    first = (folder / "restored.npz").read_bytes()
    assert len(restore(operator="mask")) == 4  # the same again writes over it
    assert np.array_equal(np.load(folder / "restored.npz")["draws"], draws)
    assert "it is kept as" in restore(operator="mask", noise=2.0)[0]
    (kept,) = (path for path in folder.parent.iterdir() if path != folder)
    assert (kept / "restored.npz").read_bytes() == first and (kept / "restore.html").is_file()


@pytest.mark.parametrize("operator", ["mask", "downsample", "blur"])
def test_own_observations_are_restored_as_the_examples_they_were_seen_of(
    restore: Any, tmp_path: Path, operator: str
) -> None:
    """Of y in the data's units, NaN where nothing was seen, the draws are the same, with no word of a truth."""
    flags = {"operator": operator, "factor": 2 if operator == "downsample" else None}
    restore(**flags)
    first = np.load(tmp_path / "run" / "restore" / operator / "restored.npz")
    y = np.where(first["open"], np.nan, first["y"]) if operator == "mask" else first["y"]
    np.savez(tmp_path / "seen.npz", y=y)
    lines = restore(observed=str(tmp_path / "seen.npz"), **flags)
    assert "2 observations of seen.npz" in lines[-3] and lines[-2].startswith("residual over noise")
    folder = tmp_path / "run" / "restore" / operator
    saved, report = np.load(folder / "restored.npz"), json.loads((folder / "restore.json").read_text())
    np.testing.assert_allclose(saved["draws"], first["draws"], rtol=2e-4, atol=2e-4 * STD)
    np.testing.assert_allclose(saved["y"], first["y"], rtol=1e-5)
    assert "truth" not in saved and "index" not in saved
    assert report["figures"]["rmse"] is None and report["figures"]["coverage"] == {}
    page = (folder / "restore.html").read_text()
    assert "coverage" not in page and "rmse" not in page and "held-out" not in page
    np.save(tmp_path / "one.npy", y[1])  # one alone, which is drawn by the first one's noise
    assert "1 observation of one.npy" in restore(observed=str(tmp_path / "one.npy"), **flags)[-3]


def test_a_picture_of_256_levels_is_an_observation(restore: Any, run: Exact, tmp_path: Path) -> None:
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    Image.fromarray(grey).save(tmp_path / "seen.png")
    asked, scaling = Asked(seen="left"), Scaling(256)
    y = read_observed(str(tmp_path / "seen.png"), see("mask", asked, SHAPE, scaling), scaling)
    np.testing.assert_allclose(y[0, :, :2, 0], np.asarray(scaling.to_model(grey[None, ..., None]))[0, :, :2, 0])
    assert not y[0, :, 2:].any()
    with pytest.raises(UserError, match=r"no picture of 256 levels: give an .npz"):
        restore(observed=str(tmp_path / "seen.png"))
    halved = see("downsample", Asked(factor=2), SHAPE, scaling)
    with pytest.raises(UserError, match=r"sees \(2, 2, 1\) of an example: give \(n, 2, 2, 1\)"):
        read_observed(str(tmp_path / "seen.png"), halved, scaling)
    np.save(tmp_path / "seen.npy", np.full((2, 2, 1), np.nan))
    with pytest.raises(UserError, match=r"y is not finite where it was seen: give a mask that hides those"):
        read_observed(str(tmp_path / "seen.npy"), halved, scaling)


def test_without_noise_there_is_no_residual_over_it(restore: Any) -> None:
    assert "residual over noise –" in restore(operator="mask", method="projection", noise=0.0)[-3]


def test_figures_that_the_noise_does_not_explain_come_with_a_word(restore: Any, run: Exact) -> None:
    """One iteration does not reach a blurred field; nothing reaches below the noise at t_min, which is 0.01 here."""
    seen, noise = see("blur", Asked(width=1.0), SHAPE, run.scaling), 0.02 * STD
    found = restore_examples(run, seen, noise, MomentMatching(1), SAMPLER, n=N, draws=K)
    figures = calibration_of(found, seen, run.scaling)
    (note,) = notes_of(run, seen, noise, MomentMatching(1), figures)
    assert "--iterations=4 would bring them nearer than 1" in note
    assert notes_of(run, seen, noise, Proximal(), figures) == []
    line = restore(operator="denoise", noise=0.005 * STD)[-2]
    assert "below what is left at the run's t_min" in line


def test_particles_draw_by_twisted_smc(restore: Any) -> None:
    lines = restore(operator="downsample", factor=2, particles=4)
    assert "44 NFE" in lines[0]  # 11 calls for each of 4 particles


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"operator": "sharpen"}, "--operator is 'sharpen'; it must be one of: mask"),
        ({"noise": None}, "--noise is missing: give the standard deviation"),
        ({"noise": -1.0}, "--noise is -1: give"),
        ({"noise": float("nan")}, "--noise is nan: give"),
        ({"noise": 0.0}, "--noise=0: proximal divides by it"),
        ({"noise": 0.0, "method": "projection", "particles": 4}, "--noise=0: particles are weighed by it"),
        ({"sampler": "flow_map"}, "--sampler=flow_map takes no score given an observation"),
        ({"draws": 1}, "--draws is 1, and one draw has no spread: give at least 2"),
        ({"draws": 0}, "--draws is 0: give at least 2"),
        ({"n": 0}, "--n is 0: give at least 1"),
        ({"method": "dps"}, "the method is 'dps'; it must be one of: moment_matching"),
        ({"iterations": 2}, "--iterations: proximal has none: leave it out, or use --method=moment_matching"),
        ({"method": "moment_matching", "iterations": 0}, "--iterations is 0: give at least 1"),
        ({"sampler": "nobody"}, "the sampler is 'nobody'"),
        ({"sampler": "ode", "eta": 1.0}, "--eta: ode has no such setting"),
        ({"particles": 0}, "--particles is 0: give"),
        ({"particles": 4, "sampler": "em"}, "--sampler is not for --particles"),
        ({"steps": 0}, "--steps is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"observed": "nothing.npz"}, "--observed=nothing.npz: there is no such file: give"),
        ({"observed": __file__}, "no picture of 256 levels: give an .npz"),
        ({"label": [3]}, "--label goes with --observed: .* leave it out"),
        ({"n": 10**9, "draws": 10**6}, "of memory, and this machine has .* give a smaller --n"),
    ],
)
def test_a_mistake_is_told_in_a_line(restore: Any, tmp_path: Path, given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        restore(**given)
    assert not (tmp_path / "run" / "restore").exists()


def test_a_run_without_held_out_examples(restore: Any, run: Exact) -> None:
    empty = replace(run.dataset, test=Split(run.dataset.test.x[:0]))
    seen = see("denoise", Asked(), SHAPE, run.scaling)
    with pytest.raises(UserError, match="has no held-out examples: train on"):
        restore_examples(replace(run, dataset=empty), seen, 1.0, EXACT, SAMPLER, n=3, draws=2)


def test_the_command_on_a_labelled_run_of_vectors(tmp_path: Path) -> None:
    """The whole way, by the shell: the network is told each example's class."""
    folder = tmp_path / "run"
    trained(folder, train_steps=3, data_name="two_moons", model_class_conditional=True)
    flags = ["--noise=0.3", "--n=4", "--draws=2", "--steps=5", "--iterations=1"]
    done = Command(ROOT / "experiment" / "restore.py", f"--workdir={folder}", *flags).wait()
    assert done.status == 0, done.err
    assert done.out.splitlines()[-1] == str(folder / "restore" / "mask" / "restore.html")
    saved = np.load(folder / "restore" / "mask" / "restored.npz")
    assert saved["draws"].shape == (4, 2, 2) and saved["labels"].shape == (4,)
    np.save(tmp_path / "seen.npy", np.array([[0.3, np.nan], [-0.2, np.nan], [0.1, np.nan]]))
    flags = ["--noise=0.3", f"--observed={tmp_path / 'seen.npy'}", "--draws=2", "--steps=5"]
    command = [ROOT / "experiment" / "restore.py", f"--workdir={folder}", *flags]
    done = Command(*command, "--label=1,0").wait()
    assert done.status == 0, done.err
    assert np.load(folder / "restore" / "mask" / "restored.npz")["labels"].tolist() == [1, 0, 1]
    done = Command(*command).wait()
    assert done.status == 2 and "it must be told what each is of: give --label, or train with" in done.err
