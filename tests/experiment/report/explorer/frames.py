"""How fast the page draws while its figures are dragged: `python -m tests.experiment.report.explorer.frames`.

Prints, at two widths, the time of the first paint, and of each figure the frames a second and the longest one while its
picture is dragged and its first slider is moved, for two seconds each.
"""

import os

from tests.experiment.report.explorer.browser import Browser
from tests.experiment.report.explorer.test_page import FIGURES, PAGE, loaded

MOVED = """(async (figure, dragged) => {
  const canvas = document.querySelector(`#${figure} canvas`);
  const slider = document.querySelector(`#${figure} input[type=range]`);
  if (!dragged && !slider) return null;
  const {left, top, width, height} = canvas.getBoundingClientRect();
  const send = (kind, i) => canvas.dispatchEvent(new PointerEvent(kind, {
    clientX: left + width * (.5 + .35 * Math.cos(i / 15)), clientY: top + height * (.5 + .3 * Math.sin(i / 11)),
    buttons: 1, pointerId: 1, bubbles: true}));
  canvas.setPointerCapture = () => {};
  const start = performance.now();
  let last = start, longest = 0, frames = 0;
  if (dragged) send('pointerdown', 0);
  while (last - start < 2000) {
    await new Promise(requestAnimationFrame);
    frames += 1;
    if (dragged) {
      send('pointermove', frames);
    } else {
      slider.value = +slider.min + (slider.max - slider.min) * (.5 + .5 * Math.sin(frames / 20));
      slider.dispatchEvent(new Event('input', {bubbles: true}));
    }
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
  }
  if (dragged) send('pointerup', frames);
  return [1000 * frames / (last - start), longest];
})"""


def measure() -> None:
    """Print the page's first paint and its frames a second."""
    browser = Browser()
    try:
        for width in (1280, 390):
            browser.open(PAGE, width, 900)
            loaded(browser)
            paint = browser.js("performance.getEntriesByName('first-contentful-paint')[0].startTime")
            print(f"{width} pixels: first paint after {paint:.0f} ms, at a load of {os.getloadavg()[0]:.1f}")
            for figure in FIGURES:
                browser.box(f"#{figure} canvas")
                for what, dragged in (("dragged", "true"), ("slider", "false")):
                    if found := browser.js(f"{MOVED}('{figure}', {dragged})"):
                        print(f"  {figure:10} {what:8} {found[0]:3.0f} frames a second, the longest {found[1]:.0f} ms")
    finally:
        browser.close()


if __name__ == "__main__":
    measure()
