"""Every mistake through the real command: one line on stderr, status 2, nothing lost."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

from experiment import load_score
from tests.commands import ROOT, Done, fresh, start_train, train, trained
from tests.mistakes import all_mistakes, digests, fault_of, make_assets


def train_py(*flags: str) -> Done:
    return fresh("train.py", *flags)


def test_a_misspelt_key_in_a_fresh_process(tmp_path: Path) -> None:
    done = train_py("--config.train.stpes=3", f"--workdir={tmp_path / 'run'}")
    assert "config.train.stpes: did you mean config.train.steps?" in done.mistake
    assert done.out == ""
    assert not (tmp_path / "run").exists()


def test_mistakes_answer_before_jax_is_loaded() -> None:
    """A finder that refuses jax stands in its way: the mistake is told all the same."""
    block = "import sys; sys.modules['jax'] = None; sys.argv = ['train.py', '--config.train.steps=x']; import runpy; "
    done = fresh("-c", block + f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')")
    assert "config.train.steps is 'x'" in done.mistake


MISTAKES = {
    "train_optimizer=sgd": "config.train.optimizer is 'sgd'; it must be one of: adam, adamw",
    "sde_name=vpp": "config.sde.name is 'vpp'; it must be one of: vp, subvp, ve",
    "model_name=resnet": "config.model.name is 'resnet'; it must be one of: mlp, unet, dit",
    "model_parameterization=v2": "config.model.parameterization is 'v2'",
    "eval_samplers=em,heum": "is 'heum'; it must be one of: em, pc, ode",
    "data_name=digist": "digits",
    "model_name=dit": "DiT",
    "model_heads=2": "config.model.heads is set, and config.model.name=mlp does not take it: leave it out",
    "data_dequantize=false": "config.data.dequantize is set, and checkerboard has no grey levels: leave it out",
    "data_centered=false": "config.data.centered is set, and checkerboard has no grey levels: leave it out",
    "model_name=mlpp": "for one of your own, set config.module to the file that adds it",
    "train_batch_size=10 train_accumulate=4": "divisible by config.train.accumulate x devices, 4 x 1",
}


@pytest.mark.parametrize("keys", MISTAKES)
def test_a_mistake_in_a_run(tmp_path: Path, keys: str) -> None:
    done = train(tmp_path / "run", **dict(pair.split("=") for pair in keys.split()))
    assert MISTAKES[keys] in done.mistake
    assert not (tmp_path / "run").exists()


def test_a_run_that_blows_up_keeps_its_last_good_checkpoint(tmp_path: Path) -> None:
    """The learning rate rises by 1e7 a step: the weights overflow after some steps that were finite."""
    keys = {"train_lr": 1e16, "train_warmup": 10**9, "train_checkpoint_every": 1, "train_steps": 100, "train_clip": 0.0}
    done = train(tmp_path / "run", **keys)
    line = done.mistake
    kept = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert "is not finite at step " in line
    step = int(line.split("not finite at step ")[1].split(";")[0])
    assert kept and kept[-1] == step - 1
    assert f"the checkpoint of step {kept[-1]} is kept" in line
    assert np.isfinite(jax.tree.leaves(load_score(tmp_path / "run").params)[0]).all()


def test_two_processes_on_one_run(tmp_path: Path) -> None:
    keys = {"train_steps": 10**6, "train_checkpoint_every": 10**6}
    first = start_train(tmp_path / "run", **keys)
    first.until((tmp_path / "run" / "metrics.jsonl").exists)
    line = train(tmp_path / "run", **keys).mistake
    assert f"pid {first.pid}" in line and "another process" in line
    assert first.running()
    first.send(15)
    assert first.wait().status == 143


def test_a_run_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "cannot write the run directory" in train(tmp_path / "file").mistake
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_with_other_files_keeps_them(tmp_path: Path) -> None:
    np.save(tmp_path / "notes.npy", np.arange(3))
    trained(tmp_path, train_steps=2)
    assert np.array_equal(np.load(tmp_path / "notes.npy"), np.arange(3))


def test_a_mistake_in_a_config_file_of_the_users_own(tmp_path: Path) -> None:
    text = "from configs import base\ndef get_config():\n    config = base.get_config()\n    {}\n    return config\n"
    mistakes = {"config.train.stpes = 3": "did you mean config.train.steps?", "config.train.lr = -1.0": "above 0"}
    for line, told in mistakes.items():
        (tmp_path / "mine.py").write_text(text.format(line))
        assert told in train_py(f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}").mistake
    assert not (tmp_path / "run").exists()


def test_a_config_file_that_raises_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def get_config():\n    return undefined_name\n")
    told = train_py(f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}").mistake
    assert "mine.py, line 2: NameError: name 'undefined_name' is not defined" in told
    assert os.listdir(tmp_path) == ["mine.py"]


def test_one_in_forty_of_all_mistakes(tmp_path: Path) -> None:
    """python -m tests.mistakes makes all of them; here each command makes some."""
    make_assets(tmp_path)
    mistakes = all_mistakes(tmp_path)
    some = mistakes[7::40]
    before = digests(tmp_path)
    assert len(mistakes) > 600 and len({argv[0] for argv in some}) >= 5
    assert {" ".join(argv): told for argv in some for fault, told, _ in [fault_of(argv)] if fault} == {}
    assert digests(tmp_path) == before
