"""Training that does not fit in memory is refused before it takes any."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.config import check_config
from experiment.data.load import load_dataset
from experiment.training import memory
from experiment.training.loop import train
from experiment.training.memory import check_state, check_step, out_of_memory
from experiment.training.trainer import Trainer, empty_window
from tests.experiment.training.test_trainer import config_with


def trainer_with(**keys: Any) -> Trainer:
    return Trainer(config_with(**keys), load_dataset("checkerboard"))


def fits(check: Any, left: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(memory, "available", lambda: left)
    try:
        check()
    except UserError as error:
        assert "lower config.model.width or config.train.batch_size" in str(error) and " of memory, and " in str(error)
        return False
    return True


@pytest.mark.parametrize("batch_size, averages", [(16, ()), (2**20, ()), (16, (0.05, 0.1))])
def test_the_state_is_reckoned_to_the_byte(
    batch_size: int, averages: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, their average, Adam's two moments and the gradient; two numbers an example, there and twice here."""
    trainer = trainer_with(train_batch_size=batch_size, train_power_ema=averages)
    needed = 4 * (5 + len(averages)) * trainer.weights + batch_size * 2 * (4 + 8)
    counters = 3 * 4  # the step, Adam's and the schedule's
    assert fits(lambda: check_state(trainer), needed + counters, monkeypatch)
    assert not fits(lambda: check_state(trainer), needed + counters - 1, monkeypatch)


def test_what_no_machine_holds_is_refused_at_once() -> None:
    for keys in ({"model_width": 2**16, "model_depth": 100}, {"train_batch_size": 2**24, "model_width": 2**15}):
        with pytest.raises(UserError, match=r"takes [\d,]+ GiB of memory, and "):
            check_state(trainer_with(**keys))


def test_a_step_needs_what_xla_says_beside_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its activations at least: the hidden layers of each example."""
    trainer = trainer_with(train_batch_size=4096)
    state = trainer.initial_state()

    def check() -> None:
        check_step(trainer, state, empty_window(), 0)

    assert not fits(check, 4096 * 16 * 4, monkeypatch) and fits(check, 4096 * 16 * 4 * 100, monkeypatch)


@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_left_of_a_run_that_is_refused(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the check that comes last, when config.json is written; what lay in the folder stays."""
    if there:
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "notes.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as patched:
        patched.setattr("experiment.training.loop.check_step", lambda trainer, *_: memory._check(np.inf, trainer))
        patched.setattr(memory, "available", lambda: 2**30)
        with pytest.raises(UserError, match="takes inf GiB of memory, and 1 GiB are left"):
            train(config_with(), tmp_path / "new" / "run" if not there else tmp_path / "new")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_error_of_the_device_or_of_numpy_is_one_line() -> None:
    for take in (lambda: np.zeros(2**55), lambda: jnp.zeros(2**46, jnp.uint8).block_until_ready()):
        with pytest.raises(UserError, match=r"there is not enough memory \(.*\): lower config\.model\.width"):
            with out_of_memory(check_config({})):
                take()
    with pytest.raises(ZeroDivisionError), out_of_memory(check_config({})):
        _ = 1 // 0
