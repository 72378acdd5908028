"""Who failed to deliver, how often in a row, and who sits out because of it. Part of the coordinator's core: no I/O, no clock.

Failures count against the proved identity. Without one they count against the name, which anybody may use; so a seat that has
delivered an update answers for itself alone (`Participant.judged`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fedround.coordinator.seats import Who
from fedround.events import SatOut

TOLERATED = 1
"""Consecutive failures without a consequence. After the next one a participant sits out 1 round, then 2, then 4 ..."""
MOST_SAT_OUT = 32
"""... and this many at most."""
MOST_RECORDS = 1000
"""Participants whose failures are remembered: clients may invent names."""


@dataclass(slots=True)
class Record:
    """The failures of one participant. `at` is in monotonic seconds."""

    name: str
    failures: int = 0
    """In a row; a counted update ends them."""
    until: int = 0
    """The first round that it does not sit out."""
    reason: str = ""
    """Of the last failure, for people."""
    at: float = 0.0


class Reliability:
    """The records of those that failed, the longest ago first."""

    def __init__(self) -> None:
        self._records: dict[Who, Record] = {}

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def get(self, who: Who) -> Record | None:
        return self._records.get(who)

    def failed(self, now: float, who: Who, name: str, round: int, reason: str) -> list[SatOut]:
        """Note a failure in `round`. Return the fact that the participant sits out rounds, where it does."""
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
        """So many rounds come once more: they do not prolong what is still to be sat out."""
        for record in self:
            record.until = max(0, record.until - rounds)

    def counted(self, who: Who) -> None:
        """An update of it was counted."""
        if (record := self._records.get(who)) is not None:
            record.failures = record.until = 0

    def sits_out(self, who: Who, round: int) -> bool:
        record = self._records.get(who)
        return record is not None and round < record.until
