"""What a point's samples cost, by batches whose times are given, and the path of the first ones."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiment.config import whole_config
from experiment.data.dataset import Dataset, Split
from experiment.data.scaling import Scaling
from experiment.evaluation import drawing
from experiment.evaluation.drawing import STRIP_FRAMES, STRIP_POINTS, draw_point, draw_strip
from experiment.evaluation.points import Point
from experiment.evaluation.settings import Settings
from experiment.run.sampling import Draws
from sde_lib import VE, VP, ExactScore
from sde_lib.samplers import DDIM, Heun, UniPC
from tests.oracles import normal


def run_of(sde: Any) -> Any:
    data = Split(np.zeros((4, 2), np.float32))
    return SimpleNamespace(
        config=whole_config({}),
        dataset=Dataset("plane", data, data, None),
        score_fn=ExactScore(normal(1.0), sde),
        scaling=Scaling(None),
        shape=(2,),
    )


def costs(monkeypatch: pytest.MonkeyPatch, times: list[list[float]], **given: Any) -> tuple[Any, list[int]]:
    """The point drawn, where the batches of each call take these times; and the seeds of the calls."""
    seeds: list[int] = []

    def draw(run: Any, sampler: Any, key: Any, n: int, *_: Any) -> Draws:
        seeds.append(key)
        return Draws(np.full((n, 2), len(seeds), np.float32), 10.0 * len(seeds), times[len(seeds) - 1])

    monkeypatch.setattr(drawing, "draw", draw)
    monkeypatch.setattr(drawing, "sample_key", lambda seed: seed)
    settings = Settings.from_config(whole_config({}), n=50, seed=5, **given)
    return draw_point(run_of(VP()), Point("ddim", None, DDIM()), settings), seeds


def test_the_batch_that_compiles_counts_as_much_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, seeds = costs(monkeypatch, [[9.0, 2.0, 1.0], [2.0, 3.0, 2.0]], batch_size=20, seeds=2)
    assert seeds == [5, 6]
    assert drawn.seconds == 3 * 2.0 and drawn.compile_seconds == 9.0 - 2.0  # three batches at the median's time
    assert drawn.nfe == 15.0 and [x[0, 0] for x in drawn.samples] == [1.0, 2.0] and drawn.levels[0, 0] == 1.0


def test_a_single_batch_is_drawn_again_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, seeds = costs(monkeypatch, [[7.0], [4.0]], batch_size=80, seeds=1)
    assert seeds == [5, 5] and (drawn.seconds, drawn.compile_seconds) == (4.0, 3.0)
    assert drawn.nfe == 10.0 and len(drawn.samples) == 1


@pytest.mark.parametrize("sde", [VP(), VE()], ids=["VP", "VE"])
def test_each_frame_of_a_path_has_unit_variance_and_its_noise_to_signal_ratio(sde: Any) -> None:
    strip = draw_strip(run_of(sde), DDIM(steps=40), 0)  # of N(0, I), x_t has the variance alpha² + sigma²
    assert strip.frames.shape == (STRIP_FRAMES, STRIP_POINTS, 2)
    np.testing.assert_allclose(strip.frames.std(axis=(1, 2)), 1.0, atol=0.1)
    times = np.array([t for t, _ in strip.times])
    assert times[0] == pytest.approx(sde.t_max) and times[-1] == pytest.approx(sde.t_min) and (np.diff(times) < 0).all()
    np.testing.assert_allclose([r for _, r in strip.times], sde.sigma(times) / sde.alpha(times), rtol=1e-3)


@pytest.mark.parametrize("sampler", [DDIM(steps=4), Heun(steps=4), UniPC(steps=8, denoise=True)], ids=repr)
def test_a_path_of_fewer_steps_than_frames_shows_every_frame(sampler: Any) -> None:
    strip = draw_strip(run_of(VP()), sampler, 0)
    assert len(strip.frames) == len(strip.times) == STRIP_FRAMES
    assert (strip.frames.std(axis=(1, 2)) > 0.5).all()  # none of zeros
    assert (np.diff([t for t, _ in strip.times]) <= 0).all()
