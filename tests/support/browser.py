"""Debian's Chromium without a screen, driven by its own DevTools protocol: a page, scripts in it, keys, a picture."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import websocket

from tests.support.polling import wait_until

PROGRAM = "chromium"
START_S = 60.0
"""A busy machine with two cores."""
KEYS = {"Escape": 27, "Tab": 9, "Enter": 13}


class Browser:
    """One browser with one page. `directory`: a new one of its own."""

    def __init__(self, directory: Path) -> None:
        program = shutil.which(PROGRAM)
        assert program, "Debian's package chromium is missing: tools/debian-packages long"
        self._process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--no-sandbox",  # the tests are root
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-crash-reporter",
                "--disable-background-networking",
                "--remote-debugging-port=0",
                f"--user-data-dir={directory}",
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        found = directory / "DevToolsActivePort"
        wait_until(
            lambda: found.exists() and found.read_text().count("\n") > 0,
            "Chromium to start",
            timeout_s=START_S,
        )
        port = found.read_text().splitlines()[0]

        def pages() -> list[str]:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
                return [each["webSocketDebuggerUrl"] for each in json.load(answer) if each["type"] == "page"]

        wait_until(pages, "Chromium's page", timeout_s=START_S)
        self._socket = websocket.create_connection(pages()[0], timeout=60, suppress_origin=True)
        self._numbers = itertools.count(1)
        self.messages: list[str] = []
        """What the page's console and the browser itself complained about."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(30)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            heard = json.loads(self._socket.recv())
            self._note(heard)
            if heard.get("id") == number:
                assert "error" not in heard, (method, heard["error"])
                result: dict[str, Any] = heard["result"]
                return result

    def _note(self, heard: dict[str, Any]) -> None:
        parameters = heard.get("params", {})
        if heard.get("method") == "Log.entryAdded":
            self.messages.append(parameters["entry"]["text"])
        elif heard.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.messages.append(details.get("exception", {}).get("description", details["text"]))
        elif heard.get("method") == "Page.javascriptDialogOpening":
            self.messages.append(f"a dialog: {parameters['message']}")

    def open(self, url: str, headers: dict[str, str] | None = None) -> None:
        self.call("Network.setExtraHTTPHeaders", headers=headers or {})
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, (script, answer["exceptionDetails"])
        return answer["result"].get("value")

    def until(self, script: str, what: str, timeout_s: float = 30.0) -> None:
        wait_until(lambda: bool(self.run(script)), what, timeout_s=timeout_s)

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)}).textContent"))

    def press(self, key: str) -> None:
        """A key with a name, or a character."""
        code = {"windowsVirtualKeyCode": KEYS[key]} if key in KEYS else {"text": key}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **code)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def size(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def dark(self, on: bool) -> None:
        scheme = "dark" if on else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
