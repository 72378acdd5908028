"""The metrics of an aggregator."""

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fedround import events
from fedround.events import Fact
from fedround.observability.metrics.base import SAVE_FAILURES, SIZE, WORK, Metrics
from fedround.observability.metrics.evaluation import Evaluations
from fedround.observability.metrics.http import Connections, Requests
from fedround.observability.metrics.weights import SOURCES, Weights


class AggregatorMetrics(Metrics):
    """The metrics of an aggregator."""

    prefix = "fedround_aggregator_"

    def __init__(self, registry: CollectorRegistry | None = None, **options: Any) -> None:
        super().__init__(registry, **options)
        outcomes = ["accepted", "repeated", "unauthorized", "late", "invalid", "implausible", "too_large"]
        make = self.make
        self._updates = make(Counter, "updates_total", "Number of received updates, by outcome.", {"outcome": outcomes})
        self._size = make(Histogram, "update_bytes", "Size of counted updates, in bytes.", buckets=SIZE)
        self._aggregation = make(
            Histogram,
            "aggregation_duration_seconds",
            "Time to compute the global model from the aggregate, in seconds.",
            buckets=WORK,
        )
        self._checkpoint = make(
            Histogram,
            "checkpoint_duration_seconds",
            "Time to write a model to the data directory and flush it to disk, in seconds.",
            buckets=WORK,
        )
        self._save_failures = make(Counter, *SAVE_FAILURES)
        self._uploads = make(Gauge, "uploads_in_progress", "Number of updates that are being received.")
        self._dominated = make(
            Counter,
            "dominated_rounds_total",
            "Number of completed rounds with three or more updates in which one update had more than half of all samples.",
        )
        self._evaluations = Evaluations(self)
        self._usable = make(
            Gauge, "model_usable", "1 if the newest model can be trained; 0 if it has NaN, infinite or extremely large weights."
        )
        self._usable.set(1)
        self._weights = Weights(self, SOURCES[:1], values=SOURCES[:1])
        self._requests = Requests(self)
        self._connections = Connections(self, "public", "internal", "ops")

    def show(self, status: Callable[[], Mapping[str, Any]]) -> None:
        """Set the gauges from `status` at each scrape."""
        self._uploads.set_function(lambda: status()["receiving"])
        self._evaluations.status = status

    def __call__(self, fact: Fact) -> None:
        """Update the metrics from `fact`."""
        match fact:
            case events.UpdateReceived():
                self._updates.labels(fact.outcome).inc()
                if fact.outcome == "accepted":
                    self.observe(self._size, fact.size)
            case events.Aggregated():
                self.observe(self._aggregation, fact.seconds)
            case events.StateSaved():
                self.observe(self._checkpoint, fact.seconds)
            case events.SaveFailed():
                self._save_failures.inc()
            case events.WeightsMeasured():
                self._weights.update(fact)
                self._usable.set(not fact.statistics.flaw)
            case events.Dominated():
                self._dominated.inc()
            case events.ModelEvaluated() | events.EvaluationFailed() | events.EvaluationSkipped():
                self._evaluations.update(fact)
            case events.RequestServed():
                self._requests.update(fact)
            case events.ConnectionsChanged() | events.ConnectionClosed() | events.RequestThrottled():
                self._connections.update(fact)
            case _:
                super().__call__(fact)
