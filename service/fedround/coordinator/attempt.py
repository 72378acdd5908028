"""One attempt of a round: who takes part, and how far each has come. Part of the coordinator's core: no I/O, no clock."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush

from fedround.common.books import Admission, Admit, Close, Closed, Entry, Revoke
from fedround.common.wire import PHASES, Shard
from fedround.coordinator.history import weighted_means
from fedround.coordinator.seats import Participant, Who
from fedround.events import Contribution, Revoked, RoundCompleted

ASK_AGAIN = 1.0
"""Seconds until a right whose update is being received is revoked again."""
LATE = "late"
"""The reason of those that lost their part because the quorum was counted without them. It is no failure."""
MOST_SHOWN = 5
"""Participants that the reason of a failed attempt names."""


class State(Enum):
    """A participant's part in the open attempt. One without a part is waiting."""

    CHOSEN = "chosen"
    SELECTED = "selected"
    REVOKING = "revoking"
    DONE = "done"
    IGNORED = "ignored"


OUTSTANDING = (State.CHOSEN, State.SELECTED, State.REVOKING)


@dataclass(slots=True)
class Member:
    """A participant's part. It outlives the participant's seat: what was counted stays counted."""

    id: str
    name: str
    owner: str
    who: Who
    token: str
    state: State = State.CHOSEN
    deadline: float = math.inf
    ask_at: float = 0.0
    """When its right is revoked, or revoked again."""
    give_up: float = math.inf
    """Until when an update that is arriving may take, once the right is to be revoked."""
    reason: str = ""
    """Why it lost the part, or is to lose it."""
    detail: str = ""
    """The same for people, where there is more to say."""
    evaluates: bool = False
    """It is asked to evaluate the global model."""
    shard: Shard | None = None
    """The shard that it trains."""
    asks: bool = False
    """It trains whichever shard it is given."""
    entry: Entry | None = None
    selected_at: float = math.inf
    seconds: float = 0.0
    """From then until its update was counted."""
    reported: str = ""
    """What it does, in its own words (`wire.PHASES`); empty where it does not say."""
    reported_at: float = 0.0
    """When it first said so."""
    lost_at: float = 0.0
    """When it lost the part, or its right was first to be revoked."""

    @classmethod
    def of(cls, seat: Participant, token: str) -> "Member":
        return cls(seat.id, seat.name, seat.owner, seat.who, token, shard=seat.shard, asks=seat.asks)


@dataclass(slots=True)
class Attempt:
    """The members by id, and by state in the order in which they came to it."""

    id: str
    round: int
    begun: float
    train: bool = True
    """Whether its members train: else they only evaluate the final model."""
    quorum: int | None = None
    """Counted updates after which the others have the grace, and no more. None: it waits for all."""
    closes: float = math.inf
    """When that grace ends; never before the quorum is counted."""
    opened: bool = False
    lost: bool = False
    """The books do not know it any more. Their next page says why."""
    members: dict[str, Member] = field(default_factory=dict)
    by_state: dict[State, dict[str, Member]] = field(default_factory=lambda: {state: {} for state in State})
    _deadlines: list[tuple[float, str]] = field(default_factory=list)

    def move(self, member: Member, state: State) -> None:
        self.by_state[member.state].pop(member.id, None)
        member.state = state
        self.by_state[state][member.id] = member
        self.members[member.id] = member

    @property
    def outstanding(self) -> int:
        return sum(len(self.by_state[state]) for state in OUTSTANDING)

    @property
    def counted(self) -> dict[str, Member]:
        return self.by_state[State.DONE]

    def told(self, id: str) -> Member | None:
        """Return the part of a participant that hears `round`."""
        member = None if self.lost else self.members.get(id)
        return member if member is not None and member.state in (State.SELECTED, State.REVOKING) else None

    def admissions(self) -> tuple[Admission, ...]:
        return tuple(Admission(m.id, m.token, m.owner) for m in self.by_state[State.CHOSEN].values())

    def due(self, now: float, required: int) -> Admit | Revoke | Close | None:
        """Return the call to the books that the open attempt needs now."""
        if self.by_state[State.CHOSEN]:
            return Admit(self.id, self.admissions())
        for member in self.by_state[State.REVOKING].values():
            if member.ask_at <= now:
                return Revoke(self.id, member.id, max(member.give_up - now, 0.0))
        if not self.outstanding and len(self.counted) >= required:
            return Close(self.id, tuple(self.counted))
        return None

    def admitted(self, admissions: Iterable[Admission], now: float, timeout: float) -> tuple[str, ...]:
        """The books have admitted these. Return the ids of those that are now selected."""
        members = [self.members[a.id] for a in admissions]
        selected = [m for m in members if m.state is State.CHOSEN]
        for member in selected:
            member.selected_at = now
            self._set_deadline(member, now + timeout)
            self.move(member, State.SELECTED)
        return tuple(member.id for member in selected)

    def report(self, id: str, phase: str, now: float) -> None:
        """Note what a selected participant says that it does. What is none of `PHASES` says nothing."""
        member = self.told(id)
        if member is not None and phase in PHASES and phase != member.reported:
            member.reported, member.reported_at = phase, now

    def deliver(self, member: Member, entry: Entry, now: float) -> None:
        """The update of this one was counted."""
        member.entry, member.seconds = entry, now - member.selected_at
        self.move(member, State.DONE)

    def take_back(self, member: Member, now: float, grace: float, reason: str, detail: str = "") -> None:
        """Have the right revoked. An update that is arriving has `grace` seconds."""
        member.reason, member.detail, member.lost_at = reason, detail, now
        member.ask_at, member.give_up = now, min(now + grace, max(self.closes, now))
        self.move(member, State.REVOKING)

    def left(self, id: str, now: float, grace: float, reason: str, detail: str) -> None:
        """A participant is gone: have its right revoked, unless it has none."""
        member = self.members.get(id)
        if member is not None and member.state in (State.CHOSEN, State.SELECTED):
            self.take_back(member, now, grace, reason, detail)

    def await_entry(self, member: Member) -> None:
        """It was counted before it was revoked. Its entry is on the way, and tells the samples and metrics too."""
        member.deadline = math.inf
        self.move(member, State.SELECTED)

    def arriving(self, member: Member, now: float) -> None:
        """The books are receiving its update: they are asked again, for the last time when its grace is over."""
        member.ask_at = min(now + ASK_AGAIN, max(member.give_up, now))

    def ignore(self, member: Member) -> Revoked:
        """The part of this one is over without an update. Say what became of it."""
        self.move(member, State.IGNORED)
        seconds = max(member.lost_at - member.selected_at, 0.0)
        why = member.reason, member.name, member.detail
        return Revoked(self.round, member.id, *why, seconds, member.reported or "selected")

    def expire(self, now: float, grace: float) -> None:
        """Have the rights of the selected revoked whose deadline is over."""
        while self._deadlines and self._deadlines[0][0] <= now:
            member = self.members[heappop(self._deadlines)[1]]
            if member.state is State.SELECTED and member.deadline <= now:
                self.take_back(member, now, grace, LATE if member.deadline == self.closes else "deadline")

    def check_quorum(self, now: float, grace: float) -> None:
        """Once the quorum is counted, let nothing that is outstanding take longer than the grace."""
        if self.quorum is None or len(self.counted) < self.quorum or self.closes < math.inf:
            return
        self.closes = now + grace
        for member in self.by_state[State.SELECTED].values():
            if member.deadline < math.inf:  # else it was counted, and its entry is on the way
                self._set_deadline(member, min(member.deadline, self.closes))
        for member in self.by_state[State.REVOKING].values():
            member.give_up = min(member.give_up, self.closes)
            member.ask_at = min(member.ask_at, member.give_up)

    def postpone(self, seconds: float) -> None:
        """Move all deadlines."""
        self.closes += seconds
        for member in self.by_state[State.SELECTED].values():
            self._set_deadline(member, member.deadline + seconds)

    def next_deadline(self) -> float:
        """Return a time not later than the next deadline or revocation; `math.inf`: there is none."""
        due = [member.ask_at for member in self.by_state[State.REVOKING].values()]
        return min(due + [deadline for deadline, _ in self._deadlines[:1]], default=math.inf)

    def why_too_few(self, required: int, timeout: float) -> tuple[str, set[str]]:
        """Say why fewer than `required` delivered: to people, and as the reasons for which parts were lost."""
        lost = self.by_state[State.IGNORED].values()
        ended = list(dict.fromkeys(f"{member.name}: {member.detail or member.reason}" for member in lost))
        shown = "; ".join(ended[:MOST_SHOWN]) + (f"; and {len(ended) - MOST_SHOWN} more" if len(ended) > MOST_SHOWN else "")
        reasons = {member.reason for member in lost}
        advice = "is COORDINATOR_ROUND_TIMEOUT shorter than training takes?"
        late = f" within {timeout:g} s: {advice}" if "deadline" in reasons else ":"
        return f"too few delivered ({len(self.counted)} of {required}){late} {shown or 'nobody else is present'}", reasons

    def completed(self, now: float, closed: Closed) -> RoundCompleted:
        """Say what became of it."""
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
            figures=weighted_means([(entry.samples, entry.metrics) for entry in entries]),
            members=tuple(Contribution(m.name, entry.samples, m.seconds, entry.metrics) for m, entry in known),
            late=late,
        )

    def _set_deadline(self, member: Member, deadline: float) -> None:
        member.deadline = deadline
        heappush(self._deadlines, (deadline, member.id))
