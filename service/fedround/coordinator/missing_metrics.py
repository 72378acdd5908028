"""Warnings about metrics that the goal of a run names, but no evaluation has."""

from collections.abc import Container, Iterator

from fedround.common.books import Page
from fedround.coordinator.goal import SERVER, comparable
from fedround.coordinator.plan import Plan
from fedround.events import Evaluated, Fact, MetricMissing, RoundCompleted, ServerEvaluated, TrainingCompleted


class MissingMetrics:
    """The metrics of a run's goal that no evaluation had yet. Each setting causes one warning at most."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._metrics = dict(plan.goal.metrics)
        self._evaluated = False
        """Whether participants have evaluated a model since the last round."""

    def note(self, fact: Fact, first: int) -> Iterator[MetricMissing]:
        """Yield the warnings after a fact of the run that began with round `first`."""
        match fact:
            case Evaluated() | ServerEvaluated():
                found, server = comparable(fact), isinstance(fact, ServerEvaluated)
                self._evaluated = self._evaluated or not server
                yield from self._missing(f"; available: {', '.join(found) or 'none'}", server=server, found=found)
            case RoundCompleted(round) if round > first and self._plan.evaluates(round - first):
                # Before the first round there may be no model. An evaluation comes before the end of the round that reports it.
                yield from self._unevaluated()
            case TrainingCompleted():
                yield from self._unevaluated()

    def read(self, page: Page) -> Iterator[MetricMissing]:
        """Yield the warnings after a page of the ledger: does the aggregator evaluate models?"""
        if not page.evaluator:
            yield from self._missing(": set AGGREGATOR_EVALUATE at the aggregator", server=True)

    def _unevaluated(self) -> Iterator[MetricMissing]:
        if not self._evaluated:
            yield from self._missing(": no participant evaluates models: does its class have a method evaluate?", server=False)
        self._evaluated = False

    def _missing(self, why: str, *, server: bool, found: Container[str] = ()) -> Iterator[MetricMissing]:
        for setting, metric in tuple(self._metrics.items()):
            if metric.startswith(SERVER) == server:
                del self._metrics[setting]
                if metric not in found:
                    yield MetricMissing(setting, f"no evaluation has the metric {metric}{why}")
