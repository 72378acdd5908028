"""What a log tells of contacts that are lost and made again. No I/O; the clock is an argument."""

import logging
from collections.abc import Callable

from fedround import events
from fedround.common import wire
from fedround.events import Fact

REPEAT = 300.0
"""Seconds between two lines about one contact that stays lost."""
BRIEF = 1.0
"""Seconds: a contact that was lost for less is back without a word about how long."""


class Contacts:
    """The peers by name, and since when each has not answered.

    The rules:

    1. A contact that is lost is told at once, then every `REPEAT` seconds with how long it has lasted. Each attempt in between is
       silent.
    2. A contact that is made is told once, with how long it was lost.
    3. Transfers are told only when one was lost before: the first is no news.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lost: dict[str, float | None] = {}
        """Since when, by peer; None while there is contact."""
        self._told: dict[str, float] = {}

    def line(self, fact: Fact) -> tuple[int, str] | None:
        """Return the level and the text of the line about `fact`, if there is one."""
        match fact:
            case events.ContactLost(reason):
                return self._is_lost("coordinator", reason)
            case events.BooksUnreachable(_, reason) | events.TransferLost(reason):
                return self._is_lost("aggregator", reason)
            case events.ContactMade():
                return self._is_made("coordinator")
            case events.BooksReached():
                return self._is_made("aggregator")
            case events.ExchangeEnded(path=wire.UPDATE, error=None) if "aggregator" in self._lost:
                return self._is_made("aggregator")
        return None

    def _is_lost(self, peer: str, reason: str) -> tuple[int, str] | None:
        now, since = self._clock(), self._lost.get(peer)
        if since is None:
            self._lost[peer] = self._told[peer] = now
            return logging.WARNING, f"no contact with the {peer} ({reason}), trying again"
        if now < self._told[peer] + REPEAT:
            return None
        self._told[peer] = now
        return logging.WARNING, f"no contact with the {peer} for {_span(now - since)} ({reason}), trying again"

    def _is_made(self, peer: str) -> tuple[int, str] | None:
        since = self._lost.get(peer)
        if peer in self._lost and since is None:
            return None
        self._lost[peer] = None
        lasted = 0.0 if since is None else self._clock() - since
        return logging.INFO, f"in contact with the {peer}" + (f" after {_span(lasted)} without" if lasted >= BRIEF else "")


def _span(seconds: float) -> str:
    """A duration as people say it: two units at most."""
    for size, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = int(seconds % size // smaller)
            return f"{int(seconds // size)} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{seconds:.0f} s"
