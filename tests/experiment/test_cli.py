"""What the commands share, as a user meets it: in a fresh process, with no JAX variable set."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.commands import ROOT, Done, train_flags


def as_a_user(*argv: str, cache: Path) -> Done:
    """A command in a process that has no variable of jax or XLA, with `cache` as the user's cache folder."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    command = [sys.executable, *argv]
    env = {**bare, "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(command, cwd=cache, env=env, capture_output=True, text=True, timeout=300)
    return Done(done.returncode, done.stdout, done.stderr)


def entries(cache: Path) -> set[str]:
    """The compiled programs in the cache, without the files that say when each was used."""
    folder = cache / "noise_compass" / "compiled"
    return {path.name for path in folder.iterdir() if not path.name.endswith("-atime")}


def test_the_second_command_compiles_nothing(tmp_path: Path) -> None:
    """Every program that is compiled is also written to the cache: one that writes nothing has compiled nothing."""
    cache, run = tmp_path / "cache", tmp_path / "run"
    cache.mkdir()
    assert as_a_user(*train_flags(run, train_steps=2), cache=cache).status == 0
    after_training = entries(cache)
    sample = [str(ROOT / "sample.py"), f"--workdir={run}", "--sampler=em", "--n=8", "--steps=3"]
    assert as_a_user(*sample, f"--out={tmp_path / 'first'}", cache=cache).status == 0
    after_sampling = entries(cache)
    assert after_training and after_sampling > after_training
    assert as_a_user(*sample, f"--out={tmp_path / 'second'}", cache=cache).status == 0
    assert entries(cache) == after_sampling
    first, second = (np.load(tmp_path / name / "samples.npz")["arr_0"] for name in ("first", "second"))
    np.testing.assert_array_equal(first, second)
