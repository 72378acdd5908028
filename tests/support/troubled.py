"""Federations of real processes, in which a test causes one fault after another."""

import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socket import create_connection
from threading import Event, Thread

from support.certificates import Pair
from support.processes import Process, until
from support.prometheus import OPS_TOKEN

WEIGHTS = 150_000
"""More than an aggregator receives in memory, so it uses its spool."""
# Nothing listens there: rounds are sampled all the same, and exemplars have their ids.
TRACED = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "PARTICIPANT_TRACE_HEARTBEATS": "false"}


@dataclass
class Federation:
    """The running processes. `took`: seconds until each fault showed."""

    directory: Path
    stack: ExitStack
    began: float = field(default_factory=time.time)
    took: dict[str, float] = field(default_factory=dict)
    coordinator: Process = field(init=False)
    aggregator: Process = field(init=False)

    def start(self, command: str, **settings: str) -> Process:
        process = Process(command, **TRACED, **settings)
        self.stack.callback(process.kill)
        return process

    def participant(self, name: str, url: str, size: int = WEIGHTS, /, **settings: str) -> Process:
        mood = self.directory / name
        mood.touch()
        options = json.dumps({"size": size, "mood": str(mood), "loss": len(name) / 10})
        return self.start(
            "participant",
            PARTICIPANT_COORDINATOR_URL=url,
            PARTICIPANT_CLASS="support.moody:Judge",
            PARTICIPANT_OPTIONS=options,
            PARTICIPANT_NAME=name,
            PARTICIPANT_OPS_TOKEN=OPS_TOKEN,
            PARTICIPANT_CANCEL_TIMEOUT="1s",
            PARTICIPANT_MAX_FAILURES="1000",
            **settings,
        )

    def mood(self, mood: str, *names: str) -> None:
        for name in names:
            (self.directory / name).write_text(mood)

    def start_aggregator(self, **ports: str) -> None:
        examined = {"AGGREGATOR_EVALUATE": "support.moody:examine"}
        mood = self.directory / "examiner"
        mood.touch()
        models = str(self.directory / "models")
        self.aggregator = self.start("aggregator", AGGREGATOR_DATA_DIR=models, EXAMINER_MOOD=str(mood), **examined, **ports)

    def certify(self, name: str, pair: Pair) -> str:
        """Write a file with this certificate and its key, and replace the old file atomically."""
        file, new = self.directory / f"{name}.pem", self.directory / f"{name}.new"
        new.write_text(Path(pair.cert).read_text() + Path(pair.key).read_text())
        new.rename(file)
        return str(file)

    def start_coordinator(self, **ports: str) -> None:
        self.coordinator = self.start(
            "coordinator",
            COORDINATOR_ROUNDS="0",
            COORDINATOR_MIN_CLIENTS="2",
            COORDINATOR_HEARTBEAT_TIMEOUT="3s",
            COORDINATOR_ROUND_TIMEOUT="4s",
            COORDINATOR_AGGREGATOR_URL=self.aggregator.url("AGGREGATOR_PORT"),
            COORDINATOR_AGGREGATOR_INTERNAL_URL=self.aggregator.url("AGGREGATOR_INTERNAL_PORT"),
            COORDINATOR_DATA_DIR=str(self.directory / "coordinator"),
            **ports,
        )

    @property
    def retrying(self) -> bool:
        """Whether a participant has an update that the aggregator has not accepted."""
        return any(each["phase"] == "retrying" for each in self.coordinator.status("COORDINATOR_OPS_PORT")["participants"])

    def shown(self, fault: str, condition: Callable[[], bool]) -> None:
        """Wait until the dashboards show the fault."""
        self.took[fault] = until(condition, 90)


def full(process: Process, size: int) -> None:
    """Act as if the disk had no room for more than a file of `size` bytes."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def addresses(*processes: Process) -> list[str]:
    """Return the addresses of their ops ports."""
    return [f"127.0.0.1:{port}" for p in processes for name, port in p.ports.items() if name.endswith("OPS_PORT")]


@contextmanager
def crowd(port: int, size: int) -> Iterator[None]:
    """Open this many connections to a port, without requests, and reopen those that it closes."""
    over = Event()

    def connect() -> None:
        while not over.is_set():
            with suppress(OSError), create_connection(("127.0.0.1", port), timeout=1) as connection:
                while not over.is_set():
                    with suppress(TimeoutError):
                        if not connection.recv(1):
                            break
            over.wait(0.2)

    threads = [Thread(target=connect) for _ in range(size)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
