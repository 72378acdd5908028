"""Evaluations of global models: the selection of participants, and the results. Part of the core: no I/O, no clock.

Participants evaluate the model that an attempt begins with, before they train it. After the last round of a run, an attempt without
training evaluates the final model. The aggregator may evaluate models too; no round waits for that.
"""

import math
from collections.abc import Iterable
from random import Random

from fedround.common.books import Page, ServerEvaluation
from fedround.coordinator.attempt import Attempt
from fedround.coordinator.history import History, weighted_means
from fedround.coordinator.seats import Participant
from fedround.events import Contribution, Evaluated, ServerEvaluated


def draw(rng: Random, ratio: float, seats: Iterable[Participant]) -> list[Participant]:
    """Draw the share `ratio` of the participants that can evaluate models, rounded up."""
    able = [seat for seat in seats if seat.evaluates]
    return rng.sample(able, math.ceil(ratio * len(able) - 1e-9))


def evaluated(attempt: Attempt) -> Evaluated | None:
    """Return the evaluation of the attempt's model by its members; None if no member evaluated it."""
    members = attempt.counted.values()
    found = [(member, member.entry.evaluation) for member in members if member.entry and member.entry.evaluation]
    if not found:
        return None
    evaluations = [evaluation for _, evaluation in found]
    values: dict[str, list[float]] = {}
    for evaluation in evaluations:
        for name, value in evaluation.metrics.items():
            values.setdefault(name, []).append(value)
    means = weighted_means([(evaluation.samples, evaluation.metrics) for evaluation in evaluations])
    return Evaluated(
        round=evaluations[0].round,
        samples=sum(evaluation.samples for evaluation in evaluations),
        metrics=means,
        lowest=tuple((name, min(values[name])) for name, _ in means),
        highest=tuple((name, max(values[name])) for name, _ in means),
        members=tuple(Contribution(m.name, evaluation.samples, m.seconds, evaluation.metrics) for m, evaluation in found),
    )


class ServerSide:
    """The evaluations by the aggregator's function: rule 3 of `ending.py`.

    Args:
        evaluated: The newest round whose evaluation was over before a restart; -1: none.
        awaited: Whether the end of the run waits for the evaluation of the final model.
    """

    def __init__(self, evaluated: int, *, awaited: bool) -> None:
        self.function = ""
        """Name of the function; empty: none, or not yet known."""
        self.evaluated = evaluated
        self.awaited = awaited
        self.problem = ""
        """Why the last evaluation failed, for operators; empty: it succeeded."""
        self.until = math.inf
        """When the end of the run stops waiting, in monotonic seconds."""
        self._page: tuple[ServerEvaluation, ...] = ()
        """The evaluations on the last page of the ledger."""
        self._initial_known = False
        """Whether the evaluation of the run's initial model is known."""

    def read(self, page: Page) -> None:
        """Take the evaluations from a page of the ledger."""
        self.function, self._page = page.evaluator, page.evaluations
        self.awaited = self.awaited and bool(page.evaluator)

    def news(self, round: int, run: str, history: History) -> list[ServerEvaluated]:
        """Return the new evaluations of rounds before `round`. Later evaluations wait until their round is completed."""
        facts = []
        for found in self._page:
            too_early = found.round is not None and found.round >= round
            if too_early or not self._is_new(found, run, history):
                continue
            self.evaluated = max(self.evaluated, -1 if found.round is None else found.round)
            self._initial_known = self._initial_known or found.round is None
            self.problem = found.reason
            if found.metrics:
                facts.append(ServerEvaluated(found.round, found.samples, tuple(found.metrics.items())))
        return facts

    def _is_new(self, found: ServerEvaluation, run: str, history: History) -> bool:
        if found.round is None:
            return found.run == run and not self._initial_known
        return found.round > self.evaluated or (bool(found.metrics) and history.lacks_server(found.round))

    def end(self, final: int) -> None:
        """Begin to wait for the evaluation of the run's final model, that of round `final`."""
        self.awaited, self.until = bool(self.function) and self.evaluated < final, math.inf

    def settle(self, now: float, final: int, timeout: float) -> bool:
        """Stop waiting when the final model is evaluated, or after `timeout` seconds. Return whether it timed out."""
        self.until = now + timeout if self.until == math.inf else self.until
        late = self.evaluated < final and now >= self.until
        self.awaited = self.evaluated < final and not late
        return late

    def roll_back(self, newest: int) -> None:
        """Forget the rounds after `newest`, as new rounds will have their numbers."""
        self.evaluated = min(self.evaluated, newest)
