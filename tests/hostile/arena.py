"""A platform and three honest participants as processes, and measurements of them during an attack.

Participant k of 3 adds 3 to every third weight, beginning with the k-th. After R rounds every weight is exactly R. So a counted
update of an attacker shows, and so does a lost update of an honest participant.
"""

import io
import json
import os
import re
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from support.processes import Process, beside, running, until

HONEST = 3
SIZE = 999
"""Number of weights of the model: about 8 kB."""
PLAN = {
    "COORDINATOR_ROUNDS": "0",
    "COORDINATOR_MIN_CLIENTS": str(HONEST),
    "COORDINATOR_ROUND_TIMEOUT": "2s",
    "COORDINATOR_HEARTBEAT_TIMEOUT": "5s",
}
PROBE_WITHIN = 10.0
"""Maximum seconds of a probe, on a machine with two cores that are under attack too."""


@dataclass(frozen=True)
class Use:
    """The resources of a process."""

    rss_mb: float
    descriptors: int

    @classmethod
    def of(cls, process: Process) -> "Use":
        return cls(_memory(process, "VmRSS"), len(list(Path(f"/proc/{process.pid}/fd").iterdir())))


@dataclass
class Siege:
    """The measurements of one attack. Rates are honest rounds per second."""

    attack: str
    before: float = 0.0
    during: float = 0.0
    after: float = 0.0
    rounds: int = 0
    """Number of rounds that began during the attack."""
    peak_mb: float = 0.0
    """Growth of the largest service at its peak."""
    kept_mb: float = 0.0
    """Growth that remains after the attack."""
    kept_descriptors: int = 0
    probes: list[tuple[int, float]] = field(default_factory=list)
    """Status (0: no response) and seconds of each request for `/readyz` during the attack."""


class Arena:
    """`fedround platform`, or with `apart` coordinator and aggregator, and three participants, all running."""

    def __init__(
        self,
        directory: Path,
        *,
        apart: bool = False,
        tokens: Mapping[str, str] | None = None,
        ops_token: str | None = None,
        nofile: int | None = None,
        **settings: str,
    ) -> None:
        self.directory = directory
        self._apart = apart
        self._tokens = tokens
        self._ops: dict[str, str] = {}
        self._nofile = nofile
        self._settings = {**PLAN, **settings}
        if ops_token is not None:
            self._ops["Authorization"] = f"Bearer {ops_token}"
            self._settings |= {"COORDINATOR_OPS_TOKEN": ops_token, "AGGREGATOR_OPS_TOKEN": ops_token}
        self._stack = ExitStack()
        self.first: Callable[[], AbstractContextManager[object]] | None = None
        """An attack that begins before the participants start, and ends with the arena."""
        self.journals = [directory / f"trained-{k}" for k in range(HONEST)]
        if tokens is not None:
            (directory / "tokens").write_text("".join(f"{name} {token}\n" for name, token in tokens.items()))
            self._settings |= {f"{role}_TOKENS_FILE": str(directory / "tokens") for role in ("COORDINATOR", "AGGREGATOR")}

    def __enter__(self) -> "Arena":
        limits = [] if self._nofile is None else ["prlimit", f"--nofile={self._nofile}:{self._nofile}"]
        with self._stack:
            if self._apart:
                self.aggregator = self._stack.enter_context(running("aggregator", through=limits, **self._settings))
                self.coordinator = self._stack.enter_context(
                    running("coordinator", through=limits, **beside(self.aggregator), **self._settings)
                )
            else:
                self.coordinator = self.aggregator = self._stack.enter_context(
                    running("platform", through=limits, **self._settings)
                )
            if self.first is not None:
                self._stack.enter_context(self.first())
            self.silos = [self._stack.enter_context(running("participant", **self.silo(k))) for k in range(HONEST)]
            until(lambda: self.rounds() >= 5, 60)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def silo(self, k: int) -> dict[str, str]:
        """Return the settings of honest participant k."""
        for_class = {"k": k, "count": HONEST, "size": SIZE, "seconds": 0.05, "journal": str(self.journals[k])}
        name = f"silo-{k}"
        return {
            "PARTICIPANT_CLASS": "support.known_answer:KnownAnswer",
            "PARTICIPANT_OPTIONS": json.dumps(for_class),
            "PARTICIPANT_NAME": name,
            "PARTICIPANT_COORDINATOR_URL": self.coordinator.url("COORDINATOR_PORT"),
            "PARTICIPANT_HEARTBEAT_PERIOD": "0.2s",
            "PARTICIPANT_ISOLATION": "thread",  # half as many processes to start
            **({} if self._tokens is None else {"PARTICIPANT_TOKEN": self._tokens[name]}),
        }

    @property
    def services(self) -> list[Process]:
        return [self.coordinator, self.aggregator] if self._apart else [self.coordinator]

    def port(self, name: str) -> int:
        """Return the number of a port, by its setting. `PARTICIPANT_OPS_PORT` is the port of the first participant."""
        owner = next(process for process in (*self.services, self.silos[0]) if name in process.ports)
        return int(owner.ports[name])

    def rounds(self) -> int:
        """Return how many rounds all honest participants have begun, from their journals, which no attack reaches."""
        journals = [journal.read_text() if journal.exists() else "" for journal in self.journals]
        return min(int(text.split()[-1]) + 1 if text.endswith("\n") else 0 for text in journals)

    def rate(self, seconds: float = 1.0) -> float:
        """Measure the rounds per second for some seconds."""
        began, first = time.monotonic(), self.rounds()
        threading.Event().wait(seconds)
        return (self.rounds() - first) / (time.monotonic() - began)

    def trains(self, rounds: int = 3, within: float = 20.0) -> float:
        """Wait until this many more rounds have begun. Return the seconds that this took."""
        first = self.rounds()
        return until(lambda: self.rounds() >= first + rounds, within)

    def check(self) -> None:
        """Check that all processes run, and that the global model is exact."""
        assert [process.ended for process in (*self.services, *self.silos)] == [None] * (len(self.services) + HONEST)
        with self.aggregator.open("AGGREGATOR_OPS_PORT", "/model", **self._ops) as answer:
            rounds = int(answer.headers["ETag"].strip('"')) + 1
            weights = np.load(io.BytesIO(answer.read()))
        assert len(weights) == SIZE
        assert (weights == rounds).all(), "an update was counted twice, lost, or an attacker's was counted"

    def withstands(
        self,
        attack: AbstractContextManager[object],
        *,
        seconds: float = 2.0,
        rounds: int = 3,
        within: float = 20.0,
        seen: Callable[[], object] = lambda: True,
        growth_mb: float = 64.0,
        of: Process | None = None,
    ) -> Siege:
        """Attack for some time. Check that rounds continue, that probes get correct responses, and that resources are freed.

        Args:
            attack: The attack, which lasts as long as its block.
            seconds: Minimum duration.
            rounds: Number of rounds that must begin before it ends.
            within: Maximum seconds for these rounds. Only an attack that stops rounds reaches this.
            seen: Another condition that must be true before it ends.
            growth_mb: Maximum growth of the memory of a process.
            of: Another attacked process, in addition to the services.
        """
        processes = [*self.services, *([of] if of else [])]
        siege = Siege(getattr(attack, "title", type(attack).__name__), before=self.rate())
        before = {process.pid: Use.of(process) for process in processes}
        for process in processes:
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak begins anew
        with self._probing(siege), attack:
            began, first = time.monotonic(), self.rounds()
            while (lasted := time.monotonic() - began) < within:
                if lasted >= seconds and self.rounds() - first >= rounds and seen():
                    break
                threading.Event().wait(0.05)
            siege.rounds = self.rounds() - first
            siege.during = siege.rounds / (time.monotonic() - began)
        siege.peak_mb = max(_memory(process, "VmHWM") - before[process.pid].rss_mb for process in processes)
        self._settles(siege, processes, before)
        siege.after = self.rate()
        _record(siege)
        assert siege.rounds >= rounds, siege
        assert seen(), siege
        assert siege.probes, siege
        assert all(status == 200 and took < PROBE_WITHIN for status, took in siege.probes), siege
        assert siege.peak_mb < growth_mb, siege
        assert siege.kept_mb < growth_mb, siege
        self.check()
        return siege

    def _settles(self, siege: Siege, processes: list[Process], before: Mapping[int, Use]) -> None:
        def kept() -> int:
            # Connections of the honest come and go: two each.
            siege.kept_descriptors = max(Use.of(process).descriptors - before[process.pid].descriptors for process in processes)
            return siege.kept_descriptors

        until(lambda: kept() <= 2 * HONEST, 20)
        siege.kept_mb = max(Use.of(process).rss_mb - before[process.pid].rss_mb for process in processes)

    @contextmanager
    def _probing(self, siege: Siege) -> Iterator[None]:
        over = threading.Event()

        def probe() -> None:
            while not over.is_set():
                for process in self.services:
                    began, status = time.monotonic(), 0
                    try:
                        with process.open(next(name for name in process.ports if name.endswith("OPS_PORT")), "/readyz") as answer:
                            status = answer.status
                    except urllib.error.HTTPError as error:
                        status = error.code
                        error.close()
                    except OSError:
                        pass
                    siege.probes.append((status, time.monotonic() - began))
                over.wait(0.2)

        thread = threading.Thread(target=probe, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _memory(process: Process, name: str) -> float:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6


def _record(siege: Siege) -> None:
    """Print the measurements, and append them to the file in `HOSTILE_RECORD`. No test depends on them."""
    slowest = max((took for _, took in siege.probes), default=0.0)
    print(
        f"\n{siege.attack}: {siege.before:.1f} rounds/s before, {siege.during:.1f} during, {siege.after:.1f} after; "
        f"memory +{siege.peak_mb:.0f} MB at its peak, {siege.kept_mb:+.0f} MB afterwards; slowest probe {slowest:.2f} s"
    )
    if "HOSTILE_RECORD" in os.environ:
        with Path(os.environ["HOSTILE_RECORD"]).open("a") as file:
            file.write(json.dumps({"test": _test(), **asdict(siege)}) + "\n")


def _test() -> str:
    """Return the name of the running test, without ids that change each time."""
    name = os.environ["PYTEST_CURRENT_TEST"].partition("::")[2].rpartition(" (")[0]
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "{id}", name.removeprefix("test_"))
