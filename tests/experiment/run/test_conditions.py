"""What samples are told, by flag, file or from the data, and what is refused in a line."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.config import check_config
from experiment.data.dataset import Dataset, Split
from experiment.data.units import Units
from experiment.run.conditions import Asked, arrays_of, conditions, kind_of_run
from experiment.run.directory import DataShape

N = 30
VECTORS = np.random.default_rng(0).normal(size=(N, 3)) * 10 + 5
EMBEDDINGS = {"embeddings": np.ones((N, 4, 2), np.float32), "mask": np.ones((N, 4), bool)}
SPLITS = {
    "none": Split(np.zeros((N, 2))),
    "label": Split(np.zeros((N, 2)), labels=np.repeat(np.arange(3, dtype=np.int32), N // 3)),
    "vector": Split(np.zeros((N, 2)), vectors=VECTORS),
    "text": Split(np.zeros((N, 2)), captions=np.array([f"caption {i}" for i in range(N)])),
    "embeddings": Split(np.zeros((N, 2)), embeddings=EMBEDDINGS),
}


def run_of(name: str, dropout: float = 0.1) -> Any:
    split = SPLITS[name]
    units = None if split.vectors is None else Units.of(split.vectors)
    data = Dataset(name, split, split, None, 3 if name == "label" else 0, cond_units=units)
    model = {"condition": "text" if name == "embeddings" else name, "text_length": 16}
    config = check_config({"model": model, "train": {"cond_dropout": 0.0 if name == "none" else dropout}})
    shape = DataShape.of(data)
    return SimpleNamespace(
        config=config, dataset=data, data_shape=shape, num_classes=data.num_classes, class_counts=shape.class_counts
    )


def rows_of(name: str, n: int, seed: int = 0, **asked: Any) -> Any:
    run = run_of(name)
    return arrays_of(kind_of_run(run), conditions(run, n, seed, Asked(**asked)))


def test_nothing_asked_for_they_come_from_the_held_out_data_by_seed_and_number() -> None:
    assert rows_of("none", 5) == {}
    vectors = rows_of("vector", 200)["cond"]
    assert {row.tobytes() for row in vectors} <= {row.tobytes() for row in VECTORS}
    assert len({row.tobytes() for row in vectors}) > 20
    np.testing.assert_array_equal(rows_of("vector", 8)["cond"], vectors[:8])
    assert not np.array_equal(rows_of("vector", 8, seed=1)["cond"], vectors[:8])
    prompts = rows_of("text", 200)["prompts"]
    assert set(prompts) <= set(SPLITS["text"].captions) and len(set(prompts)) > 20
    assert rows_of("embeddings", 5)["embeddings"].shape == (5, 4, 2)
    assert set(rows_of("label", 50)["labels"]) == {0, 1, 2}


def test_asked_for_they_come_in_turn_or_row_by_row(tmp_path: Path) -> None:
    assert rows_of("label", 5, label=[2, 0])["labels"].tolist() == [2, 0, 2, 0, 2]
    assert rows_of("text", 3, prompt=["a seven", "ä"])["prompts"].tolist() == ["a seven", "ä", "a seven"]
    np.savez(tmp_path / "one.npz", cond=VECTORS[0])
    np.savez(tmp_path / "rows.npz", cond=VECTORS[:4])
    np.testing.assert_array_equal(rows_of("vector", 4, cond=str(tmp_path / "one.npz"))["cond"], VECTORS[[0, 0, 0, 0]])
    np.testing.assert_array_equal(rows_of("vector", 4, cond=str(tmp_path / "rows.npz"))["cond"], VECTORS[:4])
    np.testing.assert_array_equal(rows_of("vector", 4, cond=VECTORS[:4])["cond"], VECTORS[:4])
    np.savez(tmp_path / "all.npz", observations=VECTORS[:5])
    found = rows_of("vector", 4, cond=str(tmp_path / "all.npz"))
    np.testing.assert_array_equal(found["observations"], VECTORS[:5])
    short = {"embeddings": np.full((2, 3, 2), 7.0), "mask": np.array([[True, True, False], [True, False, False]])}
    found = rows_of("embeddings", 2, cond=short)  # as long as "nothing" is
    assert found["mask"].tolist() == [[True, True, False, False], [True, False, False, False]]
    np.testing.assert_array_equal(found["embeddings"][..., 0], 7.0 * found["mask"])


HOLE, EMPTY = VECTORS[:2].copy(), VECTORS[:2].copy()
HOLE[0, 1], EMPTY[1] = np.nan, np.nan
MASK = np.ones((2, 4), bool)
WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    r"--prompt: this run's network is told nothing, it takes none: leave it out": ("none", {"prompt": ["x"]}),
    r"--label: this run's network is told vectors, --cond is its own: leave it out": ("vector", {"label": [1]}),
    r"--cond: this run's network is told classes, --label is its own: leave it out": ("label", {"cond": "x.npz"}),
    r"--label and --prompt say what samples are of": ("text", {"label": [1], "prompt": ["x"]}),
    r"--label is 3: this run's classes are 0 to 2": ("label", {"label": [3]}),
    r"--prompt: 'a caption.*' has 17 bytes, and at most 16 are read": ("text", {"prompt": ["a caption of 17 b"]}),
    r"--prompt 1: .* 18 bytes": ("text", {"prompt": ["x", "äääääääää"]}),
    r"--prompt holds bytes that are no text": ("text", {"prompt": ["\udcff"]}),
    r"--prompt is empty, and this run was trained without dropping": ("text", {"prompt": [""], "dropout": 0.0}),
    r"--prompt: this run's network is told embeddings": ("embeddings", {"prompt": ["x"]}),
    r"--cond=.*gone.npz: there is no such file": ("vector", {"cond": "gone.npz"}),
    r"there is no cond among x": ("vector", {"cond": {"x": np.ones(3)}}),
    r"cond is float64 of shape \(2, 2\); this run is told vectors of 3": ("vector", {"cond": VECTORS[:2, :2]}),
    r"cond is <U1 of shape \(\)": ("vector", {"cond": {"cond": np.array("x")}}),
    r"cond has 3 rows, and 2 samples are asked for: give --n=3": ("vector", {"cond": VECTORS[:3]}),
    r"a value is not finite: mend it": ("vector", {"cond": HOLE}),
    r"has a row of NaN, and this run was trained without": ("vector", {"cond": EMPTY, "dropout": 0.0}),
    r"cond has cond and observations": ("vector", {"cond": {"cond": VECTORS[0], "observations": VECTORS[:2]}}),
    r"observations are float64 of shape \(3,\); .* save \(m, 3\)": ("vector", {"cond": {"observations": VECTORS[0]}}),
    r"a value of observations is not finite": ("vector", {"cond": {"observations": HOLE}}),
    r"embeddings has no mask: save mask": ("embeddings", {"cond": {"embeddings": np.ones((2, 4, 2))}}),
    r"mask is float64 of shape": ("embeddings", {"cond": {"embeddings": np.ones((2, 4, 2)), "mask": MASK * 1.0}}),
    r"this run takes \(n, at most 4, 2\)": ("embeddings", {"cond": {"embeddings": np.ones((2, 4, 3)), "mask": MASK}}),
    r"there are no embeddings among cond": ("embeddings", {"cond": np.ones((2, 3))}),
    r"a row without tokens, and this": (
        "embeddings", {"cond": {"embeddings": np.ones((2, 4, 2)), "mask": ~MASK}, "dropout": 0.0}
    ),
    r"this run's network reads texts itself: give --prompt": ("text", {"cond": np.ones((2, 3))}),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_what_the_network_cannot_be_told_is_refused(message: str) -> None:
    name, asked = WRONG[message]
    dropout = asked.get("dropout", 0.1)
    with pytest.raises(UserError, match=message):
        conditions(run_of(name, dropout), 2, 0, Asked(**{key: v for key, v in asked.items() if key != "dropout"}))


def test_nothing_is_told_where_it_was_trained() -> None:
    kind = kind_of_run(run_of("vector"))
    assert kind is not None
    cond = conditions(run_of("vector"), 2, 0, Asked(cond=EMPTY))
    assert np.asarray(kind.is_nothing(cond)).tolist() == [False, True]
    assert (conditions(run_of("text"), 2, 0, Asked(prompt=[""])) == -1).all()
