"""Samples a batch at a time: their classes, and what they cost."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiment import sampling
from experiment.config import whole_config
from experiment.data.dataset import Dataset, Split
from experiment.sampling import class_labels, draw


def run_of(class_conditional: bool) -> Any:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    data = Split(np.zeros((100, 2), np.float32), labels)
    config = whole_config({"model": {"class_conditional": class_conditional}})
    return SimpleNamespace(config=config, dataset=Dataset("plane", data, data, None, 3), shape=(2,))


def test_classes_come_in_the_training_data_s_proportions_by_seed() -> None:
    run, n = run_of(True), 20_000
    labels = class_labels(run, n, 3)
    assert labels is not None
    shares = np.bincount(labels) / n
    np.testing.assert_allclose(shares, [0.6, 0.3, 0.1], atol=5 * 0.5 / np.sqrt(n))
    np.testing.assert_array_equal(class_labels(run, n, 3), labels)
    other = class_labels(run, n, 4)
    assert other is not None and np.mean(other == labels) < 0.6  # independent ones agree at 0.46
    assert class_labels(run_of(False), n, 3) is None


def test_the_nfe_is_the_mean_over_samples_and_each_batch_has_its_own_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def draw_batch(run: Any, sampler: Any, key: Any, first: int, size: int, labels: Any) -> Any:
        calls.append((first, size))
        return SimpleNamespace(x=np.arange(first, first + size, dtype=np.float32)[:, None], nfe=10 * len(calls))

    monkeypatch.setattr(sampling, "draw_batch", draw_batch)
    found = draw(None, None, None, 50, 20, "")
    assert calls == [(0, 20), (20, 20), (40, 20)]  # the last one whole, so that one shape is compiled
    np.testing.assert_array_equal(found.x[:, 0], np.arange(50))
    assert found.nfe == (20 * 10 + 20 * 20 + 10 * 30) / 50 and len(found.batch_seconds) == 3
