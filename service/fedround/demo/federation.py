"""`fedround demo`: a platform and its participants as processes on this machine."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPException
from pathlib import Path

import numpy as np

from fedround.demo import contest
from fedround.demo.view import Status, View
from fedround.errors import FedroundError
from fedround.http import client as http
from fedround.tensors import weights

FRAME = 0.1
"""Seconds between two requests for the status."""
PATIENCE = 120.0
"""Seconds without a completed round after which the demo fails."""
GRACE = 5.0
"""Seconds for all processes together to end before they are killed."""
LOG_LINES = 15
"""Number of lines to show of a failed process's log."""

PORTS = ("COORDINATOR_PORT", "COORDINATOR_OPS_PORT", "AGGREGATOR_PORT", "AGGREGATOR_OPS_PORT")


def show(silos: int, rounds: int, epochs: int) -> None:
    """Train, and show progress on standard output. Raises `FedroundError` if training does not complete."""
    # Each of these signals ends the demo and all its processes. `nohup` ignores SIGHUP.
    ends = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    former = {number: signal.signal(number, signal.default_int_handler) for number in ends}
    try:
        with tempfile.TemporaryDirectory(prefix="fedround-demo-") as logs, closing(Fleet(Path(logs))) as fleet:
            _show(fleet, View(sys.stdout, silos), silos, rounds, epochs)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _show(fleet: "Fleet", view: View, silos: int, rounds: int, epochs: int) -> None:
    urls = start_platform(fleet, silos, rounds)
    view.write(
        f"{silos} silos of house sales in Ames, Iowa, train one price model in {rounds} rounds.\n"
        f"Error: RMSE of log price on held-out sales, for the model that a round begins with.\n"
        f"Coordinator: {urls['COORDINATOR_OPS_PORT']}/status\n"
    )
    for index in range(silos):
        start_participant(fleet, urls["COORDINATOR_PORT"], index, silos, epochs)
    for status in statuses(fleet, urls["COORDINATOR_OPS_PORT"]):
        view.show(status)
    model, _ = http.fetch_model(urls["AGGREGATOR_OPS_PORT"])
    view.write(f"\n{contest.compare(np.asarray(weights.decode(model)), silos, rounds, epochs).table()}")


def start_platform(fleet: "Fleet", silos: int, rounds: int) -> dict[str, str]:
    """Start coordinator and aggregator in one process. Returns the URL of each port."""
    log = fleet.start(
        "platform",
        "platform",
        COORDINATOR_BIND="127.0.0.1",
        AGGREGATOR_BIND="127.0.0.1",
        COORDINATOR_ROUNDS=str(rounds),
        COORDINATOR_MIN_CLIENTS=str(silos),
        **dict.fromkeys(PORTS, "0"),
    )
    for _ in fleet.frames():
        urls = {name: f"http://127.0.0.1:{port}" for name, port in re.findall(r"(\w+): listening on .* (\d+)\n", log.read_text())}
        if urls.keys() == set(PORTS):
            break
    return urls


def start_participant(fleet: "Fleet", coordinator_url: str, index: int, silos: int, epochs: int) -> None:
    """Start the participant of silo `index`."""
    name = contest.name(index, silos)
    fleet.start(
        name,
        "participant",
        PARTICIPANT_CLASS="fedround.demo:HousePrices",
        PARTICIPANT_OPTIONS=json.dumps({"epochs": epochs}),
        PARTICIPANT_COORDINATOR_URL=coordinator_url,
        PARTICIPANT_NAME=name,
        PARTICIPANT_SHARD=f"{index}/{silos}",
        PARTICIPANT_OPS_BIND="127.0.0.1",
        PARTICIPANT_OPS_PORT="0",
        PARTICIPANT_DRAIN_TIMEOUT="1s",
    )


def statuses(fleet: "Fleet", url: str) -> Iterator[Status]:
    """Yield the coordinator's status repeatedly until training is complete."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    round, since = -1, time.monotonic()
    for _ in fleet.frames():
        if time.monotonic() - since > PATIENCE:
            raise FedroundError(f"no round was completed in {PATIENCE:.0f} s\n{fleet.log_tail('platform')}")
        try:
            with opener.open(f"{url}/status", timeout=GRACE) as response:
                status: Status = json.load(response)
        except (OSError, HTTPException):
            continue  # If the platform has ended, the next frame raises.
        yield status
        if status["state"] == "complete":
            return
        if status["round"] != round:
            round, since = status["round"], time.monotonic()


class Fleet:
    """The demo's processes, each with its log in a file. `close` ends them all."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: str, **environ: str) -> Path:
        """Start `fedround command` as the process `name`. Returns the path of its log."""
        log = self._logs / name
        with log.open("wb") as file:
            self._processes[name] = subprocess.Popen(  # noqa: S603 our own program
                [sys.executable, "-m", "fedround", command],
                env=_environment() | environ,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return log

    def frames(self) -> Iterator[None]:
        """Yield every `FRAME` seconds. Raises `FedroundError` if a process has failed, or the platform has ended."""
        while True:
            for name, process in self._processes.items():
                code = process.poll()
                if code or (code == 0 and name == "platform"):
                    raise FedroundError(f"{name} has ended, exit code {code}\n{self.log_tail(name)}")
            yield
            time.sleep(FRAME)

    def log_tail(self, name: str) -> str:
        """Return the end of a process's log."""
        lines = (self._logs / name).read_text(errors="replace").splitlines()
        return "\n".join(f"  {name}: {line}" for line in lines[-LOG_LINES:])

    def close(self) -> None:
        """End all processes: with SIGTERM, and after `GRACE` seconds with SIGKILL."""
        try:
            for process in self._processes.values():
                process.terminate()
            deadline = time.monotonic() + GRACE
            for process in self._processes.values():
                process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:
            for process in self._processes.values():
                process.kill()
                process.wait()


def _environment() -> dict[str, str]:
    """Return the environment of the processes: without the user's settings for fedround, and with one thread for each process."""
    ours = ("PARTICIPANT_", "COORDINATOR_", "AGGREGATOR_", "FEDROUND_")
    return {k: v for k, v in os.environ.items() if not k.startswith(ours)} | dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
    )
