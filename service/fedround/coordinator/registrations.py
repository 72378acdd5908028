"""The participants' side of the coordinator's core: they register, send heartbeats, and leave. No I/O, no clock.

The rules (`rounds.py` has those of rounds):

1. A participant is *present* from its first heartbeat on. It is removed after the heartbeat time-out, unless this process was
   suspended, and immediately when it leaves.
2. A seat belongs to the proved identity that registered it: requests of any other are forbidden. An identity has `seats` seats,
   and one more registration replaces the oldest. At most `seats` participants of an identity have a part in an attempt, counted
   ones included. All participants without a proved identity share `shared_seats`.
3. A registration under the name of seats without an owner puts these in doubt: one that sends no heartbeat within `PROBE` seconds
   is replaced. The new participant gets no part in the attempt until the former one is revoked, or proves that they are two.
4. A participant that fails twice in a row (deadline, time-out, refused update, departure for a failure) sits out 1 round, then 2,
   4 ... It is selected all the same if too few others are left. A counted update ends that (`reliability.py`).
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
from fedround.coordinator.seats import Participant, who
from fedround.coordinator.selection import Selection
from fedround.errors import Busy


class Registrations(ABC):
    """See the rules above. `Rounds` adds the rounds."""

    def __init__(self, plan: Plan, rng: Random, now: float, memory: Memory) -> None:
        self.plan = plan
        self.run = memory.run or Run(str(UUID(int=rng.getrandbits(128), version=4)), "default")
        self.round = memory.round
        self.present = Presence(plan.heartbeat_timeout, plan.shared_seats)
        self.attempt: Attempt | None = None
        self._rng = rng
        self._selection = Selection(plan, self.present, rng)
        self.reliability, self.shards = self._selection.reliability, self._selection.shards
        self._gone: list[str] = []
        """Ids that the books may forget."""
        self._facts: list[events.Fact] = []
        self._unsettled = bool(memory.participants)
        """Whether it is unknown who of a former attempt has a part in the next."""
        for known in memory.participants:
            self.present.restore(now, known)

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether training is complete."""
        ...

    @abstractmethod
    def _settle(self, now: float) -> None:
        """Go on after a change."""
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
        """Register a participant; None once training is complete.

        `ordinal`: its former one, which it gets again if it is free. `owner`: its proved identity, or empty. `claim`: its shard.

        Raises:
            NoSeat: The seats of those without a proved identity are taken.
        """
        if self.complete:
            return None
        id = self._selection.uuid()
        identity = who(id, name, owner, extended=extended)
        seats = self.present.seats(identity)
        for old in seats[: max(len(seats) - self.plan.seats + 1, 0)] if owner else ():
            self._remove(now, old, "replaced")
            ordinal = old.ordinal if ordinal is None else ordinal
        self.present.doubt(now, identity)
        self._probe(now)
        participant = self.present.add(now, id, name, ordinal, extended=extended, owner=owner)
        participant.evaluates = evaluates
        participant.claims(claim)
        self._settle(now)
        return participant

    def heartbeat(self, now: float, id: str, *, idle: bool = False, held: bool = False) -> Heartbeat:
        """Restart the participant's time-out, and return the answer; for ROUND with its token.

        `idle`: it trains nothing. `held`: this answers a held heartbeat, and no new one has come.

        Raises:
            Busy: The participant must ask again.
            NoSeat: On the first heartbeat: the seats of those without a proved identity are taken.
        """
        participant = self.present.find(id)
        if participant is not None:
            self._hear(now, participant, held=held)
        if self.complete:
            return Heartbeat(HeartbeatState.FINISH)
        if participant is None:
            return Heartbeat(HeartbeatState.REJECT)
        member = self.attempt.told(id) if self.attempt else None
        if self.attempt is None or member is None:
            if self._unsettled and participant.extended and not idle:
                raise Busy("the round is about to restart", retry_after=1.0)
            return Heartbeat(HeartbeatState.STAND_BY, counted=participant.counted)
        return Heartbeat(HeartbeatState.ROUND, self.attempt.round, token=member.token, counted=participant.counted)

    def start_training(self, id: str) -> str | None:
        """Return the token of a selected participant, each time the same; None for others."""
        member = self.attempt.told(id) if self.attempt else None
        return None if member is None or id not in self.present else member.token

    def leave(self, now: float, id: str, failure: str = "") -> bool:
        """Remove a participant that leaves, for a `failure` if there is one. Return False for an unknown id."""
        participant = self.present.find(id)
        if participant is None:
            return False
        self._remove(now, participant, "failed" if failure else "left", failure)
        self._settle(now)
        return True

    def _hear(self, now: float, participant: Participant, *, held: bool) -> None:
        if held:
            self.present.answered(now, participant)
        elif self.present.beat(now, participant):
            self._facts.append(events.ParticipantJoined(participant.id, participant.name))
            self._settle(now)

    def _probe(self, now: float) -> None:
        self._facts += [events.ParticipantProbed(p.id, p.name) for p in self.present.probe(now)]

    def _remove(self, now: float, participant: Participant, reason: str, detail: str = "") -> None:
        self.present.remove(now, participant, missed=reason == "silent")
        if not participant.heard:
            return
        if participant.known_to_books:
            self._gone.append(participant.id)
        self._facts.append(events.ParticipantGone(participant.id, participant.name, reason, detail))
        if reason == "failed":
            self._facts += self.reliability.failed(now, participant.who, participant.name, self.round, detail)
        if self.attempt is not None:
            self.attempt.left(participant.id, now, self.plan.grace, reason, detail)
