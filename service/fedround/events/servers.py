"""Events that every process emits: its ports, its data directory, its telemetry."""

from dataclasses import dataclass

from fedround.events.base import Fact


@dataclass(frozen=True, slots=True)
class WasKept(Fact):
    """The state was written to the data directory."""

    seconds: float


@dataclass(frozen=True, slots=True)
class NotKept(Fact):
    """The state could not be written to the data directory. The service retries."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class TelemetrySent(Fact):
    """This process pushed traces or metrics (`signal`) by OTLP. `arrived`: whether the receiver accepted them."""

    signal: str
    arrived: bool


@dataclass(frozen=True, slots=True)
class RequestServed(Fact):
    """A server answered a request. `route`: the template of its path, or empty. `status` None: the connection was cut.

    `method` is one that the route has, or `_OTHER`.
    """

    method: str
    route: str
    status: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class ConnectionsChanged(Fact):
    """The number of connections of a port changed. `port` is public, internal or ops."""

    port: str
    count: int


@dataclass(frozen=True, slots=True)
class RequestThrottled(Fact):
    """A port refused or delayed a request because the client sends too many."""

    port: str


@dataclass(frozen=True, slots=True)
class ConnectionCut(Fact):
    """A port closed a connection: `reason` is port_limit, address_limit, head, pipeline or slow."""

    port: str
    reason: str
