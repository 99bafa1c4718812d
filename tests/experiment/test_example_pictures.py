"""Examples of every kind as pictures: nothing is left out without a word."""

import io

import numpy as np
import pytest
from PIL import Image

from experiment.plots.base import scatter
from experiment.plots.examples import grid
from experiment.plots.images import CHANNELS, SLICES, evenly, legend, pictures
from experiment.plots.limits import common_ranges

rng = np.random.default_rng(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_stay_as_they_are(channels: int) -> None:
    images = rng.integers(0, 256, (4, 5, 6, channels), np.uint8)
    np.testing.assert_array_equal(pictures(images), images)
    assert legend((5, 6, channels)) == ""


@pytest.mark.parametrize(("channels", "columns"), [(2, 2), (4, 2), (7, 3), (12, 3)])
def test_other_channels_are_pictures_of_their_own(channels: int, columns: int) -> None:
    images = rng.integers(0, 256, (2, 5, 6, channels), np.uint8)
    found = pictures(images)
    for channel in range(min(channels, CHANNELS)):
        top, left = channel // columns * 6, channel % columns * 7
        np.testing.assert_array_equal(found[:, top : top + 5, left : left + 6, 0], images[..., channel])
    told = f"the first {CHANNELS} of {channels}" if channels > CHANNELS else f"the {channels}"
    assert legend((5, 6, channels)) == f" ({told} channels row by row)"


@pytest.mark.parametrize("channels", [1, 3, 2])
def test_a_volume_is_a_row_of_slices(channels: int) -> None:
    volumes = rng.integers(0, 256, (2, 20, 3, 4, channels), np.uint8)
    found, slices = pictures(volumes), evenly(20, SLICES)
    assert len(slices) == SLICES and slices[0] == 0 and slices[-1] == 19
    for i, place in enumerate(slices):
        left = 5 * i
        if channels in (1, 3):
            np.testing.assert_array_equal(found[:, :, left : left + 4], volumes[:, place])
        else:
            for channel in range(channels):
                shown = found[:, 4 * channel : 4 * channel + 3, left : left + 4, 0]
                np.testing.assert_array_equal(shown, volumes[:, place, ..., channel])
    assert f"{SLICES} of 20 slices" in legend((20, 3, 4, channels))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_series_in_any_units_fill_their_panels(scale: float) -> None:
    series = scale * (5 + rng.normal(size=(4, 30, 2)))
    picture = np.asarray(Image.open(io.BytesIO(grid(series))).convert("RGB")).astype(int)
    blue = np.all(np.abs(picture - [0, 0x72, 0xB2]) < 12, axis=2)
    assert blue.any(axis=1).mean() > 0.5  # the lines reach over most of the height


def test_clouds_in_units_of_their_own_fill_their_panels() -> None:
    points = rng.normal([1000.0, 0.003], [200.0, 0.001], (2000, 2))
    (left, right), (low, high) = common_ranges([points])
    inside = (points > [left, low]) & (points < [right, high])
    assert inside.mean() > 0.99 and right - left < 10 * 200 and high - low < 10 * 0.001
    picture = np.asarray(Image.open(io.BytesIO(scatter({"x": points}, square=False))).convert("L"))
    dark = picture < 128
    assert dark.any(axis=0).mean() > 0.5 and dark.any(axis=1).mean() > 0.5


def test_an_outline_is_dashed_and_closed_behind_the_points() -> None:
    corners = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    cloud = np.concatenate([corners, np.full((400, 2), 1.0)])

    def picture(**outline: np.ndarray) -> np.ndarray:
        png = scatter({"x": cloud}, limit=2.0, **outline)  # type: ignore[arg-type]
        return np.asarray(Image.open(io.BytesIO(png)).convert("L")).astype(int)

    plain, outlined = picture(), picture(outline=corners)
    rows, columns = np.nonzero(np.abs(plain - outlined) > 40)
    for places, across in ((rows, columns), (columns, rows)):  # a side at each end, with gaps
        for side in (places.min(), places.max()):
            drawn = np.unique(across[np.abs(places - side) <= 1])
            assert 0.3 < len(drawn) / (np.ptp(across) + 1) < 0.95
    dark = plain < 60
    assert dark.any() and np.abs(plain - outlined)[dark].max() < 40  # the points are in front
