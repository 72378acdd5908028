"""Platforms and participants as processes, and measurements of them from Linux."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from bench.model import expected

from fedround.http.client import fetch_model
from fedround.tensors.weights import decode
from support import venvs
from support.processes import LOOPBACK, Process, beside

ROOT = Path(__file__).parent.parent
MB = 1_000_000
TICKS = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """The result of a case is wrong."""


def rss(pid: int, *, peak: bool = False) -> float:
    """Return the sum of the resident memory of a process and its children, or of their peaks, in MB."""
    field = "VmHWM" if peak else "VmRSS"
    return sum(_kilobytes(one, "status", field) for one in family(pid)) * 1024 / MB


def pss(pid: int) -> float:
    """Return the proportional memory (PSS) of a process and its children, in MB."""
    return sum(_kilobytes(one, "smaps_rollup", "Pss:") for one in family(pid)) * 1024 / MB


def cpu(pid: int) -> float:
    """Return the CPU seconds of a process and its children."""
    return sum(_ticks(one) for one in family(pid)) / TICKS


def family(pid: int) -> list[int]:
    """Return the ids of a process and its children. A participant is a supervisor and its worker."""
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return [pid, *(one for child in children for one in family(child))]


def _kilobytes(pid: int, file: str, field: str) -> int:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@dataclass(frozen=True)
class Platform:
    """A running `fedround platform`, or coordinator and aggregator: processes by command."""

    services: Mapping[str, Process]

    @property
    def coordinator(self) -> Process:
        return next(iter(self.services.values()))

    @property
    def url(self) -> str:
        return self.coordinator.url("COORDINATOR_PORT")

    def registered(self, count: int) -> float:
        """Wait for the first participant, and return the time. Raise `Failed` unless `count` are registered then."""
        self.coordinator.said("joined as")
        now = time.perf_counter()
        if len(self.coordinator.status("COORDINATOR_OPS_PORT")["participants"]) != count:
            raise Failed(f"the coordinator does not show {count} participants")
        return now

    def completed(self, *rounds: int) -> float:
        """Wait for rounds to end, each within its time-out. Return the time of the last end."""
        for number in rounds:
            self.coordinator.said(rf"^round {number} completed")
        return time.perf_counter()

    def check(self, count: int, size: int) -> None:
        """Raise `Failed` unless the global model is the result of `count` participants of the class `Ours`."""
        model, rounds = self._model()
        if not np.allclose(model, expected(count, size, rounds), rtol=1e-9):
            raise Failed(f"the global model of {rounds} rounds is not the mean of the updates")

    def check_added(self, count: int, size: int) -> None:
        """Do the same for the classes that add 1."""
        model, rounds = self._model()
        arrays = model.values() if isinstance(model, dict) else [model]
        if sum(array.nbytes for array in arrays) != 4 * size or not all((array == rounds).all() for array in arrays):
            raise Failed(f"the global model of {rounds} rounds is not what all of them added")

    def _model(self) -> tuple[Any, int]:
        """Return the global model, and its number of rounds."""
        aggregator = list(self.services.values())[-1]
        body, number = fetch_model(aggregator.url("AGGREGATOR_OPS_PORT"))
        return decode(body), -1 if number is None else number + 1


@contextmanager
def platform(*, min_clients: int, split: bool = False, **settings: str) -> Iterator[Platform]:
    """Run a platform without a last round, or coordinator and aggregator if `split`. Kill it at the end of the block."""
    settings |= {"COORDINATOR_ROUNDS": "0", "COORDINATOR_MIN_CLIENTS": str(min_clients)}
    with ExitStack() as stack:

        def start(command: str) -> Process:
            service = Process(command, **settings)
            stack.callback(service.kill)
            return service

        if split:
            aggregator = start("aggregator")
            settings |= beside(aggregator)
            yield Platform({"coordinator": start("coordinator"), "aggregator": aggregator})
        else:
            yield Platform({"platform": start("platform")})


@dataclass(frozen=True)
class Participants:
    """A kind of participant: the service, or a `program` for `python` with arguments `k size [seconds] url period`."""

    name: str = "fedround"
    period: float = 1.0
    seconds: float = 0.0
    """Seconds of training per round of `bench.ours`."""
    settings: tuple[tuple[str, str], ...] = ()
    """Environment variables."""
    program: str | None = None
    python: str = sys.executable
    cls: str = "Ours"
    """Class of `bench.ours`, without a program."""

    def _command(self, k: int, size: int, url: str) -> tuple[Sequence[str], Mapping[str, str]]:
        if self.program is not None:
            environ = {name: value for name, value in os.environ.items() if self.python == sys.executable or name != "PYTHONPATH"}
            seconds = [str(self.seconds)] if self.program == "bench.ours" else []
            return [self.python, "-m", self.program, str(k), str(size), *seconds, url, str(self.period)], environ
        settings = {
            "PARTICIPANT_CLASS": f"bench.ours:{self.cls}",
            "PARTICIPANT_COORDINATOR_URL": url,
            "PARTICIPANT_HEARTBEAT_PERIOD": str(self.period),
            "PARTICIPANT_OPTIONS": json.dumps({"k": k, "size": size, "seconds": self.seconds}),
            "PARTICIPANT_OPS_PORT": "0",
        }
        return [self.python, "-m", "fedround", "participant"], os.environ | LOOPBACK | settings | dict(self.settings)

    @contextmanager
    def at_work(self, numbers: Sequence[int], size: int, url: str) -> Iterator[list[int]]:
        """Start a process for each of `numbers`, and yield their ids. Kill them at the end of the block; none may end before."""
        with ExitStack() as stack:
            processes = []
            for k in numbers:
                command, environ = self._command(k, size, url)
                log = stack.enter_context(TemporaryFile("w+"))
                process = subprocess.Popen(command, env=environ, cwd=ROOT, stdout=log, stderr=log)
                stack.callback(process.wait)
                stack.callback(process.kill)
                processes.append((process, log))
            try:
                yield [process.pid for process, _ in processes]
            finally:
                for process, log in processes:
                    if process.poll() is not None:
                        log.seek(0)
                        raise Failed(f"a participant of {self.name} has ended: {log.read()[-2000:]}")


def theirs(period: float) -> Participants:
    """Return the real xain-sdk, with its heartbeat period."""
    python = venvs.python(venvs.XAIN_SDK)
    return Participants(f"xain-sdk 0.8.0, heartbeat {period:g} s", period, program="bench.theirs", python=python)
