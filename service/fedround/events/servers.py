"""Events that every process emits: its ports, its data directory, its telemetry."""

from dataclasses import dataclass

from fedround.events.base import Fact


@dataclass(frozen=True, slots=True)
class WasKept(Fact):
    """What shall survive a restart was written to the data directory."""

    seconds: float


@dataclass(frozen=True, slots=True)
class NotKept(Fact):
    """It could not be written; it is tried again."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class TelemetrySent(Fact):
    """This process pushed traces or metrics (`signal`) by OTLP, and they `arrived` or not."""

    signal: str
    arrived: bool


@dataclass(frozen=True, slots=True)
class RequestServed(Fact):
    """A request was answered. `route`: the template of its path, empty where there is none; `status` None: it was cut off.

    `method` is one that the route has, or `_OTHER`.
    """

    method: str
    route: str
    status: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class ConnectionsChanged(Fact):
    """A port has another number of connections. `port` is public, internal or ops."""

    port: str
    count: int


@dataclass(frozen=True, slots=True)
class RequestThrottled(Fact):
    """A port refused or delayed a request because its sender asks too often."""

    port: str


@dataclass(frozen=True, slots=True)
class ConnectionCut(Fact):
    """A port closed a connection: `reason` is port_limit, address_limit, head, pipeline or slow."""

    port: str
    reason: str
