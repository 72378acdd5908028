"""Consecutive failures of participants, and who sits out because of them. Part of the coordinator's core: no I/O, no clock.

A failure counts against the proved identity. Without one it counts against the name, which any client may use. So a seat with a
counted update is judged by its own failures alone (`Participant.judged`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fedround.coordinator.seats import Who
from fedround.events import SatOut

TOLERATED = 1
"""Consecutive failures without a consequence. After the next one a participant sits out 1 round, then 2, then 4 ..."""
MOST_SAT_OUT = 32
"""Maximum number of rounds that a participant sits out."""
MOST_RECORDS = 1000
"""Maximum number of records, as clients may invent names."""


@dataclass(slots=True)
class Record:
    """The failures of one participant. `at` is in monotonic seconds."""

    name: str
    failures: int = 0
    """Number of consecutive failures; a counted update resets it."""
    until: int = 0
    """The first round that the participant does not sit out."""
    reason: str = ""
    """Reason of the last failure, for operators."""
    at: float = 0.0


class Reliability:
    """The records of participants that failed, the least recent failure first."""

    def __init__(self) -> None:
        self._records: dict[Who, Record] = {}

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def get(self, who: Who) -> Record | None:
        return self._records.get(who)

    def failed(self, now: float, who: Who, name: str, round: int, reason: str) -> list[SatOut]:
        """Note a failure in `round`. Return a fact if the participant sits out rounds because of it."""
        record = self._records[who] = self._records.pop(who, Record(name))
        record.failures += 1
        record.reason, record.at = reason, now
        beyond = record.failures - TOLERATED
        rounds = min(2 ** min(beyond - 1, MOST_SAT_OUT), MOST_SAT_OUT) if beyond > 0 else 0
        record.until = round + 1 + rounds if rounds else 0
        if len(self._records) > MOST_RECORDS:
            del self._records[next(iter(self._records))]
        return [SatOut(round, name, record.failures, rounds, reason)] if rounds else []

    def rolled_back(self, rounds: int) -> None:
        """Note a rollback of this many rounds: it does not change how many rounds participants still sit out."""
        for record in self:
            record.until = max(0, record.until - rounds)

    def counted(self, who: Who) -> None:
        """Note a counted update: it resets the failures."""
        if (record := self._records.get(who)) is not None:
            record.failures = record.until = 0

    def sits_out(self, who: Who, round: int) -> bool:
        record = self._records.get(who)
        return record is not None and round < record.until
