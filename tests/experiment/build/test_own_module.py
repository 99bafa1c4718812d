"""A module of the user's: named in the config, it is imported by every command, from any folder."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from experiment.build import own_module
from experiment.build.objects import MODELS, PARAMETERIZATIONS, SDES, build_network, build_sde, check_names
from experiment.build.samplers import SAMPLERS
from experiment.common.errors import UserError
from experiment.config import KEYS, OWN_KEYS, check_config, load_config, save_config
from experiment.data.toys import TOYS
from experiment.training.unused import unused_keys
from tests.commands import ROOT, Command

MINE = """
import jax.numpy as jnp
import numpy as np
from flax import nnx

from beside import RATE
from experiment.build.objects import MODELS, SDES
from experiment.build.samplers import SAMPLERS, Named
from experiment.data.toys import TOYS
from models.layers import Condition, Linear
from sde_lib import SDE
from sde_lib.samplers import DDIM


class OrnsteinUhlenbeck(SDE):
    rate: float = RATE

    def alpha(self, t):
        return self.namespace(t).exp(-self.rate * t)

    def sigma(self, t):
        xp = self.namespace(t)
        return xp.sqrt(-xp.expm1(-2 * self.rate * t))


class Pair(nnx.Module):
    def __init__(self, shape=(2,), *, width=32, gain=1.5, sizes=(3, 4), hidden=None, num_classes=0, rngs):
        self.gain, self.sizes = gain, sizes
        self.condition = Condition(width, num_classes, rngs=rngs)
        self.first = Linear(shape[0], width, rngs=rngs)
        self.last = Linear(width, shape[0], scale=0.0, rngs=rngs)

    def __call__(self, x, c_noise, cond=None, key=None):
        return self.last(nnx.silu(self.first(self.gain * x) + self.condition(c_noise, cond))).astype(jnp.float32)


def line(rng, n):
    return rng.standard_normal((n, 2)) * [1.0, 0.1], None


SDES["ou"] = OrnsteinUhlenbeck
MODELS["pair"] = Pair
SAMPLERS["mine"] = Named(DDIM(steps=7), "DDIM in seven steps")
TOYS["line"] = line
"""


class Data:
    """Vectors of two numbers, without classes."""

    shape, num_classes = (2,), 0


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The user's file, and one beside it that it imports."""
    (tmp_path / "beside.py").write_text("RATE = 5.0\n")
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


@pytest.fixture
def restored() -> Iterator[None]:
    """Takes out of the tables, and out of the keys, what a module put there."""
    before = [(table, dict(table)) for table in (SDES, MODELS, PARAMETERIZATIONS, SAMPLERS, TOYS, KEYS)]
    yield
    for table, content in before:
        table.clear()  # type: ignore[attr-defined]
        table.update(content)  # type: ignore[attr-defined]
    OWN_KEYS.clear()
    own_module._loaded.clear()


def test_its_constructors_arguments_are_keys(mine: Path, restored: None, tmp_path: Path) -> None:
    given = {"module": str(mine), "sde": {"name": "ou", "rate": 4}, "model": {"name": "pair", "sizes": [5, 6]}}
    config = check_config(given)
    assert config.sde.rate == 4.0 and config.model.sizes == (5, 6) and "gain" not in config.model
    check_names(config)
    assert unused_keys(config, ["sde.rate"]) == []
    assert np.isclose(build_sde(config).alpha(0.5), np.exp(-2.0))
    save_config(tmp_path / "config.json", config)
    assert load_config(tmp_path / "config.json")[0].to_dict() == config.to_dict()

    assert build_network(config, Data)[1]["first"]["kernel"].shape == (2, 128)
    del given["sde"]["rate"]  # type: ignore[attr-defined]
    assert build_sde(check_config(given)).rate == 5.0  # the class's own
    told = {
        "sde.rate": ("fast", "config.sde.rate is 'fast'; it takes a float, or None"),
        "sde.rat": (4.0, "did you mean config.sde.rate?"),
        "model.rngs": (1, "unknown config key config.model.rngs"),  # given to every network
    }
    for name, (value, text) in told.items():
        section, _, last = name.partition(".")
        with pytest.raises(UserError) as error:
            check_config({**given, section: {**given[section], last: value}})  # type: ignore[dict-item]
        assert text in str(error.value)
    with pytest.raises(UserError, match=r"config\.sde\.rate is set, and config\.sde\.name=vp does not take it"):
        unused_keys(check_config({"module": str(mine), "sde": {"rate": 4.0}}), ["sde.rate"])


ELSEWHERE = """
import os, runpy, sys
os.chdir("/")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_every_command_imports_it_from_any_folder(mine: Path, tmp_path: Path) -> None:
    run, script = tmp_path / "run", tmp_path / "elsewhere.py"
    script.write_text(ELSEWHERE)
    keys = {"module": os.path.relpath(mine, "/"), "data.name": "line", "sde.name": "ou", "sde.rate": 4}
    keys |= {"model.name": "pair", "model.width": 8, "train.batch_size": 16, "train.steps": 3}
    flags = [f"--workdir={run}", *(f"--config.{name}={value}" for name, value in keys.items())]
    done = Command(script, ROOT / "train.py", *flags, f"--config={ROOT}/configs/base.py").wait()
    assert done.status == 0, done.err
    assert json.loads((run / "config.json").read_text())["module"] == str(mine)
    sample = [script, ROOT / "sample.py", f"--workdir={run}", "--n=5"]
    done = Command(*sample, "--sampler=mine", "--steps=7").wait()
    assert done.status == 0 and "mine: 5 samples, 8 NFE" in done.out, done.err
    mine.unlink()
    assert f"config.module is {str(mine)!r}: there is no such Python file" in Command(*sample).wait().mistake


BROKEN = {
    "x = 1\nx.y": "mine.py, line 2: AttributeError: 'int' object has no attribute 'y': mend it",
    "def f(:": "mine.py, line 1: SyntaxError",
    "import a_module_of_nobody": "mine.py, line 1: ModuleNotFoundError: No module named 'a_module_of_nobody'",
    "raise SystemExit(3)": "mine.py, line 1: SystemExit",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_module_that_raises_is_told_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError) as told:
        check_config({"module": str(tmp_path / "mine.py")})
    assert BROKEN[text] in str(told.value)


@pytest.mark.parametrize("name", ["nobody.py", "numpy", "configs", ".", "~nobody/mine.py", "a" * 400 + ".py"])
def test_a_module_that_is_missing_is_told_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=r"config\.module is .*: there is no such Python file; give the path of one"):
        check_config({"module": name})


def test_what_a_class_needs_and_no_key_gives_is_told(restored: None, tmp_path: Path) -> None:
    text = "class Odd:\n    def __init__(self, secret: object): ...\nMODELS['odd'] = Odd\n"
    (tmp_path / "mine.py").write_text(f"from experiment.build.objects import MODELS\n{text}")
    config = check_config({"module": str(tmp_path / "mine.py"), "model": {"name": "odd"}})
    with pytest.raises(UserError, match=r"config\.model: Odd needs secret: set config\.model\.secret, or give it a"):
        build_network(config, Data)
