"""The training step of DDPM++ and samplers compile for sixteen TPU v5e chips, without one: jax[tpu] brings the
compiler.

pytest -s -m slow tests/experiment/devices/test_tpu.py prints what each chip needs.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cifar10_ddpmpp
from experiment.build.samplers import make_sampler
from experiment.config import check_config, whole_config
from experiment.data.dataset import Dataset, Split
from experiment.devices.sharding import over_batch, replicated
from experiment.training.trainer import Trainer
from sde_lib import NetworkScore

pytestmark = pytest.mark.slow

CHIP = 16 * 2**30  # bytes of a v5e
BATCH = 128


@pytest.fixture(scope="module")
def chips() -> Any:
    pytest.importorskip("libtpu", reason="needs jax[tpu]")
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices


def trainer_on(chips: Any, **keys: Any) -> Trainer:
    config = whole_config(cifar10_ddpmpp.get_config())
    config.update_from_flattened_dict({"train.batch_size": BATCH, "model.dtype": "bfloat16", **keys})
    images = Split(np.zeros((1, 32, 32, 3), np.uint8))
    return Trainer(check_config(config), Dataset("images", images, images, 256), chips)


def shapes(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def compiled(name: str, lower: Callable[[], Any], chips: int = 16) -> tuple[Any, float]:
    """(memory of each chip, its FLOPs) of the compiled program, printed too."""
    program = lower().compile()
    memory, flops = program.memory_analysis(), program.cost_analysis()["flops"]
    sizes = {part: getattr(memory, f"{part}_size_in_bytes") / 2**20 for part in ("argument", "output", "alias", "temp")}
    print(
        f"{name}: a chip of {chips}: {flops / 1e9:,.1f} GFLOP, MiB "
        + ", ".join(f"{part} {size:,.0f}" for part, size in sizes.items())
    )
    assert (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        < CHIP
    )
    return memory, flops


@pytest.mark.parametrize("fsdp, steps", [(1, 1), (16, 1), (1, 5)])
def test_training_compiles(chips: Any, fsdp: int, steps: int) -> None:
    trainer = trainer_on(chips, **{"train.fsdp": fsdp, "train.steps_per_call": steps})
    assert trainer.steps_per_call == steps
    window = {"loss": jnp.float32(0), "grad_norm": jnp.float32(0), "steps": jnp.int32(0), "bad_step": jnp.int32(0)}
    several = () if steps == 1 else (steps,)
    batch = {
        "x": jax.ShapeDtypeStruct(
            (*several, BATCH, 32, 32, 3), jnp.uint8, sharding=over_batch(trainer.mesh, len(several))
        )
    }
    step = trainer._step if steps == 1 else trainer._steps
    whole = replicated(trainer.mesh)
    given = (trainer.like, shapes(window, whole), batch, jax.ShapeDtypeStruct((), jnp.uint32, sharding=whole))
    memory, flops = compiled(f"training, fsdp {fsdp}, {steps} step(s)", lambda: step.lower(*given))
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trainer.abstract_state))
    assert memory.alias_size_in_bytes >= state / fsdp  # overwritten in place
    assert memory.argument_size_in_bytes < state / (0.85 * fsdp)
    assert 0.8e12 < flops * 16 / steps or steps > 1  # the whole batch's work, once: a loop's body is counted once


@pytest.mark.parametrize("name", ["em", "heun"])
def test_sampling_compiles(chips: Any, name: str) -> None:
    trainer = trainer_on(chips)
    whole, rows = replicated(trainer.mesh), over_batch(trainer.mesh)
    sampler = replace(make_sampler(name, trainer.config), steps=4)
    score_fn = NetworkScore(trainer.apply, trainer.abstract_state["ema"], trainer.sde, trainer.parameterization)

    def draw(params: Any, x: jax.Array, keys: jax.Array) -> jax.Array:
        return sampler.run(replace(score_fn, params=params), x, jax.random.wrap_key_data(keys), None, 0).x

    x = jax.ShapeDtypeStruct((BATCH, 32, 32, 3), jnp.float32, sharding=rows)
    keys = jax.ShapeDtypeStruct((BATCH, 2), jnp.uint32, sharding=rows)
    given = (shapes(trainer.abstract_state["ema"], whole), x, keys)
    memory, _ = compiled(f"{name}, 4 steps", lambda: jax.jit(draw).lower(*given))
    # Each chip's own samples alone, which its tiles pad to four times their size.
    assert memory.output_size_in_bytes <= 4 * BATCH * 32 * 32 * 3 * 4 / 16
