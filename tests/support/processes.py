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

LOOPBACK = {f"{role}_BIND": "127.0.0.1" for role in ("COORDINATOR", "AGGREGATOR")}
ANY_PORT = {f"{role}_{port}": "0" for role in ("COORDINATOR", "AGGREGATOR") for port in ("PORT", "OPS_PORT", "INTERNAL_PORT")}


class Process:
    """One command. `ports` are its addresses by setting; `said(text)` waits for a line of its log."""

    def __init__(self, command: str, count: int, **settings: str) -> None:
        environ = {name: value for name, value in (LOOPBACK | ANY_PORT | settings).items() if name != "COORDINATOR_INTERNAL_PORT"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fedround", command],
            env=os.environ | environ | {"COORDINATOR_LOG_FORMAT": "json", "AGGREGATOR_LOG_FORMAT": "json"},
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: list[str] = []
        self._news = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()
        self.ports = {
            match[1]: match[2]
            for match in (self.said(rf"({port}): listening on .*, port (\d+)") for port in self._settings(command)[:count])
        }

    @staticmethod
    def _settings(command: str) -> list[str]:
        coordinator, aggregator = ["COORDINATOR_PORT", "COORDINATOR_OPS_PORT"], ["AGGREGATOR_PORT", "AGGREGATOR_OPS_PORT"]
        return {"coordinator": coordinator, "aggregator": [*aggregator, "AGGREGATOR_INTERNAL_PORT"]}.get(
            command, coordinator + aggregator
        )

    def said(self, pattern: str) -> re.Match[str]:
        """The first line of its log that `pattern` is found in."""

        def found() -> re.Match[str] | None:
            return next(filter(None, (re.search(pattern, line) for line in self._lines)), None)

        with self._news:
            match = self._news.wait_for(found, timeout=20)
            assert match is not None, f"it never said {pattern!r}: {self._lines}"
            return match

    def status(self, port: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[port]}/status", timeout=10) as answer:
            return json.load(answer)

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
    process = Process(command, 4, **settings)
    try:
        yield process
    finally:
        process.kill()
