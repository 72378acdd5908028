"""Facts that every service emits about its ports, its data directory and its telemetry."""

from dataclasses import dataclass

from fedround.events.base import Fact


@dataclass(frozen=True, slots=True)
class StateSaved(Fact):
    """The service wrote its state to the data directory, in `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class SaveFailed(Fact):
    """The service could not write `what` to the data directory. It retries."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class TelemetrySent(Fact):
    """This process pushed traces or metrics (`signal`) by OTLP. `arrived`: whether the receiver accepted them."""

    signal: str
    arrived: bool


@dataclass(frozen=True, slots=True)
class RequestServed(Fact):
    """A server responded to a request. `status` None: the connection closed before the response.

    `route`: template of the path; empty if no route matched. `method`: a method of the route, or `_OTHER`.
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
class ConnectionClosed(Fact):
    """A port closed a connection to protect itself. `reason` is port_limit, address_limit, head, pipeline or slow."""

    port: str
    reason: str
