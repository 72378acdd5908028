"""Limits of a server's ports: the number of connections, and the rate of requests.

1. A port keeps a bounded number of connections, and a bounded number of those from one address.
2. A connection is *new* until the head of its first request is complete, *busy* while it serves a request, and otherwise *idle*.
3. At a limit, a new connection replaces another one: the one that has been new for the longest time, or else idle for the longest
   time. At the limit of an address, it replaces a connection from the same address.
4. A busy connection is never replaced. If all are busy, the port closes the new connection.
5. A bucket holds up to `burst` requests and refills at `rate` requests per second. A request that finds it empty is refused.
6. Ports share the file descriptors of the process. A quarter is reserved for files and outgoing connections. Each ops port has its
   own small share, which other ports cannot use up.

This is a core: no I/O, no clock.
"""

import ipaddress
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)

PortKind = Literal["public", "internal", "ops"]
Reason = Literal["port_limit", "address_limit"]

MAX_CONNECTIONS = 4096
"""Default maximum number of connections of a port."""
MAX_OPS = 100
"""Maximum number of connections of an ops port."""
ADDRESS_SHARE = 0.75
"""Default maximum share of a port's connections that one address may have."""


class Limits(NamedTuple):
    """Maximum number of connections of a port, and of one address among them."""

    port: int
    address: int


class PortSettings(NamedTuple):
    """A port and its settings. 0: the limit follows from the number of file descriptors."""

    kind: PortKind
    port: int = 0
    address: int = 0


def share_out(descriptors: int, ports: Sequence[PortSettings]) -> list[Limits]:
    """Return the limits of each port of a process that may open this many file descriptors."""
    operators = max(min(MAX_OPS, descriptors // 10), 1)
    others = sum(port.kind != "ops" for port in ports)
    free = descriptors - descriptors // 4 - operators * (len(ports) - others)
    each = max(free // max(others, 1), 1)

    def limits(port: PortSettings) -> Limits:
        most = operators if port.kind == "ops" else min(port.port or MAX_CONNECTIONS, each)
        return Limits(most, min(port.address or max(int(most * ADDRESS_SHARE), 1), most))

    return [limits(port) for port in ports]


def network(address: str) -> str:
    """Return the network that an address belongs to: for IPv6 the /64 network, which one customer has, for IPv4 the address."""
    if ":" not in address:
        return address
    found = ipaddress.IPv6Address(address.partition("%")[0])
    return str(found.ipv4_mapped or found.packed[:8].hex())


@dataclass(slots=True)
class _Group(Generic[K]):
    """Connections that share a limit. `new` and `idle` are in the order in which they are replaced."""

    count: int = 0
    new: dict[K, None] = field(default_factory=dict)
    idle: dict[K, None] = field(default_factory=dict)

    def first(self) -> K | None:
        return next(iter(self.new or self.idle), None)


class Connections(Generic[K]):
    """The connections of one port, by any key."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._all = _Group[K]()
        self._of: dict[str, _Group[K]] = {}
        self._address: dict[K, str] = {}

    def __len__(self) -> int:
        return self._all.count

    def opened(self, key: K, address: str) -> tuple[K, Reason] | None:
        """Add a new connection. Return the connection to close, if any, and the reason. It is removed, and may be the new one."""
        limits, own = self._limits, self._of.get(address)
        full: Reason
        if own is not None and own.count >= limits.address < limits.port:
            group, full = own, "address_limit"
        elif self._all.count >= limits.port:
            group, full = self._all, "port_limit"
        else:
            self._add(key, address)
            return None
        replaced = group.first()
        if replaced is None:
            return key, full
        self.closed(replaced)
        self._add(key, address)
        return replaced, full

    def busy(self, key: K) -> None:
        """Record that a request of the connection has begun."""
        for group in self._groups(key):
            group.new.pop(key, None)
            group.idle.pop(key, None)

    def idle(self, key: K) -> None:
        """Record that the last request of the connection was answered."""
        self.busy(key)
        for group in self._groups(key):
            group.idle[key] = None

    def closed(self, key: K) -> None:
        """Remove a connection."""
        self.busy(key)
        for group in self._groups(key):
            group.count -= 1
        address = self._address.pop(key, None)
        if address is not None and not self._of[address].count:
            del self._of[address]

    def _add(self, key: K, address: str) -> None:
        self._address[key] = address
        self._of.setdefault(address, _Group())
        for group in self._groups(key):
            group.count += 1
            group.new[key] = None

    def _groups(self, key: K) -> tuple[_Group[K], ...]:
        address = self._address.get(key)
        return () if address is None else (self._all, self._of[address])


class Buckets(Generic[K]):
    """Token buckets by key. The table is bounded: it drops the least recently used key, whose next bucket is full.

    Args:
        rate: Requests per second.
        burst: Size of a bucket, in requests.
        max_keys: Maximum number of keys.
    """

    def __init__(self, rate: float, burst: float, max_keys: int) -> None:
        self._rate = rate
        self._burst = burst
        self._max_keys = max_keys
        self._levels: OrderedDict[K, tuple[float, float]] = OrderedDict()

    def take(self, key: K, now: float) -> bool:
        """Take one request from a bucket, and return whether it had one. `now` is in seconds."""
        level, since = self._levels.pop(key, (self._burst, now))
        level = min(level + (now - since) * self._rate, self._burst)
        taken = level >= 1
        self._levels[key] = (level - taken, now)
        if len(self._levels) > self._max_keys:
            self._levels.popitem(last=False)
        return taken
