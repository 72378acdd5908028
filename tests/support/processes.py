"""Commands of fedround as processes, by the ports that they say they listen on."""

import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ROLES = ("PARTICIPANT", "COORDINATOR", "AGGREGATOR")
LOOPBACK = {"PARTICIPANT_OPS_BIND": "127.0.0.1", "COORDINATOR_BIND": "127.0.0.1", "AGGREGATOR_BIND": "127.0.0.1"}
PORTS = {
    "participant": ["PARTICIPANT_OPS_PORT"],
    "coordinator": ["COORDINATOR_PORT", "COORDINATOR_OPS_PORT"],
    "aggregator": ["AGGREGATOR_PORT", "AGGREGATOR_OPS_PORT", "AGGREGATOR_INTERNAL_PORT"],
    "platform": ["COORDINATOR_PORT", "COORDINATOR_OPS_PORT", "AGGREGATOR_PORT", "AGGREGATOR_OPS_PORT"],
}
ANY_PORT = {port: "0" for ports in PORTS.values() for port in ports}
JSON = {f"{role}_LOG_FORMAT": "json" for role in ROLES}


class Process:
    """One command. `ports` are its addresses by setting; `said(text)` waits for a line of its log."""

    def __init__(self, command: str, **settings: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fedround", command],
            env=os.environ | LOOPBACK | ANY_PORT | JSON | settings,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: list[str] = []
        self._news = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()
        self.ports = {
            match[1]: match[2] for match in (self.said(rf"({port}): listening on .*, port (\d+)") for port in PORTS[command])
        }

    def said(self, pattern: str) -> re.Match[str]:
        """The first line of its log that `pattern` is found in."""

        def found() -> re.Match[str] | None:
            return next(filter(None, (re.search(pattern, line) for line in self._lines)), None)

        with self._news:
            match = self._news.wait_for(found, timeout=20)
            assert match is not None, f"it never said {pattern!r}: {self._lines}"
            return match

    def url(self, port: str) -> str:
        return f"http://127.0.0.1:{self.ports[port]}"

    def get(self, port: str, path: str, **headers: str) -> bytes:
        with urllib.request.urlopen(urllib.request.Request(self.url(port) + path, headers=headers), timeout=10) as answer:
            body: bytes = answer.read()
        return body

    def status(self, port: str) -> Any:
        return json.loads(self.get(port, "/status"))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as log:
            for line in log:
                with self._news:
                    self._lines.append(json.loads(line)["message"] if line.startswith("{") else line)
                    self._news.notify_all()


@contextmanager
def running(command: str, **settings: str) -> Iterator[Process]:
    """A command at work within the block; killed at its end."""
    process = Process(command, **settings)
    try:
        yield process
    finally:
        process.kill()
