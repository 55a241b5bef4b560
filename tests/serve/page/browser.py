"""A headless Chromium, driven over its own pipe by the DevTools protocol: no driver and no library needed."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in _NAMES if (found := shutil.which(name))), None)

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_TIMEOUT_S = 20.0


class Browser:
    """One tab. What goes wrong in it is kept in `problems`: errors of the console, exceptions, refused resources."""

    def __init__(self, process: subprocess.Popen[bytes], to_it: int, from_it: int) -> None:
        self.problems: list[str] = []
        self._process, self._to_it, self._from_it = process, to_it, from_it
        self._numbers = itertools.count(1)
        self._rest = b""
        self._session = ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, url: str, *, width: int = 1280, height: int = 900, is_dark: bool = False) -> None:
        self.resize(width, height)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=scheme)
        self._call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def resize(self, width: int, height: int) -> None:
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def eval(self, script: str) -> Any:
        """Value of a JavaScript expression; a promise is awaited."""
        said = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def wait(self, script: str, timeout_s: float = _TIMEOUT_S) -> None:
        """Wait until an expression is true, or is something."""
        end = time.monotonic() + timeout_s
        while not self.eval(f"!!({script})"):
            assert time.monotonic() < end, f"{script} never came; problems: {self.problems}; {self.text('body')[:3000]}"
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        return str(self.eval(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def fill(self, selector: str, text: str) -> None:
        """Type into a field, as a keyboard or an input method does."""
        self.eval(f"document.querySelector({json.dumps(selector)}).select()")
        self.eval(f"document.querySelector({json.dumps(selector)}).focus()")
        self._call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Press the left button in the middle of an element."""
        box = self.eval(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            "one.scrollIntoView({block: 'center'}); const box = one.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def upload(self, selector: str, path: Path) -> None:
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def screenshot(self, path: Path, *, is_whole: bool = False) -> None:
        shot = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=is_whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to_it, json.dumps(message).encode() + b"\0")
        while True:
            said = self._read()
            if said.get("id") == number:
                assert "error" not in said, (method, said["error"])
                result: dict[str, Any] = said["result"]
                return result
            self._note(said)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from_it], [], [], _TIMEOUT_S)
            assert ready, "the browser says nothing any more"
            data = os.read(self._from_it, 1 << 20)
            assert data, f"the browser has ended with {self._process.poll()}"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        said: dict[str, Any] = json.loads(line)
        return said

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(params["exceptionDetails"])[:2000])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.problems.append(json.dumps(params["args"])[:2000])
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")


def _high(end: int) -> int:
    """The same end under a number that is none of those the browser uses."""
    return fcntl.fcntl(end, fcntl.F_DUPFD, 10)


@contextlib.contextmanager
def browse(folder: Path) -> Iterator[Browser]:
    """Start a browser whose profile is in `folder`, and end it."""
    its_input, to_it = os.pipe()
    from_it, its_output = os.pipe()
    # It reads descriptor 3 and writes 4.
    place = (
        "import os, sys; ends = [int(end) for end in sys.argv[1:3]];"
        "os.dup2(ends[0], 3); os.dup2(ends[1], 4); os.execv(sys.argv[3], sys.argv[3:])"
    )
    ends = (_high(its_input), _high(its_output))
    command = [sys.executable, "-c", place, *map(str, ends), str(CHROMIUM), *_FLAGS]
    log = (folder / "chromium.log").open("wb")
    process = subprocess.Popen(
        [*command, f"--user-data-dir={folder / 'profile'}"],
        pass_fds=ends,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    for end in (its_input, its_output, *ends):
        os.close(end)
    try:
        yield Browser(process, to_it, from_it)
    finally:
        for end in (to_it, from_it):
            os.close(end)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()
