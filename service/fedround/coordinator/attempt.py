"""One attempt of a round: its members and the state of each. Part of the coordinator's core: no I/O, no clock."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush

from fedround.common.books import Admission, Admit, Close, Closed, Entry, Revoke
from fedround.common.wire import PHASES, Shard
from fedround.coordinator.history import weighted_means
from fedround.coordinator.seats import Key, Participant
from fedround.events import Contribution, Revoked, RoundCompleted

REVOKE_AGAIN = 1.0
"""Seconds between two calls of `Revoke` while the aggregator receives the update."""
LATE = "late"
"""Reason of members that the quorum was counted without. This is not a failure."""
MOST_SHOWN = 5
"""Maximum number of participants in the reason of a failed attempt."""


class State(Enum):
    """The state of a member of the open attempt. A participant that is not a member is waiting."""

    CHOSEN = "chosen"
    """The books have not admitted its token yet."""
    SELECTED = "selected"
    """It may upload its update."""
    REVOKING = "revoking"
    """Its upload permission is to be revoked."""
    DONE = "done"
    """Its update was counted."""
    IGNORED = "ignored"
    """It lost its part: its update was refused, or its permission was revoked."""


OUTSTANDING = (State.CHOSEN, State.SELECTED, State.REVOKING)
"""States of members whose update may still be counted."""


@dataclass(slots=True)
class Member:
    """A participant's part in an attempt. It may outlive the participant's seat. All times are monotonic seconds."""

    id: str
    name: str
    owner: str
    key: Key
    token: str
    state: State = State.CHOSEN
    deadline: float = math.inf
    revoke_at: float = 0.0
    """When the next call of `Revoke` is due."""
    complete_by: float = math.inf
    """When an arriving update must be complete, once the permission is to be revoked."""
    reason: str = ""
    """Why it loses its part."""
    detail: str = ""
    """More about the reason, for operators."""
    evaluates: bool = False
    """Whether it evaluates the global model."""
    shard: Shard | None = None
    """The shard that it trains."""
    asks: bool = False
    """Whether the coordinator assigned its shard."""
    entry: Entry | None = None
    """The ledger entry of its counted update."""
    selected_at: float = math.inf
    seconds: float = 0.0
    """Seconds from the selection until its update was counted."""
    reported: str = ""
    """The phase that it last reported (`wire.PHASES`); empty if it reported none."""
    reported_at: float = 0.0
    """When it first reported this phase."""
    lost_at: float = 0.0
    """When its update was refused, or when its permission was first to be revoked."""

    @classmethod
    def of(cls, seat: Participant, token: str) -> "Member":
        """Return a new member for the participant of a seat."""
        return cls(seat.id, seat.name, seat.owner, seat.key, token, shard=seat.shard, asks=seat.asks)


@dataclass(slots=True)
class Attempt:
    """An attempt of a round: its members by id, and by state in the order in which they reached that state."""

    id: str
    round: int
    begun: float
    train: bool = True
    """Whether its members train; otherwise they only evaluate the final model."""
    quorum: int | None = None
    """Number of counted updates after which the other members get only the quorum's grace. None: the attempt waits for all."""
    closes: float = math.inf
    """When the quorum's grace ends; infinite until the quorum is counted."""
    opened: bool = False
    """Whether the books have opened the attempt."""
    lost: bool = False
    """Whether the books have lost the attempt. The next page of the ledger has the reason."""
    members: dict[str, Member] = field(default_factory=dict)
    by_state: dict[State, dict[str, Member]] = field(default_factory=lambda: {state: {} for state in State})
    _deadlines: list[tuple[float, str]] = field(default_factory=list)

    def move(self, member: Member, state: State) -> None:
        """Move a member to a state, or add a new one."""
        self.by_state[member.state].pop(member.id, None)
        member.state = state
        self.by_state[state][member.id] = member
        self.members[member.id] = member

    @property
    def outstanding(self) -> int:
        """Number of members whose update may still be counted."""
        return sum(len(self.by_state[state]) for state in OUTSTANDING)

    @property
    def counted(self) -> dict[str, Member]:
        """The members whose update was counted, by id."""
        return self.by_state[State.DONE]

    def selected_member(self, id: str) -> Member | None:
        """Return the member with this id if its heartbeats get `round`; None otherwise."""
        member = None if self.lost else self.members.get(id)
        return member if member is not None and member.state in (State.SELECTED, State.REVOKING) else None

    def admissions(self) -> tuple[Admission, ...]:
        """Return the upload permissions that the books have not admitted yet."""
        return tuple(Admission(m.id, m.token, m.owner) for m in self.by_state[State.CHOSEN].values())

    def next_call(self, now: float, required: int) -> Admit | Revoke | Close | None:
        """Return the call to the books that is due. `required`: minimum number of counted updates to close the attempt."""
        if self.by_state[State.CHOSEN]:
            return Admit(self.id, self.admissions())
        for member in self.by_state[State.REVOKING].values():
            if member.revoke_at <= now:
                return Revoke(self.id, member.id, max(member.complete_by - now, 0.0))
        if not self.outstanding and len(self.counted) >= required:
            return Close(self.id, tuple(self.counted))
        return None

    def admitted(self, admissions: Iterable[Admission], now: float, timeout: float) -> tuple[str, ...]:
        """Select the members that the books have admitted. Return their ids."""
        members = [self.members[a.id] for a in admissions]
        selected = [m for m in members if m.state is State.CHOSEN]
        for member in selected:
            member.selected_at = now
            self._set_deadline(member, now + timeout)
            self.move(member, State.SELECTED)
        return tuple(member.id for member in selected)

    def report(self, id: str, phase: str, now: float) -> None:
        """Record the phase that a selected participant reports. Ignore values that are not in `PHASES`."""
        member = self.selected_member(id)
        if member is not None and phase in PHASES and phase != member.reported:
            member.reported, member.reported_at = phase, now

    def mark_counted(self, member: Member, entry: Entry, now: float) -> None:
        """Enter the counted update of a member."""
        member.entry, member.seconds = entry, now - member.selected_at
        self.move(member, State.DONE)

    def revoke(self, member: Member, now: float, grace: float, reason: str, detail: str = "") -> None:
        """Begin to revoke a member's permission. An arriving update has `grace` seconds to complete."""
        member.reason, member.detail, member.lost_at = reason, detail, now
        member.revoke_at, member.complete_by = now, min(now + grace, max(self.closes, now))
        self.move(member, State.REVOKING)

    def left(self, id: str, now: float, grace: float, reason: str, detail: str) -> None:
        """Begin to revoke the permission of a participant that is gone, if it is a member."""
        member = self.members.get(id)
        if member is not None and member.state in (State.CHOSEN, State.SELECTED):
            self.revoke(member, now, grace, reason, detail)

    def await_entry(self, member: Member) -> None:
        """Wait for the ledger entry of an update that was counted before the revocation."""
        member.deadline = math.inf
        self.move(member, State.SELECTED)

    def revoke_again(self, member: Member, now: float) -> None:
        """Schedule another call of `Revoke`, because the update is arriving. The last call comes when the grace is over."""
        member.revoke_at = min(now + REVOKE_AGAIN, max(member.complete_by, now))

    def ignore(self, member: Member) -> Revoked:
        """End the part of a member without an update. Return the fact about it."""
        self.move(member, State.IGNORED)
        seconds = max(member.lost_at - member.selected_at, 0.0)
        why = member.reason, member.name, member.detail
        return Revoked(self.round, member.id, *why, seconds, member.reported or "selected")

    def expire(self, now: float, grace: float) -> None:
        """Begin to revoke the permissions of selected members whose deadline has passed."""
        while self._deadlines and self._deadlines[0][0] <= now:
            member = self.members[heappop(self._deadlines)[1]]
            if member.state is State.SELECTED and member.deadline <= now:
                self.revoke(member, now, grace, LATE if member.deadline == self.closes else "deadline")

    def check_quorum(self, now: float, grace: float) -> None:
        """Limit all outstanding members to the quorum's `grace`, if the quorum is counted now."""
        if self.quorum is None or len(self.counted) < self.quorum or self.closes < math.inf:
            return
        self.closes = now + grace
        for member in self.by_state[State.SELECTED].values():
            if member.deadline < math.inf:  # otherwise its update was counted, and the next page has the entry
                self._set_deadline(member, min(member.deadline, self.closes))
        for member in self.by_state[State.REVOKING].values():
            member.complete_by = min(member.complete_by, self.closes)
            member.revoke_at = min(member.revoke_at, member.complete_by)

    def extend_deadlines(self, seconds: float) -> None:
        """Extend all deadlines by `seconds`."""
        self.closes += seconds
        for member in self.by_state[State.SELECTED].values():
            self._set_deadline(member, member.deadline + seconds)

    def next_deadline(self) -> float:
        """Return a time not later than the next deadline or call of `Revoke`; `math.inf` if there is none."""
        due = [member.revoke_at for member in self.by_state[State.REVOKING].values()]
        return min(due + [deadline for deadline, _ in self._deadlines[:1]], default=math.inf)

    def why_too_few(self, required: int, timeout: float) -> tuple[str, set[str]]:
        """Return why fewer than `required` updates were counted: a text for operators, and the reasons of the members."""
        lost = self.by_state[State.IGNORED].values()
        ended = list(dict.fromkeys(f"{member.name}: {member.detail or member.reason}" for member in lost))
        shown = "; ".join(ended[:MOST_SHOWN]) + (f"; and {len(ended) - MOST_SHOWN} more" if len(ended) > MOST_SHOWN else "")
        reasons = {member.reason for member in lost}
        advice = "is COORDINATOR_ROUND_TIMEOUT shorter than training takes?"
        late = f" within {timeout:g} s: {advice}" if "deadline" in reasons else ":"
        return f"too few updates ({len(self.counted)} of {required}){late} {shown or 'no other participant is present'}", reasons

    def completed(self, now: float, closed: Closed) -> RoundCompleted:
        """Return the fact that the round is complete."""
        known = [(member, member.entry) for member in self.counted.values() if member.entry is not None]
        entries = [entry for _, entry in known]
        lost = self.by_state[State.IGNORED].values()
        late = sum(member.reason == LATE for member in lost)
        return RoundCompleted(
            round=self.round,
            attempt=self.id,
            ids=tuple(self.counted),
            dropped=len(lost) - late,
            samples=sum(entry.samples for entry in entries),
            parameters=closed.parameters,
            seconds=now - self.begun,
            metrics=weighted_means([(entry.samples, entry.metrics) for entry in entries]),
            members=tuple(Contribution(m.name, entry.samples, m.seconds, entry.metrics) for m, entry in known),
            late=late,
        )

    def _set_deadline(self, member: Member, deadline: float) -> None:
        member.deadline = deadline
        heappush(self._deadlines, (deadline, member.id))
