"""A federation of processes with known answers, and unreliable links between all of them."""

import io
import json
import random
import re
import socket
import threading
import time
import urllib.error
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np

from fedround.aggregator.strategies import FedAdam
from fedround.tensors.weights import Array, Spec
from support.link import Link
from support.processes import PORTS, Process, kept_in

COUNT = 4
"""Number of participants: a power of two, so that every mean is exact."""
SIZE = 150_000
"""Number of weights: more than an aggregator receives in memory, so that it uses its spool."""
TESTS = Path(__file__).parent.parent
ERRORS = (OSError, ValueError, KeyError, EOFError, urllib.error.URLError)
"""Exceptions of a request to a service with faults."""
PLAN = {
    "COORDINATOR_ROUNDS": "0",
    "COORDINATOR_MIN_CLIENTS": str(COUNT),
    "COORDINATOR_HEARTBEAT_TIMEOUT": "3s",
    "COORDINATOR_ROUND_TIMEOUT": "10s",
}
PARTICIPANT = {
    "PARTICIPANT_CLASS": "support.known_answer:KnownAnswer",
    "PARTICIPANT_HEARTBEAT_PERIOD": "0.5s",
    "PARTICIPANT_LONG_POLL": "2s",
    "PARTICIPANT_MAX_FAILURES": "1000000",
    "PARTICIPANT_CONFIRM_TIMEOUT": "3s",
    "PARTICIPANT_DRAIN_TIMEOUT": "2s",
    "PARTICIPANT_AFTER_FINISH": "wait",
    "PARTICIPANT_SHARDS": str(COUNT),
}


class Broken(Exception):
    """An invariant does not hold."""


class Answers:
    """The correct value of all weights of a round's model. With `fedadam`, the strategy computes it from updates without faults.

    The weights of `fedadam` are float32. The sum of four of them is exact in float64, in any order.
    """

    def __init__(self, strategy: str) -> None:
        self.dtype = "<f4" if strategy == "fedadam" else "<f8"
        self._adam = strategy == "fedadam"
        self._models = [np.ones(1, self.dtype)]
        self._state: Mapping[str, Array] = {}

    def __getitem__(self, round: int) -> float:
        while len(self._models) <= round:
            self._models.append(self._step(self._models[-1]) if self._adam else self._models[-1] + 1)
        return float(self._models[round][0])

    def _step(self, model: Array) -> Array:
        strategy = FedAdam(Spec(model.dtype, model.shape))
        strategy.begin(model, self._state)
        for k in range(COUNT):
            strategy.fold(1, [model if k else model + np.array(COUNT, model.dtype)])
        result = strategy.result()
        self._state = strategy.state()
        return result


class Weather(Link):
    """A link that may be `slow`, `torn` (cut in the middle of a piece), `cut`, or held by `fog` (packets are dropped)."""

    def __init__(self, port: int, random: random.Random) -> None:
        super().__init__(port)
        self.now = "fine"
        self._random = random
        self._changed = threading.Condition()

    def change(self, weather: str) -> None:
        with self._changed:
            self.now = weather
            self._changed.notify_all()

    def passing(self, piece: bytes) -> Iterator[bytes]:
        with self._changed:
            weather = self.now
            if weather == "slow":
                self._changed.wait(self._random.uniform(0.01, 0.3))
            elif weather == "fog":
                self._changed.wait_for(lambda: self.now != "fog")
        if weather in ("torn", "cut"):
            yield piece[: self._random.randrange(len(piece)) if weather == "torn" else 0]
            raise ConnectionResetError
        yield piece


@dataclass
class Member:
    """A service or a participant, with all its processes over time."""

    name: str
    command: str
    settings: Mapping[str, str]
    lives: list[Process] = field(default_factory=list)

    @property
    def process(self) -> Process:
        return self.lives[-1]

    def start(self) -> None:
        self.lives.append(Process(self.command, **self.settings))

    def kill(self) -> None:
        self.process.kill()

    def ready(self) -> bool:
        try:
            ports = [port for port in PORTS[self.command] if port.endswith("OPS_PORT")]
            return all(self.process.probe("/readyz", port)[0] == 200 for port in ports)
        except ERRORS:
            return False

    def lines(self, pattern: str) -> Iterator[re.Match[str]]:
        """Yield the matches of `pattern` in the logs of all its processes that have ended."""
        for process in self.lives:
            for line in process.log.splitlines():
                if match := re.search(pattern, json.loads(line)["message"] if line.startswith("{") else line):
                    yield match


class Federation:
    """`fedround platform`, or with `apart` coordinator and aggregator; participants; and a link in front of every port."""

    def __init__(self, directory: Path, random: random.Random, *, apart: bool, strategy: str = "weighted_average") -> None:
        self.answers = Answers(strategy)
        self._stack = ExitStack()
        self._ports = self._free_ports(random)
        self._numbers = count(COUNT)
        self.links: dict[str, Weather] = {}
        self.journals = [directory / f"trained-{k}" for k in range(COUNT)]
        self.ports = {name: next(self._ports) for command in ("coordinator", "aggregator") for name in PORTS[command]}
        for name in ("COORDINATOR_PORT", "AGGREGATOR_PORT", "AGGREGATOR_INTERNAL_PORT"):
            self.links[name.removesuffix("_PORT").lower()] = self._stack.enter_context(Weather(self.ports[name], random))
        settings = {
            **PLAN,
            **{name: str(port) for name, port in self.ports.items()},
            "COORDINATOR_AGGREGATOR_URL": self.links["aggregator"].url,
            "COORDINATOR_AGGREGATOR_INTERNAL_URL": self.links["aggregator_internal"].url,
            **kept_in(directory),
            "AGGREGATOR_STRATEGY": strategy,
        }
        if not apart:
            self.links.pop("aggregator_internal")
        commands = ("aggregator", "coordinator") if apart else ("platform",)
        self.services = [Member(command, command, settings) for command in commands]
        self.participants = [Member(f"silo-{k}", "participant", self._participant(k)) for k in range(COUNT)]

    def _participant(self, k: int) -> dict[str, str]:
        model = {"size": SIZE, "dtype": self.answers.dtype}
        options = {"count": COUNT, "seconds": 0.1, "journal": str(self.journals[k])} | model
        return {
            **PARTICIPANT,
            "PARTICIPANT_NAME": f"silo-{k}",
            "PARTICIPANT_OPTIONS": json.dumps(options),
            "PARTICIPANT_COORDINATOR_URL": self.links["coordinator"].url,
            "PARTICIPANT_OPS_PORT": str(next(self._ports)),
        }

    def renew(self, member: Member) -> Process:
        """Start another participant in place of this one, as a rolling update does. Return the old one, which still runs."""
        old, name = member.process, f"silo-{next(self._numbers)}"
        member.settings = {**member.settings, "PARTICIPANT_NAME": name, "PARTICIPANT_OPS_PORT": str(next(self._ports))}
        member.start()
        return old

    @property
    def members(self) -> list[Member]:
        return [*self.services, *self.participants]

    @property
    def aggregator(self) -> Member:
        return self.services[0]

    @property
    def coordinator(self) -> Member:
        return self.services[-1]

    def __enter__(self) -> "Federation":
        for member in self.members:
            member.start()
            self._stack.callback(member.kill)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def round(self) -> int:
        """The coordinator's round, which is the number of completed rounds."""
        number: int = self.coordinator.process.status("COORDINATOR_OPS_PORT")["round"]
        return number

    def model(self, round: int | None = None) -> tuple[int, float]:
        """Return the round of a global model, by default the newest, and the value of all its weights. Raises `Broken`."""
        path = "/model" if round is None else f"/model?round={round}"
        with self.aggregator.process.open("AGGREGATOR_OPS_PORT", path) as answer:
            number = int(answer.headers["ETag"].strip('"'))
            weights = np.load(io.BytesIO(answer.read()))
        answer = self.answers[number]
        if len(weights) != SIZE or (weights != answer).any():
            wrong = np.flatnonzero(weights != answer)
            raise Broken(
                f"after {number + 1} rounds {len(wrong)} weights are not {answer}; weight {wrong[0]} is {weights[wrong[0]]}"
            )
        return number, float(weights[0])

    def recovered(self, within: float = 60.0) -> float:
        """Wait until all are ready and a round is completed. Return the seconds that this took. Raises `Broken`."""
        began, before = time.monotonic(), None
        while time.monotonic() - began < within:
            try:
                before = self.round() if before is None else before
                if all(member.ready() for member in self.members) and self.round() > before:
                    return time.monotonic() - began
            except ERRORS:
                pass
            for member in self.members:
                if member.process.ended is not None:
                    raise Broken(f"{member.name} has ended by itself, with exit code {member.process.ended}")
            threading.Event().wait(0.02)
        unready = [member.name for member in self.members if not member.ready()]
        raise Broken(f"{within:.0f} s after the last fault no round is completed; not ready: {', '.join(unready) or 'nobody'}")

    @staticmethod
    def _free_ports(random: random.Random) -> Iterator[int]:
        # Below the ports of clients: otherwise a client that connects to a dead service's port may connect to itself.
        while True:
            port = random.randrange(20_000, 32_000)
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) != 0:
                    yield port
