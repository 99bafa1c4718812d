"""Samples a batch at a time: their classes, and what they cost."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.config import whole_config
from experiment.devices import memory
from experiment.run import sampling
from experiment.run.sampling import check_samples_fit, class_labels, draw

RUN = SimpleNamespace(score_fn=None, config=whole_config({}))  # whose batches a test draws itself


def run_of(class_conditional: bool) -> Any:
    config = whole_config({"model": {"class_conditional": class_conditional}})
    return SimpleNamespace(config=config, class_counts=(60, 30, 10), num_classes=3, shape=(2,))


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

    def draw_batch(run: Any, sampler: Any, key: Any, first: int, size: int, labels: Any, frames: int) -> Any:
        calls.append((first, size))
        return SimpleNamespace(x=np.arange(first, first + size, dtype=np.float32)[:, None], nfe=10 * len(calls))

    monkeypatch.setattr(sampling, "draw_batch", draw_batch)
    found = draw(RUN, None, None, 50, 20, "")
    assert calls == [(0, 20), (20, 20), (40, 20)]  # the last one whole, so that one shape is compiled
    np.testing.assert_array_equal(found.x[:, 0], np.arange(50))
    assert found.nfe == (20 * 10 + 20 * 20 + 10 * 30) / 50 and len(found.batch_seconds) == 3


def test_chosen_classes_come_in_turn_and_unknown_ones_are_told() -> None:
    labels = class_labels(run_of(True), 7, 0, [2, 0, 1])
    assert labels is not None and labels.tolist() == [2, 0, 1, 2, 0, 1, 2]
    for wrong in (3, -1, 10**12):
        with pytest.raises(UserError, match=rf"--label is {wrong}: this run's classes are 0 to 2"):
            class_labels(run_of(True), 4, 0, [0, wrong])
    with pytest.raises(UserError, match=r"--label: this run's network is not told classes"):
        class_labels(run_of(False), 4, 0, [0])


def test_the_class_of_a_sample_depends_on_the_seed_and_its_number_alone() -> None:
    many, few = (class_labels(run_of(True), n, 5) for n in (1000, 64))
    assert many is not None and few is not None and (many[:64] == few).all()


@pytest.mark.parametrize("n, shape, sets", [(10**9, (32, 32, 3), 1), (10**6, (32, 32, 3), 10), (2**31 - 1, (2,), 1)])
def test_samples_beyond_memory_are_refused_before_they_are_drawn(
    monkeypatch: pytest.MonkeyPatch, n: int, shape: tuple[int, ...], sets: int
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 16 * 2**30)
    with pytest.raises(UserError, match=r"of memory, and this machine has 16 GiB: give a smaller --n"):
        check_samples_fit(n, shape, sets)
    check_samples_fit(n // 10**5, shape, sets)  # what fits is drawn


def test_there_is_memory_on_this_machine() -> None:
    there = memory.available()
    assert there is not None and 2**20 < there < 2**50


def test_samples_that_are_not_finite_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    given = SimpleNamespace(x=np.full((5, 2), np.nan, np.float32), nfe=1)
    monkeypatch.setattr(sampling, "draw_batch", lambda *_: given)
    with pytest.raises(UserError, match="em drew samples that are not finite: train longer"):
        draw(RUN, None, None, 5, 5, "em")
