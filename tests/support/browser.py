"""A headless Chromium, controlled by the WebDriver protocol."""

import base64
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from support.tools import tool

# As root in a container, Chromium has no sandbox, and /dev/shm is small.
ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"]


class Browser:
    """A window. Scripts are bodies of functions."""

    def __init__(self, http: httpx.Client, path: str) -> None:
        self._http = http
        self._path = path

    def open(self, url: str) -> None:
        self._call("url", url=url)

    def run(self, script: str, *arguments: object) -> Any:
        """Return the result of a script."""
        return self._call("execute/sync", script=script, args=arguments)

    def run_async(self, script: str) -> Any:
        """Return the value that the script passes to its callback, its last argument."""
        return self._call("execute/async", script=script, args=[])

    def press(self, key: str) -> None:
        """Press a key, by its code point in WebDriver."""
        stroke = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self._call("actions", actions=[{"type": "key", "id": "keyboard", "actions": stroke}])

    def text(self, selector: str) -> str:
        text: str = self.run("return document.querySelector(arguments[0]).innerText", selector)
        return text

    def looks(self, *, width: int = 1280, height: int = 1000, scheme: str = "light") -> None:
        """Set the size of the window, and the user's preference for light or dark colours."""
        self._tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self) -> bytes:
        return base64.b64decode(_value(self._http.get(f"{self._path}/screenshot")))

    def _tell(self, command: str, **parameters: object) -> None:
        self._call("goog/cdp/execute", cmd=command, params=parameters)

    def _call(self, command: str, **message: object) -> Any:
        return _value(self._http.post(f"{self._path}/{command}", json=message))


def _value(answer: httpx.Response) -> Any:
    value = answer.json()["value"]
    assert answer.is_success, value
    return value


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser. Skip the test if there is no Chromium."""
    chromium = tool("chromium")
    driver = subprocess.Popen([tool("chromedriver"), "--port=0"], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    try:
        port = next(found[1] for line in driver.stdout if (found := re.search(r"started successfully on port (\d+)", line)))
        threading.Thread(target=driver.stdout.read, daemon=True).start()
        options = {"goog:chromeOptions": {"binary": chromium, "args": ARGUMENTS}}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http:
            session = _value(http.post("/session", json={"capabilities": {"alwaysMatch": options}}))["sessionId"]
            try:
                yield Browser(http, f"/session/{session}")
            finally:
                _value(http.delete(f"/session/{session}"))  # otherwise Chromium survives, and holds the driver's pipe
    finally:
        driver.terminate()
        driver.wait()
        driver.stdout.close()


def violations(window: Browser, axe: str) -> list[str]:
    """Return the rules of accessibility that the page breaks, with the elements. `axe`: the source of axe-core."""
    window.run(axe)
    found = window.run_async("const done = arguments[arguments.length - 1]; axe.run().then(done, done)")
    return [f"{v['id']}: {node['html']}" for v in found["violations"] for node in v["nodes"]]


def says(window: Browser, selector: str, text: str) -> Callable[[], bool]:
    """Return a condition: an element of the page contains a text."""
    return lambda: text in window.text(selector)
