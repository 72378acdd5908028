"""What is to be trained, and what a coordinator remembers of it. Part of the coordinator's core: no I/O, no clock."""

import math
from dataclasses import dataclass, field

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

    @property
    def required(self) -> int:
        return max(1, math.floor(self.participants_ratio * self.min_clients + 1e-9))

    @property
    def grace(self) -> float:
        return min(GRACE, self.round_timeout)

    def wanted(self, present: int) -> int:
        return max(1, math.ceil(self.participants_ratio * present - 1e-9))


@dataclass(frozen=True, slots=True)
class Memory:
    """What a coordinator knows after a restart."""

    round: int = 0
    participants: tuple[Known, ...] = ()
    history: tuple[Past, ...] = ()
    generation: int | None = None
    """Of the books; None where they were never read."""
    run: Run | None = None


NOTHING = Memory()
