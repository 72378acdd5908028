"""What is to be trained, and what a coordinator remembers of it. Part of the coordinator's core: no I/O, no clock."""

import math
from dataclasses import dataclass, field

from fedround.coordinator.goal import Best, Goal
from fedround.coordinator.history import Past
from fedround.coordinator.run import Config, Run
from fedround.coordinator.seats import Known

GRACE = 30.0
"""Seconds that an update may still take when its right is to be revoked; at most as long as a round."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is trained. Times in seconds; `rounds` are those of the run, 0 never ends."""

    rounds: int = 10
    participants_ratio: float = 1.0
    min_clients: int = 1
    heartbeat_timeout: float = 15.0
    round_timeout: float = 3600.0
    seats: int = 1
    """Of each proved identity."""
    shared_seats: int = 1000
    """Of all participants without a proved identity."""
    config: Config = field(default_factory=dict)
    """The round configuration."""
    quorum: float | None = None
    """Number of counted updates that are enough: up to 1 a share of the selected, above 1 a whole number. None: no quorum."""
    quorum_grace: float = 0.0
    """Time for the other updates once the quorum is counted."""
    overselect: float = 0.0
    """How many more to select than wanted, as a share of the wanted."""
    evaluate_every: int = 1
    """Rounds from one evaluated model to the next; 0: none is evaluated."""
    goal: Goal = field(default_factory=Goal)
    """When a model is the best, and when the run stops early."""
    evaluate_ratio: float = 1.0
    """Share of the selected participants that evaluate, of those that can."""
    evaluate_timeout: float = 600.0
    """Time for which the end of the run waits for the aggregator's evaluation of the final model."""

    @property
    def required(self) -> int:
        return max(1, math.floor(self.participants_ratio * self.min_clients + 1e-9))

    @property
    def grace(self) -> float:
        return min(GRACE, self.round_timeout)

    def evaluates(self, round: int) -> bool:
        """Return whether the model is evaluated that a round begins with, which is counted from the run's first."""
        return self.evaluate_every > 0 and round % self.evaluate_every == 0

    def wanted(self, present: int) -> int:
        """Return how many updates a round is to have."""
        return max(1, math.ceil(self.participants_ratio * present - 1e-9))

    def selected(self, present: int) -> int:
        """Return how many participants a round selects: as many as are wanted, and those of the overselection."""
        wanted = self.wanted(present)
        return min(wanted + math.ceil(self.overselect * wanted - 1e-9), present)

    def enough(self, present: int, selected: int) -> int | None:
        """Return the quorum of an attempt that begins with so many `selected`; None: it waits for all of them.

        It is a share or a number of the selected, and all of them where the number is larger. With overselection alone it is the
        number wanted without it. It is never below `required`.
        """
        asked = self.asked(present, selected)
        return None if asked is None else max(asked, self.required)

    def asked(self, present: int, selected: int) -> int | None:
        """Return the quorum that the settings ask for, before `required` raises it; None: no quorum."""
        if self.quorum is None:
            return min(self.wanted(present), selected) if self.overselect else None
        return min(math.ceil(self.quorum * selected - 1e-9) if self.quorum <= 1 else int(self.quorum), selected)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a coordinator knows after a restart."""

    round: int = 0
    participants: tuple[Known, ...] = ()
    history: tuple[Past, ...] = ()
    generation: int | None = None
    """Of the books; None where they were never read."""
    run: Run | None = None
    final: bool = False
    """The final model has still to be evaluated."""
    best: Best | None = None
    stopped: str = ""
    """Why the run stopped early."""
    awaited: bool = False
    """The aggregator has still to evaluate the final model."""
    evaluated: int = -1
    """The newest round whose model the aggregator has evaluated, or could not."""


NOTHING = Memory()
