"""What a run shows of itself while it trains: held-out loss and pictures."""

import io
from copy import copy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiment.config import check_config
from experiment.data.dataset import Dataset, Split
from experiment.data.load import load_dataset
from experiment.run.log import EVENTS, RunLog, read_metrics
from experiment.training.preview import Preview
from experiment.training.trainer import Trainer
from tests.commands import trained
from tests.experiment.training.test_trainer import config_with


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer(config_with(train_batch_size=64), load_dataset("checkerboard"))


def test_the_held_out_loss_is_the_averages_on_the_held_out_examples(trainer: Trainer) -> None:
    """The zero network's loss in epsilon is E|eps|²/d = 1, with a variance of 2/d over examples."""
    preview, state = Preview(trainer), trainer.initial_state()
    loss = preview.held_out_loss(state)
    n = 8 * 64  # as many batches as it looks at
    assert abs(loss - 1) < 4 * np.sqrt(2 / 2 / n) and loss != 1
    other = jax.tree.map(lambda x: x + 1.0, state["params"])
    later = {**state, "params": other, "step": jnp.int32(7)}
    assert preview.held_out_loss(later) == loss
    assert abs(preview.held_out_loss({**state, "ema": other}) - loss) > 0.1
    moved = copy(trainer)
    test = trainer.dataset.test
    moved.dataset = Dataset("x", Split(trainer.dataset.train.x + 100), test, None)
    assert Preview(moved).held_out_loss(later) == loss
    moved.dataset = Dataset("x", trainer.dataset.train, Split(test.x + 100), None)
    assert Preview(moved).held_out_loss({**state, "ema": other}) > 10 * loss
    by_class = np.concatenate([test.x[:n], test.x[n:] + 100])
    moved.dataset = Dataset("x", trainer.dataset.train, Split(by_class), None)
    near, far = (Preview(of).held_out_loss({**state, "ema": other}) for of in (trainer, moved))
    assert far > 2 * near  # it looks at all kinds, in whatever order they lie


def test_a_few_held_out_examples_are_enough(trainer: Trainer) -> None:
    few = copy(trainer)
    few.dataset = Dataset("x", trainer.dataset.train, Split(trainer.dataset.test.x[:3]), None)
    assert np.isfinite(Preview(few).held_out_loss(trainer.initial_state()))


@pytest.mark.parametrize(
    "log_every, preview_every, steps",
    [(10, 20, [20, 40, 60]), (10, 25, [30, 50]), (20, 10, [20, 40, 60]), (7, 1000, []), (40, 50, [65]), (10, 0, [])],
)
def test_it_is_due_at_the_first_row_from_each_interval_on(
    trainer: Trainer, log_every: int, preview_every: int, steps: list[int]
) -> None:
    some = copy(trainer)
    some.config = config_with(train_steps=65, train_log_every=log_every, train_preview_every=preview_every)
    rows = [step for step in range(1, 66) if step % log_every == 0 or step == 65]
    assert [step for step in rows if Preview(some).due(step)] == steps


def test_the_picture_is_of_samples_and_always_the_same(trainer: Trainer) -> None:
    state = trainer.initial_state()
    one, again = (Preview(trainer).picture(state) for _ in range(2))
    assert one == again and one and Image.open(io.BytesIO(one)).width > 300
    assert Preview(trainer).picture({**state, "ema": jax.tree.map(lambda x: x + 1.0, state["params"])}) != one


def test_a_log_has_the_config_and_the_samples(trainer: Trainer, tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.fromarray(np.full((5, 7), 200, np.uint8)).save(image, "png")
    with RunLog(tmp_path, 0) as log:
        log.show_config(check_config({}), 0)
        log.show_samples(image.getvalue(), 20)
    (events,) = (tmp_path / EVENTS).iterdir()
    content = events.read_bytes()
    assert b"config/text_summary" in content and b'"batch_size": 128' in content
    start = content.index(b"\x89PNG")
    assert np.array(Image.open(io.BytesIO(content[start:]))).tolist() == np.full((5, 7, 3), 200).tolist()


def test_a_run_writes_them(tmp_path: Path) -> None:
    done = trained(tmp_path, train_steps=40, train_preview_every=20)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows if "held_out_loss" in row] == [20, 40]
    assert f"held out {rows[1]['held_out_loss']:.4f}" in done.out
    content = b"".join(path.read_bytes() for path in (tmp_path / EVENTS).iterdir())
    assert content.count(b"\x89PNG") == 2 and content.count(b"train/held_out_loss") == 2
