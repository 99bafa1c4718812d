"""The slider that a notebook with a live kernel shows over its frames."""

import pytest

from experiment.plots.base import Picture, _live_slider

ipywidgets = pytest.importorskip("ipywidgets")  # an extra installs it


def test_the_slider_names_its_frame_whole() -> None:
    names = [f"log SNR = {value:.1f}" for value in (10, 2, -1.8, -9.9)]
    row, shown = _live_slider({name: Picture(name.encode()) for name in names}, "forward").children
    chosen, name = row.children
    assert list(chosen.options) == names and chosen.description == "forward"
    # Its own read-out has 80 pixels, in which -1.8 reads as -1.
    assert not chosen.readout
    for value in names:
        chosen.value = value
        assert name.value == value
    assert float(name.layout.width.removesuffix("ch")) > max(map(len, names))
    assert isinstance(shown, ipywidgets.Output)
