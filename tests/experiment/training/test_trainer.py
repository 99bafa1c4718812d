"""The optimiser, the moving average and the accumulated gradient against their definitions; batches and noise."""

import warnings
from copy import copy
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import toys
from experiment.build.objects import build_optimizer, build_schedule
from experiment.common.errors import UserError
from experiment.config import check_config, whole_config
from experiment.data.augmentation import LABELS
from experiment.data.batches import batch_indices
from experiment.data.dataset import Dataset, Split
from experiment.data.load import load_dataset
from experiment.training.trainer import NotFinite, Trainer, averaged, empty_window
from sde_lib import NetworkScore
from sde_lib.losses import denoising_score_matching
from tests.commands import SMALL


def config_with(**keys: Any) -> Any:
    config = whole_config(toys.get_config())
    config.update_from_flattened_dict({**SMALL, **{k.replace("_", ".", 1): v for k, v in keys.items()}})
    return check_config(config)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("checkerboard")


@pytest.fixture(scope="module")
def compiled(dataset: Dataset) -> Trainer:
    return Trainer(config_with(train_ema=0.5, train_lr=0.01), dataset)


def looped(compiled: Trainer, **keys: Any) -> Trainer:
    """The compiled trainer with other settings of its loop; those of its step stay."""
    trainer = copy(compiled)
    trainer.config = config_with(train_ema=0.5, train_lr=0.01, **keys)
    return trainer


def host(tree: Any) -> Any:
    return jax.tree.map(np.array, tree)


def test_schedule_warms_up_then_follows_the_cosine() -> None:
    schedule = build_schedule(config_with(train_lr=0.5, train_warmup=10, train_steps=100, train_schedule="cosine"))
    k = np.arange(100)
    expected = 0.5 * np.minimum(1, (k + 1) / 10) * (1 + np.cos(np.pi * k / 100)) / 2
    np.testing.assert_allclose([np.asarray(schedule(i)) for i in k], expected, rtol=1e-5, atol=1e-7)
    constant = build_schedule(config_with(train_lr=0.5, train_warmup=0))
    np.testing.assert_allclose([np.asarray(constant(i)) for i in k], 0.5)


@pytest.mark.parametrize("name, weight_decay", [("adam", 0.0), ("adamw", 0.3)])
def test_optimizer_is_adam_on_the_clipped_gradient(name: str, weight_decay: float) -> None:
    """Kingma & Ba 2015, algorithm 1; decoupled decay, of kernels alone, as in Loshchilov & Hutter 2019, algorithm 2."""
    config = config_with(
        train_optimizer=name, train_weight_decay=weight_decay, train_clip=2.0, train_schedule="constant", train_warmup=0
    )
    optimizer, lr = build_optimizer(config), config.train.lr
    rng = np.random.default_rng(0)
    # a norm of 40, then of 0.4: only the first is clipped, which a scale-free first step alone would not show
    grads = [rng.normal(size=16) * scale for scale in (10.0, 0.1, 1.0)]
    params, decayed = rng.normal(size=16), np.arange(16) < 12  # a kernel (3, 4) and a bias (4,)

    def parts(x: np.ndarray) -> dict[str, jax.Array]:
        return {"kernel": jnp.asarray(x[:12].reshape(3, 4), jnp.float32), "bias": jnp.asarray(x[12:], jnp.float32)}

    ours, state = parts(params), optimizer.init(parts(params))
    m = v = np.zeros(16)
    for k, grad in enumerate(grads):
        updates, state = optimizer.update(parts(grad), state, ours)
        ours = optax.apply_updates(ours, updates)
        g = grad * min(1, 2.0 / np.linalg.norm(grad))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        adam = (m / (1 - 0.9 ** (k + 1))) / (np.sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-8)
        params = params - lr * (adam + weight_decay * decayed * params)
    np.testing.assert_allclose(np.concatenate([ours["kernel"].ravel(), ours["bias"]]), params, rtol=1e-5)


def test_a_weight_that_never_changes_is_its_own_average() -> None:
    weight = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    ema = weight
    for _ in range(100):
        ema = np.asarray(jax.jit(averaged)(ema, weight, jnp.float32(0.999)))
    np.testing.assert_array_equal(ema, weight)


def test_ema_follows_its_recursion(compiled: Trainer) -> None:
    trainer = looped(compiled, train_steps=12, train_log_every=1)
    state = trainer.initial_state()
    ema, seen = jax.tree.map(np.float64, host(state["params"])), 0
    for now in trainer.run(state):
        k = now.step - 1
        decay = min(0.5, (1 + k) / (10 + k))  # reaches 0.5 at k = 8
        ema = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * np.float64(p), ema, host(now.state["params"]))
        jax.tree.map(lambda e, x: np.testing.assert_allclose(x, e, atol=1e-6), ema, host(now.state["ema"]))
        seen = now.step
    assert seen == 12


def test_accumulated_gradient_is_the_big_batchs(dataset: Dataset) -> None:
    """The scan over micro-batches against one gradient of the mean over all of their examples."""
    trainer = Trainer(config_with(train_accumulate=2), dataset)
    params = jax.tree.map(lambda x: x + 0.1, trainer.initial_state()["params"])  # off the zero of the last layer
    key, batch = jax.random.key(1), {"x": jnp.asarray(dataset.train.x[:16])}

    def big(params: Any) -> jax.Array:
        score_fn = NetworkScore(trainer.apply, params, trainer.sde, trainer.parameterization)
        losses = [denoising_score_matching(score_fn, batch["x"][i::2], jax.random.fold_in(key, i)) for i in range(2)]
        return jnp.mean(jnp.concatenate(losses))

    loss, (losses, u, _), grad = jax.jit(trainer.loss_and_grad)(params, {}, batch, key)
    expected_loss, expected = jax.jit(jax.value_and_grad(big))(params)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(np.mean(losses), expected_loss, rtol=1e-5)
    assert losses.shape == u.shape and set(np.floor(np.sort(u)[::2] * 8)) == set(
        range(8)
    )  # two micro-batches, each stratified over 8
    score_fn = NetworkScore(trainer.apply, params, trainer.sde, trainer.parameterization)
    again = [
        denoising_score_matching(score_fn, batch["x"][i::2], jax.random.fold_in(key, i), u=u[8 * i : 8 * i + 8])
        for i in range(2)
    ]
    np.testing.assert_allclose(losses, np.concatenate(again), rtol=1e-4)
    assert float(optax.global_norm(expected)) > 0.1
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), grad, expected)


def test_noise_depends_on_seed_and_step_alone(compiled: Trainer) -> None:
    """A step from the same weights at the same k is the same whatever came before; at another k or seed it is not."""
    first = compiled.initial_state()

    def update(seed: int, k: int) -> Any:
        trainer = looped(compiled, seed=seed, train_steps=100, train_log_every=1)
        trainer.batch = lambda step: compiled.batch(0)  # the same data, so that only the noise differs
        state = jax.device_put({**jax.tree.map(jnp.copy, first), "step": jnp.int32(k)}, trainer.shardings)
        return host(next(trainer.run(state)).state["params"])

    same, again, later, other = update(0, 13), update(0, 13), update(0, 14), update(1, 13)
    jax.tree.map(np.testing.assert_array_equal, same, again)
    for different in (later, other):
        assert any(np.any(x != y) for x, y in zip(jax.tree.leaves(same), jax.tree.leaves(different), strict=True))


def test_prepare_dequantises_and_flips() -> None:
    images = np.zeros((64, 2, 3, 1), np.uint8)
    images[:, :, 0] = 3  # bright on the left
    split = Split(images)
    keys = {"model_name": "dit", "model_heads": 1, "model_patch_size": 1, "data_flip": True}
    x = Trainer(config_with(**keys), Dataset("bars", split, split, 4)).prepare(jnp.asarray(images), jax.random.key(0))
    bright = np.asarray(x[:, 0, :, 0] >= 0.5)  # level 3 of 4 lies in [1/2, 1), level 0 in [-1, -1/2)
    assert np.array_equal(np.asarray(x) < -0.5, np.repeat(~bright[:, None], 2, 1)[..., None])
    left, right = bright[:, 0], bright[:, 2]
    assert np.all(left ^ right) and 20 <= left.sum() <= 44  # 64 fair coins, three standard deviations
    assert len(np.unique(x)) > 100  # spread over the bins
    keys |= {"data_flip": False, "data_dequantize": False}
    x = Trainer(config_with(**keys), Dataset("bars", split, split, 4)).prepare(jnp.asarray(images), jax.random.key(0))
    np.testing.assert_allclose(x, (images + 0.5) / 2 - 1)


def test_a_class_conditional_network_is_given_each_example_s_class() -> None:
    moons = load_dataset("two_moons")
    trainer = Trainer(config_with(model_class_conditional=True), moons)
    rows = batch_indices(0, 3, 16, len(moons.train))
    batch = trainer.batch(3)
    np.testing.assert_array_equal(batch["cond"], moons.train.labels[rows])
    np.testing.assert_array_equal(batch["x"], moons.train.x[rows])
    assert set(Trainer(config_with(), moons).batch(3)) == {"x"}
    params = jax.tree.map(lambda x: x + 0.1, trainer.initial_state()["params"])  # off the zero of the last layer
    loss = jax.jit(lambda cond: trainer.loss(params, {}, {"x": batch["x"], "cond": cond}, jax.random.key(0))[0])
    assert loss(batch["cond"]) != loss(1 - batch["cond"])


def test_a_network_is_told_how_its_images_were_augmented() -> None:
    """After a step on labels the weights that read them have moved, and a step is a function of (state, k) alone."""
    digits = load_dataset("digits")
    keys = {"model_name": "dit", "model_width": 8, "model_depth": 1, "model_heads": 1, "data_name": "digits"}
    trainer = Trainer(config_with(**keys, data_path="", data_augment=0.9, model_condition="label"), digits)
    ends = []
    for _ in range(2):
        state, window = trainer.initial_state(), trainer._put_window(empty_window())
        for step in range(3):  # the last layer starts at 0, and so the first step's gradient
            state, window, _, _ = trainer.call(state, window, step)
        ends.append(jax.device_get(state["params"]))
    kernel = ends[0]["condition"]["augmentation"]["kernel"]
    assert kernel.shape[0] == LABELS and (np.abs(kernel).max(axis=1) > 0).all()
    jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.parametrize("log_every", [7, 100])
def test_a_loss_that_is_not_finite_names_its_step(compiled: Trainer, dataset: Dataset, log_every: int) -> None:
    """One example is infinite: training stops at the first batch that holds it, and yields no bad state."""
    x = dataset.train.x.copy()
    trainer = looped(compiled, train_steps=500, train_log_every=log_every, train_checkpoint_every=7)
    bad = batch_indices(0, 17, 16, len(x))[3]
    x[bad] = np.inf
    trainer.dataset = replace(dataset, train=Split(x))
    assert all(bad not in batch_indices(0, k, 16, len(x)) for k in range(17))
    seen = []
    with pytest.raises(NotFinite, match=r"not finite at step 18\b"):
        for now in trainer.run(trainer.initial_state()):
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(host(now.state)))
            seen.append(now.step)
    assert seen == [7, 14]


def test_rows_are_means_over_their_steps(compiled: Trainer) -> None:
    rows = [
        [now.row for now in trainer.run(trainer.initial_state()) if now.row]
        for every in (1, 4)
        for trainer in [looped(compiled, train_steps=8, train_log_every=every)]
    ]
    for name in ("loss", "grad_norm"):
        fine, coarse = ([row[name] for row in r] for r in rows)
        np.testing.assert_allclose(coarse, np.reshape(fine, (2, 4)).mean(1), rtol=1e-5)
    assert [row["lr"] for row in rows[1]] == [rows[0][3]["lr"], rows[0][7]["lr"]]
    warming = [0.01 * min(1, k / 5) for k in range(1, 9)]  # of the update that was made last
    np.testing.assert_allclose([row["lr"] for row in rows[0]], warming, rtol=1e-6)


def test_several_steps_in_a_call_are_the_single_steps(compiled: Trainer) -> None:
    """Calls of five end before each event: rows, states and their steps stay, and only two programs are compiled."""
    keys = {"train_steps": 29, "train_log_every": 12, "train_checkpoint_every": 7}
    single, several = looped(compiled, **keys), looped(compiled, **keys)
    several.steps_per_call, lengths = 5, []
    several._steps = lambda state, window, batches, seed: (
        lengths.append(len(batches["x"])) or compiled._steps(state, window, batches, seed)
    )
    found = []
    for trainer in (single, several):
        found.append([(now.step, now.row, host(now.state), now.window) for now in trainer.run(trainer.initial_state())])
    assert [step for step, *_ in found[1]] == [7, 12, 14, 21, 24, 28, 29] and lengths == [5, 5, 5]
    for (_, row, state, window), (_, row5, state5, window5) in zip(*found, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), state, state5)
        assert window["steps"] == window5["steps"] and (row is None) == (row5 is None)
        if row and row5:
            assert row5["loss"] == pytest.approx(row["loss"], rel=1e-5) and row5["lr"] == row["lr"]


def test_several_steps_in_a_call_are_for_accelerators(dataset: Dataset) -> None:
    assert (
        Trainer(config_with(train_steps_per_call=5), dataset).steps_per_call == 1
    )  # a compiled loop of convolutions is slow on CPU


def test_the_state_is_overwritten_in_place(compiled: Trainer) -> None:
    """Every byte of the state and of the log's sums that a step takes, it gives back in the same place."""
    state, window = compiled.like, compiled._put_window(empty_window())
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), compiled.batch(0))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*donated")  # ... buffers that were not usable, says jax
        memory = compiled._step.lower(state, window, batch, jnp.uint32(0)).compile().memory_analysis()
    taken = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state, window)))
    assert memory.alias_size_in_bytes == pytest.approx(taken, abs=64) and taken > 4 * 16 * 16 * 4


def test_training_learns(compiled: Trainer) -> None:
    """The zero network's loss is 1, that of the checkerboard's score far below."""
    trainer = looped(compiled, train_steps=400, train_log_every=100)
    first = next(looped(compiled, train_log_every=1).run(trainer.initial_state())).row
    rows = [now.row for now in trainer.run(trainer.initial_state()) if now.row]
    assert first and first["loss"] == pytest.approx(1, abs=0.5)
    assert rows[-1]["loss"] < 0.6


def test_objects_that_do_not_fit_the_data_are_told(dataset: Dataset) -> None:
    mistakes = {
        "batch_size is 10": {"train_batch_size": 10, "train_accumulate": 4},
        "use UNet or DiT": {"data_name": "digits", "data_path": ""},
        "has no labels": {"model_class_conditional": True},
        "flip mirrors images": {"data_flip": True},
        "augment transforms images": {"data_augment": 0.1},
        "augment: MLP takes no augmented": {"data_augment": 0.1, "data_name": "digits", "data_path": ""},
        "weight_decay": {"train_weight_decay": 0.1},
        "fsdp is 3": {"train_fsdp": 3},
    }
    images = Split(np.zeros((4, 8, 8, 1), np.uint8))
    for text, keys in mistakes.items():
        data = Dataset("digits", images, images, 17) if "data_name" in keys else dataset
        with pytest.raises(UserError, match=text):
            Trainer(config_with(**keys), data)
