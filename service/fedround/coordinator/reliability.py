"""Consecutive failures of participants, which make them sit out. Part of the coordinator's core: no I/O, no clock.

A failure counts against the proved identity, or else against the name. Any client may use a name. So once a seat without a proved
identity has a counted update, its failures count against its id (`Participant.failure_key`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fedround.coordinator.seats import Key
from fedround.events import SatOut

TOLERATED = 1
"""Number of consecutive failures without a consequence. After the next one a participant sits out 1 round, then 2, 4 ..."""
MOST_SAT_OUT = 32
"""Maximum number of rounds that a participant sits out."""
MOST_RECORDS = 1000
"""Maximum number of records, because clients may invent names."""


@dataclass(slots=True)
class Record:
    """The failures of one participant."""

    name: str
    failures: int = 0
    """Number of consecutive failures; a counted update resets it."""
    until: int = 0
    """The first round that the participant does not sit out."""
    reason: str = ""
    """Reason of the last failure, for operators."""
    at: float = 0.0
    """Time of the last failure, in monotonic seconds."""


class Reliability:
    """The records of participants that failed, the least recent failure first."""

    def __init__(self) -> None:
        self._records: dict[Key, Record] = {}

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def get(self, key: Key) -> Record | None:
        """Return the record of a participant; None if it has none."""
        return self._records.get(key)

    def failed(self, now: float, key: Key, name: str, round: int, reason: str) -> list[SatOut]:
        """Record a failure in `round`. Return a fact if the participant sits out rounds because of it."""
        record = self._records[key] = self._records.pop(key, Record(name))
        record.failures += 1
        record.reason, record.at = reason, now
        beyond = record.failures - TOLERATED
        rounds = min(2 ** min(beyond - 1, MOST_SAT_OUT), MOST_SAT_OUT) if beyond > 0 else 0
        record.until = round + 1 + rounds if rounds else 0
        if len(self._records) > MOST_RECORDS:
            del self._records[next(iter(self._records))]
        return [SatOut(round, name, record.failures, rounds, reason)] if rounds else []

    def rolled_back(self, rounds: int) -> None:
        """Go back by this many rounds. Participants sit out as many more rounds as before."""
        for record in self:
            record.until = max(0, record.until - rounds)

    def counted(self, key: Key) -> None:
        """Reset the failures after a counted update."""
        if (record := self._records.get(key)) is not None:
            record.failures = record.until = 0

    def sits_out(self, key: Key, round: int) -> bool:
        """Return whether a participant sits out a round."""
        record = self._records.get(key)
        return record is not None and round < record.until
