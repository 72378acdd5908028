"""The seats: present, only registered, or to be probed. Part of the coordinator's core: no I/O, no clock."""

import math
from collections.abc import Container, Iterable, Iterator
from heapq import heappop, heappush

from fedround.coordinator.seats import Known, Ordinals, Participant, Who
from fedround.errors import Forbidden, NoSeat

MISSED = 3600.0
"""Seconds for which a participant that timed out is listed as missing."""
MOST_MISSED = 1000
"""Maximum number of names listed as missing, as clients may invent names."""
MOST_REGISTERED = 10_000
"""Maximum number of registrations that wait for their first heartbeat. One more drops the oldest."""
RETURN = 30.0
"""Minimum seconds for known participants to send a heartbeat after a restart of the coordinator."""
PROBE = 3.0
"""Minimum seconds for a probed seat to send a heartbeat, and minimum seconds between two probes of one seat."""


class Presence:
    """The seats by id.

    Args:
        timeout: Seconds without a heartbeat after which a seat is removed.
        shared_seats: Maximum number of present participants without an owner.

    A participant is *present* from its first heartbeat, and before that only *registered*. Iteration, length and `get` cover
    the present participants.
    """

    def __init__(self, timeout: float, shared_seats: int) -> None:
        self._timeout = timeout
        self._shared_seats = shared_seats
        self.joined = 0
        """Number of participants that ever became present."""
        self.shared = 0
        """Number of present participants without an owner."""
        self.sharing = 0
        """Number of present participants that have a shard or ask for one."""
        self._present: dict[str, Participant] = {}
        self._registered: dict[str, Participant] = {}
        """Oldest first."""
        self._seats: dict[Who, dict[str, Participant]] = {}
        self._doubted: dict[str, Participant] = {}
        # A heartbeat changes only the seat: its entry in this heap is corrected when it reaches the top.
        self._expiry: list[tuple[float, str]] = []
        self._ordinals = Ordinals()
        self._timed_out: dict[str, float] = {}
        """Time of the time-out, by name."""

    def __len__(self) -> int:
        return len(self._present)

    def __iter__(self) -> Iterator[Participant]:
        return iter(self._present.values())

    def __contains__(self, id: str) -> bool:
        return id in self._present

    def judged(self, id: str, who: Who) -> Who:
        """Return the identity that a failure of this seat counts against; `who` if the seat is gone."""
        seat = self._present.get(id)
        return who if seat is None else seat.judged

    def delivered(self, id: str, round: int) -> None:
        """Note that an update of this seat was counted in a round. The seat may be gone."""
        if (seat := self._present.get(id)) is not None:
            seat.counted, seat.delivered = round, True

    def freed(self, now: float, ids: Iterable[str]) -> None:
        """Note that the attempt of these participants is over."""
        for id in ids:
            if (seat := self._present.get(id)) is not None:
                seat.free_since = now

    def completed(self, selected: Iterable[str], counted: Container[str]) -> None:
        """Count a completed round for the selected participants that are still present."""
        for id in selected:
            if (seat := self._present.get(id)) is not None:
                seat.selected_rounds += 1
                seat.counted_rounds += id in counted

    @property
    def registered(self) -> int:
        """Number of participants that have not yet sent a heartbeat."""
        return len(self._registered)

    def get(self, id: str) -> Participant | None:
        return self._present.get(id)

    def find(self, id: str) -> Participant | None:
        """Return the seat of this id, present or only registered."""
        return self._present.get(id) or self._registered.get(id)

    def authorize(self, id: str, owner: str) -> None:
        """Check that a request with the proved identity `owner` may act for this id. Raises `Forbidden`."""
        seat = self.find(id)
        if seat is not None and seat.owner not in ("", owner):
            raise Forbidden

    def seats(self, who: Who) -> list[Participant]:
        """Return all seats of one identity or name, oldest first."""
        return list(self._seats.get(who, {}).values())

    def add(self, now: float, id: str, name: str, ordinal: int | None, *, extended: bool, owner: str = "") -> Participant:
        """Register a participant. It gets its former `ordinal` again if that is free. Raises `NoSeat`."""
        self._check_room(owner)
        # A stray registration by a 0.8 client must not shift the ordinals of others.
        taken = self._ordinals.take(ordinal) if extended else None
        seat = Participant(id, name, owner, extended, taken, joined=now, seen=now, expires=now + self._timeout)
        self._registered[id] = seat
        self._seats.setdefault(seat.who, {})[id] = seat
        if len(self._registered) > MOST_REGISTERED:
            self.remove(now, next(iter(self._registered.values())))
        return seat

    def restore(self, now: float, known: Known) -> None:
        """Restore a seat that was present before a restart."""
        ordinal, expires = self._ordinals.take(known.ordinal), now + max(self._timeout, RETURN)
        seat = Participant(known.id, known.name, known.owner, known.extended, ordinal, joined=now, seen=now, expires=expires)
        seat.counted, seat.owed, seat.known_to_books = known.counted, known.owed, True
        seat.selected_rounds, seat.counted_rounds, seat.evaluates = known.selected_rounds, known.counted_rounds, known.evaluates
        seat.claim, seat.index = known.claim, known.shard
        self._seats.setdefault(seat.who, {})[seat.id] = seat
        self._admit(seat)

    def beat(self, now: float, seat: Participant) -> bool:
        """Note a heartbeat. Return whether it was the first, which makes the participant present. Raises `NoSeat`."""
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
        """Note why a participant cannot reach the aggregator; empty if it can."""
        if (seat := self._present.get(id)) is not None:
            seat.trouble = reason

    def answered(self, now: float, seat: Participant) -> None:
        """Restart the time-out. The response to a long poll does so too, but does not prove that the participant lives."""
        seat.seen, expires = now, now + self._timeout
        if expires < seat.expires:  # the grace after a restart ends with the first heartbeat
            heappush(self._expiry, (expires, seat.id))
        seat.expires = expires

    def rolled_back(self, newest: int) -> None:
        """Note a rollback to the model of round `newest`."""
        for seat in self:
            seat.rolled_back(newest)

    def remove(self, now: float, seat: Participant, *, missed: bool = False) -> None:
        """Remove a seat. `missed`: it timed out, so its name is listed as missing."""
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
        self._timed_out.pop(seat.name, None)
        if missed:
            self._timed_out[seat.name] = now
            while len(self._timed_out) > MOST_MISSED:
                del self._timed_out[next(iter(self._timed_out))]

    def doubt(self, now: float, who: Who) -> None:
        """Schedule a probe of every seat of `who`, as another participant registered under the same name."""
        for seat in self._seats.get(who, {}).values():
            if seat.heard and seat.id not in self._doubted:
                seat.probe_at = max(now, seat.probed + PROBE)
                self._doubted[seat.id] = seat

    def probe(self, now: float) -> list[Participant]:
        """Begin the probes that are due. Return the seats whose held heartbeats must be answered."""
        due = [seat for seat in self._doubted.values() if seat.probe_at <= now]
        for seat in due:
            seat.probe_at, seat.probed = math.inf, now
            # A participant with a long interval between heartbeats gets enough time for its next one.
            seat.gone_at = now + max(PROBE, min(2 * seat.pause, self._timeout))
        return due

    def replaced(self, now: float) -> list[Participant]:
        """Return the seats that sent no heartbeat within their probe."""
        return [seat for seat in self._doubted.values() if seat.gone_at <= now]

    def missing(self, now: float) -> dict[str, float]:
        """Return the names that timed out and have not returned, with the seconds since the time-out."""
        names = {participant.name for participant in self}
        gone = {name: now - since for name, since in self._timed_out.items() if name not in names}
        return {name: seconds for name, seconds in gone.items() if seconds <= MISSED}

    def silent(self, now: float) -> list[Participant]:
        """Return the present participants that have timed out."""
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
        """Remove the registrations that timed out before their first heartbeat."""
        while self._registered and (oldest := next(iter(self._registered.values()))).expires <= now:
            self.remove(now, oldest)

    def spare(self, now: float) -> None:
        """Restart every time-out, as this process could not receive heartbeats until now."""
        for seat in (*self._present.values(), *self._registered.values()):
            seat.expires = max(seat.expires, now + self._timeout)
        for seat in self._doubted.values():
            seat.gone_at = max(seat.gone_at, now + PROBE) if seat.gone_at < math.inf else math.inf

    def next_expiry(self) -> float:
        """Return a time not later than the next time-out or probe; `math.inf` if there is none."""
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
        self._timed_out.pop(seat.name, None)
        self.joined += 1
        self.shared += not seat.owner
        self.sharing += seat.claim is not None
