"""Telemetry of participants that waits for the operators' collector, and how much of it each participant may send.

1. A participant pushes one message at a time to each path, and so many a second.
2. Within an hour its metrics have so many series. A message that would be beyond is refused as a whole.
3. What waits is bounded: for all together, and for each participant to a part of that. What does not fit is refused.
4. A batch is what waits for one path, up to a size. OTLP messages that are written one after the other are one message.

This is a core: no I/O, no clock.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fedround.http.budgets import Buckets

RATE, BURST = 2.0, 20.0
"""Messages a second, and at once, of a participant to one path."""
MOST_SERIES = 2000
"""Series of a participant within `WINDOW` seconds."""
WINDOW = 3600.0
MOST_BYTES, MOST_OF_ONE = 16 << 20, 2 << 20
"""Bytes that wait, and those of one participant among them."""
MOST_BATCH = 1 << 20
TABLE = 4096
"""Participants that are remembered."""


class Waiting(NamedTuple):
    """A message of a participant."""

    name: str
    message: bytes


@dataclass(slots=True)
class _Seen:
    """The series of a participant since a time."""

    since: float
    series: dict[int, int] = field(default_factory=dict)


class Backlog:
    """What waits."""

    def __init__(self) -> None:
        self._rates = Buckets[tuple[str, str]](RATE, BURST, 2 * TABLE)
        self._under_way: set[tuple[str, str]] = set()
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._waiting: dict[str, deque[Waiting]] = {}
        self._bytes = Counter[str]()

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return self._bytes.total()

    def begin(self, path: str, name: str, now: float) -> bool:
        """Begin to receive a message. Returns whether that is in time; then `end` has to follow."""
        key = path, name
        if key in self._under_way or not self._rates.take(key, now):
            return False
        self._under_way.add(key)
        return True

    def end(self, path: str, name: str) -> None:
        """The message was received, or was not."""
        self._under_way.discard((path, name))

    def know(self, name: str, series: Mapping[int, int], now: float) -> bool:
        """Take note of the series of a participant. Returns whether they are few enough."""
        seen = self._seen.pop(name, None)
        if seen is None or now - seen.since >= WINDOW:
            seen = _Seen(now)
        self._seen[name] = seen
        if len(self._seen) > TABLE:
            self._seen.popitem(last=False)
        all_of_them = {**seen.series, **series}
        if sum(all_of_them.values()) > MOST_SERIES:
            return False
        seen.series = all_of_them
        return True

    def add(self, path: str, name: str, message: bytes) -> bool:
        """Have a message wait. Returns whether there is room."""
        if self._bytes[name] + len(message) > MOST_OF_ONE or self.size + len(message) > MOST_BYTES:
            return False
        self._waiting.setdefault(path, deque()).append(Waiting(name, message))
        self._bytes[name] += len(message)
        return True

    def batch(self, path: str) -> Sequence[Waiting]:
        """Take what is to be sent next to a path; empty where nothing waits."""
        waiting = self._waiting.get(path, deque())
        taken: list[Waiting] = []
        size = 0
        while waiting and (not taken or size + len(waiting[0].message) <= MOST_BATCH):
            taken.append(waiting.popleft())
            size += len(taken[-1].message)
        for each in taken:
            self._bytes[each.name] -= len(each.message)
            if not self._bytes[each.name]:
                del self._bytes[each.name]
        return taken
