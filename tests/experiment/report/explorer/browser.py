"""A headless Chromium, driven over the pipes of its DevTools protocol: no package, no port."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"),
    "--remote-debugging-pipe",
)
# Chromium reads its protocol from file 3 and writes it to file 4.
START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
SECONDS = 60  # for an answer


class Browser:
    """One tab. What it asked for and what its console said are kept in `requests` and `messages`."""

    def __init__(self) -> None:
        assert CHROMIUM is not None
        self.folder = tempfile.mkdtemp(prefix="noise-compass-chromium-")
        (to_read, self._to), (self._from, to_write) = os.pipe(), os.pipe()
        ours = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (to_read, to_write)]  # apart from 3 and 4
        started = [sys.executable, "-c", START, *map(str, ours), CHROMIUM, *FLAGS, f"--user-data-dir={self.folder}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(started, pass_fds=ours, **quiet)
        for end in (to_read, to_write, *ours):
            os.close(end)
        self._id, self._rest, self.session = 0, b"", None
        self.requests: list[str] = []
        self.messages: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)
        os.close(self._to)
        os.close(self._from)
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, method: str, **params: Any) -> Any:
        """The answer to one call of the protocol."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + SECONDS
        while True:
            answer = self._next(until)
            if answer.get("id") == self._id:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self._note(answer)

    def _next(self, until: float) -> Any:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            read = os.read(self._from, 1 << 20)
            assert read, "the browser is gone"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: Any) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.messages.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled":
            self.messages.append(str([value.get("value") for value in params["args"]]))
        elif method == "Log.entryAdded":
            self.messages.append(params["entry"]["text"])

    def js(self, expression: str) -> Any:
        """The value of an expression, awaited."""
        given = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", **given)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, path: Path, width: int = 1280, height: int = 900, **media: str) -> None:
        """Open a file, in a window of this size; media: such as prefers_color_scheme="dark"."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.requests.clear()
        self.messages.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def wait(self, condition: str, seconds: float = 30.0) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + seconds
        while not self.js(f"Boolean({condition})"):
            assert time.monotonic() < until, f"not in {seconds} s: {condition}"
            time.sleep(0.03)

    def settle(self) -> None:
        """Wait for two frames: what was asked to be drawn is there."""
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 0))))")

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """The left, top, width and height of an element, which is scrolled into view."""
        element = f"document.querySelector('{selector}')"
        self.js(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        self.settle()  # until then the mouse still meets what was there before
        return tuple(
            self.js(
                f"(({{left, top, width, height}}) => [left, top, width, height])({element}.getBoundingClientRect())"
            )
        )

    def mouse(self, kind: str, x: float, y: float, pressed: bool = False) -> None:
        self.call(
            "Input.dispatchMouseEvent",
            type=f"mouse{kind}",
            x=x,
            y=y,
            button="left" if pressed or kind != "Moved" else "none",
            buttons=int(pressed),
            clickCount=0 if kind == "Moved" else 1,
        )

    def click(self, selector: str, u: float = 0.5, v: float = 0.5) -> None:
        """Click at a share of an element's width and height."""
        self.drag(selector, [(u, v)])

    def drag(self, selector: str, places: list[tuple[float, float]]) -> None:
        """Press at the first place, in shares of an element's width and height, move over the others, let go."""
        left, top, width, height = self.box(selector)
        points = [(left + u * width, top + v * height) for u, v in places]
        self.mouse("Pressed", *points[0], pressed=True)
        for point in points[1:]:
            self.mouse("Moved", *point, pressed=True)
        self.mouse("Released", *points[-1])
        self.settle()

    def key(self, name: str, times: int = 1, shift: bool = False) -> None:
        """Press a key."""
        codes = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        text = {"Enter": "\r", " ": " "}.get(name)
        given = {"key": name, "code": "Space" if name == " " else name, "windowsVirtualKeyCode": codes[name]}
        given["modifiers"] = 8 if shift else 0
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", **given, **({"text": text} if text else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **given)
        self.settle()

    def set(self, selector: str, value: float) -> None:
        """Move a slider, as a script can."""
        self.js(
            f"(() => {{const e = document.querySelector('{selector}'); e.value = {value}; "
            "e.dispatchEvent(new Event('input', {bubbles: true}));})()"
        )
        self.settle()

    def read(self, section: str, name: str) -> str:
        """A read-out."""
        return self.js(f"document.querySelector('#{section} [data-read=\"{name}\"]').textContent").replace("−", "-")

    def screenshot(self, path: Path, selector: str) -> None:
        """A picture of an element."""
        self.box(selector)
        rectangle = self.js(
            f"(() => {{const b = document.querySelector('{selector}').getBoundingClientRect(); return {{x: b.left, "
            "y: b.top + scrollY, width: b.width, height: b.height, scale: 1};})()"
        )
        shot = self.call("Page.captureScreenshot", format="png", clip=rectangle, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
