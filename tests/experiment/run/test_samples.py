"""Samples of a run that is told classes: which classes, what the files hold, and that no data are needed."""

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiment import load_run
from experiment.common.errors import UserError
from experiment.config import load_config, save_config
from experiment.run.guidance import Guidance
from experiment.run.samples import draw_to_files
from sde_lib import sample
from sde_lib.guidance import ClassifierFree
from sde_lib.samplers import DDIM, linear
from tests.commands import ROOT, Command, fresh, trained

# Few updates that are large: the classes differ.
TRAINING = {
    "data_name": None,
    "model_class_conditional": True,
    "train_steps": 20,
    "train_ema": 0.0,
    "train_lr": 0.05,
    "sample_steps": 4,
}


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on an .npz with three classes in the proportions 6 : 3 : 1, which is gone when training has ended."""
    folder = tmp_path_factory.mktemp("moved")
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    np.savez(folder / "x.npz", x=np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32), labels=labels)
    trained(folder / "run", data_path=folder / "x.npz", **TRAINING)
    (folder / "x.npz").rename(folder / "now.npz")
    return folder


def test_labels_lie_beside_the_samples_and_no_data_are_needed(conditional: Path, tmp_path: Path) -> None:
    run = str(conditional / "run")
    draw_to_files(run, "ddim", 50, label=[2, 0], out=str(tmp_path / "chosen"))
    draw_to_files(run, "ddim", 500, out=str(tmp_path / "all"))
    with np.load(tmp_path / "chosen" / "samples.npz") as saved:
        assert saved.files == ["arr_0", "arr_1"] and saved["arr_1"].tolist() == [2, 0] * 25
    with np.load(tmp_path / "all" / "samples.npz") as saved:
        shares = np.bincount(saved["arr_1"], minlength=3) / 500
    np.testing.assert_allclose(shares, [0.6, 0.3, 0.1], atol=5 * 0.5 / np.sqrt(500))


def test_the_class_is_the_network_s(conditional: Path) -> None:
    run = load_run(conditional / "run")
    x = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
    drawn = {label: run.sample("ddim", 6, label=label).x for label in (0, 2)}
    assert np.abs(drawn[0] - drawn[2]).max() > 0.01  # from the same latents
    classes = np.array([0, 2] * 3)
    mixed = run.sample("ddim", 6, label=classes).x
    np.testing.assert_allclose(mixed, np.where((classes == 0)[:, None], drawn[0], drawn[2]), atol=1e-6)
    assert run.score_fn(x, 0.5, classes).shape == (6, 2)


def test_from_python_the_same_samples_in_one_line(conditional: Path, tmp_path: Path) -> None:
    draw_to_files(str(conditional / "run"), "ddim", 16, seed=3, steps=5, label=[1], out=str(tmp_path))
    with np.load(tmp_path / "samples.npz") as saved:
        by_command = saved["arr_0"]
    run = load_run(conditional / "run")
    by_name = run.sample("ddim", n=16, seed=3, steps=5, label=1)
    by_object = run.sample(DDIM(steps=5, denoise=True), n=16, seed=3, label=[1])
    np.testing.assert_array_equal(by_name.data, by_command)
    np.testing.assert_array_equal(by_object.data, by_command)
    assert by_name.nfe == 6 and by_name.labels is not None and by_name.labels.tolist() == [1] * 16
    with pytest.raises(UserError, match="the sampler is 'dim'"):
        run.sample("dim", n=4)


def test_samples_of_other_settings_are_kept_and_those_of_the_same_replaced(conditional: Path, tmp_path: Path) -> None:
    run, folder = shutil.copytree(conditional / "run", tmp_path / "run"), tmp_path / "run" / "samples"

    def drawn(of: str = "ddim") -> np.ndarray:
        with np.load(folder / of / "samples.npz") as saved:
            return saved["arr_0"]

    draw_to_files(run, "ddim", 4, label=[1])
    first = drawn()
    assert draw_to_files(run, "ddim", 4, label=[1]).count("\n") == 0 and os.listdir(folder) == ["ddim"]
    others: list[dict[str, Any]] = [{"label": [2]}, {"label": [2], "seed": 1}, {"label": [2], "seed": 1, "eta": 1.0}]
    for kept, settings in zip(("ddim_n4_seed0_steps4_step20", "", "ddim_n4_seed1_steps4_step20"), others, strict=True):
        kept, before = kept or "ddim_n4_seed0_steps4_step20_2", drawn()
        told, _ = draw_to_files(run, "ddim", 4, **settings).splitlines()
        file = "ddim/samples.npz"
        assert told == f"{folder / file} was of other settings: it is kept as {folder / kept / 'samples.npz'}"
        np.testing.assert_array_equal(drawn(kept), before)
        assert sorted(os.listdir(folder / kept)) == sorted(os.listdir(folder / "ddim"))
    np.testing.assert_array_equal(drawn("ddim_n4_seed0_steps4_step20"), first)
    (folder / "ddim" / "settings.json").unlink()  # of a run before they were kept
    assert str(folder / "ddim_earlier") in draw_to_files(run, "ddim", 4, **others[-1])


def test_a_gif_lies_beside_its_samples_as_long_as_they_do(conditional: Path, tmp_path: Path) -> None:
    run, folder = str(conditional / "run"), tmp_path / "out"

    def drawn(**settings: Any) -> list[str]:
        return draw_to_files(run, "ddim", 6, label=[1], out=str(folder), **settings).splitlines()

    assert len(drawn()) == 1 and not (folder / "path.gif").exists()
    before, told = (folder / "samples.npz").read_bytes(), drawn(gif=True)  # the same samples: nothing is moved
    assert len(told) == 2 and told[1].startswith(f"{folder / 'path.gif'}: 5 frames of 6 samples, ")
    with np.load(folder / "samples.npz") as now, np.load(io.BytesIO(before)) as then:
        np.testing.assert_allclose(now["arr_0"], then["arr_0"], atol=1e-6)
    gif = (folder / "path.gif").read_bytes()
    for again in (False, True):
        facts = json.loads((folder / "settings.json").read_text())["gif"]
        assert (facts["file"], facts["samples"], facts["bytes"]) == ("path.gif", 6, len(gif)) and len(facts["t"]) == 5
        if not again:
            drawn()
    told = drawn(seed=1)  # others: it goes with its samples
    kept = Path(told[0].rpartition(" ")[2]).parent
    assert kept != folder and (kept / "path.gif").read_bytes() == gif and not (folder / "path.gif").exists()
    assert "gif" not in json.loads((folder / "settings.json").read_text())


def test_the_parts_that_a_batch_is_told_in_are_one_program(conditional: Path) -> None:
    run = load_run(conditional / "run")
    before = linear._scan._cache_size()
    assert run.sample("ddim", 5, steps=6, label=0).nfe == 7
    assert linear._scan._cache_size() == before + 1


def test_data_that_have_moved_are_asked_for_where_they_are_needed(conditional: Path) -> None:
    with pytest.raises(UserError, match=r"are not at .*x\.npz: give the place where they are now, as --data=PATH"):
        _ = load_run(conditional / "run").dataset
    found = load_run(conditional / "run", data=str(conditional / "now.npz")).dataset
    assert len(found.train) == 90 and found.num_classes == 3
    evaluate_py = [str(ROOT / "evaluate.py"), f"--workdir={conditional / 'run'}", "--samplers=ddim", "--n=20"]
    assert "--data=PATH" in Command(*evaluate_py).wait().mistake
    other = conditional / "other.npz"
    np.savez(other, x=np.random.default_rng(1).normal(size=(100, 3)), labels=np.arange(100) % 3)
    told = Command(*evaluate_py, f"--data={other}").wait().mistake
    assert "are vectors of 3, 3 classes, and those that" in told and "trained on vectors of 2, 3 classes" in told


def test_a_run_of_before_that_noted_no_proportions_takes_them_from_its_data(conditional: Path, tmp_path: Path) -> None:
    shutil.copytree(conditional / "run", tmp_path / "run")
    config, beside = load_config(tmp_path / "run" / "config.json")
    del beside["data_shape"]["class_counts"]
    save_config(tmp_path / "run" / "config.json", config, **beside)
    run = load_run(tmp_path / "run", data=str(conditional / "now.npz"))
    assert sum(run.class_counts) == 90
    assert run.class_counts == load_run(conditional / "run").class_counts  # in config.json


def test_a_run_and_its_score_are_told_in_a_line(conditional: Path) -> None:
    run = load_run(conditional / "run")
    assert len(repr(run)) < 300 and "\n" not in repr(run) + repr(run.score_fn) and len(repr(run.score_fn)) < 600
    weights = sum(leaf.size for leaf in jax.tree.leaves(run.score_fn.score_fn.params))
    assert f"mlp of {weights:,} weights, VP(" in repr(run)
    assert "vectors of 2, 3 classes" in repr(run) and "step 20" in repr(run)


@pytest.mark.parametrize(
    "given, told",
    [
        ({"n": 0}, "--n is 0: give at least 1"),
        ({"n": 10**12}, "--n is 1000000000000: give at most 2,147,483,647"),
        ({"n": 10**4000}, "--n is a number of about 4000 digits"),
        ({"seed": -1}, "--seed is -1: give an integer from 0 to 2^32 - 1"),
        ({"seed": 2**32}, "--seed is 4294967296: give an integer from 0 to 2^32 - 1"),
        ({"steps": 10**30}, "--steps is a number of about 30 digits: give at most"),
        ({"steps": -3}, "--steps is -3: give at least 1"),
        ({"label": [3]}, "--label is 3: this run's classes are 0 to 2"),
        ({"eta": float("nan")}, "eta must be"),
        ({"eta": float("inf")}, "eta must be"),
        ({"out": "~nobody_of_this_name/x"}, "cannot be a path"),
        ({"out": "/proc/nowhere"}, "cannot write to /proc/nowhere"),
        ({"out": "a" * 300}, "File name too long"),
    ],
)
def test_a_mistake_is_told_before_anything_is_drawn(conditional: Path, given: dict, told: str) -> None:
    with pytest.raises(UserError) as error:
        draw_to_files(str(conditional / "run"), "ddim", **{"n": 4, **given})
    assert told in str(error.value) and len(str(error.value)) < 400
    assert not (conditional / "run" / "samples").exists()


def test_the_list_of_samplers_needs_no_jax_and_is_no_mistake() -> None:
    block = "import sys; sys.modules['jax'] = None; sys.argv = [{!r}, {!r}]; import runpy; "
    for command, flag in (("sample.py", "--sampler=list"), ("evaluate.py", "--samplers=list")):
        code = block.format(command, flag) + f"runpy.run_path({str(ROOT / command)!r}, run_name='__main__')"
        done = fresh("-c", code)
        assert done.status == 0 and done.err == ""
        assert [line.split()[0] for line in done.out.splitlines()][:3] == ["em", "pc", "ode"]


def test_what_a_sample_does_not_need_is_not_imported() -> None:
    slow = ("diffrax", "matplotlib", "scipy", "sklearn", "tensorflow_datasets", "tensorboardX", "equinox")
    code = (
        "import sys, numpy as np, tempfile; from pathlib import Path; from types import SimpleNamespace;"
        "from experiment.run.samples import write_samples; from experiment.data.scaling import Scaling;"
        "from experiment.build.samplers import make_sampler; from experiment.config import check_config;"
        "make_sampler('em', check_config({}));"
        "run = SimpleNamespace(scaling=Scaling(17)); x = np.zeros((4, 8, 8, 1), np.float32);"
        f"write_samples(run, x, Path(tempfile.mkdtemp())); print([m for m in {slow} if m in sys.modules])"
    )
    done = fresh("-c", code)
    assert done.status == 0, done.err
    assert done.out.strip() == "[]"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is told vectors in units of their own, a part of them dropped."""
    folder = tmp_path_factory.mktemp("told")
    x = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    np.savez(folder / "x.npz", x=x, cond=x[:, :1] * 1000.0 + 5000.0)
    keys = {name: value for name, value in TRAINING.items() if name != "model_class_conditional"}
    keys |= {"model_condition": "vector", "train_cond_dropout": 0.2, "data_path": folder / "x.npz"}
    trained(folder / "run", **keys)
    return folder


def test_vectors_from_a_file_are_drawn_in_their_units_and_guided(told: Path) -> None:
    cond = np.array([[4000.0], [6500.0], [4000.0], [np.nan]])
    np.savez(told / "cond.npz", cond=cond)
    line = draw_to_files(str(told / "run"), "ddim", 4, cond=str(told / "cond.npz"), steps=3, guidance=Guidance(2.0))
    assert " 8 NFE" in line  # three steps and the last denoising, two network calls each
    saved = dict(np.load(told / "run" / "samples" / "ddim" / "samples.npz"))
    np.testing.assert_array_equal(saved["cond"], cond)
    run = load_run(told / "run")
    drawn = run.sample("ddim", 4, cond=cond, steps=3, guidance=2.0)
    np.testing.assert_array_equal(drawn.data, saved["arr_0"])
    # By hand, from standardised conditions and the network alone.
    units = run.data_shape.cond_units
    assert units is not None
    network = run.score_fn.score_fn
    inner = ClassifierFree(network, 2.0, np.full(1, np.nan, np.float32))
    by_hand = sample(DDIM(steps=3, denoise=True), inner, jax.random.key(0), 4, (2,), cond=units.to_model(cond)).x
    np.testing.assert_allclose(drawn.x, by_hand, rtol=1e-3, atol=1e-3)  # large updates amplify the rounding
    plain = run.sample("ddim", 4, cond=cond, steps=3).x
    assert np.abs(plain[:3] / drawn.x[:3] - 1).max() > 0.05
    np.testing.assert_allclose(plain[3], drawn.x[3], rtol=0.02)  # nothing, guided by nothing
