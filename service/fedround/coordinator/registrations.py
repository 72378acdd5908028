"""The part of the coordinator's core that registers participants, takes their heartbeats, and removes them. No I/O, no clock.

The rules (`rounds.py` has those of rounds):

1. A participant is *present* from its first heartbeat. The coordinator removes it when it leaves, or when it sends no heartbeat for
   the heartbeat time-out. If this process was suspended, the time-outs start again.
2. A seat belongs to the proved identity that registered it, its *owner*: requests from others are forbidden. An identity has
   `seats` seats, and one more registration replaces the oldest seat. An attempt selects at most `seats` participants of an
   identity, including those with a counted update. Participants without a proved identity share `shared_seats` seats.
3. A registration under the name of seats without an owner may be a restart of the same participant. So each of these seats is
   *probed*: it is replaced if it sends no heartbeat within `PROBE` seconds. The attempt does not select the new participant until
   the old one is revoked, or has proved by a heartbeat that they are two.
4. A participant that fails twice in a row sits out 1 round, then 2, 4 ... A failure is a missed deadline, a time-out, a refused
   update, or a departure because of a failure. If too few others are left, an attempt selects it nevertheless. A counted update
   resets its failures (`reliability.py`).
"""

from abc import ABC, abstractmethod
from random import Random
from uuid import UUID

from fedround import events
from fedround.common.wire import Claim, Heartbeat, HeartbeatState
from fedround.coordinator.attempt import Attempt
from fedround.coordinator.plan import Memory, Plan
from fedround.coordinator.presence import Presence
from fedround.coordinator.run import Run
from fedround.coordinator.seats import Participant, key_of
from fedround.coordinator.selection import Selection
from fedround.errors import Busy


class Registrations(ABC):
    """The registered participants, by the rules above. The subclass `Rounds` adds the rounds."""

    def __init__(self, plan: Plan, rng: Random, now: float, memory: Memory) -> None:
        self.plan = plan
        self.run = memory.run or Run(str(UUID(int=rng.getrandbits(128), version=4)), "default")
        self.round = memory.round
        self.present = Presence(plan.heartbeat_timeout, plan.shared_seats)
        self.attempt: Attempt | None = None
        self._rng = rng
        self._selection = Selection(plan, self.present, rng)
        self.reliability, self.shards = self._selection.reliability, self._selection.shards
        self._to_forget: list[str] = []
        """Ids of participants that left, for the books to forget."""
        self._facts: list[events.Fact] = []
        self._undecided = bool(memory.participants)
        """Whether it is undecided which members of an earlier attempt the next one selects."""
        for known in memory.participants:
            self.present.restore(now, known)

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether training is complete."""
        ...

    @abstractmethod
    def _advance(self, now: float) -> None:
        """Take all steps that a change has made possible."""
        ...

    def join(
        self,
        now: float,
        name: str,
        ordinal: int | None = None,
        *,
        extended: bool = False,
        owner: str = "",
        evaluates: bool = False,
        claim: Claim | None = None,
    ) -> Participant | None:
        """Register a participant. Return None if training is complete.

        Args:
            now: Monotonic seconds.
            name: Name of the participant.
            ordinal: Its previous ordinal, which it gets again if that is free.
            extended: Whether it understands fedround's additions to the protocol.
            owner: Its proved identity; empty: none.
            evaluates: Whether it can evaluate models.
            claim: Its shard, or its request for one.

        Raises:
            NoSeat: All seats for participants without a proved identity are taken.
        """
        if self.complete:
            return None
        id = self._selection.uuid()
        identity = key_of(id, name, owner, extended=extended)
        seats = self.present.seats(identity)
        for old in seats[: max(len(seats) - self.plan.seats + 1, 0)] if owner else ():
            self._remove(now, old, "replaced")
            ordinal = old.ordinal if ordinal is None else ordinal
        self.present.schedule_probes(now, identity)
        self._start_probes(now)
        participant = self.present.add(now, id, name, ordinal, extended=extended, owner=owner)
        participant.evaluates = evaluates
        participant.set_claim(claim)
        self._advance(now)
        return participant

    def heartbeat(self, now: float, id: str, *, idle: bool = False, held: bool = False) -> Heartbeat:
        """Restart the participant's time-out, and return the response, with the upload permission if the state is ROUND.

        Args:
            now: Monotonic seconds.
            id: Id of the participant.
            idle: Whether the participant trains nothing.
            held: Whether this is the response to a long poll, and not a new heartbeat.

        Raises:
            Busy: The next attempt is undecided: the participant must retry.
            NoSeat: It is the first heartbeat, and all seats for participants without a proved identity are taken.
        """
        participant = self.present.find(id)
        if participant is not None:
            self._receive_heartbeat(now, participant, held=held)
        if self.complete:
            return Heartbeat(HeartbeatState.FINISH)
        if participant is None:
            return Heartbeat(HeartbeatState.REJECT)
        member = self.attempt.selected_member(id) if self.attempt else None
        if self.attempt is None or member is None:
            if self._undecided and participant.extended and not idle:
                raise Busy("the round is about to restart", retry_after=1.0)
            return Heartbeat(HeartbeatState.STAND_BY, counted=participant.counted)
        return Heartbeat(HeartbeatState.ROUND, self.attempt.round, token=member.token, counted=participant.counted)

    def start_training(self, id: str) -> str | None:
        """Return the upload permission of a selected participant, each time the same; None for others."""
        member = self.attempt.selected_member(id) if self.attempt else None
        return None if member is None or id not in self.present else member.token

    def leave(self, now: float, id: str, failure: str = "") -> bool:
        """Remove a participant that leaves. `failure`: why it failed, if it did. Return False for an unknown id."""
        participant = self.present.find(id)
        if participant is None:
            return False
        self._remove(now, participant, "failed" if failure else "left", failure)
        self._advance(now)
        return True

    def _receive_heartbeat(self, now: float, participant: Participant, *, held: bool) -> None:
        if held:
            self.present.restart_timeout(now, participant)
        elif self.present.heartbeat(now, participant):
            self._facts.append(events.ParticipantJoined(participant.id, participant.name))
            self._advance(now)

    def _start_probes(self, now: float) -> None:
        self._facts += [events.ParticipantProbed(p.id, p.name) for p in self.present.start_probes(now)]

    def _remove(self, now: float, participant: Participant, reason: str, detail: str = "") -> None:
        self.present.remove(now, participant, missed=reason == "silent")
        if not participant.present:
            return
        if participant.known_to_books:
            self._to_forget.append(participant.id)
        self._facts.append(events.ParticipantGone(participant.id, participant.name, reason, detail))
        if reason == "failed":
            self._facts += self.reliability.failed(now, participant.key, participant.name, self.round, detail)
        if self.attempt is not None:
            self.attempt.left(participant.id, now, self.plan.upload_grace, reason, detail)
