"""Training that starts from another run's averaged weights."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.config import check_config, load_config, nested
from experiment.data.load import load_dataset
from experiment.run.checkpoint import Checkpoints
from experiment.run.directory import DataShape, RunDirectory
from experiment.run.load import load_run
from experiment.training.start import Start
from experiment.training.trainer import Trainer
from tests.commands import SMALL, train, trained


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("first") / "run"
    trained(workdir, train_steps=20)
    return workdir


def state_of(workdir: Path) -> Any:
    config = load_config(workdir / "config.json")[0]
    restored = Checkpoints(workdir / "checkpoints").restore(Trainer(config, load_run(workdir).dataset).like, print)
    assert restored is not None
    return restored[0]


def test_it_starts_from_the_average_with_a_fresh_optimizer(first: Path, tmp_path: Path) -> None:
    """One update of another data set, batch and learning rate, of a rate below the last bit of every weight."""
    workdir, start = tmp_path / "second", shutil.copytree(first, tmp_path / "first")
    keys = {"train_start": start, "data_name": "two_moons", "train_batch_size": 32, "train_lr": 1e-30}
    done = trained(workdir, **keys, train_steps=1)
    before, after = state_of(start), state_of(workdir)
    assert any(np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (before["ema"], before["params"])), strict=True))
    for name in ("params", "ema"):
        jax.tree.map(np.testing.assert_array_equal, after[name], before["ema"])
    counts = [leaf for leaf in jax.tree.leaves(after["opt_state"]) if leaf.ndim == 0]
    assert counts and all(int(count) == 1 for count in counts)  # of Adam's moments and of the schedule
    (line,) = (line for line in done.out.splitlines() if "starts from" in line)
    assert f"the averaged weights of {start}, step 20, with a fresh optimizer" in line
    for change in ("'checkerboard' -> 'two_moons'", "train.batch_size 16 -> 32", "train.lr 0.001 -> 1e-30"):
        assert change in line
    told = {"run": str(start), "step": 20}
    assert load_config(workdir / "config.json")[1]["started_from"] == told
    # The run stands on its own: it goes on when the one it started from is gone.
    shutil.rmtree(start)
    assert "starts from" not in trained(workdir, **keys, train_steps=2).out
    assert load_run(workdir).step == 2 and load_config(workdir / "config.json")[1]["started_from"] == told


def test_another_learning_rate_on_resume_names_the_way(first: Path) -> None:
    for keys in ({"train_lr": 2e-3}, {"train_batch_size": 32}):
        told = train(first, train_steps=20, **keys).mistake
        assert f"into another --workdir, from this run's weights with --config.train.start={first}" in told
    told = train(first, train_steps=20, model_width=8).mistake
    assert "train.start" not in told  # another network cannot start from it


def begin(run: Path, **keys: Any) -> Any:
    """The weights that training would start from."""
    flat = {"model.name": "mlp", **SMALL, **{name.replace("_", ".", 1): value for name, value in keys.items()}}
    config = check_config(nested({**flat, "train.start": str(run)}))
    start = Start(config, run.with_name("new"))
    trainer = Trainer(start.config, load_dataset(config.data.name))
    return start.weights(trainer.dataset, trainer.like["ema"])


OTHER = {
    "model_width=32": "model.width 16 -> 32",
    "model_depth=2": "model.depth 1 -> 2",
    "model_parameterization=x0": "model.parameterization 'eps' -> 'x0'",
    "model_noise_label=time": "model.noise_label 'log_snr' -> 'time'",
    "model_class_conditional=true data_name=two_moons": "model.condition 'none' -> 'label'",
}


@pytest.mark.parametrize("keys", OTHER)
def test_a_network_that_differs_is_refused_with_the_first_difference(first: Path, keys: str) -> None:
    values = {"32": 32, "2": 2, "true": True}
    given = {name: values.get(value, value) for name, value in (pair.split("=") for pair in keys.split())}
    with pytest.raises(UserError, match="is another one, ") as told:
        begin(first, **given)
    assert f"is another one, {OTHER[keys]}: make them agree" in str(told.value)


def test_what_changes_no_weight_may_differ(first: Path) -> None:
    begin(first, model_dtype="bfloat16", model_dropout=0.1, sde_beta_max=10.0, train_ema=0.5, data_name="swiss_roll")


def test_examples_of_another_size_are_refused(first: Path, tmp_path: Path) -> None:
    """Whether or not a weight tells."""
    run = Path(shutil.copytree(first, tmp_path / "run"))
    config, _ = load_config(run / "config.json")
    RunDirectory(run).write_config(config, DataShape((3,), None, 0))
    with pytest.raises(UserError, match=r"is another one, examples of 3 -> 2"):
        begin(run)


def test_a_network_that_follows_the_data_follows_the_run(first: Path) -> None:
    """What the new config leaves to its data, in the network, is as the run has it."""
    kept = {name: value for name, value in SMALL.items() if name != "model.width"}
    config = check_config(nested({"model.name": "mlp", "model.width": None, **kept, "train.start": str(first)}))
    assert config.model.width is None and Start(config, first.with_name("new")).config.model.width == 16


def test_a_parameterisation_of_the_datas_gaussian_keeps_the_runs_own(tmp_path: Path) -> None:
    """The network's output is what is left of that Gaussian's score, so the new data's would not do."""
    rng = np.random.default_rng(0)
    for name, slope in (("a", 0.9), ("b", -0.9)):
        x = rng.standard_normal((300, 2)) @ np.array([[1.0, slope], [0.0, 0.4]])
        np.savez(tmp_path / f"{name}.npz", x=x.astype(np.float32))
    keys = {"model_parameterization": "gaussian", "train_steps": 3, "data_name": ""}
    trained(tmp_path / "one", **keys, data_path=tmp_path / "a.npz")
    trained(tmp_path / "two", **keys, data_path=tmp_path / "b.npz", train_start=tmp_path / "one")
    one, two = (dict(np.load(tmp_path / name / "gaussian.npz")) for name in ("one", "two"))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_run_that_cannot_be_started_from_is_told(first: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.train\.start: run directory .* does not exist"):
        begin(tmp_path / "none")
    shutil.copy(first / "config.json", tmp_path)
    with pytest.raises(UserError, match=r"config\.train\.start: .* has no checkpoint yet; wait"):
        begin(tmp_path)
    told = train(tmp_path / "new", train_start=tmp_path / "new").mistake
    assert "the run itself: give another --workdir" in told and not (tmp_path / "new").exists()
