"""The budgets of a server's ports: how many connections each keeps, which one it closes for a newcomer, how often one may ask.

1. A port keeps a bounded number of connections, and a bounded number of those from one address.
2. A connection is new until the head of its first request is whole, busy while it has a request under way, and else idle.
3. At a limit, a newcomer takes the place of another connection: the one that has been new for longest, else idle for longest.
   At the limit of an address, that is another connection from the same address.
4. A busy connection never gives way. Where all are busy, the newcomer is closed.
5. A bucket holds up to `burst` requests and refills with `rate` requests a second. Whoever finds it empty is refused.
6. Ports share the process's descriptors. A quarter stays for files and for connections that the process makes itself. Each port
   for operators has its own small part, which nobody else can use up.

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

MOST = 4096
"""Connections that a port keeps where no setting says otherwise."""
MOST_OPS = 100
"""Connections that a port for operators keeps."""
ADDRESS_SHARE = 0.75
"""The share of a port's connections that one address may have where no setting says otherwise."""


class Limits(NamedTuple):
    """How many connections a port keeps, and how many of those may come from one address."""

    port: int
    address: int


class Wanted(NamedTuple):
    """A port and its settings; 0 stands for what follows from the descriptors."""

    kind: PortKind
    port: int = 0
    address: int = 0


def share_out(descriptors: int, wanted: Sequence[Wanted]) -> list[Limits]:
    """Return the limits of each port of a process that may have so many descriptors open."""
    operators = max(min(MOST_OPS, descriptors // 10), 1)
    others = sum(port.kind != "ops" for port in wanted)
    free = descriptors - descriptors // 4 - operators * (len(wanted) - others)
    each = max(free // max(others, 1), 1)

    def limits(port: Wanted) -> Limits:
        most = operators if port.kind == "ops" else min(port.port or MOST, each)
        return Limits(most, min(port.address or max(int(most * ADDRESS_SHARE), 1), most))

    return [limits(port) for port in wanted]


def network(address: str) -> str:
    """Return what counts as one address: of IPv6 the network of 64 bits, which one customer has to itself."""
    if ":" not in address:
        return address
    found = ipaddress.IPv6Address(address.partition("%")[0])
    return str(found.ipv4_mapped or found.packed[:8].hex())


@dataclass(slots=True)
class _Crowd(Generic[K]):
    """Connections that share a limit; those that may give way in the order in which they do."""

    count: int = 0
    new: dict[K, None] = field(default_factory=dict)
    idle: dict[K, None] = field(default_factory=dict)

    def first(self) -> K | None:
        return next(iter(self.new or self.idle), None)


class Connections(Generic[K]):
    """The connections of one port, by any key."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._all = _Crowd[K]()
        self._of: dict[str, _Crowd[K]] = {}
        self._address: dict[K, str] = {}

    def __len__(self) -> int:
        return self._all.count

    def opened(self, key: K, address: str) -> tuple[K, Reason] | None:
        """Take note of a new connection. Returns the one that has to be closed, perhaps itself, which is already forgotten."""
        limits, own = self._limits, self._of.get(address)
        full: Reason
        if own is not None and own.count >= limits.address < limits.port:
            crowd, full = own, "address_limit"
        elif self._all.count >= limits.port:
            crowd, full = self._all, "port_limit"
        else:
            self._add(key, address)
            return None
        victim = crowd.first()
        if victim is None:
            return key, full
        self.closed(victim)
        self._add(key, address)
        return victim, full

    def busy(self, key: K) -> None:
        """A request of the connection is under way."""
        for crowd in self._crowds(key):
            crowd.new.pop(key, None)
            crowd.idle.pop(key, None)

    def idle(self, key: K) -> None:
        """The last request of the connection was answered."""
        self.busy(key)
        for crowd in self._crowds(key):
            crowd.idle[key] = None

    def closed(self, key: K) -> None:
        """The connection is no more."""
        self.busy(key)
        for crowd in self._crowds(key):
            crowd.count -= 1
        address = self._address.pop(key, None)
        if address is not None and not self._of[address].count:
            del self._of[address]

    def _add(self, key: K, address: str) -> None:
        self._address[key] = address
        self._of.setdefault(address, _Crowd())
        for crowd in self._crowds(key):
            crowd.count += 1
            crowd.new[key] = None

    def _crowds(self, key: K) -> tuple[_Crowd[K], ...]:
        address = self._address.get(key)
        return () if address is None else (self._all, self._of[address])


class Buckets(Generic[K]):
    """Token buckets by key. The table is bounded: it forgets the key that was used least recently, which then has a full bucket.

    Args:
        rate: Requests a second.
        burst: Requests at once.
        most: Keys in the table.
    """

    def __init__(self, rate: float, burst: float, most: int) -> None:
        self._rate = rate
        self._burst = burst
        self._most = most
        self._levels: OrderedDict[K, tuple[float, float]] = OrderedDict()

    def take(self, key: K, now: float) -> bool:
        """Take one request from a bucket. Returns whether there was one."""
        level, since = self._levels.pop(key, (self._burst, now))
        level = min(level + (now - since) * self._rate, self._burst)
        taken = level >= 1
        self._levels[key] = (level - taken, now)
        if len(self._levels) > self._most:
            self._levels.popitem(last=False)
        return taken
