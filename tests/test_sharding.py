"""Eight simulated devices train to the losses of one, and read each other's checkpoints."""

import ast
from pathlib import Path

import jax
import numpy as np
import pytest

from experiment import load_score
from experiment.runlog import read_metrics
from tests.commands import Command, Done, train_flags, trained

KEYS = {"model_width": 64, "train_batch_size": 32, "train_log_every": 1, "train_lr": 0.01, "train_checkpoint_every": 25}


def on_eight(workdir: Path, **keys: object) -> Done:
    return Command(*train_flags(workdir, **keys), XLA_FLAGS="--xla_force_host_platform_device_count=8").wait()


def losses(workdir: Path) -> np.ndarray:
    return np.array([row["loss"] for row in read_metrics(workdir)])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("one") / "run"
    trained(workdir, **KEYS, train_steps=50)
    return workdir


def test_eight_devices_train_as_one(one: Path, tmp_path: Path) -> None:
    done = on_eight(tmp_path / "run", **KEYS, train_steps=50, train_fsdp=4)
    assert done.status == 0, done.err
    assert "on 8 cpu device(s)" in done.out
    expected = losses(one)
    assert len(expected) == 50 and expected.std() > 0.01  # it moves: equal constants would prove nothing
    np.testing.assert_allclose(losses(tmp_path / "run"), expected, rtol=1e-4)


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


WEIGHTS_ON_FOUR = """
import jax, numpy as np
from experiment.sharding import make_mesh, put_rows, weight_shardings
mesh = make_mesh(4)
shapes = {"wide": (3, 128, 256), "odd": (129, 257), "small": (8, 8), "tall": (4096, 6)}
tree = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
print({name: tuple(s.spec) for name, s in weight_shardings(mesh, tree).items()})
source = np.arange(40.0).reshape(20, 2)
rows = np.array([3, 1, 4, 1, 5, 9, 2, 6])
batch = put_rows(rows, source, mesh)
print(np.array_equal(batch, source[rows]), sorted({s.data.shape for s in batch.addressable_shards}))
"""


def test_large_weights_are_split_over_fsdp(tmp_path: Path) -> None:
    (tmp_path / "weights.py").write_text(WEIGHTS_ON_FOUR)
    done = Command(str(tmp_path / "weights.py"), XLA_FLAGS="--xla_force_host_platform_device_count=8").wait()
    assert done.status == 0, done.err
    specs, batch = done.out.splitlines()
    assert ast.literal_eval(specs) == {"wide": (None, None, "fsdp"), "odd": (), "small": (), "tall": ("fsdp",)}
    assert batch == "True [(1, 2)]"
