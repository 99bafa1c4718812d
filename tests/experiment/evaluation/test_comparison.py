"""Which samples meet which data, and the numbers that come of it, with a metric that only looks."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.config import whole_config
from experiment.data.dataset import Dataset, Split
from experiment.data.scaling import Scaling
from experiment.evaluation import comparison, metrics
from experiment.evaluation.comparison import against, compare, floor_of, points_each_side, spread
from experiment.evaluation.metrics import Metric
from experiment.evaluation.settings import Settings


def test_a_spread_is_of_the_values_that_are_all_known() -> None:
    found = spread([1.0, 2.0, 6.0])
    assert (found.mean, found.values) == (3.0, [1.0, 2.0, 6.0])
    assert found.sd == pytest.approx(7**0.5)  # n - 1
    assert (spread([4.0]).mean, spread([4.0]).sd) == (4.0, None)
    assert (spread([1.0, None]).mean, spread([1.0, None]).sd) == (None, None)


def test_the_excess_is_in_the_floor_s_standard_deviations() -> None:
    floor = floor_of([1.0, 3.0], 50)
    assert (floor.mean, floor.sd, floor.size) == (2.0, pytest.approx(2**0.5), 50)
    assert against([4.0, 6.0], floor).excess == pytest.approx(3 / 2**0.5)
    assert against([0.0], floor).excess == pytest.approx(-(2**0.5))
    for undefined in (floor_of([1.0, 1.0], 5), floor_of([1.0], 5), floor_of([None, 1.0], 5)):
        assert against([4.0], undefined).excess is None
    assert against([None], floor).excess is None


def run_on(train: int = 60, test: int = 24) -> Any:
    """A run on numbered vectors: the training data are 0, 1, .., the held-out ones 1000, 1001, .."""
    numbers = [np.arange(n, dtype=np.float32)[:, None] + first for n, first in ((train, 0), (test, 1000))]
    dataset = Dataset("numbers", Split(numbers[0]), Split(numbers[1]), None)
    return SimpleNamespace(dataset=dataset, scaling=Scaling(None), shape=(1,))


def settings(**given: Any) -> Settings:
    return Settings.from_config(whole_config({}), **{"n": 20, "seeds": 2, **given})


def seen_by(monkeypatch: pytest.MonkeyPatch, run: Any, sets: Any, of: Settings) -> list[tuple[list[int], list[int]]]:
    """The pairs of sets of points that a metric is called on, in order."""
    pairs: list[tuple[list[int], list[int]]] = []

    def look(x: Any, y: Any) -> float:
        pairs.append(tuple(sorted(int(v) for v in z[:, 0]) for z in (x, y)))  # type: ignore[arg-type]
        return float(len(pairs))

    monkeypatch.setattr(comparison, "_metrics", lambda *_: ({"m": Metric("m", "looks", look)}, {}))
    compare(run, sets, of)
    return pairs


def test_each_seed_meets_its_own_part_the_same_for_every_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    # Samples are negative numbers, by sampler and seed; of 25 each only the 20 that the data allow are compared.
    sets = [[-np.arange(1.0, 26)[:, None] - 100 * (2 * k + s) for s in range(2)] for k in range(3)]
    pairs = seen_by(monkeypatch, run_on(), sets, settings())
    floors, values = pairs[:10], pairs[10:]
    assert len(values) == 3 * 2
    for a, b in floors:
        assert len(a) == len(b) == 20 and not set(a) & set(b) and min(a + b) >= 0 and max(a + b) < 60
    assert len({tuple(a) for a, _ in floors}) == 10  # splits differ
    for i, (real, x) in enumerate(values):
        assert real == floors[i % 2][0]
        assert x == sorted((-np.arange(1.0, 21) - 100 * i).astype(int))
    other = seen_by(monkeypatch, run_on(), sets, settings(seed=7))
    assert other[0] != pairs[0]  # another seed of the evaluation, other parts
    assert seen_by(monkeypatch, run_on(), sets, settings()) == pairs


def test_the_reference_is_the_split_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = seen_by(monkeypatch, run_on(), [[-np.ones((20, 1))] * 2], settings(reference="test"))
    assert all(len(a) == 12 and min(a) >= 1000 for a, _ in pairs)
    assert points_each_side(run_on(), settings(reference="test")) == 12


def test_too_few_examples_are_told() -> None:
    with pytest.raises(UserError, match=r"test split of numbers has 19 examples, too few .*: at least 20 are needed"):
        points_each_side(run_on(test=19), settings(reference="test"))


def test_the_feature_classifier_is_fitted_to_the_training_split_and_judged_on_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Memory:
        """A classifier that knows the examples it was fitted to, and no others."""

        def __init__(self, x: Any, labels: Any):
            self.known = {float(row[0]): int(label) for row, label in zip(x, labels, strict=True)}

        def accuracy(self, x: Any, labels: Any) -> float:
            return float(
                np.mean([self.known.get(float(row[0])) == label for row, label in zip(x, labels, strict=True)])
            )

    monkeypatch.setattr(comparison, "ClassFeatures", Memory)
    run = run_on()
    run.dataset = Dataset(
        "numbers",
        Split(run.dataset.train.x, np.arange(60) % 2),
        Split(np.concatenate([run.dataset.train.x[:6], run.dataset.test.x]), np.arange(30) % 2),  # six of 30 are known
        256,
        2,
    )
    metrics, left_out = comparison._metrics(run, run.dataset.train.x, run.dataset.test.x)
    assert "The classifier labels 20.0% of held-out examples correctly." in metrics["fd_numbers"].meaning
    assert left_out == {}


class Counted(np.ndarray):
    """Levels that note how many examples are asked for at once."""

    most = 0

    def __getitem__(self, rows: Any) -> Any:
        taken = super().__getitem__(rows)
        Counted.most = max(Counted.most, len(taken))
        return np.asarray(taken)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("the whole split was taken")


def test_a_comparison_reads_the_data_some_at_a_time_to_the_same_end(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    pictures = rng.integers(0, 256, (90, 2, 2, 1), dtype=np.uint8), rng.integers(0, 256, (40, 2, 2, 1), dtype=np.uint8)

    def on(kind: Any) -> Any:
        splits = [Split(x.view(kind), np.arange(len(x)) % 3) for x in pictures]
        return SimpleNamespace(
            dataset=Dataset("pictures", *splits, 256, 3), scaling=Scaling(256), shape=(2, 2, 1), config=None
        )

    sets = [[rng.uniform(-1, 1, (12, 4)) for _ in range(2)]]
    monkeypatch.setattr(comparison, "SPLITS", 2)
    of = settings(n=12)
    whole = compare(on(np.ndarray), sets, of)
    monkeypatch.setattr(metrics, "BLOCK", 4 * 13)  # thirteen examples at once
    monkeypatch.setattr(metrics, "MOST_TO_FIT", 13)
    few = compare(on(Counted), sets, of)
    assert 12 <= Counted.most <= 13
    for name in ("sliced_w2", "energy", "nn_ratio", "nn_close"):
        assert few.floors[name].values == pytest.approx(whole.floors[name].values, rel=1e-12), name
        assert few.values[0][name].values == pytest.approx(whole.values[0][name].values, rel=1e-12), name
    assert "classifier labels" in few.metrics["fd_pictures"].meaning
