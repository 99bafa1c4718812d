"""What a sweep is asked for: values with commas, a list of runs, names that stay, and the file that remembers them."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from experiment.command_line.given_config import overridden
from experiment.common.errors import UserError
from experiment.config import flatten
from experiment.training.sweep_runs import (
    LONGEST_NAME,
    SweepRun,
    as_json,
    read_list,
    read_set,
    read_sweep,
    remember,
    run_name,
    runs_of,
)

BASE = overridden({}, {})


def swept(*sets: str, listed: Any = ()) -> list[SweepRun]:
    return runs_of(BASE, {}, sets, listed)


@pytest.mark.parametrize(
    ("told", "values"),
    [
        ("train.lr=1e-3,2e-3", [1e-3, 2e-3]),
        ("config.train.steps=10", [10]),
        ("model.channel_mults=(1,2),(1, 2,2),[3]", [(1, 2), (1, 2, 2), (3,)]),
        ("model.channel_mults=None,(1,2)", [None, (1, 2)]),
        ("eval.samplers=(em,pc),(ode,)", [("em", "pc"), ("ode",)]),
        ("data.path='a,b',c,", ["a,b", "c", ""]),
        ('data.path="a,b"', ["a,b"]),
        ("data.path=o'brien,'x", ["o'brien", "'x"]),
        ("data.flip=true,false", [True, False]),
        ("sde.t_min=None,1e-3", [None, 1e-3]),
        ("train.time_mean=-1.2,0", [-1.2, 0.0]),
        ("train.schedule=constant, cosine", ["constant", "cosine"]),
    ],
)
def test_each_value_is_read_as_the_flag_of_train_reads_it(told: str, values: list[Any]) -> None:
    key = told.partition("=")[0].removeprefix("config.")
    runs = swept(told)
    assert [run.values for run in runs] == [{key: value} for value in values]
    for run in runs:  # by the texts that its command is given
        assert flatten(overridden(flatten(BASE), run.texts)) == flatten(run.config)


def test_a_grid_is_every_combination_once() -> None:
    runs = swept("train.lr=1e-3,2e-3", "sde.name=vp,ve", "seed=0,1,2")
    found = {(run.config.train.lr, run.config.sde.name, run.config.seed) for run in runs}
    assert len(runs) == 12 and found == set(itertools.product((1e-3, 2e-3), ("vp", "ve"), (0, 1, 2)))
    assert len({run.name for run in runs}) == 12


def test_a_list_has_a_run_a_line_each_with_the_grid(tmp_path: Path) -> None:
    file = tmp_path / "runs.txt"
    file.write_text(
        "# the two that were best\ntrain.lr=1e-3 sde.name=ve  # and so on\n\n"
        "--config.train.lr=0.002 eval.samplers=em,pc data.path='a b,c'\n"
    )
    first, second = swept(listed=read_list(file))
    assert as_json(first) == {"sde.name": "ve", "train.lr": 0.001}
    assert as_json(second) == {"train.lr": 0.002, "eval.samplers": ["em", "pc"], "data.path": "a b,c"}
    assert [run.config.seed for run in swept("seed=3,4", listed=read_list(file))] == [3, 4, 3, 4]


def test_a_name_follows_from_the_values_alone() -> None:
    (one,), (other,) = swept("train.lr=1e-3", "sde.name=ve"), swept("sde.name=ve", "train.lr=0.001")
    assert one.name == other.name == "sde.name=ve,train.lr=0.001"
    (listed,) = swept(listed=[{"sde.name": "ve", "train.lr": "10e-4"}])
    assert listed.name == one.name
    assert swept("model.channel_mults=(1,2)")[0].name == "model.channel_mults=1+2"
    odd = [run_name({"data.path": path}) for path in ("/a b", "/a_b", "/a/b", "x" * 300, "x" * 301)]
    assert len(set(odd)) == 5 and all(len(name) <= LONGEST_NAME and "/" not in name for name in odd)
    assert odd == [run_name({"data.path": path}) for path in ("/a b", "/a_b", "/a/b", "x" * 300, "x" * 301)]


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        ([], "nothing to sweep over"),
        (["train.lr"], "gives no values: write --set KEY=VALUE"),
        (["train.lt=1"], "did you mean config.train.lr"),
        (["train=1"], "is a section"),
        (["train.lr=1e-3,x"], "config.train.lr is 'x'; it takes a float"),
        (["train.lr=1e-3,"], "config.train.lr is ''"),
        (["train.lr=1e-3,0.001"], "has train.lr=0.001 twice: give each value once"),
        (["train.lr=1", "train.lr=2"], "train.lr is set twice"),
        (["eval.samplers=em,pc"], "eval.samplers takes tuples: put each in brackets"),
        (["model.channel_mults=1,2"], "takes tuples"),
        ([f"seed={','.join(map(str, range(101)))}", f"train.steps={','.join(map(str, range(1, 101)))}"], "10,100 runs"),
    ],
)
def test_what_is_no_sweep_is_refused(sets: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        swept(*sets)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train.lr='1e-3", "line 1: No closing quotation: write it as in a shell"),
        ("\ntrain.lr", "line 2: 'train.lr' gives no value"),
        ("train.lr=1 train.lr=2", "train.lr is set twice"),
        ("# nothing", "holds no run"),
    ],
)
def test_a_list_that_is_none_is_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text(text)
    with pytest.raises(UserError) as error:
        read_list(tmp_path / "runs")
    assert told in str(error.value)
    with pytest.raises(UserError, match="cannot read --runs"):
        read_list(tmp_path)


def test_a_key_is_set_at_one_place() -> None:
    for common, listed in (({"train.lr": "1"}, ()), ({}, [{"train.lr": "1"}])):
        with pytest.raises(UserError, match=r"train\.lr is set twice"):
            runs_of(BASE, common, ["train.lr=2"], listed)


def test_the_file_of_a_sweep_holds_what_it_was_asked(tmp_path: Path) -> None:
    runs = swept("train.lr=1e-3,2e-3", "model.channel_mults=(1,2),(1,)")
    remember(tmp_path, BASE, runs)
    base, found = read_sweep(tmp_path)
    assert flatten(base) == flatten(BASE)
    assert found == {run.name: as_json(run) for run in runs} and len(found) == 4
    remember(
        tmp_path, overridden({}, {"train.log_every": "7"}), list(reversed(runs))
    )  # it may differ when a run goes on
    with pytest.raises(UserError, match=r"another sweep: train\.clip 1\.0 -> 2\.0"):
        remember(tmp_path, overridden({}, {"train.clip": "2"}), runs)
    with pytest.raises(UserError, match=r"4 runs there, 3 now: 1 missing, such as .*; give that one's command again"):
        remember(tmp_path, BASE, runs[:3])
    path = tmp_path / "sweep.json"
    document = json.loads(path.read_text())
    for damage in ("{", json.dumps({**document, "sweep": 3}), json.dumps({**document, "sweep": {"../x": {}}})):
        path.write_text(damage)
        with pytest.raises(UserError, match=r"is damaged .*: restore it, or sweep into another --workdir"):
            remember(tmp_path, BASE, runs)


def test_read_set_keeps_the_texts() -> None:
    assert read_set("train.lr=1e-3, 2e-3 ") == ("train.lr", ["1e-3", "2e-3"])
