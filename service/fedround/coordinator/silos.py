"""The state of each silo by name, across its registrations, for operators. Part of the coordinator's core: no I/O, no clock.

The rules:

1. Participants with the same name are one silo. Its counters include all of them. Its phase is that of the participant that has
   been at work for longest, so that a hung participant stays visible.
2. A silo without participants is forgotten after `SHOWN_FOR` seconds, or earlier if there are more than `MOST_GONE`.
3. A failure is an event that can make a participant sit out (`reliability.py`): a missed deadline, a refused update, a restart or
   a time-out in a round, or a departure because of a failure. To be late, or to stop on request, is not a failure.
4. The next counted update resets the consecutive failures.
5. If there are too many silos to show, those with a problem come first. Of these, silos with a counted update come before the
   others: clients can invent names, but not counted updates.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import nsmallest

from fedround import events
from fedround.coordinator.attempt import Attempt, State
from fedround.coordinator.presence import Presence
from fedround.coordinator.reliability import Reliability
from fedround.coordinator.seats import Participant
from fedround.events import Fact

SHOWN_FOR = 3600.0
"""Seconds for which a silo is shown after its last participant is gone."""
MOST_GONE = 1000
"""Maximum number of silos without a participant, as clients can invent names."""
REASONS = ("deadline", "failed", "refused", "replaced", "silent")
"""Why participants fail: see `events.Revoked`."""


class Phase(StrEnum):
    """The phase of a participant, which itself reports those between SELECTED and COUNTED. A 0.8 participant reports none."""

    WAITING = "waiting"
    RESTING = "resting"
    SELECTED = "selected"
    DOWNLOADING = "downloading"
    EVALUATING = "evaluating"
    TRAINING = "training"
    UPLOADING = "uploading"
    RETRYING = "retrying"
    COUNTED = "counted"
    REVOKED = "revoked"
    MISSING = "missing"
    """The last participant with this name timed out, or left because of a failure."""
    GONE = "gone"


AT_WORK = (Phase.SELECTED, Phase.DOWNLOADING, Phase.EVALUATING, Phase.TRAINING, Phase.UPLOADING, Phase.RETRYING)
"""Phases of a participant that the round waits for."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failure of a silo: when (`at`, in monotonic seconds), and why."""

    reason: str
    detail: str
    at: float
    round: int | None = None
    phase: str = ""
    seconds: float | None = None
    """Seconds from the selection until the participant lost the round."""


@dataclass(slots=True)
class Silo:
    """The state of one silo. Times are monotonic seconds."""

    name: str
    seats: dict[str, Participant] = field(default_factory=dict)
    """The present participants, by id."""
    seen: float = 0.0
    """Last contact with the last participant that left."""
    gone_at: float = 0.0
    """When that participant left."""
    lost: bool = False
    """Whether that participant timed out or failed."""
    counted: int | None = None
    """The last round in which an update was counted."""
    rounds: int = 0
    """Number of its updates in completed rounds."""
    seconds: float | None = None
    """Seconds from the selection to the last of these updates."""
    dominated: int = 0
    """Number of rounds with three or more updates in which the silo had more than half of all samples."""
    consecutive: int = 0
    """Failures since the last counted update."""
    missed: int = 0
    """Deadlines missed since the last counted update."""
    failures: Counter[str] = field(default_factory=Counter)
    """Number of failures by reason."""
    late: int = 0
    """Number of rounds that closed by their quorum before its update was counted."""
    failure: Failure | None = None
    training: Mapping[str, float] = field(default_factory=dict)
    evaluation: Mapping[str, float] = field(default_factory=dict)
    """Its metrics in the last round that has some."""
    certificate: tuple[float, float] | None = None
    """Start and end of the client certificate of its last request, in Unix time. None without one."""

    @property
    def troubled(self) -> bool:
        """Whether it has a problem that operators should see."""
        blocked = any(seat.trouble for seat in self.seats.values())
        return bool(self.consecutive or blocked or (self.lost and not self.seats))


class Silos:
    """The silos by name, as the facts about the `present` participants change them."""

    def __init__(self, present: Presence) -> None:
        self._present = present
        self._active: dict[str, Silo] = {}
        self._gone: dict[str, Silo] = {}
        """Silos without participants, in the order in which the last of them left."""
        self._by_id: dict[str, Silo] = {}
        for seat in present:
            self._joined(seat)

    def note(self, now: float, fact: Fact) -> None:
        """Update the silos from `fact`."""
        match fact:
            case events.ParticipantJoined(id) if (seat := self._present.get(id)) is not None:
                self._joined(seat)
            case events.ParticipantGone(id, name, reason, detail):
                self._left(now, id, reason)
                if reason == "failed":
                    self._failed(name, Failure(reason, detail, now))
            case events.Revoked(number, _, reason, name, detail, seconds, phase):
                self._revoked(name, Failure(reason, detail, now, number, phase, seconds))
            case events.UpdateCounted(number, id) if (silo := self._by_id.get(id)) is not None:
                silo.counted, silo.consecutive, silo.missed = number, 0, 0
            case events.RoundCompleted(members=members, samples=samples):
                for member in members:
                    if (silo := self.get(member.name)) is not None:
                        silo.rounds, silo.seconds = silo.rounds + 1, member.seconds
                        silo.dominated += len(members) > 2 and 2 * member.samples > samples
                        silo.training = member.metrics or silo.training
            case events.Evaluated(members=members):
                for member in members:
                    if (silo := self.get(member.name)) is not None:
                        silo.evaluation = member.metrics
            case events.RolledBack(newest=newest):
                for silo in (*self._active.values(), *self._gone.values()):
                    silo.counted = None if silo.counted is None else min(silo.counted, newest)

    def note_certificate(self, id: str, validity: tuple[float, float] | None) -> None:
        """Note the validity of the client certificate that a participant uses."""
        if (silo := self._by_id.get(id)) is not None:
            silo.certificate = validity

    def get(self, name: str) -> Silo | None:
        """Return the silo with this name; None if there is none."""
        return self._active.get(name) or self._gone.get(name)

    def shown(self, now: float, most: int) -> tuple[list[Silo], int]:
        """Return at most `most` silos, chosen by rule 5 and sorted by name, and the number of omitted silos."""
        while self._gone and (oldest := next(iter(self._gone.values()))).gone_at + SHOWN_FOR < now:
            del self._gone[oldest.name]
        silos = [*self._active.values(), *self._gone.values()]
        first = nsmallest(most, silos, key=lambda silo: (not silo.troubled, silo.troubled and silo.counted is None, silo.name))
        return sorted(first, key=lambda silo: silo.name), len(silos) - len(first)

    def _joined(self, seat: Participant) -> None:
        silo = self._active[seat.name] = self._active.get(seat.name) or self._gone.pop(seat.name, None) or Silo(seat.name)
        self._by_id[seat.id] = silo
        silo.seats[seat.id] = seat
        silo.counted = seat.counted if silo.counted is None else silo.counted

    def _left(self, now: float, id: str, reason: str) -> None:
        silo = self._by_id.pop(id, None)
        if silo is None:
            return
        silo.seen, silo.gone_at, silo.lost = silo.seats.pop(id).seen, now, reason in ("silent", "failed")
        if not silo.seats:
            self._gone[silo.name] = self._active.pop(silo.name)
            if len(self._gone) > MOST_GONE:
                del self._gone[next(iter(self._gone))]

    def _revoked(self, name: str, failure: Failure) -> None:
        silo = self.get(name)
        if silo is None:
            return
        match failure.reason:
            case "late":
                silo.late += 1
            case "failed":  # `ParticipantGone` has counted this failure
                silo.failure = failure
            case "deadline" | "refused" | "replaced" | "silent":
                silo.missed += failure.reason == "deadline"
                self._failed(name, failure)

    def _failed(self, name: str, failure: Failure) -> None:
        if (silo := self.get(name)) is not None:
            silo.failures[failure.reason] += 1
            silo.consecutive += 1
            silo.failure = failure


def phase(seat: Participant, attempt: Attempt | None, reliability: Reliability, round: int) -> tuple[Phase, float]:
    """Return the phase of a present participant, and when it began."""
    member = attempt.members.get(seat.id) if attempt else None
    if attempt is None or member is None:
        resting = reliability.sits_out(seat.failure_key, round)
        return Phase.RESTING if resting else Phase.WAITING, max(seat.joined, seat.free_since)
    match member.state:
        case State.CHOSEN:
            return Phase.SELECTED, attempt.begun
        case State.SELECTED if member.reported:
            return Phase(member.reported), member.reported_at
        case State.SELECTED:
            return Phase.SELECTED if attempt.train else Phase.EVALUATING, member.selected_at
        case State.DONE:
            return Phase.COUNTED, member.selected_at + member.seconds
    return Phase.REVOKED, member.lost_at
