"""The metrics of a coordinator."""

import time
from collections import Counter as Counts
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedround import events
from fedround.events import Fact
from fedround.observability.metrics.base import ROUND, SAVE_FAILURES, Metrics
from fedround.observability.metrics.http import Connections, Requests
from fedround.observability.metrics.silos import families


class CoordinatorMetrics(Metrics):
    """The metrics of a coordinator."""

    prefix = "fedround_coordinator_"

    def __init__(self, registry: CollectorRegistry | None = None, **options: Any) -> None:
        super().__init__(registry, **options)
        make = self.make
        self._rounds = make(
            Counter,
            "rounds_total",
            "Number of attempts of rounds that ended, by outcome.",
            {"outcome": ["completed", "failed", "timed_out"]},
        )
        self._duration = make(
            Histogram,
            "round_duration_seconds",
            "Time from the start of the successful attempt to the end of the round, in seconds.",
            buckets=ROUND,
        )
        self._selected = make(Counter, "selected_total", "Number of times that a participant was selected for a round.")
        self._dropped = make(
            Counter,
            "dropped_total",
            "Number of times that a participant left or lost its part in a round. silent: it missed its heartbeats. deadline: it "
            "missed the round's deadline. late: the round closed by its quorum. failed: it left because of a failure. "
            "replaced: it registered again.",
            {"reason": ["silent", "deadline", "late", "left", "failed", "replaced"]},
        )
        self._sat_out = make(
            Counter, "sit_outs_total", "Number of times that a participant had to sit out rounds after consecutive failures."
        )
        self._save_failures = make(Counter, *SAVE_FAILURES)
        signals = ("metrics", "traces")
        self._received = make(
            Counter,
            "relay_messages_total",
            "Number of telemetry messages from participants. refused: invalid. throttled: too many. full: the queue was full.",
            {"signal": signals, "outcome": ("accepted", "refused", "throttled", "full")},
        )
        self._forwarded = make(
            Counter,
            "relay_forwarded_total",
            "Number of accepted messages that the collector accepted (arrived), or that were dropped.",
            {"signal": signals, "outcome": ("arrived", "dropped")},
        )
        self._requests = Requests(self)
        self._connections = Connections(self, "public", "ops")

    def show(self, status: Callable[[], Mapping[str, Any]]) -> None:
        """Set the gauges from `status` at each scrape."""
        self.registry.register(CoordinatorState(self.prefix, status))

    def __call__(self, fact: Fact) -> None:
        """Update the metrics from `fact`."""
        match fact:
            case events.RoundCompleted():
                self._rounds.labels("completed").inc()
                self.observe(self._duration, fact.seconds)
            case events.AttemptDropped():
                self._rounds.labels("timed_out" if fact.timed_out else "failed").inc()
            case events.Selected():
                self._selected.inc(len(fact.ids) * fact.train)
            case events.ParticipantGone():
                self._dropped.labels(fact.reason).inc()
            case events.Revoked(reason="deadline" | "late" as reason):
                self._dropped.labels(reason).inc()
            case events.SatOut():
                self._sat_out.inc()
            case events.TelemetryReceived():
                self._received.labels(fact.signal, fact.outcome).inc()
            case events.TelemetryForwarded():
                self._forwarded.labels(fact.signal, "arrived" if fact.arrived else "dropped").inc(fact.messages)
            case events.SaveFailed():
                self._save_failures.inc()
            case events.RequestServed():
                self._requests.update(fact)
            case events.ConnectionsChanged() | events.ConnectionClosed() | events.RequestThrottled():
                self._connections.update(fact)
            case _:
                super().__call__(fact)


_GAUGES: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], float]]] = {
    "round": ("Number of the current or next round, counted from 0.", lambda status: status["round"]),
    "rounds_configured": ("Number of the run's last round plus 1; 0: no limit.", lambda status: status["rounds"]),
    "round_since_timestamp_seconds": ("Time of the first scrape in this round, in Unix time.", lambda status: status["since"]),
    "round_timeout_seconds": (
        "Time that selected participants have to upload their updates, in seconds.",
        lambda status: status["round_timeout"],
    ),
    "aggregator_reachable": ("1 if the aggregator responds, 0 if not.", lambda status: status["aggregator_reachable"]),
    "participants_missing": (
        "Number of participants that timed out in the last hour and have not returned.",
        lambda status: len(status["missing"]),
    ),
    "participants_sitting_out": (
        "Number of participants that sit out the current round after consecutive failures.",
        lambda status: status["sitting_out"],
    ),
    "round_failed_attempts": (
        "Number of attempts of the current round that failed for a lasting reason.",
        lambda status: status["failed_attempts"],
    ),
    "waiting_for_participants": (
        "1 while there are too few participants to start a round.",
        lambda status: status["state"].startswith("waiting for participants"),
    ),
    "training_complete": ("1 if training is complete, 0 if not.", lambda status: status["state"] == "complete"),
}
"""The help of gauges, and their values in a coordinator's status with `since`, the time of the first scrape in the round."""


class CoordinatorState(Collector):
    """The gauges from a coordinator's status."""

    def __init__(self, prefix: str, status: Callable[[], Mapping[str, Any]]) -> None:
        self._prefix = prefix
        self._status = status
        self._round: int | None = None
        self._since = 0.0

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        status = self._status()
        if status["round"] != self._round:
            self._round, self._since = status["round"], time.time()
        status = {**status, "since": self._since}
        for name, (help, value) in _GAUGES.items():
            yield GaugeMetricFamily(self._prefix + name, help, value=value(status))
        counts = Counts(participant["state"] for participant in status["participants"])
        states = ("waiting", "chosen", "selected", "revoking", "done", "ignored")
        help = "Number of present participants, by their part in the round."
        yield self._by_state("participants", help, {state: counts[state] for state in states})
        yield self._shards(status["shards"] or {"count": 0, "missing": (), "doubled": ()})
        yield from families(self._prefix, status)

    def _shards(self, shards: Mapping[str, Any]) -> Metric:
        missing, doubled = len(shards["missing"]), len(shards["doubled"])
        help = "Number of shards of the shared data set: held by one participant, by several (doubled), or by none (missing)."
        return self._by_state("shards", help, {"held": shards["count"] - missing - doubled, "doubled": doubled, "missing": missing})

    def _by_state(self, name: str, help: str, values: Mapping[str, int]) -> Metric:
        family = GaugeMetricFamily(self._prefix + name, help, labels=["state"])
        for state, value in values.items():
            family.add_metric([state], value)
        return family
