"""Log lines about lost and restored contact with the coordinator and the aggregator. No I/O; the clock is an argument."""

import logging
from collections.abc import Callable

from fedround import events
from fedround.common import wire
from fedround.events import Fact
from fedround.observability.lines import Line

REPEAT = 300.0
"""Seconds between two lines during one outage."""
BRIEF = 1.0
"""Minimum seconds of an outage whose duration the line about restored contact shows."""


class Contacts:
    """The outages of the peers.

    The rules:

    1. The first failure of an outage makes a line. Later failures make one line every `REPEAT` seconds, with the duration.
    2. The first response after an outage makes a line, with the duration. So does the first response of all.
    3. A successful transfer makes a line only after a failed one.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lost: dict[str, float | None] = {}
        """Start of the current outage, by peer; None if there is none."""
        self._logged: dict[str, float] = {}
        """Time of the last line about an outage, by peer."""

    def line(self, fact: Fact) -> Line | None:
        """Return the line about `fact`, or None."""
        match fact:
            case events.ContactLost(reason):
                return self._lost_line("coordinator", reason)
            case events.AggregatorUnreachable(_, reason) | events.TransferLost(reason):
                return self._lost_line("aggregator", reason)
            case events.ContactMade():
                return self._restored_line("coordinator")
            case events.AggregatorReached():
                return self._restored_line("aggregator")
            case events.ExchangeEnded(path=wire.UPDATE, error=None) if "aggregator" in self._lost:
                return self._restored_line("aggregator")
        return None

    def _lost_line(self, peer: str, reason: str) -> Line | None:
        now, since = self._clock(), self._lost.get(peer)
        if since is None:
            self._lost[peer] = self._logged[peer] = now
            return logging.WARNING, f"no contact with the {peer}: {reason}; retrying"
        if now < self._logged[peer] + REPEAT:
            return None
        self._logged[peer] = now
        return logging.WARNING, f"no contact with the {peer} for {_duration(now - since)}: {reason}; retrying"

    def _restored_line(self, peer: str) -> Line | None:
        since = self._lost.get(peer)
        if peer in self._lost and since is None:
            return None
        self._lost[peer] = None
        lasted = 0.0 if since is None else self._clock() - since
        return logging.INFO, f"in contact with the {peer}" + (f" after {_duration(lasted)} without" if lasted >= BRIEF else "")


def _duration(seconds: float) -> str:
    """Return a duration with at most two units, such as `1 h 2 min`."""
    for size, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = int(seconds % size // smaller)
            return f"{int(seconds // size)} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{seconds:.0f} s"
