"""The registered participants and their time-outs. Part of the coordinator's core: no I/O, no clock."""

import math
from collections.abc import Container, Iterable, Iterator
from heapq import heappop, heappush

from fedround.coordinator.seats import Key, Known, Ordinals, Participant
from fedround.errors import Forbidden, NoSeat

MISSING_FOR = 3600.0
"""Seconds for which a participant that timed out is listed as missing."""
MOST_MISSING = 1000
"""Maximum number of names listed as missing, because clients may invent names."""
MOST_REGISTERED = 10_000
"""Maximum number of registrations that wait for their first heartbeat. One more removes the oldest."""
RETURN_WITHIN = 30.0
"""Minimum time-out, in seconds, for the first heartbeat of known participants after a restart of the coordinator."""
PROBE = 3.0
"""Minimum seconds for a probed seat to send a heartbeat, and minimum seconds between two probes of one seat."""


class Presence:
    """The seats by id.

    A participant is *present* from its first heartbeat, and before that only *registered*. Iteration, length, `in` and `get` cover
    the present participants.

    Args:
        timeout: Seconds without a heartbeat after which a seat is removed.
        shared_seats: Maximum number of present participants without an owner.
    """

    def __init__(self, timeout: float, shared_seats: int) -> None:
        self._timeout = timeout
        self._shared_seats = shared_seats
        self.joined = 0
        """Number of participants that ever became present."""
        self.without_owner = 0
        """Number of present participants without an owner."""
        self.with_shards = 0
        """Number of present participants that have a shard or ask for one."""
        self._present: dict[str, Participant] = {}
        self._registered: dict[str, Participant] = {}
        """The seats without a first heartbeat, oldest first."""
        self._seats: dict[Key, dict[str, Participant]] = {}
        self._to_probe: dict[str, Participant] = {}
        """The seats with a probe that is due or runs."""
        self._expiry: list[tuple[float, str]] = []
        """A heap of time-outs. A heartbeat changes only the seat, whose entry here is corrected when it reaches the top."""
        self._ordinals = Ordinals()
        self._timed_out: dict[str, float] = {}
        """Times of time-outs, by name."""

    def __len__(self) -> int:
        return len(self._present)

    def __iter__(self) -> Iterator[Participant]:
        return iter(self._present.values())

    def __contains__(self, id: str) -> bool:
        return id in self._present

    def failure_key(self, id: str, key: Key) -> Key:
        """Return the key that failures of a seat count against; `key` if the seat is gone."""
        seat = self._present.get(id)
        return key if seat is None else seat.failure_key

    def counted(self, id: str, round: int) -> None:
        """Record that an update of a seat was counted in a round. Ignore a seat that is gone."""
        if (seat := self._present.get(id)) is not None:
            seat.counted, seat.delivered = round, True

    def attempt_ended(self, now: float, ids: Iterable[str]) -> None:
        """Record that the attempt of these participants has ended."""
        for id in ids:
            if (seat := self._present.get(id)) is not None:
                seat.free_since = now

    def completed(self, selected: Iterable[str], counted: Container[str]) -> None:
        """Count a completed round for its selected participants that are still present."""
        for id in selected:
            if (seat := self._present.get(id)) is not None:
                seat.selected_rounds += 1
                seat.counted_rounds += id in counted

    @property
    def registered(self) -> int:
        """Number of participants that have not yet sent a heartbeat."""
        return len(self._registered)

    def get(self, id: str) -> Participant | None:
        """Return the present participant with this id."""
        return self._present.get(id)

    def find(self, id: str) -> Participant | None:
        """Return the seat with this id, present or only registered."""
        return self._present.get(id) or self._registered.get(id)

    def authorize(self, id: str, owner: str) -> None:
        """Check that a request with the proved identity `owner` may act for an id. Raises `Forbidden`."""
        seat = self.find(id)
        if seat is not None and seat.owner not in ("", owner):
            raise Forbidden

    def seats(self, key: Key) -> list[Participant]:
        """Return all seats with a key, oldest first."""
        return list(self._seats.get(key, {}).values())

    def add(self, now: float, id: str, name: str, ordinal: int | None, *, extended: bool, owner: str = "") -> Participant:
        """Register a participant. It gets its previous `ordinal` again if that is free. Raises `NoSeat`."""
        self._check_seats(owner)
        # A 0.8 client gets none before its first heartbeat: a stray registration must not shift the ordinals of others.
        taken = self._ordinals.take(ordinal) if extended else None
        seat = Participant(id, name, owner, extended, taken, joined=now, seen=now, expires=now + self._timeout)
        self._registered[id] = seat
        self._seats.setdefault(seat.key, {})[id] = seat
        if len(self._registered) > MOST_REGISTERED:
            self.remove(now, next(iter(self._registered.values())))
        return seat

    def restore(self, now: float, known: Known) -> None:
        """Restore a seat that was present before a restart."""
        ordinal, expires = self._ordinals.take(known.ordinal), now + max(self._timeout, RETURN_WITHIN)
        seat = Participant(known.id, known.name, known.owner, known.extended, ordinal, joined=now, seen=now, expires=expires)
        seat.counted, seat.owed, seat.known_to_books = known.counted, known.owed, True
        seat.selected_rounds, seat.counted_rounds, seat.evaluates = known.selected_rounds, known.counted_rounds, known.evaluates
        seat.claim, seat.index = known.claim, known.shard
        self._seats.setdefault(seat.key, {})[seat.id] = seat
        self._make_present(seat)

    def heartbeat(self, now: float, seat: Participant) -> bool:
        """Take a heartbeat. Return whether it was the first, which makes the participant present. Raises `NoSeat`."""
        first = not seat.present
        if first:
            self._check_seats(seat.owner)
        seat.heartbeat_gap, seat.heartbeat_at = now - seat.seen, now
        seat.probe_at = seat.probe_ends = math.inf
        self._to_probe.pop(seat.id, None)
        self.restart_timeout(now, seat)
        if first:
            del self._registered[seat.id]
            if seat.ordinal is None:
                seat.ordinal = self._ordinals.take(None)
            self._make_present(seat)
        return first

    def trouble(self, id: str, reason: str) -> None:
        """Record why a participant cannot reach the aggregator; empty: it can."""
        if (seat := self._present.get(id)) is not None:
            seat.trouble = reason

    def restart_timeout(self, now: float, seat: Participant) -> None:
        """Restart the time-out of a seat, after a heartbeat or the response to a long poll."""
        seat.seen, expires = now, now + self._timeout
        if expires < seat.expires:  # the longer time-out after a restart ends with the first heartbeat
            heappush(self._expiry, (expires, seat.id))
        seat.expires = expires

    def rolled_back(self, newest: int) -> None:
        """Go back to the model of round `newest`."""
        for seat in self:
            seat.rolled_back(newest)

    def remove(self, now: float, seat: Participant, *, missed: bool = False) -> None:
        """Remove a seat. `missed`: whether it timed out, so that its name is listed as missing."""
        (self._present if seat.present else self._registered).pop(seat.id)
        self._to_probe.pop(seat.id, None)
        others = self._seats[seat.key]
        del others[seat.id]
        if not others:
            del self._seats[seat.key]
        if seat.ordinal is not None:
            self._ordinals.free(seat.ordinal)
        if not seat.present:
            return
        self.without_owner -= not seat.owner
        self.with_shards -= seat.claim is not None
        self._timed_out.pop(seat.name, None)
        if missed:
            self._timed_out[seat.name] = now
            while len(self._timed_out) > MOST_MISSING:
                del self._timed_out[next(iter(self._timed_out))]

    def schedule_probes(self, now: float, key: Key) -> None:
        """Schedule a probe of every seat with this key, because another participant registers under it."""
        for seat in self._seats.get(key, {}).values():
            if seat.present and seat.id not in self._to_probe:
                seat.probe_at = max(now, seat.probed + PROBE)
                self._to_probe[seat.id] = seat

    def start_probes(self, now: float) -> list[Participant]:
        """Start the probes that are due. Return their seats: the coordinator must respond to their long polls now."""
        due = [seat for seat in self._to_probe.values() if seat.probe_at <= now]
        for seat in due:
            seat.probe_at, seat.probed = math.inf, now
            # A participant with a long interval between heartbeats gets enough time for its next one.
            seat.probe_ends = now + max(PROBE, min(2 * seat.heartbeat_gap, self._timeout))
        return due

    def failed_probes(self, now: float) -> list[Participant]:
        """Return the seats that sent no heartbeat within their probe."""
        return [seat for seat in self._to_probe.values() if seat.probe_ends <= now]

    def missing(self, now: float) -> dict[str, float]:
        """Return the names that timed out and have not returned, with the seconds since the time-out."""
        names = {participant.name for participant in self}
        gone = {name: now - since for name, since in self._timed_out.items() if name not in names}
        return {name: seconds for name, seconds in gone.items() if seconds <= MISSING_FOR}

    def timed_out(self, now: float) -> list[Participant]:
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

    def expire_registrations(self, now: float) -> None:
        """Remove the registrations that timed out before their first heartbeat."""
        while self._registered and (oldest := next(iter(self._registered.values()))).expires <= now:
            self.remove(now, oldest)

    def extend_timeouts(self, now: float) -> None:
        """Restart every time-out, because this process could not receive heartbeats until now."""
        for seat in (*self._present.values(), *self._registered.values()):
            seat.expires = max(seat.expires, now + self._timeout)
        for seat in self._to_probe.values():
            seat.probe_ends = max(seat.probe_ends, now + PROBE) if seat.probe_ends < math.inf else math.inf

    def next_expiry(self) -> float:
        """Return a time not later than the next time-out or probe; `math.inf` if there is none."""
        due = [min(seat.probe_at, seat.probe_ends) for seat in self._to_probe.values()]
        due += [self._expiry[0][0]] if self._expiry else []
        due += [next(iter(self._registered.values())).expires] if self._registered else []
        return min(due, default=math.inf)

    def _check_seats(self, owner: str) -> None:
        if not owner and self.without_owner >= self._shared_seats:
            raise NoSeat(self._shared_seats)

    def _make_present(self, seat: Participant) -> None:
        seat.present = True
        self._present[seat.id] = seat
        heappush(self._expiry, (seat.expires, seat.id))
        self._timed_out.pop(seat.name, None)
        self.joined += 1
        self.without_owner += not seat.owner
        self.with_shards += seat.claim is not None
