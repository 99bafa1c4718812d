"""Runs that learn a flow map: what they start from, how they go on, what comes of them, and what is refused."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiment import load_flow_map, load_score
from experiment.build.objects import build_network
from experiment.common.errors import UserError
from experiment.config import check_config, load_config, nested
from experiment.data.load import load_dataset
from experiment.run.checkpoint import Checkpoints
from experiment.run.load import load_run
from experiment.run.log import read_metrics
from experiment.run.samples import draw_to_files
from experiment.training.loop import train
from experiment.training.preview import Preview
from experiment.training.start import Teacher, start_of
from experiment.training.trainer import Trainer
from sde_lib import FlowMapSampler, NetworkFlowMap, NetworkScore, sample
from tests.commands import SMALL

FLOW_MAP = {"train_objective": "flow_map", "train_lr": 1e-2}


def config_of(**keys: Any) -> Any:
    flat = {"model.name": "mlp", **SMALL, **{name.replace("_", ".", 1): value for name, value in keys.items()}}
    return check_config(nested({name: value for name, value in flat.items() if value is not None}))


def begin(workdir: Path, **keys: Any) -> Path:
    assert train(config_of(train_preview_every=0, **keys), workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin(tmp_path_factory.mktemp("score") / "teacher", train_steps=30)


@pytest.fixture(scope="module")
def taught(teacher: Path) -> Path:
    return begin(teacher.with_name("taught"), **FLOW_MAP, train_teacher=str(teacher), train_steps=20)


def state_of(workdir: Path) -> Any:
    config = load_config(workdir / "config.json")[0]
    trainer = Trainer(config, load_dataset(config.data.name))
    restored = Checkpoints(workdir / "checkpoints").restore(trainer.like, print)
    assert restored is not None
    return restored[0]


def test_it_starts_from_its_teacher_whose_score_stays_in_the_state(teacher: Path, taught: Path) -> None:
    learned, before = state_of(taught), state_of(teacher)
    jump = learned["learned"]["teacher"]["condition"].pop("jump")
    assert not np.any(jump["kernel"])
    jax.tree.map(np.testing.assert_array_equal, learned["learned"]["teacher"], before["ema"])
    assert np.any(learned["params"]["condition"]["jump"]["kernel"])
    assert load_config(taught / "config.json")[0].train.flow_map_loss == "lagrangian"
    assert load_config(taught / "config.json")[1]["started_from"] == {"run": str(teacher), "step": 30}


def test_it_goes_on_bit_for_bit_without_its_teacher(teacher: Path, taught: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(teacher, tmp_path / "teacher"))
    keys = {**FLOW_MAP, "train_teacher": str(moved)}
    begin(tmp_path / "run", **keys, train_steps=7)
    shutil.rmtree(moved)
    begin(tmp_path / "run", **keys, train_steps=20)
    jax.tree.map(np.testing.assert_array_equal, state_of(tmp_path / "run"), state_of(taught))
    rows, whole = (read_metrics(run) for run in (tmp_path / "run", taught))
    for row, expected in zip(rows[-1:], whole[-1:], strict=True):
        assert row["loss_jump"] == expected["loss_jump"] and row["step"] == expected["step"] == 20
    for row in whole:
        np.testing.assert_allclose(row["loss_diagonal"] + row["loss_jump"], row["loss"], rtol=1e-5)


def test_without_a_teacher_none_is_kept_and_learned_times_go_on_learning(tmp_path: Path) -> None:
    keys = {**FLOW_MAP, "train_flow_map_loss": "semigroup", "train_times": "loss_second_moment", "train_steps": 10}
    learned = state_of(begin(tmp_path / "run", **keys))["learned"]
    assert "teacher" not in learned and int(learned["parts"]["times"].seen.sum()) == 10 * 16
    (row,) = read_metrics(tmp_path / "run")
    assert row["loss_jump"] > 0 and row["loss_diagonal"] > 0.1


def test_the_run_is_a_score_and_a_flow_map(taught: Path) -> None:
    run, key = load_run(taught), jax.random.key(0)
    score_fn, flow_map = load_score(taught), load_flow_map(taught)
    x = jax.random.normal(key, (4, 2))
    np.testing.assert_array_equal(flow_map.score(x, 0.5), score_fn(x, 0.5))
    assert isinstance(score_fn, NetworkScore)  # and so for every sampler, the likelihood and guidance
    for renoise in (0.0, 1.0):
        found = run.sample("flow_map", 6, steps=3, renoise=renoise, seed=2)
        expected = sample(FlowMapSampler(3, renoise), flow_map, jax.random.key(2), 6, (2,))
        assert found.nfe == 3
        np.testing.assert_allclose(found.x, expected.x, rtol=1e-5, atol=1e-5)
    assert run.sample("flow_map", 2).nfe == 2  # and not the run's config.sample.steps


def test_a_preview_shows_the_flow_maps_own_samples(taught: Path) -> None:
    config = load_config(taught / "config.json")[0]
    trainer = Trainer(config, load_dataset(config.data.name))
    state = trainer.initial_state()
    picture = Preview(trainer).picture(state)
    assert picture is not None and picture.startswith(b"\x89PNG")
    score_fn = NetworkScore(trainer.apply, state["ema"], trainer.sde, trainer.parameterization)
    sampler, flow_map = trainer.objective.preview(score_fn)
    assert isinstance(sampler, FlowMapSampler) and isinstance(flow_map, NetworkFlowMap)


def test_a_score_run_and_guidance_are_refused(teacher: Path, taught: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"learned a score and no flow map: train one with .*objective=flow_map"):
        draw_to_files(str(teacher), "flow_map", 2, out=str(tmp_path))
    with pytest.raises(UserError, match="learned a score and no flow map"):
        load_flow_map(teacher)
    with pytest.raises(UserError, match=r"--renoise: ddim has no such setting; .* flow_map"):
        draw_to_files(str(taught), "ddim", 2, out=str(tmp_path), renoise=1.0)
    with pytest.raises(UserError, match="--eta: flow_map has no such setting"):
        draw_to_files(str(taught), "flow_map", 2, out=str(tmp_path), eta=1.0)
    with pytest.raises(UserError, match="renoise must be a number from 0 to 1, not 2"):
        draw_to_files(str(taught), "flow_map", 2, out=str(tmp_path), renoise=2.0)
    with pytest.raises(UserError, match="--guidance guides a score"):
        load_run(taught).sample("flow_map", 2, guidance=2.0, guide=str(teacher))


@pytest.mark.parametrize(
    "keys, told",
    [
        ({"train_flow_map_loss": "lagrangian"}, "train.flow_map_loss is 'lagrangian', and the score is learned"),
        ({"train_teacher": "runs/x"}, "train.teacher is 'runs/x', and the score is learned"),
        ({"train_objective": "flow"}, "config.train.objective is 'flow'; it takes"),
        ({**FLOW_MAP, "train_flow_map_loss": "eulerian"}, "config.train.flow_map_loss is 'eulerian'; it takes"),
        ({**FLOW_MAP, "train_teacher": "a", "train_start": "b"}, "from which training starts: leave it out"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        config_of(**keys)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "keys, told",
    [
        ({"sde_beta_max": 15.0}, "the SDE of .* is another one, sde.beta_max 20.0 -> 15.0"),
        ({"sde_name": "rectified_flow"}, "the SDE of .* is another one, sde.name"),
        ({"model_width": 32}, "the network of .* is another one, model.width 16 -> 32"),
        ({"model_condition": "label", "data_name": "two_moons"}, "model.condition 'none' -> 'label'"),
        ({"data_name": "digits"}, "examples of 2 -> 8 x 8 x 1"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher: Path, keys: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        config = config_of(**FLOW_MAP, train_teacher=str(teacher), **keys)
        start = start_of(config, teacher.with_name("new"))
        assert isinstance(start, Teacher)
        dataset = load_dataset(config.data.name)
        start.weights(dataset, None)
    assert "config.train.teacher" in str(error.value) and "\n" not in str(error.value)


def test_a_network_that_takes_no_jumps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from experiment.build import objects

    class Plain:
        def __init__(self, shape: Any, *, rngs: Any):
            pass

    monkeypatch.setitem(objects.MODELS, "mlp", Plain)
    with pytest.raises(UserError, match="Plain takes no jumps: set it to score"):
        build_network(config_of(**FLOW_MAP), load_dataset("checkerboard"))
