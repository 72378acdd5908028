"""The plan of a run, and the state that survives a restart. Part of the coordinator's core: no I/O, no clock."""

import math
from dataclasses import dataclass, field

from fedround.coordinator.goal import Best, Goal
from fedround.coordinator.history import Past
from fedround.coordinator.run import Config, Run
from fedround.coordinator.seats import Known

UPLOAD_GRACE = 30.0
"""Seconds for an arriving update to complete when its upload permission is to be revoked; at most the round time-out."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings of a run. Times are in seconds. `rounds` is the length of the run; 0: no limit."""

    rounds: int = 10
    participants_ratio: float = 1.0
    min_clients: int = 1
    heartbeat_timeout: float = 15.0
    round_timeout: float = 3600.0
    seats: int = 1
    """Maximum number of seats of one proved identity."""
    shared_seats: int = 1000
    """Maximum number of seats of all participants without a proved identity."""
    config: Config = field(default_factory=dict)
    """The round configuration."""
    quorum: float | None = None
    """Counted updates that close the round: up to 1 a share of the selected, above 1 a whole number. None: no quorum."""
    quorum_grace: float = 0.0
    """Time for the other updates after the quorum is counted."""
    overselect: float = 0.0
    """Additional participants to select, as a share of the wanted number."""
    evaluate_every: int = 1
    """Number of rounds from one evaluated model to the next; 0: no model is evaluated."""
    goal: Goal = field(default_factory=Goal)
    """The metric of the best model, and the conditions to stop early."""
    evaluate_ratio: float = 1.0
    """Share of the selected participants that evaluate, of those that can."""
    evaluate_timeout: float = 600.0
    """Maximum time that the end of the run waits for the aggregator's evaluation of the final model."""

    @property
    def required(self) -> int:
        """Minimum number of counted updates of a round."""
        return max(1, math.floor(self.participants_ratio * self.min_clients + 1e-9))

    @property
    def upload_grace(self) -> float:
        """Time for an arriving update to complete when its upload permission is to be revoked."""
        return min(UPLOAD_GRACE, self.round_timeout)

    def evaluates(self, round: int) -> bool:
        """Return whether participants evaluate the model that a round begins with. Rounds count from the run's first."""
        return self.evaluate_every > 0 and round % self.evaluate_every == 0

    def wanted(self, present: int) -> int:
        """Return the number of updates that a round aims for."""
        return max(1, math.ceil(self.participants_ratio * present - 1e-9))

    def selected(self, present: int) -> int:
        """Return the number of participants that a round selects: the wanted number plus the overselection."""
        wanted = self.wanted(present)
        return min(wanted + math.ceil(self.overselect * wanted - 1e-9), present)

    def effective_quorum(self, present: int, selected: int) -> int | None:
        """Return the quorum of an attempt that begins with `selected` participants; None: it waits for all of them."""
        configured = self.configured_quorum(present, selected)
        return None if configured is None else max(configured, self.required)

    def configured_quorum(self, present: int, selected: int) -> int | None:
        """Return the quorum that the settings describe, which may be below `required`; None: no quorum.

        It is a share of the selected, or a number up to that of the selected. With overselection and no quorum setting, it is the
        wanted number.
        """
        if self.quorum is None:
            return min(self.wanted(present), selected) if self.overselect else None
        return min(math.ceil(self.quorum * selected - 1e-9) if self.quorum <= 1 else int(self.quorum), selected)


@dataclass(frozen=True, slots=True)
class Memory:
    """The state of a coordinator that survives a restart."""

    round: int = 0
    participants: tuple[Known, ...] = ()
    history: tuple[Past, ...] = ()
    generation: int | None = None
    """Generation on the last page of the ledger; None: no page was read."""
    run: Run | None = None
    final: bool = False
    """Whether participants have yet to evaluate the final model."""
    best: Best | None = None
    stopped: str = ""
    """Why the run stopped early; empty: it did not."""
    awaited: bool = False
    """Whether the aggregator has yet to evaluate the final model."""
    evaluated: int = -1
    """The newest round whose model the aggregator evaluated, with success or without; -1: none."""
    best_by: str = ""
    """What selected `best`, such as `accuracy:max`; empty: nothing, or an earlier version did not save it."""


NO_MEMORY = Memory()
