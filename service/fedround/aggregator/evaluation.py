"""The schedule of evaluations by the aggregator's function. A core: no I/O, no clock.

The rules:

1. The function evaluates one model at a time.
2. Only the newest model of each run waits: a newer one replaces it, and the older one is skipped. So the final model of a run is
   evaluated even if the next run begins meanwhile. Models of at most `MOST_WAITING` runs wait; those of older runs are skipped.
3. A rollback removes the models of later rounds from the queue, and discards their results.
4. A model is not evaluated again while its evaluation runs, or while its result is among the last `REMEMBERED`.
"""

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from fedround.common.books import ServerEvaluation

MOST_WAITING = 2
REMEMBERED = 3
"""Number of results to remember."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model to evaluate. `round` is None for the initial model of the run."""

    round: int | None
    run: str
    model: Any
    number: int = field(default=0, compare=False)
    """How many models were submitted until this one."""


class Schedule:
    """The schedule of evaluations, by the rules above."""

    def __init__(self) -> None:
        self.running: Candidate | None = None
        self.results: deque[ServerEvaluation] = deque(maxlen=REMEMBERED)
        self.failures = 0
        """Number of failed evaluations since the last one that succeeded."""
        self._submitted = 0
        self._evaluated = 0
        """Number of the newest model that was evaluated."""
        self._void = False
        """Whether a rollback has removed the model that is being evaluated."""
        self._waiting: dict[str, Candidate] = {}
        """The waiting models by run, oldest first."""

    @property
    def waiting(self) -> list[Candidate]:
        """The waiting models, oldest run first."""
        return list(self._waiting.values())

    @property
    def behind(self) -> int:
        """Number of models that are newer than the last one that was evaluated."""
        return self._submitted - self._evaluated

    @property
    def rounds(self) -> frozenset[int]:
        """The rounds whose models the store must keep, because they may be the best."""
        candidates = [*self._waiting.values(), *([self.running] if self.running else [])]
        rounds = [one.round for one in candidates] + [result.round for result in self.results]
        return frozenset(round for round in rounds if round is not None)

    def submit(self, new: Candidate) -> list[Candidate]:
        """Queue a model. Return the models that are skipped because of it."""
        if new.round is not None and new.round in self._known():
            return []
        former = self._waiting.pop(new.run, None)
        self._submitted += 1
        self._waiting[new.run] = replace(new, number=self._submitted)
        skipped = [] if former is None else [former]
        if len(self._waiting) > MOST_WAITING:
            skipped.append(self._waiting.pop(next(iter(self._waiting))))
        return skipped

    def begin(self) -> Candidate | None:
        """Begin the next evaluation, and return its model; None if one is running, or no model waits."""
        if self.running is not None or not self._waiting:
            return None
        self.running = self._waiting.pop(next(iter(self._waiting)))
        return self.running

    def ended(self, result: ServerEvaluation, *, failed: bool = False) -> bool:
        """End the running evaluation. Return whether its result counts."""
        ended, void, self.running, self._void = self.running, self._void, None, False
        if void:
            return False
        self.results.append(result)
        self.failures = self.failures + 1 if failed else 0
        self._evaluated = max(self._evaluated, ended.number if ended and not failed else 0)
        return True

    def roll_back(self, newest: int) -> None:
        """Discard the models of all rounds after `newest`."""
        self._waiting = {run: one for run, one in self._waiting.items() if not _after(newest, one.round)}
        self.results = deque((result for result in self.results if not _after(newest, result.round)), REMEMBERED)
        self._void = self._void or (self.running is not None and _after(newest, self.running.round))
        self._evaluated = self._submitted

    def _known(self) -> set[int | None]:
        running = set() if self.running is None or self._void else {self.running.round}
        return running | {result.round for result in self.results}


def _after(newest: int, round: int | None) -> bool:
    return round is not None and round > newest
