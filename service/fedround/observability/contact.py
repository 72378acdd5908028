"""Log lines about lost and restored contact with peers. No I/O; the clock is an argument."""

import logging
from collections.abc import Callable

from fedround import events
from fedround.common import wire
from fedround.events import Fact

REPEAT = 300.0
"""Seconds between two lines while contact stays lost."""
BRIEF = 1.0
"""Seconds: the line about restored contact omits a shorter outage's duration."""


class Contacts:
    """The peers by name, and since when each has not responded.

    The rules:

    1. Lost contact makes a line immediately, and then one every `REPEAT` seconds with the duration. Attempts in between make none.
    2. Restored contact makes one line, with the duration of the outage.
    3. A successful transfer makes a line only after a failed one.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lost: dict[str, float | None] = {}
        """Start of the outage, by peer; None while there is contact."""
        self._logged: dict[str, float] = {}
        """Time of the last line about lost contact, by peer."""

    def line(self, fact: Fact) -> tuple[int, str] | None:
        """Return the level and the text of the line about `fact`, or None."""
        match fact:
            case events.ContactLost(reason):
                return self._is_lost("coordinator", reason)
            case events.AggregatorUnreachable(_, reason) | events.TransferLost(reason):
                return self._is_lost("aggregator", reason)
            case events.ContactMade():
                return self._is_made("coordinator")
            case events.AggregatorReached():
                return self._is_made("aggregator")
            case events.ExchangeEnded(path=wire.UPDATE, error=None) if "aggregator" in self._lost:
                return self._is_made("aggregator")
        return None

    def _is_lost(self, peer: str, reason: str) -> tuple[int, str] | None:
        now, since = self._clock(), self._lost.get(peer)
        if since is None:
            self._lost[peer] = self._logged[peer] = now
            return logging.WARNING, f"no contact with the {peer}: {reason}; retrying"
        if now < self._logged[peer] + REPEAT:
            return None
        self._logged[peer] = now
        return logging.WARNING, f"no contact with the {peer} for {_span(now - since)}: {reason}; retrying"

    def _is_made(self, peer: str) -> tuple[int, str] | None:
        since = self._lost.get(peer)
        if peer in self._lost and since is None:
            return None
        self._lost[peer] = None
        lasted = 0.0 if since is None else self._clock() - since
        return logging.INFO, f"in contact with the {peer}" + (f" after {_span(lasted)} without" if lasted >= BRIEF else "")


def _span(seconds: float) -> str:
    """Return a duration with at most two units, such as `1 h 2 min`."""
    for size, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = int(seconds % size // smaller)
            return f"{int(seconds // size)} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{seconds:.0f} s"
