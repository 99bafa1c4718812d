"""Eight simulated devices train to the losses of one, and read each other's checkpoints."""

import ast
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from configs import cifar10_ddpmpp
from experiment import load_score
from experiment.build.objects import abstract_network
from experiment.build.samplers import make_sampler
from experiment.config import whole_config
from experiment.data.dataset import Dataset, Split
from experiment.devices.sharding import weight_shardings
from experiment.evaluation.likelihood import LikelihoodSettings, likelihood
from experiment.run.load import load_run
from experiment.run.log import read_metrics
from experiment.run.sampling import draw_batch
from tests.commands import Command, Done, train_flags, trained

KEYS = {"model_width": 64, "train_batch_size": 32, "train_log_every": 1, "train_lr": 0.01, "train_checkpoint_every": 25}


EIGHT = "--xla_force_host_platform_device_count=8"


def on_eight(workdir: Path, **keys: object) -> Done:
    return Command(*train_flags(workdir, **keys), XLA_FLAGS=EIGHT).wait()


def losses(workdir: Path) -> np.ndarray:
    return np.array([row["loss"] for row in read_metrics(workdir)])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("one") / "run"
    trained(workdir, **KEYS, train_steps=50)
    return workdir


def test_eight_devices_train_as_one(one: Path, split: Path) -> None:
    expected = losses(one)
    assert len(expected) == 50 and expected.std() > 0.01  # it moves: equal constants would prove nothing
    np.testing.assert_allclose(losses(split), expected, rtol=1e-4)


def test_a_run_moves_between_numbers_of_devices(one: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    assert on_eight(workdir, **KEYS, train_steps=25).status == 0
    trained(workdir, **KEYS, train_steps=50)
    np.testing.assert_allclose(losses(workdir), losses(one), rtol=1e-4)
    for x, y in zip(jax.tree.leaves(load_score(workdir)), jax.tree.leaves(load_score(one)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


def test_the_batch_divides_over_the_devices(tmp_path: Path) -> None:
    done = on_eight(tmp_path / "run", **{**KEYS, "train_batch_size": 20})
    assert "must be divisible by config.train.accumulate x devices, 1 x 8" in done.mistake
    done = on_eight(tmp_path / "run", **KEYS, train_fsdp=3)
    assert "config.train.fsdp is 3: it must divide the number of devices, 8" in done.mistake
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("width", [32, 128])
def test_each_of_eight_devices_holds_an_eighth_of_the_weights(width: int) -> None:
    """DDPM++ as published, and a quarter as wide: at most 1/7 of the bytes, whatever stays whole. The EMA and the
    moments go with them.
    """
    config = whole_config(cifar10_ddpmpp.get_config())
    config.model.width = width
    images = Split(np.zeros((1, 32, 32, 3), np.uint8))
    _, weights = abstract_network(config, Dataset("images", images, images, 256))
    mesh = AbstractMesh((1, 8), ("data", "fsdp"))
    whole = sum(leaf.size for leaf in jax.tree.leaves(weights))
    shards = jax.tree.map(
        lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)), weights, weight_shardings(mesh, weights)
    )
    assert sum(jax.tree.leaves(shards)) <= whole / 7.5
    assert whole > 3e6


# What the devices hold and compute, asked of the compiled programs themselves; one process, since each start costs
# seconds.
ON_EIGHT = """
import sys, warnings
import jax, jax.numpy as jnp, numpy as np
from configs import cifar10
from experiment.config import check_config, whole_config
from experiment.data.dataset import Dataset, Split
from experiment.evaluation.likelihood import LikelihoodSettings, likelihood
from experiment.run.load import load_run
from experiment.build.samplers import make_sampler
from experiment.run.sampling import draw_batch
from sde_lib.samplers import watched
from experiment.devices.sharding import make_mesh, put_rows, weight_shardings
from experiment.training.trainer import Trainer, empty_window

warnings.filterwarnings("error", message=".*donated")
mesh = make_mesh(4)
shapes = {"wide": (3, 128, 256), "odd": (129, 257), "small": (8, 8), "tall": (4096, 6)}
tree = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
print({name: tuple(s.spec) for name, s in weight_shardings(mesh, tree).items()})
source = np.arange(40.0).reshape(20, 2)
rows = np.array([3, 1, 4, 1, 5, 9, 2, 6])
batch = put_rows(rows, source, mesh)
print((np.array_equal(batch, source[rows]), sorted({s.data.shape for s in batch.addressable_shards})))
several = put_rows(np.stack([rows, rows + 7]), source, mesh)
same = np.array_equal(several, source[np.stack([rows, rows + 7])])
print((same, sorted({s.data.shape for s in several.addressable_shards})))

config = whole_config(cifar10.get_config())
keys = {"model.name": "dit", "model.width": 128, "model.depth": 2}
keys |= {"train.batch_size": 16, "train.fsdp": 8, "train.power_ema": (0.1,)}
config.update_from_flattened_dict(keys)
images = Split(np.zeros((16, 8, 8, 3), np.uint8))
trainer = Trainer(check_config(config), Dataset("images", images, images, 256))
lowered = trainer._step.lower(trainer.like, trainer._put_window(empty_window()), trainer.batch(0), jnp.uint32(0))
memory = lowered.compile().memory_analysis()
state = trainer.initial_state()
held = [sum(leaf.addressable_shards[i].data.nbytes for leaf in jax.tree.leaves(state)) for i in range(8)]
whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
print((whole, max(held), memory.argument_size_in_bytes, memory.alias_size_in_bytes))

run = load_run(sys.argv[1])
square = [leaf for leaf in jax.tree.leaves(run.score_fn.params) if leaf.size == 64 * 64]
print(sorted({s.data.shape for leaf in square for s in leaf.addressable_shards}))
found = {}
for name in ("em", "heun", "ddim", "pc"):
    for n in (64, 20):
        told = []
        with watched(lambda done, calls: told.append(done)):  # as commands do: the parts of a batch are split too
            drawn = draw_batch(run, make_sampler(name, run.config, steps=8), jax.random.key(0), 0, n)
        assert len(told) > 3
        found[f"{name}_{n}"] = drawn.x
        if n == 64:
            print(sorted({s.data.shape for s in drawn.x.addressable_shards}))
settings = LikelihoodSettings.from_config(run.config, n=20, batch_size=12, rtol=1e-6, atol=1e-6)
_, found["nats"], _ = likelihood(run, settings, budget=False)
np.savez(sys.argv[2], **found)
"""


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on eight devices, its weights split over four."""
    workdir = tmp_path_factory.mktemp("split") / "run"
    done = on_eight(workdir, **KEYS, train_steps=50, train_fsdp=4)
    assert done.status == 0, done.err
    assert "on 8 cpu device(s)" in done.out
    return workdir


@pytest.fixture(scope="module")
def said(split: Path) -> list[Any]:
    """What ON_EIGHT prints; its samples lie beside the run."""
    script = split.parent / "on_eight.py"
    script.write_text(ON_EIGHT)
    done = Command(str(script), str(split), str(split.parent / "drawn.npz"), XLA_FLAGS=EIGHT).wait()
    assert done.status == 0, done.err
    assert "rematerialization" not in done.err  # activations are moved between devices as nobody meant them to be
    return [ast.literal_eval(line) for line in done.out.splitlines()]


def test_large_weights_are_split_over_fsdp(said: list[Any]) -> None:
    specs, batch, several = said[:3]
    assert specs == {"wide": (None, None, "fsdp"), "odd": (), "small": (), "tall": ("fsdp",)}
    assert batch == (True, [(1, 2)]) and several == (True, [(2, 1, 2)])


def test_a_device_holds_an_eighth_of_the_training_state(said: list[Any]) -> None:
    """Weights, averages and moments, by the shards and by the compiled step, which takes the batch besides, and writes
    over them.
    """
    whole, held, taken, overwritten = said[3]
    assert whole > 1e6 and held < whole / 7
    assert held <= taken < whole / 7 + 1000 and overwritten >= held


def test_samples_and_likelihoods_are_split_over_the_devices(said: list[Any], split: Path) -> None:
    """The same numbers as on one device; each holds an eighth of the batch, and a quarter of a weight, as in
    training.
    """
    assert said[4] == [(16, 64)] or said[4] == [(64, 16)]
    assert said[5:] == [[(8, 2)]] * 4
    run = load_run(split)
    with np.load(split.parent / "drawn.npz") as found:
        for name in ("em", "heun", "ddim", "pc"):
            here = draw_batch(run, make_sampler(name, run.config, steps=8), jax.random.key(0), 0, 64).x
            assert np.std(here) > 0.3
            np.testing.assert_allclose(found[f"{name}_64"], here, atol=1e-5)
            if name != "pc":  # its step is the batch's
                np.testing.assert_allclose(found[f"{name}_20"], here[:20], atol=1e-5)
        settings = LikelihoodSettings.from_config(run.config, n=20, batch_size=12, rtol=1e-6, atol=1e-6)
        _, nats, _ = likelihood(run, settings, budget=False)
        np.testing.assert_allclose(found["nats"], nats, atol=1e-3)
