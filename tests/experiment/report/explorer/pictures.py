"""The pictures of docs/explorer.md: `python -m tests.experiment.report.explorer.pictures` takes them of the page."""

import io
import tempfile
from pathlib import Path

from PIL import Image

from tests.experiment.report.explorer.browser import Browser
from tests.experiment.report.explorer.test_page import FIGURES, PAGE, loaded

WIDTH = 640


def take(folder: Path) -> None:
    """Write a picture of each figure, in light colours, without its controls."""
    browser = Browser()
    try:
        browser.open(PAGE, 1280, 1000, prefers_color_scheme="light")
        loaded(browser)
        browser.set("#compass-time", 0.35)
        browser.set("#guidance-scale", 3)
        browser.wait("document.querySelector('#guidance [data-read=sde-drawn]').textContent !== '…'")
        for name in FIGURES:
            wide = browser.js(f"document.querySelector('#{name}').classList.contains('wide')")
            with tempfile.TemporaryDirectory() as scratch:
                shot = Path(scratch) / "shot.png"
                browser.screenshot(shot, f"#{name} .panes" if wide else f"#{name} canvas")
                picture = Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")
            height = round(picture.height * WIDTH / picture.width)
            picture.resize((WIDTH, height), Image.Resampling.LANCZOS).save(folder / f"{name}.webp", quality=80)
    finally:
        browser.close()


if __name__ == "__main__":
    take(PAGE.parent)
