"""Training that drops conditions: as many as asked for, by the step's key alone; what the network sees is "nothing"."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiment.build.objects import build_score
from experiment.config import check_config, whole_config
from experiment.data.dataset import Dataset, Split
from experiment.data.units import StandardizedScore, Units
from experiment.training.preview import Preview
from experiment.training.trainer import Trainer
from models.conditions import nothing_rows
from sde_lib import NetworkScore
from tests.experiment.training.test_trainer import config_with, host

N, SHARE = 4000, 0.3
RNG = np.random.default_rng(0)
LABELS = RNG.integers(3, size=N).astype(np.int32)
VECTORS = RNG.normal(size=(N, 2)) * [2.0, 50.0] + [7.0, -300.0]
EMBEDDINGS = {"embeddings": RNG.normal(size=(N, 2, 3)).astype(np.float32), "mask": np.ones((N, 2), bool)}
SPLIT = Split(RNG.normal(size=(N, 2)).astype(np.float32), LABELS, VECTORS, np.array(["left", "up"] * (N // 2)))
DATA = Dataset("told", SPLIT, SPLIT, None, 3, cond_units=Units.of(VECTORS))
EMBEDDED = Dataset("told", *[Split(SPLIT.x, embeddings=EMBEDDINGS)] * 2, None)


def trainer_of(condition: str, dataset: Dataset = DATA, **keys: Any) -> Trainer:
    return Trainer(config_with(model_condition=condition, model_text_length=6, **keys), dataset)


@pytest.fixture(scope="module")
def labelled() -> Trainer:
    return trainer_of("label", train_cond_dropout=SHARE, train_steps=4, train_checkpoint_every=2)


@pytest.mark.parametrize(
    "condition, dataset", [("label", DATA), ("vector", DATA), ("text", DATA), ("text", EMBEDDED)],
    ids=["label", "vector", "text", "embeddings"],
)  # fmt: skip
def test_the_share_that_is_dropped_and_what_stays(condition: str, dataset: Dataset) -> None:
    trainer = trainer_of(condition, dataset, train_cond_dropout=SHARE)
    told = jax.tree.map(jnp.asarray, trainer.told)
    cond = trainer.drop(told, jax.random.key(1))
    assert trainer.kind is not None
    dropped = np.asarray(trainer.kind.is_nothing(cond))
    assert abs(dropped.sum() - SHARE * N) < 4 * np.sqrt(N * SHARE * (1 - SHARE))
    jax.tree.map(lambda rows, before: np.testing.assert_array_equal(rows[~dropped], before[~dropped]), cond, told)
    nothing = nothing_rows(trainer.kind, N)
    jax.tree.map(lambda rows, none: np.testing.assert_array_equal(rows[dropped], none[dropped]), cond, nothing)
    again, other = (trainer.kind.is_nothing(trainer.drop(told, jax.random.key(k))) for k in (1, 2))
    assert np.array_equal(again, dropped) and np.mean(other == dropped) < 0.7  # independent ones agree at 0.58


def test_an_update_sees_other_conditions_dropped_at_every_step(labelled: Trainer, monkeypatch: Any) -> None:
    """What reaches the loss in step k: drops of (seed, k), and the data's labels elsewhere."""
    seen = []

    def loss_and_grad(params: Any, learned: Any, batch: Any, key: Any) -> Any:
        seen.append(np.asarray(batch["cond"]))
        return jnp.zeros(()), (jnp.zeros(16), jnp.zeros(16), {}), jax.tree.map(jnp.zeros_like, params)

    monkeypatch.setattr(labelled, "loss_and_grad", loss_and_grad)
    state = labelled.initial_state()
    for seed, k in [(0, 0), (0, 1), (0, 1), (1, 1)]:
        labelled.step({**state, "step": jnp.int32(k)}, labelled._put_window(ZERO), labelled.batch(7), jnp.uint32(seed))
    assert not np.array_equal(seen[0], seen[1]) and np.array_equal(seen[1], seen[2]) and not np.array_equal(*seen[2:])
    labels = np.asarray(labelled.batch(7)["cond"])
    assert all(np.all((cond == labels) | (cond == 3)) and np.any(cond == 3) for cond in seen)


ZERO = {"loss": 0.0, "grad_norm": 0.0, "steps": 0, "bad_step": -1}


def test_a_run_that_goes_on_is_the_run_that_never_stopped(labelled: Trainer) -> None:
    states = {now.step: host(now.state) for now in labelled.run(labelled.initial_state())}
    resumed = {now.step: host(now.state) for now in labelled.run(jax.device_put(states[2], labelled.shardings))}
    jax.tree.map(np.testing.assert_array_equal, resumed[4], states[4])


def test_without_dropout_the_network_refuses_nothing_and_with_it_answers() -> None:
    """Of every network that a run can have, whatever wraps it: the rule is the run's."""
    for share in (0.0, SHARE):
        trainer = trainer_of("label", train_cond_dropout=share)
        score_fn = build_score(trainer.config, trainer.apply, trainer.initial_state()["params"])
        x, labels = jnp.ones((4, 2)), jnp.asarray([0, 3, 2, 1])
        known = np.isfinite(np.asarray(score_fn(x, 0.5, labels))).all(axis=1)
        assert known.tolist() == [True, share > 0, True, True]
        if share:
            np.testing.assert_array_equal(score_fn(x, 0.5), score_fn(x, 0.5, jnp.full(4, 3)))
        else:
            with pytest.raises(ValueError, match=r"train with --config\.train\.cond_dropout=0\.1"):
                score_fn(x, 0.5)


def test_both_held_out_losses_are_logged(labelled: Trainer) -> None:
    state = labelled.initial_state()
    other = jax.tree.map(lambda x: x + 0.1, state["ema"])
    found = Preview(labelled).held_out_losses({**state, "ema": other})
    plain = trainer_of("label")
    assert set(Preview(plain).held_out_losses({**state, "ema": other})) == {"held_out_loss"}
    assert found["held_out_loss"] == Preview(plain).held_out_loss({**state, "ema": other})
    nothing = Split(SPLIT.x, np.full(N, 3, np.int32))
    labelled_without = trainer_of("label", train_cond_dropout=SHARE)
    labelled_without.dataset = Dataset("none", SPLIT, nothing, None, 3)
    without = Preview(labelled_without).held_out_loss({**state, "ema": other})
    assert found["held_out_loss_without_condition"] == without != found["held_out_loss"]


def test_vectors_are_standardised_in_training_and_taken_in_the_user_s_units_by_the_score() -> None:
    trainer = trainer_of("vector", train_cond_dropout=SHARE)
    np.testing.assert_allclose(trainer.told.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(trainer.told.std(axis=0), 1, atol=1e-5)
    inner = NetworkScore(
        lambda params, x, c_noise, cond: jnp.zeros_like(x) + cond, {}, trainer.sde, trainer.parameterization
    )
    score_fn, x = StandardizedScore(inner, None, DATA.cond_units), jnp.zeros((4, 2))
    np.testing.assert_allclose(score_fn(x, 0.5, VECTORS[:4]), inner(x, 0.5, trainer.told[:4]), rtol=1e-4, atol=1e-4)
    assert len(jax.tree.leaves(score_fn)) - len(jax.tree.leaves(inner)) == 2  # mean and std
    assert np.isnan(score_fn(x, 0.5, jnp.full((4, 2), jnp.nan))).all()
    for wrong in (VECTORS[:4, :1], VECTORS[:4, 0]):
        with pytest.raises(ValueError, match=r"cond must be \(n, 2\)"):
            score_fn(x, 0.5, wrong)


def test_a_condition_that_the_data_lack_and_dropout_of_none_are_mistakes() -> None:
    from experiment.common.errors import UserError

    plain = Dataset("plain", *[Split(SPLIT.x)] * 2, None)
    for condition, what in {"label": "labels", "vector": "vectors", "text": "captions"}.items():
        with pytest.raises(
            UserError, match=rf"config.model.condition is {condition}.* has no {what}.*: set it to none"
        ):
            trainer_of(condition, plain)
    with pytest.raises(UserError, match=r"cond_dropout is 0.3, and the network is told nothing"):
        config_with(train_cond_dropout=0.3)
    constant = Split(SPLIT.x, vectors=VECTORS * [1, 0])
    with pytest.raises(UserError, match=r"column 1 of cond of told is 0 in all training examples.*: leave it out"):
        trainer_of("vector", Dataset("told", constant, constant, None, cond_units=Units.of(constant.vectors)))
    far = Split(SPLIT.x, vectors=VECTORS + 1e9)
    with pytest.raises(UserError, match=r"varies too little beside its mean.*: subtract an offset"):
        trainer_of("vector", Dataset("told", far, far, None, cond_units=Units.of(far.vectors)))
    with pytest.raises(UserError, match=r"caption 0: 'left' has 4 bytes, and at most 3 are read"):
        Trainer(config_with(model_condition="text", model_text_length=3), DATA)


def test_both_names_of_a_class_conditional_network_agree() -> None:
    from experiment.common.errors import UserError

    for given in ({"class_conditional": True}, {"condition": "label"}):
        config = check_config({"model": given})
        assert (config.model.condition, config.model.class_conditional) == ("label", True)
        assert check_config(config) == config
    for class_conditional, condition in ((False, "label"), (True, "vector")):
        with pytest.raises(UserError, match=rf"class_conditional is {str(class_conditional).lower()}, and .* leave"):
            check_config({"model": {"class_conditional": class_conditional, "condition": condition}})
    open_config = whole_config({"model": {"condition": "label"}})
    open_config.model.condition = "none"
    assert not check_config(open_config).model.class_conditional
