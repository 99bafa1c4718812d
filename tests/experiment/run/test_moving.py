"""The path of samples as a GIF: its frames are the path's samples, its axes stay, and it is bounded."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image, ImageSequence

from experiment.common.errors import UserError
from experiment.config import whole_config
from experiment.data.scaling import Scaling
from experiment.data.units import Units
from experiment.plots import moving
from experiment.run.moving import FRAMES, frames_as_data, path_to_keep, write_moving
from experiment.run.sampling import as_data, draw
from sde_lib import VE, VP, EulerMaruyama, ExactScore, ProbabilityFlow
from tests.oracles import random_mixture

LAW = random_mixture(seed=3, d=16, spread=0.5)
PLANE = random_mixture(seed=1, d=2)
STANDARD = VP()
EM = EulerMaruyama(steps=6, denoise=True)


def run_of(shape: tuple[int, ...], sde: Any = STANDARD, **scaling: Any) -> Any:
    """A run whose score is exact."""
    law = PLANE if shape == (2,) else LAW
    config, score_fn = whole_config({}), ExactScore(law, sde)
    return SimpleNamespace(config=config, score_fn=score_fn, scaling=Scaling(**scaling), shape=shape, num_classes=0)


def frames_of(gif: bytes, mode: str = "L") -> tuple[np.ndarray, list[int], Any]:
    """The frames (k, h, w) of a GIF, how long each is shown, and how often all are: 0 is without end."""
    image = Image.open(io.BytesIO(gif))
    shown = [(np.asarray(frame.convert(mode)), frame.info["duration"]) for frame in ImageSequence.Iterator(image)]
    return np.stack([frame for frame, _ in shown]), [time for _, time in shown], image.info.get("loop")


def written(run: Any, sampler: Any, n: int, folder: Path, batch_size: int = 256) -> tuple[Any, Any, np.ndarray, Any]:
    """What is drawn and written: the draws, what settings.json says, the frames, how long each is shown."""
    kept = path_to_keep(run, sampler, n)
    asked = {"frames": kept.frames, "shown": kept.shown}
    draws = draw(run, sampler, jax.random.key(0), n, batch_size, "", **asked)
    facts, line = write_moving(run, *draws.path, folder)
    gif = (folder / "path.gif").read_bytes()
    frames, times, loop = frames_of(gif)
    assert loop == 0 and len(set(times[:-1])) == 1 and times[-1] >= 10 * times[0]
    assert facts["bytes"] == len(gif) and facts["file"] == "path.gif"
    told = f"{len(frames)} frames of {facts['samples']} samples, {len(gif) / 1e3:,.0f} kB"
    assert line == f"{folder / 'path.gif'}: {told}"
    return draws, facts, frames, times


def test_each_frame_of_a_grid_is_the_path_and_the_last_the_samples(tmp_path: Path) -> None:
    run = run_of((4, 4, 1), levels=17)
    draws, facts, frames, _ = written(run, EM, 12, tmp_path, batch_size=5)
    path, times = draws.path
    assert facts["samples"] == 12 and len(frames) == len(path) == EM.steps + 1
    np.testing.assert_array_equal(facts["t"], times)
    assert times[0] == 1 and times[-1] == np.float32(VP().t_min)
    levels = (path + 1) * 17 / 2  # of VP, whose x_t are of unit variance
    grey = np.rint(np.clip(np.floor(levels), 0, 16) * 255 / 16)
    scale = 480 // (4 * 5 + 1)  # 4 images of 4 pixels in a row, with 1 between
    for frame, images in zip(frames, grey, strict=True):
        for i, image in enumerate(images):
            top, left = (scale * (5 * place + 1) + scale // 2 for place in divmod(i, 4))
            seen = frame[top : top + 4 * scale : scale, left : left + 4 * scale : scale]
            np.testing.assert_array_equal(seen, image[..., 0])
    np.testing.assert_array_equal(grey[-1], as_data(run.scaling, draws.x))
    bands = frames[:, scale * 16 :]
    assert len(np.unique(bands.reshape(len(bands), -1), axis=0)) == len(bands)  # each tells its own time


def test_the_samples_are_those_that_are_drawn_without_a_path() -> None:
    run, key = run_of((2,), levels=None), jax.random.key(0)
    plain = draw(run, EM, key, 20, 8, "")
    assert plain.path is None
    for sampler in (EM, ProbabilityFlow(rtol=1e-2, atol=1e-2)):  # whose steps are its own
        kept = draw(run, sampler, key, 20, 8, "", frames=5, shown=11)
        path, times = kept.path or (None, None)
        assert path is not None and times is not None
        assert path.shape == (5, 11, 2) and (np.diff(times) < 0).all()
        np.testing.assert_array_equal(path[-1], kept.x[:11])
        if sampler is EM:
            np.testing.assert_allclose(kept.x, plain.x, atol=1e-5)


def test_noise_of_any_sde_is_as_wide_as_data_and_captions_tell_its_ratio() -> None:
    run = run_of((2,), VE(sigma_min=0.01, sigma_max=50.0), levels=None)
    draws = draw(run, EM, jax.random.key(0), 400, 400, "", frames=7, shown=400)
    path, times = draws.path or (None, None)
    assert path is not None and times is not None
    frames, captions = frames_as_data(run, path, times)
    assert path[0].std() > 40 and frames[0].std() == pytest.approx(1, abs=0.1)
    np.testing.assert_array_equal(frames[-1], draws.x)
    assert captions[0] == "t = 1    noise / signal = 50" and captions[-1].endswith("noise / signal = 0.01")


def test_frames_are_in_the_user_s_units() -> None:
    units = Units(np.array([1000.0, 0.003]), np.array([200.0, 0.001]))
    run = run_of((2,), levels=None, units=units)
    path = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    frames, _ = frames_as_data(run, path, np.array([1.0, 0.5, 0.001]))
    np.testing.assert_allclose(frames, [1000.0, 0.003] + path * [200.0, 0.001], rtol=1e-3)


def test_points_lie_at_their_ticks_on_axes_that_stay() -> None:
    ranges = ((900.0, 1400.0), (-0.002, 0.004))
    rounds = [(1000.0, 0.002), (1200.0, -0.002 + 0.0024), (1100.0, 0.003)]
    found = moving.moving_points(np.array(rounds)[:, None], ["a", "b", "c"], ranges)
    frames, _, _ = frames_of(found.gif, "RGB")
    dark = frames[0].astype(int).sum(axis=-1) < 700
    # The ticks of x₁ hang below the square, which begins at (60, 30), and those of x₂ left of it.
    x_ticks, y_ticks = 60 + np.flatnonzero(dark[30 + 480 + 2, 60:]), np.flatnonzero(dark[: 30 + 482, 60 - 3])
    np.testing.assert_allclose(x_ticks, 60 + 480 * np.arange(6) / 5, atol=1.01)  # every 100 from 900 to 1400
    np.testing.assert_allclose(y_ticks, 30 + 480 * np.arange(4) / 3, atol=1.01)  # every 0.002 from 0.004 down
    blue = (frames[..., 2].astype(int) - frames[..., 0]) > 30
    for mask, (x, y) in zip(blue, rounds, strict=True):
        row, column = np.argwhere(mask).mean(axis=0)
        assert column == pytest.approx(60 + 480 * (x - 900) / 500 - 0.5, abs=0.7)
        assert row == pytest.approx(30 + 480 * (0.004 - y) / 0.006 - 0.5, abs=0.7)
    frames[(frames[..., 2].astype(int) - frames[..., 0]) > 10] = 255  # the dots, to their faint edges
    frames[:, :30] = 255  # the captions
    assert (frames == frames[0]).all()


def test_a_plane_s_points_far_outside_and_at_one_place_are_drawn() -> None:
    points = np.array([[[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1e30, -1e30], [5.0, 0.0]]])
    (frame,), _, _ = frames_of(moving.moving_points(points, ["t"], 2.0).gif, "RGB")
    blue = frame[..., 2].astype(int) - frame[..., 0]
    single, double = blue[30 + 120, 60 + 360], blue[30 + 240, 60 + 240]
    assert double > single > 30
    blue[145:156, 415:426] = blue[265:276, 295:306] = 0
    assert (blue < 30).all()


def test_colours_and_large_images_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    few = np.array([[230, 20, 20], [20, 200, 40], [30, 40, 220], [250, 250, 120]], np.uint8)
    images = few[rng.integers(4, size=(9, 3, 6, 6))]
    found = moving.moving_grid(images, list("abcdefghi"))
    frames, _, _ = frames_of(found.gif, "RGB")
    scale, middle = 480 // 15, 480 // 30
    assert np.abs(frames[4, middle::scale, middle::scale][1:7, 1:7].astype(int) - images[4, 0]).max() < 6
    image = np.add.outer(np.arange(1000), np.arange(900)).astype(np.uint8)
    large = moving.moving_grid(np.broadcast_to(image[..., None], (2, 3, 1000, 900, 1)), ["a", "b"])
    frames, _, _ = frames_of(large.gif)
    assert large.shown == 1 and max(frames.shape[1:]) <= 480 + 40
    np.testing.assert_array_equal(frames[0, 1 : 1 + 334, 1 : 1 + 300], image[::3, ::3])  # 240 is the least width
    monkeypatch.setattr(moving, "MOST_BYTES", len(found.gif) // 2)
    fewer = moving.moving_grid(images, list("abcdefghi"))
    assert len(fewer.gif) <= moving.MOST_BYTES and fewer.frames == [0, 3, 5, 8] and found.frames == list(range(9))


@pytest.mark.parametrize(
    ("shape", "kind"), [((3,), "vectors of 3"), ((1,), "vectors of 1"), ((64, 2), "series"), ((4, 4, 4, 1), "volumes")]
)
def test_other_data_are_refused(shape: tuple[int, ...], kind: str) -> None:
    with pytest.raises(UserError, match=f"this run's samples are {kind}: leave it out"):
        path_to_keep(SimpleNamespace(shape=shape, config=whole_config({})), EM, 4)


def test_as_many_frames_as_there_are_steps_and_no_more_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of((2,), levels=None)
    steps = {None: FRAMES, 1: 2, 5: 6, 300: FRAMES}
    found = {count: path_to_keep(run, SimpleNamespace(steps=count), 10) for count in steps}
    assert {count: kept.frames for count, kept in found.items()} == steps
    monkeypatch.setattr("experiment.devices.memory.available", lambda: 100)
    with pytest.raises(UserError, match="leave out --gif"):
        path_to_keep(run, EM, 10)
