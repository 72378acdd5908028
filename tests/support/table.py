"""A coordinator's core. The test plays everything around it."""

from collections.abc import Mapping
from random import Random
from typing import Any, TypeVar

from fedround import events
from fedround.common.books import Admit, Close, Closed, Entry, Open, Outcome, Page, Revoke, Verdict
from fedround.common.wire import Claim, HeartbeatState
from fedround.coordinator.history import Past
from fedround.coordinator.plan import Plan
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.status import status

LIFE = "first-life"

C = TypeVar("C", Open, Admit, Revoke, Close)
F = TypeVar("F", bound=events.Fact)


class Table:
    """A coordinator's core with a clock. The test plays the books."""

    def __init__(self, plan: Plan, present: int = 0, *, life: str = LIFE, extended: bool = False) -> None:
        self.rounds = Rounds(plan, Random(1))
        self.now = 100.0
        self.seq = 0
        if life:
            self.rounds.recorded(self.now, Page(life, ()))
        self.ids = [self.join(f"silo-{n}", extended=extended) for n in range(present)]

    def register(
        self, name: str = "silo", ordinal: int | None = None, *, extended: bool = False, owner: str = "", claim: Claim | None = None
    ) -> str:
        """Register a participant that sends no heartbeat yet."""
        participant = self.rounds.join(self.now, name, ordinal, extended=extended, owner=owner, claim=claim)
        assert participant is not None
        return participant.id

    def join(
        self, name: str = "silo", ordinal: int | None = None, *, extended: bool = False, owner: str = "", claim: Claim | None = None
    ) -> str:
        id = self.register(name, ordinal, extended=extended, owner=owner, claim=claim)
        self.rounds.heartbeat(self.now, id, idle=True)
        return id

    def state(self, id: str) -> HeartbeatState:
        return self.rounds.heartbeat(self.now, id).state

    def due(self, kind: type[C]) -> C:
        """Return the call that is due, and check that it is of this kind."""
        call = self.rounds.pending(self.now)
        assert isinstance(call, kind)
        return call

    def rests(self) -> bool:
        """Return whether no call is due."""
        return self.rounds.pending(self.now) is None

    def open(self) -> Open:
        call = self.due(Open)
        self.rounds.answered(self.now, call, None)
        return call

    def admit(self) -> None:
        call = self.due(Admit)
        self.rounds.answered(self.now, call, None)

    def enter(
        self,
        *ids: str,
        outcome: Outcome = Outcome.COUNTED,
        samples: int = 1,
        figures: Mapping[str, float] | None = None,
        reason: str = "",
    ) -> None:
        assert self.rounds.attempt is not None
        for id in ids:
            self.seq += 1
            entry = Entry(self.seq, self.rounds.attempt.id, id, outcome, samples, figures or {}, reason)
            self.rounds.recorded(self.now, Page(LIFE, (entry,)))

    def close(self) -> None:
        call = self.due(Close)
        self.rounds.answered(self.now, call, Closed(5))

    def play(self, *ids: str, **options: Any) -> None:
        """Complete a round with updates of these participants, by default of all."""
        self.open()
        self.enter(*(ids or self.ids), **options)
        self.close()

    def leave(self, id: str, reason: str = "") -> bool:
        return self.rounds.leave(self.now, id, reason)

    def restart_aggregator(self) -> None:
        """Restart the aggregator with an empty ledger."""
        self.rounds.recorded(self.now, Page("second-life", ()))

    def status(self) -> Any:
        return status(self.rounds, self.now)

    def past(self) -> Past:
        """The only completed round."""
        (past,) = self.rounds.history
        return past

    def revoke(self, verdict: Verdict) -> str:
        call = self.due(Revoke)
        self.rounds.answered(self.now, call, verdict)
        return call.id

    def later(self, seconds: float, *alive: str) -> None:
        """Advance the time. The `alive` participants send a heartbeat at its end."""
        self.now += seconds
        for id in alive:
            self.rounds.heartbeat(self.now, id)
        self.rounds.tick(self.now)

    def facts(self, kind: type[F]) -> list[F]:
        return [fact for fact in self.rounds.take_facts() if isinstance(fact, kind)]
