"""The queue of participants' telemetry for the operators' collector, and its limits. A core: no I/O, no clock.

The rules:

1. A participant may send one message at a time to each path, and `RATE` messages a second.
2. The metrics of a participant may have `MOST_SERIES` series within `WINDOW` seconds. A message that exceeds this is refused as a
   whole.
3. The queue is bounded, in total and for each participant. A message that does not fit is refused.
4. A batch consists of messages for one path, up to `MOST_BATCH` bytes. Concatenated OTLP messages are one valid OTLP message.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fedround.http.budgets import Buckets

RATE, BURST = 2.0, 20.0
"""Maximum messages a second, and in a burst, from one participant to one path."""
MOST_SERIES, WINDOW = 2000, 3600.0
"""Maximum number of series from one participant, within these seconds."""
MOST_BYTES, MOST_OF_ONE = 16 << 20, 2 << 20
"""Maximum bytes in the queue, and from one participant."""
MOST_BATCH = 1 << 20
"""Maximum bytes of a batch."""
TABLE = 4096
"""Maximum number of participants whose limits are remembered."""


class Waiting(NamedTuple):
    """A message in the queue, and the name of its participant."""

    name: str
    message: bytes


@dataclass(slots=True)
class _Seen:
    """The series that a participant has sent since `since`, in monotonic seconds."""

    since: float
    series: dict[int, int] = field(default_factory=dict)


class Backlog:
    """The queue, by the rules above."""

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
        """Begin to receive a message. Return whether the limits allow it. If so, the caller must call `end`."""
        key = path, name
        if key in self._under_way or not self._rates.take(key, now):
            return False
        self._under_way.add(key)
        return True

    def end(self, path: str, name: str) -> None:
        """End the reception of a message, whether it succeeded or not."""
        self._under_way.discard((path, name))

    def add_series(self, name: str, series: Mapping[int, int], now: float) -> bool:
        """Add the series of a message. Return whether the participant stays within `MOST_SERIES`; if not, change nothing."""
        seen = self._seen.pop(name, None)
        if seen is None or now - seen.since >= WINDOW:
            seen = _Seen(now)
        self._seen[name] = seen
        if len(self._seen) > TABLE:
            self._seen.popitem(last=False)
        together = {**seen.series, **series}
        if sum(together.values()) > MOST_SERIES:
            return False
        seen.series = together
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
