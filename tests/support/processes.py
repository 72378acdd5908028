"""Commands of fedround as processes, with the ports that they log."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
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
PATH = {"PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")]))}
"""With it, processes find the classes of `support`."""


class Process:
    """A running command. `ports` are its addresses by setting. `said` waits for a line of its log.

    `through`: a command that executes it, for example with other limits.
    """

    def __init__(self, command: str, *, through: Sequence[str] = (), **settings: str) -> None:
        self._process = subprocess.Popen(
            [*through, sys.executable, "-m", "fedround", command],
            env=os.environ | LOOPBACK | ANY_PORT | JSON | PATH | settings,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: list[str] = []
        self._raw = ""
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.ports = {
            match[1]: match[2] for match in (self.said(rf"({port}): listening on .*, port (\d+)") for port in PORTS[command])
        }

    def said(self, pattern: str) -> re.Match[str]:
        """Return the first match of `pattern` in its log. Wait for it."""

        def found() -> re.Match[str] | None:
            return next(filter(None, (re.search(pattern, line) for line in self._lines)), None)

        with self._news:
            match = self._news.wait_for(found, timeout=60)
            assert match is not None, f"it never said {pattern!r}: {self._lines}"
            return match

    @property
    def ops(self) -> str:
        """The address of its first ops port, as in Prometheus' targets."""
        return f"127.0.0.1:{next(port for name, port in self.ports.items() if name.endswith('OPS_PORT'))}"

    def url(self, port: str) -> str:
        return f"http://127.0.0.1:{self.ports[port]}"

    def open(self, port: str, path: str, **headers: str) -> Any:
        """Send a request, and return the open response. Raises `OSError`."""
        return urllib.request.urlopen(urllib.request.Request(self.url(port) + path, headers=headers), timeout=10)

    def get(self, port: str, path: str, **headers: str) -> bytes:
        with self.open(port, path, **headers) as answer:
            body: bytes = answer.read()
        return body

    def status(self, port: str) -> Any:
        return json.loads(self.get(port, "/status"))

    def probe(self, path: str, port: str = "") -> tuple[int, Any]:
        """Return the status and the JSON of a probe. `port`: the setting of an ops port, by default the first."""
        port = port or next(name for name in self.ports if name.endswith("OPS_PORT"))
        try:
            return 200, json.loads(self.get(port, path))
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def end(self) -> int:
        """Send SIGTERM, and return its exit code."""
        self.send(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        return self._process.wait(30)

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    @property
    def ended(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """Its whole output, up to its end."""
        self._reader.join()
        return self._raw

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as log:
            for line in log:
                with self._news:
                    self._raw += line
                    self._lines.append(json.loads(line)["message"] if line.startswith("{") else line)
                    self._news.notify_all()


def fedround(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, without the settings of this environment."""
    program = [sys.executable, "-m", "fedround", *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(tuple(f"{role}_" for role in ROLES))}
    return subprocess.run(program, capture_output=True, text=True, env=inherited | PATH | environ, check=False, timeout=50)


def until(condition: Callable[[], object], within: float = 20.0) -> float:
    """Wait until a condition is true. Return how many seconds this took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within, "it never was"
        time.sleep(0.01)
    return time.monotonic() - began


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def at_work(command: Sequence[str], ready: str, log: Path, *, env: Mapping[str, str] | None = None) -> Iterator[None]:
    """Run another program within the block, after the URL `ready` has returned 200. `log` gets its output."""
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file, env=env) as process:

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            with suppress(OSError), urllib.request.urlopen(ready, timeout=10) as answer:
                return bool(answer.status == 200)
            return False

        try:
            until(answers, 60)
            yield
        finally:
            process.kill()


def children(pid: int) -> list[int]:
    """Return the child processes of `pid`. For a participant: its worker."""
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


@contextmanager
def running(command: str, *, through: Sequence[str] = (), **settings: str) -> Iterator[Process]:
    """Run a command within the block, and kill it at its end."""
    process = Process(command, through=through, **settings)
    try:
        yield process
    finally:
        process.kill()


def joining(coordinator: Process, cls: str, options: Mapping[str, object] = {}, **settings: str) -> dict[str, str]:
    """The settings of a participant whose class is one of `support`."""
    return {
        "PARTICIPANT_COORDINATOR_URL": coordinator.url("COORDINATOR_PORT"),
        "PARTICIPANT_CLASS": f"support.{cls}",
        "PARTICIPANT_OPTIONS": json.dumps(options),
        **settings,
    }


def kept_in(directory: Path) -> dict[str, str]:
    """The data directories of a platform."""
    return {"COORDINATOR_DATA_DIR": str(directory / "coordinator"), "AGGREGATOR_DATA_DIR": str(directory / "aggregator")}


def beside(aggregator: Process) -> dict[str, str]:
    """Return the coordinator's settings for an aggregator."""
    return {
        "COORDINATOR_AGGREGATOR_URL": aggregator.url("AGGREGATOR_PORT"),
        "COORDINATOR_AGGREGATOR_INTERNAL_URL": aggregator.url("AGGREGATOR_INTERNAL_PORT"),
    }


@contextmanager
def two_services(**settings: str) -> Iterator[tuple[Process, Process]]:
    """Run a coordinator and its aggregator as two processes that are in contact."""
    with running("aggregator", **settings) as aggregator, running("coordinator", **beside(aggregator), **settings) as coordinator:
        coordinator.said("in contact with the aggregator")
        yield coordinator, aggregator
