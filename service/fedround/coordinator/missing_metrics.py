"""Warnings about metrics that the goal of a run names, but no evaluation has."""

import logging

from fedround.common.books import Page
from fedround.coordinator.goal import SERVER, Goal, comparable
from fedround.events import Evaluated, ServerEvaluated

LOG = logging.getLogger(__name__)


class MissingMetrics:
    """The metrics of a goal that may be missing. Each setting causes one warning at most."""

    def __init__(self, goal: Goal) -> None:
        self._metrics = dict(goal.metrics)

    def evaluated(self, fact: Evaluated | ServerEvaluated) -> None:
        """Check the metrics of an evaluation."""
        metrics, server = comparable(fact), isinstance(fact, ServerEvaluated)
        for setting, metric in tuple(self._metrics.items()):
            if metric not in metrics and metric.startswith(SERVER) == server:
                self._warn(setting, f"no evaluation has the metric {metric}; available: {', '.join(metrics) or 'none'}")

    def read(self, page: Page) -> None:
        """Check a page of the ledger: does the aggregator evaluate models?"""
        for setting, metric in tuple(self._metrics.items()):
            if metric.startswith(SERVER) and not page.evaluator:
                self._warn(setting, f"no evaluation has the metric {metric}: set AGGREGATOR_EVALUATE at the aggregator")

    def _warn(self, setting: str, problem: str) -> None:
        del self._metrics[setting]
        LOG.warning("%s: %s", setting, problem)
