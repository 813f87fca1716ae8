"""A headless Chromium that is told what to do over a pipe: open a page, ask its DOM, take a picture.

with Browser() as browser:
    page = browser.open(path, width=1400, scheme="dark")
    page.evaluate("document.title"); page.requests; page.errors; page.picture()
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")


class Browser:
    """One browser process; pages are tabs of it."""

    def __init__(self) -> None:
        assert CHROMIUM is not None, "no Chromium at hand"
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        command = [
            CHROMIUM,
            *FLAGS,
            "--remote-debugging-pipe",
            f"--user-data-dir={self.profile.name}",
        ]
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.reader, self.writer = os.fdopen(ours_in, "rb"), os.fdopen(ours_out, "wb")
        self.number, self.listeners = 0, dict[str, Callable[[dict[str, Any]], None]]()
        self.buffer = b""

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.close()
        self.writer.close()
        self.profile.cleanup()

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """One command and its result; what happens meanwhile goes to the listener of its session."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        self.writer.write(
            json.dumps(message | ({"sessionId": session} if session else {})).encode()
        )
        self.writer.write(b"\0")
        self.writer.flush()
        number = self.number
        while True:
            answer = self.receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            read = os.read(self.reader.fileno(), 1 << 20)
            assert read, "the browser ended"
            self.buffer += read
        line, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(line)
        listener = self.listeners.get(message.get("sessionId", ""))
        if listener is not None and "method" in message:
            listener(message)
        return message

    def open(self, path: Path, width: int, scheme: str = "light", height: int = 900) -> "Page":
        """Load a file in a new tab of this width, under a colour scheme."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target)
        self.listeners[session] = page.listen
        for domain in ("Page", "Runtime", "Network", "Log", "Performance"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.call("Emulation.setEmulatedMedia", features=features)
        page.call("Page.navigate", url=path.resolve().as_uri())
        while not page.loaded:
            self.receive()
        return page


class Page:
    """A tab: `errors` of its console, `requests` beside its own file."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self.browser, self.session, self.target = browser, session, target
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.loaded = False

    def listen(self, message: dict[str, Any]) -> None:
        method, data = message["method"], message["params"]
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(data["exceptionDetails"])[:600])
        elif method == "Runtime.consoleAPICalled" and data["type"] in ("error", "warning"):
            self.errors.append(json.dumps(data["args"])[:600])
        elif method == "Log.entryAdded" and data["entry"]["level"] in ("error", "warning"):
            self.errors.append(data["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(data["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded = True

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, as data."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def busy_seconds(self) -> float:
        """Seconds that the page has kept its thread busy so far."""
        metrics = {m["name"]: m["value"] for m in self.call("Performance.getMetrics")["metrics"]}
        return float(metrics["TaskDuration"])

    def picture(self, height: int = 0) -> bytes:
        """A PNG of the page from its top, whole if no height is given."""
        if height:
            return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        size = self.evaluate("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        answer = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip
        )
        return base64.b64decode(answer["data"])

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self.target)
