"""The page in a real browser: nothing is asked for, each figure answers the mouse, the keyboard and a script."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from experiment.report.explorer.page import explorer_page, figure_eight, mixture_of, script
from sde_lib import VP, CosineVP, ExactScore, GaussianMixture, RectifiedFlow
from sde_lib.inverse import Linear
from tests.commands import ROOT, fresh
from tests.experiment.report.explorer.browser import CHROMIUM, Browser

PAGE = ROOT / "docs" / "explorer" / "index.html"
FIGURES = ("forward", "reverse", "compass", "field", "paths", "schedules", "guidance", "posterior")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="the page is driven in Chromium, which is not there")
SDE = VP()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def eight() -> GaussianMixture:
    return mixture_of(figure_eight())


@pytest.fixture(scope="module")
def opened(chromium: Browser) -> Browser:
    """The page, with all that it computes at first done."""
    chromium.open(PAGE)
    loaded(chromium)
    return chromium


def loaded(browser: Browser) -> None:
    """Wait until all that the page computes at first is there."""
    for section, name in (("paths", "ode-shares"), ("guidance", "ode-drawn"), ("posterior", "drawn-mean")):
        browser.wait(f"!['', '…'].includes(document.querySelector('#{section} [data-read=\"{name}\"]').textContent)")


def floats(text: str) -> list[float]:
    """The numbers in a read-out."""
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", text.replace(",", " "))]


def place(x: float, y: float) -> tuple[float, float]:
    """A point of the plane [-3, 3]² in shares of the canvas."""
    return float(x + 3) / 6, float(3 - y) / 6


def test_the_committed_page_is_what_the_command_writes() -> None:
    assert PAGE.read_text() == explorer_page("../../notebooks"), (
        "run python -m experiment.explorer --out=docs/explorer/index.html"
    )


def test_the_page_is_one_small_file_that_names_no_other() -> None:
    page = PAGE.read_text()
    assert len(page.encode()) < 150_000
    assert not re.findall(r"\bsrc=|@import|url\(|https?:|\bfetch\(|\bimport\b|XMLHttpRequest", page)
    links = re.findall(r'href="([^"#][^"]*)"', page)
    assert len([link for link in links if link.endswith(".ipynb")]) == len(FIGURES)
    assert all((PAGE.parent / link).is_file() for link in links if link != "data:,")


def test_the_command_writes_the_page_with_links_that_lead_to_the_notebooks(tmp_path: Path) -> None:
    done = fresh("-m", "experiment.explorer", f"--out={tmp_path / 'new' / 'page.html'}")
    assert done.status == 0, done.err
    page = (tmp_path / "new" / "page.html").read_text()
    links = re.findall(r'href="([^"]*)/4_forward', page)
    assert page == explorer_page(links[0])
    assert (tmp_path / "new" / links[0]).resolve() == ROOT / "notebooks"


def test_modules_are_laid_in_their_order_without_import_or_export() -> None:
    text = script()
    assert text.index("const $compass =") < text.index("const $stage =") < text.index("const $main =")
    assert not re.search(r"^\s*(import|export) ", text, re.M)


@needs_browser
def test_nothing_is_asked_for_and_nothing_said(opened: Browser) -> None:
    assert opened.requests == [PAGE.resolve().as_uri()]
    assert opened.messages == []
    assert opened.js("document.querySelectorAll('section.figure').length") == len(FIGURES)


@needs_browser
def test_the_first_paint_comes_at_once(opened: Browser) -> None:
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    assert opened.js(paint) < 3000  # below a second where nothing else runs: 150 to 350 ms


@needs_browser
def test_forward(opened: Browser) -> None:
    for t in (0.05, 0.2, 1.0):
        opened.set("#forward-time", t)
        alpha, sigma = SDE.alpha(t), SDE.sigma(t)
        for name, expected in (("alpha", alpha), ("sigma", sigma), ("snr", SDE.log_snr(t))):
            assert abs(floats(opened.read("forward", name))[0] - expected) < 0.006, (t, name)
        spread, exact = floats(opened.read("forward", "spread")), floats(opened.read("forward", "exact"))
        assert abs(spread[0] / exact[0] - 1) < 0.05
    opened.set("#forward-time", 0.2)
    opened.drag("#forward canvas", [place(0, 0), place(1, 1), place(-1.5, 0.5)])
    alpha = SDE.alpha(0.2)
    found = floats(opened.read("forward", "cloud"))
    np.testing.assert_allclose(found, [-1.5 * alpha, 0.5 * alpha, SDE.sigma(0.2)], atol=0.02)


@needs_browser
def test_reverse(opened: Browser) -> None:
    for method in ("sde", "ode"):
        opened.click(f"#reverse input[value={method}]")
        opened.set("#reverse-step", 120)
        opened.wait("document.querySelector('#reverse [data-read=time]').textContent === '0.001'")
        ours, data = floats(opened.read("reverse", "apart"))[0], floats(opened.read("reverse", "forward"))[0]
        assert abs(ours / data - 1) < 0.25 and ours < 0.06
        opened.set("#reverse-step", 60)
        ours, data = floats(opened.read("reverse", "apart"))[0], floats(opened.read("reverse", "forward"))[0]
        assert abs(ours / data - 1) < 0.25 and ours > 0.2
    opened.set("#reverse-step", 120)
    opened.click("#reverse canvas", *place(1.2, 0.9))
    chosen = floats(opened.read("reverse", "place"))
    assert np.hypot(chosen[0] - 1.2, chosen[1] - 0.9) < 0.3
    opened.click("#reverse button:nth-of-type(2)")
    opened.wait("document.querySelector('#reverse [data-read=time]').textContent === '0.001'")
    assert floats(opened.read("reverse", "place")) != chosen


@needs_browser
def test_compass(opened: Browser, eight: GaussianMixture) -> None:
    t, x = 0.3, np.array([[-0.8, 1.4]], np.float32)
    opened.set("#compass-time", t)
    opened.set("#compass-accuracy", 50)
    opened.click("#compass canvas", *place(*x[0]))
    score = np.asarray(ExactScore(eight, SDE)(x, t))[0]
    alpha, sigma = SDE.alpha(t), SDE.sigma(t)
    expected = {
        "score": score,
        "noise": -sigma * score,
        "guess": (x[0] + sigma**2 * score) / alpha,
        "said": 0.5 * score - 0.5 * x[0],
    }
    for name, value in expected.items():
        np.testing.assert_allclose(floats(opened.read("compass", name)), value, atol=0.05, err_msg=name)
    half = floats(opened.read("compass", "apart"))[0]
    opened.set("#compass-accuracy", 100)
    assert floats(opened.read("compass", "apart"))[0] < min(0.15, half)
    opened.set("#compass-accuracy", 0)
    np.testing.assert_allclose(floats(opened.read("compass", "end")), x[0], atol=0.02)


@needs_browser
def test_field(opened: Browser, eight: GaussianMixture) -> None:
    t, x = 0.25, np.array([[0.5, -1.0]], np.float32)
    opened.set("#field-time", t)
    opened.drag("#field canvas", [place(-2, -2), place(*x[0])])
    for name, sde in (("vp", SDE), ("cosine", CosineVP()), ("flow", RectifiedFlow())):
        opened.click(f"#field input[value={name}]")
        noised = eight.at(sde, t)
        score = np.asarray(noised.score(x))[0]
        assert abs(floats(opened.read("field", "alpha"))[0] - sde.alpha(t)) < 0.001
        np.testing.assert_allclose(floats(opened.read("field", "score")), score, atol=0.1)
        assert abs(floats(opened.read("field", "length"))[0] - np.hypot(*score)) < 0.1
        assert abs(floats(opened.read("field", "density"))[0] - float(noised.log_prob(x)[0])) < 0.05


@needs_browser
def test_paths(opened: Browser) -> None:
    before = opened.read("paths", "sde-crossings")
    opened.click("#paths button")
    opened.wait(f"!['…', '{before}'].includes(document.querySelector('#paths [data-read=sde-crossings]').textContent)")
    assert opened.read("paths", "ode-crossings") == "0"
    assert floats(opened.read("paths", "sde-crossings").replace(",", ""))[0] > 1000
    for name in ("sde", "ode"):
        shares = np.array(floats(opened.read("paths", f"{name}-shares").replace("·", " ")))
        assert 0.5 * np.abs(shares - [0.5, 0.2, 0.3]).sum() < 0.06  # they are shown to a hundredth
    opened.drag("#paths figure:nth-of-type(2) canvas", [(0.5, 0.5), (0.25, 0.25)])
    t, x = floats(opened.read("paths", "place"))
    assert abs(t - (1 - 0.25 * 1.16)) < 0.02 and abs(x - 1.6) < 0.05


@needs_browser
def test_schedules(opened: Browser) -> None:
    opened.set("#schedules-time", 0.2)
    assert [opened.read("schedules", f"{name}-left") for name in ("vp", "cosine")] == ["0.658", "0.899"]
    opened.drag("#schedules canvas", [(0.5, 0.5), (0.7, 0.5)])
    t = opened.js("document.querySelector('#schedules-time').valueAsNumber")
    assert abs(t - (0.7 * 1.25 - 0.17)) < 0.02
    for name, sde in (("vp", SDE), ("cosine", CosineVP())):
        assert abs(floats(opened.read("schedules", f"{name}-left"))[0] - sde.alpha(t) ** 2) < 0.001
        assert abs(floats(opened.read("schedules", f"{name}-snr"))[0] - sde.log_snr(t)) < 0.01


@needs_browser
def test_guidance(opened: Browser) -> None:
    for g, ode, sde in ((2, 0.0625, 0.1094), (3, 0.0156, 0.0666)):
        opened.set("#guidance-scale", g)
        opened.wait("document.querySelector('#guidance [data-read=sde-drawn]').textContent !== '…'")
        for name, exact in (("ode", ode), ("sde", sde)):
            assert floats(opened.read("guidance", f"{name}-variance")) == [exact]
            assert abs(floats(opened.read("guidance", f"{name}-drawn"))[0] / exact - 1) < 0.15
    np.testing.assert_allclose(floats(opened.read("guidance", "tilted-variance")), 0.1)


@needs_browser
def test_posterior(opened: Browser, eight: GaussianMixture) -> None:
    opened.set("#posterior-angle", 60)
    opened.set("#posterior-noise", 0.3)
    opened.drag("#posterior canvas", [place(0, 0), place(1.0, 0.5)])
    a = np.array([np.cos(np.pi / 3), np.sin(np.pi / 3)], np.float32)
    y = floats(opened.read("posterior", "y"))[0]
    assert abs(y - a @ [1.0, 0.5]) < 0.02
    posterior, log_evidence = eight.observe(Linear(a[None]), np.array([y], np.float32), 0.3)
    assert abs(floats(opened.read("posterior", "evidence"))[0] - float(log_evidence)) < 0.05
    np.testing.assert_allclose(floats(opened.read("posterior", "mean")), posterior.mean(), atol=0.03)
    exact = np.sqrt(np.trace(np.asarray(posterior.covariance())))
    assert abs(floats(opened.read("posterior", "spread"))[0] - exact) < 0.02
    drawn = {}
    for method in ("exact", "matching", "dps"):
        opened.click(f"#posterior input[value={method}]")
        opened.wait("document.querySelector('#posterior [data-read=drawn-spread]').textContent !== '…'")
        drawn[method] = floats(opened.read("posterior", "drawn-spread"))[0]
    assert abs(drawn["exact"] / exact - 1) < 0.15
    assert drawn["dps"] != drawn["matching"]


@needs_browser
def test_the_keyboard_alone_reaches_and_moves_everything(opened: Browser) -> None:
    opened.js("document.activeElement.blur(); scrollTo(0, 0)")
    wanted = (
        "[...document.querySelectorAll('a[href], button, input[type=range], canvas[tabindex]')].length + "
        "new Set([...document.querySelectorAll('input[type=radio]')].map((e) => e.name)).size"
    )
    seen = []
    mark = "(() => {const e = document.activeElement; e.dataset.mark ??= Math.random(); return e.dataset.mark;})()"
    for _ in range(opened.js(wanted)):
        opened.key("Tab")
        seen.append(opened.js(mark))
    assert len(set(seen)) == opened.js(wanted)
    readings = {
        "forward": "cloud",
        "reverse": "place",
        "compass": "guess",
        "field": "place",
        "paths": "place",
        "schedules": "vp-left",
        "posterior": "y",
    }
    for section, name in readings.items():
        before = opened.read(section, name)
        opened.js(f"document.querySelector('#{section} canvas').focus()")
        opened.key("ArrowRight", 2, shift=True)
        assert opened.read(section, name) != before, section
        opened.key("ArrowUp")
    opened.js("document.querySelector('#guidance-scale').focus()")
    before = opened.read("guidance", "ode-variance")
    opened.key("ArrowLeft", 3)
    assert opened.read("guidance", "ode-variance") != before
    opened.js("document.querySelector('#field input:checked').focus()")
    opened.key("ArrowRight")
    assert opened.js("document.activeElement.checked")
    assert opened.messages == []


@needs_browser
def test_every_picture_and_control_has_a_name(opened: Browser) -> None:
    unnamed = (
        "[...document.querySelectorAll('canvas, input, button')].filter((e) => !(e.getAttribute('aria-label') || "
        "e.textContent.trim() || (e.labels && e.labels.length))).length"
    )
    assert opened.js(unnamed) == 0
    assert opened.js("document.documentElement.lang") == "en"


@needs_browser
def test_play_moves_and_stops(opened: Browser) -> None:
    opened.set("#forward-time", 0)
    opened.click("#forward button")
    opened.wait("document.querySelector('#forward-time').valueAsNumber > 0.05")
    assert opened.js("document.querySelector('#forward button').textContent") == "Stop"
    opened.click("#forward button")
    stopped = opened.js("document.querySelector('#forward-time').valueAsNumber")
    opened.settle()
    assert 0.05 < stopped < 1
    assert opened.js("document.querySelector('#forward-time').valueAsNumber") == stopped


@needs_browser
def test_a_telephone_in_the_dark_without_motion(chromium: Browser, opened: Browser) -> None:
    light = opened.js("getComputedStyle(document.body).backgroundColor")
    chromium.open(PAGE, 360, 740, prefers_color_scheme="dark", prefers_reduced_motion="reduce")
    chromium.wait("document.querySelector('#posterior [data-read=\"y\"]').textContent")
    assert chromium.js("getComputedStyle(document.body).backgroundColor") != light
    assert chromium.js("document.documentElement.scrollWidth") <= 360
    beyond = (
        "[...document.querySelectorAll('canvas, input, button, output, dd, .eq')].filter((e) => {const b = "
        "e.getBoundingClientRect(); return b.left < 0 || b.right > 360 || b.width === 0;}).length"
    )
    assert chromium.js(beyond) == 0
    # Play is the end at once, and nothing moves on the way.
    chromium.js("window.moves = 0; document.querySelector('#forward output').textContent")
    chromium.js(
        "new MutationObserver((all) => (window.moves += all.length)).observe(document.querySelector('#forward output'),"
        " {childList: true})"
    )
    chromium.click("#forward button")
    assert chromium.js("document.querySelector('#forward-time').valueAsNumber") == 1
    chromium.settle()
    assert chromium.js("window.moves") == 1
    assert chromium.js("document.querySelector('#forward button').textContent") == "Play"
    # Another scheme is drawn anew without loading the page again.
    pixels = "document.querySelector('#field canvas').toDataURL()"
    dark = chromium.js(pixels)
    chromium.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    chromium.settle()
    assert chromium.js(pixels) != dark
    assert chromium.messages == []
