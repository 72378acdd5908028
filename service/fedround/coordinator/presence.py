"""Who is present: participants, ordinals, heartbeat time-outs. Part of the coordinator's core: no I/O, no clock."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

MISSED = 3600.0
"""Seconds for which one that fell silent is missed: then nobody expects it any more."""
MOST_MISSED = 1000
"""Names, whoever invents them."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is worth to be known of a participant after a restart."""

    id: str
    name: str
    ordinal: int
    extended: bool
    counted: int | None
    owed: int | None
    owner: str = ""


@dataclass(slots=True)
class Participant:
    id: str
    name: str
    ordinal: int
    """The lowest number that nobody else held when it joined."""
    seen: float
    expires: float
    joined: float
    owner: str = ""
    """The proved identity that registered it, which alone may act for it; empty: everybody that is let in."""
    extended: bool = False
    """It is one of ours: it understands that it is to ask again."""
    counted: int | None = None
    """The last round in which its update was counted."""
    owed: int | None = None
    """If that round is tried anew, it is asked again: it had a part in it, and may have been told that its update was counted."""
    known_to_books: bool = False
    """It was chosen at least once: when it is gone, the books are told to forget it."""


class Presence:
    """The participants by id. Times are monotonic seconds; `timeout` is the silence after which one is gone."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self.joined = 0
        """How often somebody was added."""
        self._present: dict[str, Participant] = {}
        # Re-arming only changes the participant; its place in this heap is corrected when it comes up.
        self._expiry: list[tuple[float, str]] = []
        self._ordinals: set[int] = set()
        self._lowest_free = 0
        self._fell_silent: dict[str, float] = {}
        """When, by name."""

    def __len__(self) -> int:
        return len(self._present)

    def __iter__(self) -> Iterator[Participant]:
        return iter(self._present.values())

    def __contains__(self, id: str) -> bool:
        return id in self._present

    def get(self, id: str) -> Participant | None:
        return self._present.get(id)

    def add(
        self, now: float, id: str, name: str, ordinal: int | None, *, extended: bool, owner: str = "", grace: float = 0.0
    ) -> Participant:
        """`ordinal`: the one it held before, given back if it is free. `grace`: what its first time-out is at least."""
        expires = now + max(self._timeout, grace)
        participant = self._present[id] = Participant(id, name, self._take_ordinal(ordinal), now, expires, now, owner, extended)
        heappush(self._expiry, (participant.expires, id))
        self._fell_silent.pop(name, None)
        self.joined += 1
        return participant

    def touch(self, now: float, id: str) -> Participant | None:
        """It was heard of; None when nobody knows it."""
        participant = self._present.get(id)
        if participant is not None:
            participant.seen, expires = now, now + self._timeout
            if expires < participant.expires:  # the grace after a restart is over with the first word
                heappush(self._expiry, (expires, id))
            participant.expires = expires
        return participant

    def remove(self, now: float, id: str, *, missed: bool) -> Participant:
        """`missed`: it fell silent, and somebody is to look for it."""
        participant = self._present.pop(id)
        self._ordinals.discard(participant.ordinal)
        self._lowest_free = min(self._lowest_free, participant.ordinal)
        self._fell_silent.pop(participant.name, None)
        if missed:
            self._fell_silent[participant.name] = now
            while len(self._fell_silent) > MOST_MISSED:
                del self._fell_silent[next(iter(self._fell_silent))]
        return participant

    def missing(self, now: float) -> dict[str, float]:
        """Who fell silent and has not come back under its name, and for how many seconds it has been gone."""
        names = {participant.name for participant in self}
        gone = {name: now - since for name, since in self._fell_silent.items() if name not in names}
        return {name: seconds for name, seconds in gone.items() if seconds <= MISSED}

    def silent(self, now: float) -> list[str]:
        """The ids whose time-out is over."""
        ids: dict[str, None] = {}
        while self._expiry and self._expiry[0][0] <= now:
            _, id = heappop(self._expiry)
            participant = self._present.get(id)
            if participant is None:
                continue
            if participant.expires <= now:
                ids[id] = None
            else:
                heappush(self._expiry, (participant.expires, id))
        return list(ids)

    def spare(self, now: float) -> None:
        """Nobody could be heard of until now: every time-out begins again."""
        for participant in self:
            participant.expires = max(participant.expires, now + self._timeout)

    def next_expiry(self) -> float:
        """Not later than the next time-out; `math.inf` when nobody is there."""
        return self._expiry[0][0] if self._expiry else math.inf

    def _take_ordinal(self, wanted: int | None) -> int:
        if wanted is None or wanted in self._ordinals:
            wanted = self._lowest_free
            while wanted in self._ordinals:
                wanted += 1
            self._lowest_free = wanted + 1
        self._ordinals.add(wanted)
        return wanted
