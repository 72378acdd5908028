"""Who is present, who has only registered, and which seats are in doubt. Part of the coordinator's core: no I/O, no clock."""

import math
from collections.abc import Container, Iterable, Iterator
from heapq import heappop, heappush

from fedround.coordinator.seats import Known, Ordinals, Participant, Who
from fedround.errors import Forbidden, NoSeat

MISSED = 3600.0
"""Seconds for which a participant that timed out is listed as missing."""
MOST_MISSED = 1000
"""Names that are listed as missing: clients may invent them."""
MOST_REGISTERED = 10_000
"""Registrations that wait for their first heartbeat. One more drops the oldest."""
RETURN = 30.0
"""Seconds that the participants of before a restart have at least to send a heartbeat."""
PROBE = 3.0
"""Seconds that a seat in doubt has for a heartbeat, and the least between two probes of one seat."""


class Presence:
    """The seats by id.

    Args:
        timeout: Seconds without a heartbeat after which a seat is removed.
        shared_seats: How many participants without an owner may be present.

    A registration that was never heard is only *registered*. Iteration, length and `get` concern those that were heard.
    """

    def __init__(self, timeout: float, shared_seats: int) -> None:
        self._timeout = timeout
        self._shared_seats = shared_seats
        self.joined = 0
        """How many were heard, ever."""
        self.shared = 0
        """How many of those present have no owner."""
        self.sharing = 0
        """How many of those present have a shard, or ask for one."""
        self._present: dict[str, Participant] = {}
        self._registered: dict[str, Participant] = {}
        """The oldest first."""
        self._seats: dict[Who, dict[str, Participant]] = {}
        self._doubted: dict[str, Participant] = {}
        # Re-arming only changes the seat; its place in this heap is corrected when it comes up.
        self._expiry: list[tuple[float, str]] = []
        self._ordinals = Ordinals()
        self._fell_silent: dict[str, float] = {}
        """When, by name."""

    def __len__(self) -> int:
        return len(self._present)

    def __iter__(self) -> Iterator[Participant]:
        return iter(self._present.values())

    def __contains__(self, id: str) -> bool:
        return id in self._present

    def judged(self, id: str, who: Who) -> Who:
        """Return whom a failure of this seat counts against: `who` where the seat is gone."""
        seat = self._present.get(id)
        return who if seat is None else seat.judged

    def delivered(self, id: str, round: int) -> None:
        """An update of this seat was counted in a round. The seat may be gone."""
        if (seat := self._present.get(id)) is not None:
            seat.counted, seat.delivered = round, True

    def freed(self, now: float, ids: Iterable[str]) -> None:
        """The attempt is over in which these had a part."""
        for id in ids:
            if (seat := self._present.get(id)) is not None:
                seat.free_since = now

    def completed(self, selected: Iterable[str], counted: Container[str]) -> None:
        """A round was completed. Note for those that are still there how often their updates are counted."""
        for id in selected:
            if (seat := self._present.get(id)) is not None:
                seat.selected_rounds += 1
                seat.counted_rounds += id in counted

    @property
    def registered(self) -> int:
        """How many wait for their first heartbeat."""
        return len(self._registered)

    def get(self, id: str) -> Participant | None:
        return self._present.get(id)

    def find(self, id: str) -> Participant | None:
        """Return the seat of this id, heard or only registered."""
        return self._present.get(id) or self._registered.get(id)

    def authorize(self, id: str, owner: str) -> None:
        """Check that a request with the proved identity `owner` may act for this id. Raises `Forbidden`."""
        seat = self.find(id)
        if seat is not None and seat.owner not in ("", owner):
            raise Forbidden

    def seats(self, who: Who) -> list[Participant]:
        """Return all seats of one identity or name, the oldest first."""
        return list(self._seats.get(who, {}).values())

    def add(self, now: float, id: str, name: str, ordinal: int | None, *, extended: bool, owner: str = "") -> Participant:
        """Register a participant. `ordinal`: the one it held before, given back if it is free. Raises `NoSeat`."""
        self._check_room(owner)
        # A stray request of 0.8's kind must not shift the ordinals of others.
        taken = self._ordinals.take(ordinal) if extended else None
        seat = Participant(id, name, owner, extended, taken, joined=now, seen=now, expires=now + self._timeout)
        self._registered[id] = seat
        self._seats.setdefault(seat.who, {})[id] = seat
        if len(self._registered) > MOST_REGISTERED:
            self.remove(now, next(iter(self._registered.values())))
        return seat

    def restore(self, now: float, known: Known) -> None:
        """Give a seat back that was heard before a restart."""
        ordinal, expires = self._ordinals.take(known.ordinal), now + max(self._timeout, RETURN)
        seat = Participant(known.id, known.name, known.owner, known.extended, ordinal, joined=now, seen=now, expires=expires)
        seat.counted, seat.owed, seat.known_to_books = known.counted, known.owed, True
        seat.selected_rounds, seat.counted_rounds, seat.evaluates = known.selected_rounds, known.counted_rounds, known.evaluates
        seat.claim, seat.index = known.claim, known.shard
        self._seats.setdefault(seat.who, {})[seat.id] = seat
        self._admit(seat)

    def beat(self, now: float, seat: Participant) -> bool:
        """Note a heartbeat. True: it was the first, and the participant is present now. Raises `NoSeat`."""
        first = not seat.heard
        if first:
            self._check_room(seat.owner)
        seat.pause, seat.beat = now - seat.seen, now
        seat.probe_at = seat.gone_at = math.inf
        self._doubted.pop(seat.id, None)
        self.answered(now, seat)
        if first:
            del self._registered[seat.id]
            if seat.ordinal is None:
                seat.ordinal = self._ordinals.take(None)
            self._admit(seat)
        return first

    def trouble(self, id: str, reason: str) -> None:
        """Note what keeps a participant from the aggregator; empty where nothing does."""
        if (seat := self._present.get(id)) is not None:
            seat.trouble = reason

    def answered(self, now: float, seat: Participant) -> None:
        """Re-arm the time-out. The answer to a held heartbeat does so, too, but proves no life."""
        seat.seen, expires = now, now + self._timeout
        if expires < seat.expires:  # the grace after a restart ends with the first heartbeat
            heappush(self._expiry, (expires, seat.id))
        seat.expires = expires

    def rolled_back(self, newest: int) -> None:
        """Training goes on behind round `newest`."""
        for seat in self:
            seat.rolled_back(newest)

    def remove(self, now: float, seat: Participant, *, missed: bool = False) -> None:
        """Give the seat up. `missed`: it timed out, and somebody is to look for it."""
        (self._present if seat.heard else self._registered).pop(seat.id)
        self._doubted.pop(seat.id, None)
        others = self._seats[seat.who]
        del others[seat.id]
        if not others:
            del self._seats[seat.who]
        if seat.ordinal is not None:
            self._ordinals.free(seat.ordinal)
        if not seat.heard:
            return
        self.shared -= not seat.owner
        self.sharing -= seat.claim is not None
        self._fell_silent.pop(seat.name, None)
        if missed:
            self._fell_silent[seat.name] = now
            while len(self._fell_silent) > MOST_MISSED:
                del self._fell_silent[next(iter(self._fell_silent))]

    def doubt(self, now: float, who: Who) -> None:
        """Have every seat of `who` prove that it lives: somebody else registered under the same name."""
        for seat in self._seats.get(who, {}).values():
            if seat.heard and seat.id not in self._doubted:
                seat.probe_at = max(now, seat.probed + PROBE)
                self._doubted[seat.id] = seat

    def probe(self, now: float) -> list[Participant]:
        """Begin the probes that are due. Return the seats whose held heartbeat has to be answered."""
        due = [seat for seat in self._doubted.values() if seat.probe_at <= now]
        for seat in due:
            seat.probe_at, seat.probed = math.inf, now
            # One whose heartbeats are rare, by its settings, gets the time for the next.
            seat.gone_at = now + max(PROBE, min(2 * seat.pause, self._timeout))
        return due

    def replaced(self, now: float) -> list[Participant]:
        """Return the seats that did not prove that they live."""
        return [seat for seat in self._doubted.values() if seat.gone_at <= now]

    def missing(self, now: float) -> dict[str, float]:
        """Return the names that timed out and have not come back, and for how many seconds each has been gone."""
        names = {participant.name for participant in self}
        gone = {name: now - since for name, since in self._fell_silent.items() if name not in names}
        return {name: seconds for name, seconds in gone.items() if seconds <= MISSED}

    def silent(self, now: float) -> list[Participant]:
        """Return those present whose time-out is over."""
        seats: dict[str, Participant] = {}
        while self._expiry and self._expiry[0][0] <= now:
            _, id = heappop(self._expiry)
            seat = self._present.get(id)
            if seat is None:
                continue
            if seat.expires <= now:
                seats[id] = seat
            else:
                heappush(self._expiry, (seat.expires, id))
        return list(seats.values())

    def drop_unheard(self, now: float) -> None:
        """Remove the registrations whose first heartbeat did not come within the time-out."""
        while self._registered and (oldest := next(iter(self._registered.values()))).expires <= now:
            self.remove(now, oldest)

    def spare(self, now: float) -> None:
        """Begin every time-out again: no heartbeat could be heard until now."""
        for seat in (*self._present.values(), *self._registered.values()):
            seat.expires = max(seat.expires, now + self._timeout)
        for seat in self._doubted.values():
            seat.gone_at = max(seat.gone_at, now + PROBE) if seat.gone_at < math.inf else math.inf

    def next_expiry(self) -> float:
        """Return a time not later than the next time-out or probe; `math.inf`: there is none."""
        due = [min(seat.probe_at, seat.gone_at) for seat in self._doubted.values()]
        due += [self._expiry[0][0]] if self._expiry else []
        due += [next(iter(self._registered.values())).expires] if self._registered else []
        return min(due, default=math.inf)

    def _check_room(self, owner: str) -> None:
        if not owner and self.shared >= self._shared_seats:
            raise NoSeat(self._shared_seats)

    def _admit(self, seat: Participant) -> None:
        seat.heard = True
        self._present[seat.id] = seat
        heappush(self._expiry, (seat.expires, seat.id))
        self._fell_silent.pop(seat.name, None)
        self.joined += 1
        self.shared += not seat.owner
        self.sharing += seat.claim is not None
