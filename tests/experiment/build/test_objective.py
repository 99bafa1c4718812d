"""What is learned beside the network, and the averages of its weights, in training: kept whole through a stop, rebuilt
afterwards.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiment.build.objective import TIMES, WEIGHTINGS, Objective
from experiment.common.errors import UserError
from experiment.config import check_config
from experiment.run.directory import RunDirectory
from experiment.run.load import load_run
from experiment.training.loop import train
from experiment.training.power_ema import reconstructed, write_reconstruction
from experiment.training.trainer import Trainer
from sde_lib import VP, NetworkScore
from sde_lib.ema import gamma_of
from sde_lib.losses import EDMWeighting, MinSNR, SoftMinSNR, Uncertainty, denoising_score_matching, likelihood_weighting
from sde_lib.score import EDMPreconditioning
from sde_lib.times import LearnedLogSNR, LogNormal, LossSecondMoment, uniform_log_snr
from tests.experiment.training.test_trainer import config_with, host

WIDTHS, STEPS = (0.06, 0.12), 40
KEYS: dict[str, Any] = {
    "train_power_ema": WIDTHS,
    "train_snapshot_every": 12,
    "train_times": "learned_log_snr",
    "train_uncertainty": True,
    "train_weighting": "likelihood",
    "train_accumulate": 2,
    "train_lr": 0.01,
    "train_log_every": 1,
    "train_checkpoint_every": 15,
}


@pytest.fixture(scope="module")
def whole() -> tuple[list[Any], Any]:
    """(the weights after each step, the state at the end) of a run without a stop."""
    from experiment.data.load import load_dataset

    trainer = Trainer(config_with(**KEYS, train_steps=STEPS), load_dataset("checkerboard"))
    params, last = [], None
    for now in trainer.run(trainer.initial_state()):
        params.append(host(now.state["params"]))
        last = host(now.state)
    return params, last


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a run that stopped after 15 steps and went on."""
    workdir = tmp_path_factory.mktemp("objective") / "run"
    for steps in (15, STEPS):
        config = config_with(**KEYS, train_steps=steps)
        assert train(config, workdir) == 0
    return workdir


def test_a_stop_keeps_what_is_learned_and_averaged(whole: Any, run: Path) -> None:
    directory = RunDirectory(run)
    assert directory.snapshots.steps() == [12, 15, 24, 36, 40]  # every twelfth step, and where training ended
    state, _ = directory.checkpoints.read(STEPS, host(whole[1]) | {"step": jax.device_put(0)})
    for name in ("params", "ema", "power_ema", "learned"):
        assert jax.tree.leaves(state[name])
        jax.tree.map(np.testing.assert_array_equal, state[name], whole[1][name])
    parts = whole[1]["learned"]["parts"]
    assert np.abs(parts["weighting"].coefficients).max() > 0.01
    assert np.abs(parts["times"].heights - LearnedLogSNR.init().heights).max() > 0.01


def average(params: list[Any], sigma_rel: float, step: int) -> Any:
    """The power-function average as a sum over all steps: the weights of step s by the profile's integral over [s - 1,
    s].
    """
    shares = np.diff((np.arange(step + 1) / step) ** (gamma_of(sigma_rel) + 1))
    return jax.tree.map(lambda *leaves: np.tensordot(shares, np.stack(leaves).astype(float), 1), *params[:step])


@pytest.mark.parametrize("width", WIDTHS)
def test_tracked_averages_are_sums_over_all_steps(whole: Any, width: float) -> None:
    params, last = whole
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6),
        last["power_ema"][f"{width:g}"],
        average(params, width, STEPS),
    )


@pytest.mark.parametrize("sigma_rel, step", [(0.09, STEPS), (0.06, 36), (0.15, STEPS)])
def test_an_average_that_was_not_tracked_is_rebuilt(whole: Any, run: Path, sigma_rel: float, step: int) -> None:
    rebuilt, at = reconstructed(run, sigma_rel, step)
    wanted, params = average(whole[0], sigma_rel, step), whole[0]
    assert at == step
    off = max(np.abs(x - y).max() for x, y in zip(jax.tree.leaves(rebuilt), jax.tree.leaves(wanted), strict=True))
    moved = max(
        np.abs(x - y).max() for x, y in zip(jax.tree.leaves(params[step - 1]), jax.tree.leaves(wanted), strict=True)
    )
    assert off < 0.05 * moved


def test_a_rebuilt_run_is_loaded_like_any_other(run: Path, tmp_path: Path) -> None:
    write_reconstruction(run, tmp_path / "new", 0.06)
    loaded, tracked = load_run(tmp_path / "new"), load_run(run)
    assert (loaded.step, loaded.config) == (STEPS, tracked.config)
    expected, _ = reconstructed(run, 0.06)
    jax.tree.map(np.testing.assert_array_equal, host(loaded.score_fn.params), expected)
    with pytest.raises(UserError, match="has checkpoints already"):
        write_reconstruction(run, run, 0.06)


@pytest.mark.parametrize(
    "sigma_rel, step, told",
    [(0.5, None, "sigma_rel"), (0.1, 5, "between the first and the last"), (-1.0, None, "above 0")],
)
def test_what_cannot_be_rebuilt_is_told(run: Path, sigma_rel: float, step: int | None, told: str) -> None:
    with pytest.raises(UserError, match=told):
        reconstructed(run, sigma_rel, step)


def test_a_run_without_snapshots_is_told(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"train with --config\.train\.power_ema"):
        reconstructed(tmp_path, 0.1)
    with pytest.raises(UserError, match="does not exist"):
        reconstructed(tmp_path / "none", 0.1)


def test_constants_come_from_the_config() -> None:
    config = config_with(model_sigma_data=0.3, train_min_snr_gamma=2.0, train_time_mean=0.4, train_time_std=0.9)
    assert WEIGHTINGS["min_snr"](config) == MinSNR(2.0)
    assert WEIGHTINGS["soft_min_snr"](config) == SoftMinSNR(0.3)
    assert WEIGHTINGS["edm"](config) == EDMWeighting(0.3)
    assert TIMES["log_normal"](config) == LogNormal(0.4, 0.9)
    assert WEIGHTINGS["edm_log_normal"](config).times == TIMES["log_normal"](config)  # type: ignore[attr-defined]
    # type: ignore[attr-defined]
    assert WEIGHTINGS["flow_matching_logit_normal"](config).times == TIMES["logit_normal"](config)
    assert check_config(config_with()).train.power_ema == ()


def test_the_network_learns_by_what_is_learned_beside_it() -> None:
    objective = Objective(Uncertainty.init(likelihood_weighting), LearnedLogSNR.init(units=4))
    learned = jax.tree.map(lambda leaf: leaf + 1 if leaf.ndim else leaf, objective.initial())
    score_fn = NetworkScore(lambda params, x, *_: 0 * x, {}, VP(), EDMPreconditioning(0.8))
    x, key = np.full((8, 2), 0.3, np.float32), jax.random.key(0)
    losses, u, named = objective.losses(learned, score_fn, x, key, None)
    assert named == {}
    parts = learned["parts"]
    wanted = denoising_score_matching(score_fn, x, key, weighting=parts["weighting"], times=parts["times"], u=u)
    plain = denoising_score_matching(score_fn, x, key, weighting=likelihood_weighting, times=objective.times, u=u)
    np.testing.assert_array_equal(losses, wanted)
    assert np.all(np.abs(wanted / plain - 1) > 5e-3)


def test_the_second_moment_sees_each_loss_at_its_own_u() -> None:
    objective = Objective(likelihood_weighting, LossSecondMoment.init(uniform_log_snr, bins=4, history=1))
    u, losses = np.float32([0.1, 0.3, 0.6, 0.9]), np.float32([1.0, 2.0, 3.0, 4.0])
    learned = objective.update(objective.initial(), VP(), losses, u)
    np.testing.assert_allclose(learned["parts"]["times"].moments, losses**2)
    assert Objective(likelihood_weighting, uniform_log_snr).initial() == {}
