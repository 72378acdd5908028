"""The metrics of evaluations by the aggregator's function."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedround import events
from fedround.events import Fact
from fedround.observability.metrics.base import WORK, Metrics


class Evaluations(Collector):
    """The results, the outcomes and the durations of evaluations. Set `status`, which returns the aggregator's status."""

    def __init__(self, metrics: Metrics) -> None:
        self.status: Callable[[], Mapping[str, Any]] = dict
        self._metrics = metrics
        self._newest: events.ModelEvaluated | None = None
        self._outcomes = metrics.make(
            Counter,
            "evaluations_total",
            "Number of models that AGGREGATOR_EVALUATE was to evaluate. incomplete: a metric was not finite. skipped: a newer "
            "model came first, or the function returned None.",
            {"outcome": ["succeeded", "incomplete", "failed", "skipped"]},
        )
        self._duration = metrics.make(
            Histogram, "evaluation_duration_seconds", "Time to evaluate a model, in seconds, including failures.", buckets=WORK
        )
        metrics.registry.register(self)

    def update(self, fact: Fact) -> None:
        """Update the metrics from `fact`."""
        match fact:
            case events.ModelEvaluated():
                self._outcomes.labels("incomplete" if fact.dropped else "succeeded").inc()
                self._metrics.observe(self._duration, fact.seconds)
                self._newest = fact
            case events.EvaluationFailed():
                self._outcomes.labels("failed").inc()
                self._metrics.observe(self._duration, fact.seconds)
            case events.EvaluationSkipped():
                self._outcomes.labels("skipped").inc()

    def collect(self) -> Iterator[Metric]:
        """Return all families. A family without a value has no samples."""
        prefix, found = self._metrics.prefix, self._newest
        status = self.status().get("evaluation") or {}
        running = status.get("evaluating")
        metric = GaugeMetricFamily(
            prefix + "evaluation_metric", "Metrics of the last model that AGGREGATOR_EVALUATE evaluated.", labels=["metric"]
        )
        for name, value in found.metrics if found else ():
            metric.add_metric([name], value)
        yield metric
        yield GaugeMetricFamily(
            prefix + "evaluation_round",
            "Round of the last evaluated model; -1: the initial model.",
            value=None if found is None else -1 if found.round is None else found.round,
        )
        yield GaugeMetricFamily(
            prefix + "evaluation_running_seconds",
            "Time since the current evaluation began, in seconds; 0: no evaluation is running.",
            value=running["seconds"] if running else 0,
        )
        yield GaugeMetricFamily(
            prefix + "evaluation_consecutive_failures",
            "Number of failed evaluations since the last one that succeeded.",
            value=status.get("failures", 0),
        )
        yield GaugeMetricFamily(
            prefix + "evaluation_models_behind",
            "Number of models that are newer than the last one that was evaluated, or that needed no evaluation.",
            value=status.get("behind", 0),
        )
