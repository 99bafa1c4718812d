"""What the commands share, as a user meets it: in a fresh process, with no JAX variable set."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiment import cli
from experiment.cli import convolutions_on_all_cores
from experiment.common.errors import UserError
from tests.commands import ROOT, Done, fresh, train_flags


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


@pytest.mark.parametrize(
    "version, before, after",
    [
        ("0.10.2", "", "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"),
        ("0.10.0", "--xla_x=1", "--xla_x=1 --xla_cpu_experimental_ynn_fusion_type=-individual_convolution"),
        ("0.10.2", "--xla_cpu_experimental_ynn_fusion_type=dot", "--xla_cpu_experimental_ynn_fusion_type=dot"),
        ("0.11.2", "", "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"),
        ("0.12.0", "--xla_x=1", "--xla_x=1"),  # may not know the flag, and would abort
    ],
)
def test_convolutions_are_given_to_eigen_by_the_versions_that_know_the_flag(
    version: str, before: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", before)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: {"jaxlib": version}[package])
    convolutions_on_all_cores()
    assert os.environ["XLA_FLAGS"] == after


def test_a_cache_that_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # what it sets besides
    for given in ("/their/own", ""):  # "": nowhere
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", given)
        cli._compilation_cache()
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == given
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/large/cache")
    cli._compilation_cache()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/large/cache/noise_compass/compiled"


def test_every_flag_that_another_mode_has_is_refused() -> None:
    """All pairs of evaluate.py's modes and flags, in one process: what a mode does not take is never ignored."""
    code = f"""
import runpy, sys
from absl import flags
from experiment import cli
from experiment.common.errors import UserError
sys.argv = ["evaluate.py"]
evaluate = runpy.run_path({str(ROOT / "evaluate.py")!r}, run_name="evaluate")
modes, every = evaluate["MODES"], sorted({{name for names in evaluate["MODES"].values() for name in names}})
for mode in modes:
    for name in every:
        flags.FLAGS.unparse_flags()
        for flag in flags.FLAGS:
            flags.FLAGS[flag].unparse()
        kind = flags.FLAGS[name].flag_type()
        value = "" if kind == "bool" else "=7"
        cli.parse_flags(["evaluate.py", *([f"--{{mode}}"] if mode else []), f"--{{name}}{{value}}"])
        try:
            assert cli.mode_of(modes, evaluate["FID"], evaluate["LIKELIHOOD"]) == mode
            told = ""
        except UserError as error:
            told = str(error)
        assert bool(told) == (name not in modes[mode]), (mode, name, told)
        assert not told or f"--{{name}}" in told and ("leave one" in told or "add it" in told), told
print(len(every) * len(modes))
"""
    done = fresh("-c", code)
    assert done.status == 0, done.err
    assert int(done.out) > 40


@pytest.mark.parametrize("texts", [["x"], ["1.5"], [""], [], ["3", "9" * 5000]])
def test_a_list_of_what_are_no_whole_numbers_is_told(texts: list[str]) -> None:
    with pytest.raises(UserError, match=r"--label=.*: give whole numbers, as in --label=3,7") as error:
        cli.whole_numbers("label", texts)
    assert len(str(error.value)) < 200
    assert cli.whole_numbers("label", ["3", " 7"]) == [3, 7] and cli.whole_numbers("label", None) is None


def test_a_path_of_bytes_that_are_no_text_can_be_printed() -> None:
    code = "import sys; from experiment import cli; sys.argv = ['x']; cli.run_app(lambda: print('runs/\\udcff'))"
    done = fresh("-c", code)
    assert (done.status, done.out) == (0, "runs/\\udcff\n"), done.err


MODULES = "latents reconstruct_ema import_score_sde import_diffusers".split()


@pytest.mark.parametrize("command", ["train.py", "sample.py", "evaluate.py", *(f"experiment/{m}.py" for m in MODULES)])
def test_help_needs_no_jax_and_is_no_mistake(command: str) -> None:
    """-h before whatever else is there; jax is blocked, so that it would be a traceback to import it."""
    run = f"import runpy; runpy.run_path({str(ROOT / command)!r}, run_name='__main__')"
    done = fresh("-c", f"import sys; sys.modules['jax'] = None; sys.argv = [{command!r}, '--nobody=3', '-h']; {run}")
    assert done.status == 0 and done.err == "", done.err
    name = f"python -m experiment.{Path(command).stem}" if "/" in command else f"python {command}"
    assert name in done.out and "Flags:" in done.out and "\n  --" in done.out
    assert max(map(len, done.out.splitlines())) <= 120


def test_a_reader_that_has_enough_ends_the_command_in_silence() -> None:
    """As | head does: the pipe is closed before the help is written."""
    close = "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1); sys.argv = ['train.py', '--help']; "
    done = fresh("-c", close + f"import runpy; runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')")
    assert (done.status, done.err) == (141, "")
