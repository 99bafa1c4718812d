"""Data of one's own, by one command: in the user's units from training to samples, likelihood and report."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from configs import fields, images, vectors
from experiment import load_score
from experiment.common.errors import UserError
from experiment.config import load_config, whole_config
from experiment.data.dataset import some_of
from experiment.data.units import Units
from experiment.evaluation.evaluate import evaluate_run
from experiment.evaluation.likelihood import LikelihoodSettings, likelihood
from experiment.report.report import write_report
from experiment.run.directory import DataShape, RunDirectory
from experiment.run.load import load_run
from experiment.run.samples import draw_to_files
from experiment.training.loop import train

MEAN, STD = np.array([1000.0, 0.003]), np.array([200.0, 0.001])


def config_of(file: Any, path: Path, **train_settings: Any) -> Any:
    config = whole_config(file.get_config())
    config.data.path = str(path)
    config.model.width = 8
    config.train.update({"steps": 3, "batch_size": 16, "log_every": 1, **train_settings})
    return config


@pytest.fixture(scope="module")
def physical(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two columns in units of their own, hardly trained: EDM's network of zero is exact on a normal law."""
    folder = tmp_path_factory.mktemp("physical")
    x = np.random.default_rng(0).normal(MEAN, STD, (20_000, 2))
    np.savez(folder / "x.npz", x=x)
    assert train(config_of(vectors, folder / "x.npz"), folder / "run") == 0
    return folder / "run"


def test_the_constants_are_leaves_of_the_score(physical: Path) -> None:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(load_score(physical)) if np.shape(leaf) == (2,)]
    for constant, se in ((MEAN, STD / 100), (STD, STD / 100)):
        assert any(np.all(np.abs(leaf - constant) < 5 * se) for leaf in leaves)


def test_samples_are_in_the_users_units_without_the_data(
    physical: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiment.data.load.configured_dataset", None)
    n = 4000
    draw_to_files(str(physical), "ddim", n, steps=100, out=str(tmp_path))
    with np.load(tmp_path / "samples.npz") as saved:
        x = saved["arr_0"].astype(float)
    assert np.all(np.abs(x.mean(axis=0) - MEAN) < (5 / np.sqrt(n) + 0.01) * STD)
    np.testing.assert_allclose(x.std(axis=0), STD, rtol=5 / np.sqrt(2 * n) + 0.01)


def test_log_densities_are_in_the_users_units(physical: Path) -> None:
    run = load_run(physical)
    settings = LikelihoodSettings.from_config(run.config, n=64, bound=True)
    found, values, _ = likelihood(run, settings, budget=False)
    chosen = some_of(64, len(run.dataset.test))
    units = run.dataset.units  # as 18,000 examples tell them: within 0.03 of a deviation of the law's own
    exact = stats.norm.logpdf(run.dataset.test.x[chosen].astype(float), units.mean, units.std).sum(axis=1)
    np.testing.assert_allclose(values, exact, atol=0.05)
    # The times of 64 examples leave it 0.3 nats; the units are log(200 x 0.001) = -1.6 of it.
    assert found.bound is not None and abs(found.bound.mean - exact.mean()) < 0.8
    terms = found.bound.prior + found.bound.reconstruction + found.bound.diffusion
    assert abs(terms + found.bound.mean) < 1e-6


def test_a_run_goes_on_with_the_sizes_that_it_began_with(physical: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(physical, tmp_path / "run"))
    config = config_of(vectors, physical.parent / "x.npz", steps=5, batch_size=None)
    config.model.width = None  # both were settled when the run began, as 16 and 8
    assert train(config, run) == 0
    kept = load_config(run / "config.json")[0]
    assert (kept.train.steps, kept.train.batch_size, kept.model.width) == (5, 16, 8)


def test_a_run_goes_on_in_its_own_units_and_with_its_own_data(physical: Path) -> None:
    directory, dataset = RunDirectory(physical), load_run(physical).dataset
    assert dataset.units is not None
    near = replace(dataset, units=Units(dataset.units.mean + 1e-5 * STD, dataset.units.std))
    directory.check_data(DataShape.of(near))
    units = directory.in_its_units(near).units
    assert units is not None and np.array_equal(units.mean, dataset.units.mean)
    for moved in (Units(dataset.units.mean + 0.1 * STD, STD), Units(dataset.units.mean, 1.1 * STD)):
        with pytest.raises(
            UserError, match=r"another mean or standard deviation now than those that .* was trained on"
        ):
            directory.check_data(DataShape.of(replace(dataset, units=moved)))


# The config file, and the examples.
KINDS: dict[str, tuple[Any, np.ndarray]] = {
    "images of seven channels": (images, np.random.default_rng(0).integers(0, 256, (60, 5, 6, 7), np.uint8)),
    "series": (fields, np.random.default_rng(0).normal([50.0, -1e-3], [5.0, 1e-4], (60, 6, 2))),
    "volumes": (fields, np.random.default_rng(0).normal(900, 30, (60, 3, 4, 2, 1))),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run on each kind of data, hardly trained."""
    folder = tmp_path_factory.mktemp("kinds")

    @cache
    def run(kind: str) -> Path:
        file, x = KINDS[kind]
        path = folder / kind
        np.savez(path.with_suffix(".npz"), x=x)
        config = config_of(file, path.with_suffix(".npz"))
        config.sample.steps = 25
        config.eval.update(
            {"likelihood_n": 4, "probes": 1, "seeds": 1, "samplers": ("ddim",), "rtol": 0.1, "atol": 0.1}
        )
        assert train(config, path) == 0
        return path

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_data_of_every_kind_train_and_are_drawn_in_their_units(kind: str, runs: Callable[[str], Path]) -> None:
    run, (_, x) = runs(kind), KINDS[kind]
    draw_to_files(str(run), "ddim", 26)
    with np.load(run / "samples" / "ddim" / "samples.npz") as saved:
        drawn = saved["arr_0"]
    assert drawn.shape == (26, *x.shape[1:]) and drawn.dtype == (np.uint8 if x.dtype == np.uint8 else np.float32)
    places = tuple(range(x.ndim - 1))
    assert np.all(np.abs(drawn.mean(axis=places) - x.mean(axis=places)) < x.std(axis=places))
    assert np.all(np.abs(np.log(drawn.std(axis=places) / x.std(axis=places))) < 1)


def test_a_report_shows_series_as_lines_and_says_what_its_units_are(
    runs: Callable[[str], Path], tmp_path: Path
) -> None:
    run, evaluation = evaluate_run(str(runs("series")))
    write_report(run, evaluation, tmp_path)
    page = (tmp_path / "report.html").read_text()
    for words in ("in the units of the data", "a line for each channel", "between standardised examples"):
        assert words in page
    for picture in ("samples_data.png", "samples_ddim.png", "strip_ddim.png"):
        colours = np.asarray(Image.open(tmp_path / picture).convert("RGB")).reshape(-1, 3)
        for line in ("#0072B2", "#D55E00"):  # of the first two channels
            rgb = [int(line[i : i + 2], 16) for i in (1, 3, 5)]
            assert np.any(np.all(np.abs(colours.astype(int) - rgb) < 12, axis=1))
    chosen = some_of(4, len(run.dataset.test))
    exact = stats.norm.logpdf(run.dataset.test.x[chosen], [50.0, -1e-3], [5.0, 1e-4]).sum(axis=(1, 2))
    assert np.all(np.abs(evaluation.arrays.likelihood - exact) < 15)  # log(5 x 1e-4) six times is -46
