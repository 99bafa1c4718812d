"""What a run's config.json must say: a damaged one is a line."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from experiment.build.objects import build_network, build_score
from experiment.common.errors import UserError
from experiment.config import adopt_of_run, check_config, load_config, save_config, whole_config
from experiment.devices.sharding import OverBatch, mesh_here
from experiment.run.directory import DataShape, RunDirectory
from experiment.run.load import in_float32, read_config

SHAPE = {"shape": [8, 8, 1], "levels": 17, "num_classes": 10}


def read(tmp_path: Path, content: str | bytes) -> Any:
    (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_config(RunDirectory(tmp_path))


def test_the_data_s_shape_comes_back(tmp_path: Path) -> None:
    save_config(tmp_path / "config.json", check_config({}), data_shape=SHAPE)
    config, data = read_config(RunDirectory(tmp_path))
    assert (data.shape, data.levels, data.num_classes) == ((8, 8, 1), 17, 10)
    assert config == load_config(tmp_path / "config.json")[0]


SHAPES: dict[str, Any] = {
    "nothing": None,
    "a number": 3,
    "no shape": {"levels": 17, "num_classes": 10},
    "no levels": {"shape": [8, 8, 1], "num_classes": 10},
    "text": {**SHAPE, "shape": "881"},
    "a number for the shape": {**SHAPE, "shape": 8},
    "an empty shape": {**SHAPE, "shape": []},
    "fractions": {**SHAPE, "shape": [8.5, 8]},
    "below 0": {**SHAPE, "shape": [-8, 8, 1]},
    "10^400": {**SHAPE, "shape": [10**400, 8, 1]},
    "classes of text": {**SHAPE, "num_classes": "ten"},
    "what nobody knows": {**SHAPE, "more": 1},
}


@pytest.mark.parametrize("case", SHAPES)
def test_a_run_without_its_data_s_shape_is_one_line(case: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, json.dumps({**check_config({}).to_dict(), "data_shape": SHAPES[case]}))
    line = str(caught.value)
    assert "does not say which data the run is of" in line and "restore it" in line and len(line) < 600
    with pytest.raises(UserError, match="does not say which data"):
        read(tmp_path, json.dumps(check_config({}).to_dict()))


CONTENTS: dict[str, str | bytes] = {
    "nothing": "",
    "nested deep": "[" * 10**5,
    "nested deep, a dict": '{"a":' * 10**5,
    "a section nested deep": '{"sde":' + '{"name":' * 900 + "1" + "}" * 901,
    "a list": "[1]",
    "null": "null",
    "no text": b"\xff\xfe\xfa",
    "cut": '{"sde": {"name": "v',
    "10^400": '{"train": {"steps": 1' + "0" * 400 + "}}",
    "5,000 digits": '{"train": {"steps": 1' + "0" * 5000 + "}}",
    "infinity": '{"train": {"lr": Infinity}}',
    "a section that is a number": '{"train": 3}',
    "nothing among names": '{"eval": {"samplers": ["em", null]}}',
    "numbers for names": '{"eval": {"samplers": [3, [], {}]}}',
    "a wild key": '{"train": {"\\u001b[2J' + "x" * 10**6 + '": 3}}',
}


@pytest.mark.parametrize("case", CONTENTS)
def test_a_damaged_config_is_one_line(case: str, tmp_path: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        read(tmp_path, CONTENTS[case])
    line = str(caught.value)
    assert line.isprintable() and len(line) < 2500 and time.perf_counter() - start < 2


@pytest.mark.parametrize("beside", [{"provenance": 3}, {"earlier_provenance": {}}, {"reconstructed": [1]}])
def test_what_stands_beside_a_config_has_its_kind(beside: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"is damaged .its {next(iter(beside))} is"):
        read(tmp_path, json.dumps({**check_config({}).to_dict(), "data_shape": SHAPE, **beside}))


def test_a_pipe_for_a_config_is_no_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    adopt_of_run(tmp_path)
    with pytest.raises(UserError, match="is not a run directory"):
        read_config(RunDirectory(tmp_path))
    with pytest.raises(UserError, match="a pipe or a device"):
        load_config(tmp_path / "config.json")


def test_for_densities_a_network_in_bfloat16_computes_in_float32() -> None:
    shape = DataShape((2,), None, 0)
    scores = {}
    for dtype in ("float32", "bfloat16"):
        config = whole_config({"model": {"name": "mlp", "width": 16, "dtype": dtype}})
        apply, params = build_network(config, shape)
        params = jax.tree.map(lambda leaf: leaf + 0.1, params)
        scores[dtype] = build_score(config, OverBatch(apply, mesh_here(config.train.fsdp)), params)
        run = SimpleNamespace(config=config, score_fn=scores[dtype], data_shape=shape, dataset=object())
        x = jax.numpy.linspace(-1, 1, 6).reshape(3, 2)
        found = in_float32(run)
        np.testing.assert_array_equal(found.score_fn(x, 0.4), scores["float32"](x, 0.4))
        assert found.dataset is run.dataset and run.score_fn is scores[dtype]  # the run itself samples as before
        assert (found is run) == (dtype == "float32")
    assert np.abs(scores["bfloat16"](x, 0.4) - scores["float32"](x, 0.4)).max() > 1e-4
    exact = SimpleNamespace(config=config, score_fn=object())
    assert in_float32(exact) is exact
