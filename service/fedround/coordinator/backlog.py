"""The queue of participants' telemetry for the operators' collector, and its limits. A core: no I/O, no clock.

The rules:

1. A participant sends one message at a time to each path, and at most `RATE` messages a second.
2. Its metrics have at most `MOST_SERIES` series within `WINDOW`. A message that exceeds this is refused as a whole.
3. The queue is bounded, in total and for each participant. A message that does not fit is refused.
4. A batch holds messages for one path, up to `MOST_BATCH` bytes. Concatenated OTLP messages are one valid OTLP message.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fedround.http.budgets import Buckets

RATE, BURST = 2.0, 20.0
"""Messages a second, and in a burst, from one participant to one path."""
MOST_SERIES = 2000
"""Maximum number of series from one participant within `WINDOW` seconds."""
WINDOW = 3600.0
MOST_BYTES, MOST_OF_ONE = 16 << 20, 2 << 20
"""Maximum bytes in the queue, and those from one participant."""
MOST_BATCH = 1 << 20
TABLE = 4096
"""Maximum number of participants whose limits are remembered."""


class Waiting(NamedTuple):
    """A message from a participant."""

    name: str
    message: bytes


@dataclass(slots=True)
class _Seen:
    """The series that a participant has sent since a time."""

    since: float
    series: dict[int, int] = field(default_factory=dict)


class Backlog:
    """The queue."""

    def __init__(self) -> None:
        self._rates = Buckets[tuple[str, str]](RATE, BURST, 2 * TABLE)
        self._under_way: set[tuple[str, str]] = set()
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._waiting: dict[str, deque[Waiting]] = {}
        self._bytes = Counter[str]()

    @property
    def size(self) -> int:
        """Bytes in the queue."""
        return self._bytes.total()

    def begin(self, path: str, name: str, now: float) -> bool:
        """Begin to receive a message. Return whether the limits allow it; if so, the caller must call `end`."""
        key = path, name
        if key in self._under_way or not self._rates.take(key, now):
            return False
        self._under_way.add(key)
        return True

    def end(self, path: str, name: str) -> None:
        """End the reception of a message, successful or not."""
        self._under_way.discard((path, name))

    def know(self, name: str, series: Mapping[int, int], now: float) -> bool:
        """Note the series of a participant. Return whether it stays within `MOST_SERIES`."""
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
        """Add a message to the queue. Return whether there was room."""
        if self._bytes[name] + len(message) > MOST_OF_ONE or self.size + len(message) > MOST_BYTES:
            return False
        self._waiting.setdefault(path, deque()).append(Waiting(name, message))
        self._bytes[name] += len(message)
        return True

    def batch(self, path: str) -> Sequence[Waiting]:
        """Remove and return the next batch for a path; empty if nothing waits."""
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
