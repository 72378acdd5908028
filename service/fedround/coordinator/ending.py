"""The end of a run: why it stops, and which evaluations remain. Part of the coordinator's core: no I/O, no clock.

The rules:

1. The run has no more rounds after its last one, or after it stopped early. Then participants and aggregator evaluate its final
   model. Training is complete when both evaluations are over.
2. Participants evaluate the final model in an attempt without training, which closes by the quorum like others. This evaluation is
   over when that attempt is closed, or when no participant can evaluate.
3. The aggregator evaluates the final model if it has a function for that. This evaluation is over when the ledger contains it, or
   after `evaluate_timeout`. Rounds never wait for it.
4. An evaluation may stop the run early (`goal.py`). An evaluation by participants ends the run after the round that reported it.
   One by the aggregator ends it after the open round, which begins no further attempt.
5. After a rollback the run continues, even if training was complete.
6. After a restart with another goal, a run that stopped early continues unless the goal has the condition that stopped it. The best
   model by another metric is forgotten.
"""

from fedround.coordinator.evaluation import ServerSide
from fedround.coordinator.goal import Best, judge
from fedround.coordinator.history import History
from fedround.coordinator.plan import Memory, Plan
from fedround.coordinator.run import Run
from fedround.events import Evaluated, Fact, FinalNotEvaluated, ServerEvaluated, TrainingCompleted


class Ending:
    """The end of a run, by the rules above. `done`, here and in methods, is the number of completed rounds of the run."""

    def __init__(self, plan: Plan, memory: Memory, done: int) -> None:
        self._plan = plan
        goal = plan.goal
        comparable = not goal.by or memory.best_by in ("", goal.by)
        stands = goal.stands(memory.stopped, memory.best_by)
        self.best, self.stopped = memory.best if comparable else None, memory.stopped if stands else ""
        """The best model of the run, and why the run stopped early; empty: it did not."""
        self.stop = ""
        """Why the run is to stop when no attempt is open; empty: it continues."""
        self._best_by = goal.by or memory.best_by
        self.final = memory.final and self.trained(done)
        """Whether participants have still to evaluate the final model."""
        self.server = ServerSide(memory.evaluated, awaited=memory.awaited and self.trained(done))
        self._open = self.final or self.server.awaited

    @property
    def memory(self) -> tuple[bool, Best | None, str, bool, int, str]:
        """The last fields of `Memory`."""
        stops = bool(self.stop)
        stopped, awaited = self.stopped or self.stop, self.server.awaited or stops
        return self.final or stops, self.best, stopped, awaited, self.server.evaluated, self._best_by

    def trained(self, done: int) -> bool:
        """Return whether the run has no more rounds."""
        return bool(self.stopped) or 0 < self._plan.rounds <= done

    def complete(self, done: int) -> bool:
        """Return whether training is complete."""
        return self.trained(done) and not self._open

    def begin(self, final: int, reason: str = "") -> None:
        """Begin to evaluate the final model, that of round `final`. `reason`: why the run stopped early, if it did."""
        self.stopped, self.stop = reason or self.stopped, ""
        self._open = self.final = True
        self.server.end(final)

    def settle(self, now: float, round: int, first: int) -> list[Fact]:
        """Complete training if no evaluation remains. `round` would be the next round, `first` is the first of the run."""
        facts: list[Fact] = []
        if self.server.awaited and self.server.settle(now, round - 1, self._plan.evaluate_timeout):
            facts.append(FinalNotEvaluated(round - 1, self._plan.evaluate_timeout))
        if not (self.final or self.server.awaited):
            self._open = False
            facts.append(TrainingCompleted(round - first, self.stopped))
        return facts

    def evaluated(self, found: Evaluated, first: int) -> None:
        """Judge an evaluation by participants."""
        reason = self._judge(found, first)
        self.stopped = self.stopped or reason

    def read_server(self, round: int, run: Run, history: History) -> list[ServerEvaluated]:
        """Judge the new evaluations by the aggregator, and return them."""
        news = self.server.news(round, run.name, history)
        for found in news:
            history.evaluated_by_server(found)
            reason = self._judge(found, run.first)
            self.stop = self.stop or ("" if self.trained(round - run.first) else reason)
        return news

    def go_on(self) -> None:
        """Go on to another round: no evaluation of a final model remains."""
        self._open = self.final = self.server.awaited = False

    def roll_back(self, newest: int) -> None:
        """Go back to the model of round `newest`: discard later evaluations and the end of the run."""
        self.best = None if self.best is None or self.best.round > newest else self.best
        self.stopped = self.stop = ""
        self.server.roll_back(newest)

    def _judge(self, found: Evaluated | ServerEvaluated, first: int) -> str:
        if found.round is None or found.round < first:
            return ""
        self.best, reason = judge(self._plan.goal, self.best, found)
        return reason
