"""What the report's script does, in a real browser: each frame and each number is reached by mouse and by keyboard."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiment.plots.evaluation import quality_bars
from experiment.plots.strips import denoising_strip
from experiment.report.document import Figure, Places
from experiment.report.page import SCRIPT, figure_of, page_of
from tests.experiment.report.explorer.browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the report is driven in Chromium, which is not there")

TIMES = [(1 - 0.12 * i, 50 * 0.3**i) for i in range(9)]
FRAMES = [f"frame {i} <b>" for i in range(9)]
BARS = ["em: 0.2", "ode & <i>co</i>: 0.4", "em: 0.5", "ode: 0.1"]


def figures() -> list[Figure]:
    """Bars, the strip of images, and the strip of a cloud."""
    rng = np.random.default_rng(0)
    metrics = {key: SimpleNamespace(label=key, origin=0.0) for key in "mk"}
    none = SimpleNamespace(mean=None, sd=None, values=[])
    samplers = {
        name: SimpleNamespace(nfe=10.0, metrics={key: SimpleNamespace(mean=mean, sd=None, values=[]) for key in "mk"})
        for name, mean in (("em", 0.2), ("ode", 0.4))
    }
    drawn = [
        ("bars", BARS, lambda narrow: quality_bars(samplers, metrics, dict.fromkeys("mk", none), narrow=narrow)),
        *(
            ("frames", FRAMES, lambda narrow, path=path: denoising_strip(path, TIMES, narrow=narrow))
            for path in (rng.uniform(-1, 1, (9, 5, 4, 4, 1)), rng.normal(size=(9, 40, 2)))
        ),
    ]
    found = []
    for kind, texts, draw in drawn:
        wide, narrow = draw(False), draw(True)
        places = Places(kind, texts, wide.places, narrow.places)  # type: ignore[arg-type]  # mypy sees two strings
        found.append(Figure("", "", f"the {kind}", wide, narrow=narrow, places=places))
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Figure]]:
    path, found = tmp_path_factory.mktemp("page") / "report.html", figures()
    script = f"<script>{SCRIPT.read_text()}</script>"
    path.write_text(page_of("A report", "", [("Pictures", "".join(map(figure_of, found)))], script))
    return path, found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    started = Browser()
    yield started
    started.close()


def opened(browser: Browser, path: Path, *size: int, **media: str) -> None:
    browser.open(path, *size, **media)
    browser.wait("document.querySelectorAll('.scrub').length === 2 && document.querySelectorAll('.bar').length === 4")
    browser.wait("[...document.querySelectorAll('output')].every((told) => told.textContent)")


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def is_shown(browser: Browser, figure: Figure, which: int, frame: int) -> None:
    """Assert that the canvas shows this frame of the strip, and its words beside it."""
    scrub = f"document.querySelectorAll('.scrub')[{which}]"
    url = browser.js(f"{scrub}.querySelector('canvas').toDataURL()")
    canvas, strip = pixels(base64.b64decode(url.partition(",")[2])), pixels(figure.png)
    assert figure.places is not None
    boxes = figure.places.wide[frame]
    scale = 1 if len(boxes) > 1 else 2
    _, _, width, height = figure.places.wide[-1][0]
    for i, (left, top, w, h) in enumerate(boxes):
        start = scale * i * (width + 8)
        part = canvas[: scale * height, start : start + scale * width]
        there = Image.fromarray(strip[top : top + h, left : left + w].astype(np.uint8))
        expected = np.asarray(there.resize((scale * width, scale * height))).astype(int)
        assert np.abs(part - expected).mean() < 6  # where two are not of one size, edges are smoothed
    value = f"{scrub}.querySelector('input').getAttribute('aria-valuetext')"
    assert browser.js(f"{scrub}.querySelector('output').textContent") == browser.js(value) == FRAMES[frame]


@pytest.mark.parametrize(
    ("which", "width"), [(0, 1280), (1, 1280), (0, 390)], ids=["images", "cloud", "images, narrow"]
)
def test_the_slider_shows_the_frame_by_keyboard_and_by_mouse(
    browser: Browser, page: tuple[Path, list[Figure]], which: int, width: int
) -> None:
    path, found = page
    opened(browser, path, width)
    figure = found[1 + which]
    is_shown(browser, figure, which, 8)
    browser.js(f"document.querySelectorAll('.scrub input')[{which}].focus()")
    browser.key("ArrowLeft", times=3)
    is_shown(browser, figure, which, 5)
    browser.js(f"document.querySelectorAll('.scrub input')[{which}].id = 'driven'")
    browser.click("#driven", 0.01)
    is_shown(browser, figure, which, 0)
    assert browser.messages == [] and all(url.startswith(("file:", "data:")) for url in browser.requests)


def test_the_frames_play_to_the_last_unless_motion_is_unwelcome(
    browser: Browser, page: tuple[Path, list[Figure]]
) -> None:
    path, found = page
    opened(browser, path, prefers_reduced_motion="reduce")
    shown = "[...document.querySelectorAll('.row button')].filter((b) => getComputedStyle(b).display !== 'none').length"
    assert browser.js(shown) == 0
    opened(browser, path)
    assert browser.js(shown) == 2
    browser.set(".scrub input", 6)
    browser.click(".row button")
    assert browser.js("document.querySelector('.row button').textContent") == "Stop"
    browser.wait("document.querySelector('.row button').textContent === 'Play'")
    is_shown(browser, found[1], 0, 8)


@pytest.mark.parametrize("width", [1280, 390])
def test_bars_tell_their_numbers_under_the_pointer_and_the_focus(
    browser: Browser, page: tuple[Path, list[Figure]], width: int
) -> None:
    path, found = page
    opened(browser, path, width)
    places = found[0].places
    assert places is not None
    boxes, png = (places.wide, found[0].png) if width > 640 else (places.narrow, found[0].narrow or b"")
    of_width, of_height = Image.open(io.BytesIO(png)).size
    tip = "(() => {const tip = document.querySelector('.tip'); return tip.hidden ? '' : tip.textContent;})()"
    assert browser.js(tip) == "" and browser.js("document.documentElement.scrollWidth") <= width
    left, top, wide, high = browser.box("[data-bars] img")
    for ((x, y, w, h),), text in zip(boxes, BARS, strict=True):
        browser.mouse("Moved", left + (x + w / 2) / of_width * wide, top + (y + h / 2) / of_height * high)
        assert browser.js(tip) == text
    browser.mouse("Moved", left + 1, top + 1)
    assert browser.js(tip) == ""
    browser.key("Tab")
    assert browser.js(tip) == BARS[0]
    browser.key("ArrowRight", times=3)
    assert browser.js(tip) == BARS[3]
    browser.key("ArrowRight")
    browser.key("ArrowDown")
    assert browser.js(tip) == browser.js("document.activeElement.getAttribute('aria-label')") == BARS[1]
    assert browser.js("[...document.querySelectorAll('.bar')].filter((bar) => bar.tabIndex === 0).length") == 1
    browser.key("Tab")  # the next stop is the first slider's
    assert browser.js(tip) == "" and browser.js("document.activeElement.closest('.scrub') !== null")
    assert browser.messages == []


def test_without_script_nothing_is_added(browser: Browser, page: tuple[Path, list[Figure]]) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page[0])
        assert browser.js("document.querySelectorAll('.scrub, .bar, .over, .tip').length") == 0
        assert browser.js("[...document.images].map((image) => image.naturalWidth > 300)") == [True] * 3
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
