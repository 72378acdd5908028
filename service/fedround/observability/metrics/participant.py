"""The metrics of a participant."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info
from prometheus_client.process_collector import ProcessCollector

from fedround import events
from fedround.events import Fact
from fedround.observability.metrics.base import Metrics
from fedround.observability.metrics.http import PATHS, Connections, Exchanges
from fedround.observability.metrics.weights import SOURCES, Change, Weights

MAX_REPORTED = 20
"""Maximum number of reported metrics that become series."""
_ROUND = (0.1, 0.5, 2.5, 10, 30, 120, 600, 3600, 43200)
"""Few buckets, because a federation has many participants with many phases each."""
_STATES = ["registering", "waiting", "training", "confirming", "finished", "stopped", "draining"]
_OUTCOMES = ["completed", "evaluated", "unconfirmed", "failed", "refused", "abandoned"]
_PHASES = ["download", "decode", "train", "encode", "check", "upload"]
_WORKER_ENDS = ["exited", "killed", "crashed", "cancelled", "failing", "unusable", "lost"]


class ParticipantMetrics(Metrics):
    """The metrics of a participant.

    Args:
        name: The participant's name, as the coordinator shows it.
        local_values: Whether to show each weight of a small local model, which is private to the silo.
    """

    prefix = "fedround_participant_"
    process_collectors = (ProcessCollector,)  # without the garbage collector: training code runs in another process

    def __init__(
        self, registry: CollectorRegistry | None = None, *, name: str = "", local_values: bool = False, **options: Any
    ) -> None:
        super().__init__(registry, **options)
        Info("fedround_participant", "Name of this participant.", registry=self.registry).info({"name": name})
        make = self.make
        self._state = Enum(f"{self.prefix}state", "Current state of this participant.", states=_STATES, registry=self.registry)
        self._joined = make(Counter, "rounds_joined_total", "Number of rounds this participant joined.")
        help = "Number of rounds that ended for this participant, by outcome."
        self._rounds = make(Counter, "rounds_total", help, {"outcome": _OUTCOMES})
        self._round = make(Gauge, "round_number", "Number of the newest round this participant joined, counted from 0.")
        self._in_progress = make(Gauge, "round_in_progress", "1 while this participant takes part in a round.")
        self._completed = make(
            Gauge, "last_round_completed_timestamp_seconds", "Time at which an update was last counted, in Unix time; 0: never."
        )
        help = "Time from selection to the end of the round, in seconds."
        self._duration = make(Histogram, "round_duration_seconds", help, {"outcome": ["completed"]}, buckets=_ROUND)
        help = "Time in each phase of a round, in seconds. Each attempt of a transfer is a phase."
        self._phase = make(Histogram, "round_phase_duration_seconds", help, {"phase": _PHASES}, buckets=_ROUND)
        self._retries = make(
            Counter, "retries_total", "Number of retried requests.", {"url_template": PATHS, "reason": ["unreachable"]}
        )
        self._reachable = make(Gauge, "coordinator_reachable", "1 if the coordinator responds, 0 if not.")
        self._contact = make(
            Gauge,
            "coordinator_last_contact_timestamp_seconds",
            "Time of the coordinator's last response, in Unix time; 0: none yet.",
        )
        self._registrations = make(
            Counter, "registrations_total", "Number of registrations, by reason.", {"reason": ["start", "rejected", "round_failed"]}
        )
        self._reported = make(Gauge, "training_metric", "Last value of each metric that the training code reports.", {"name": []})
        self._names: set[str] = set()
        self._exchanges = Exchanges(self)
        self._weights = Weights(self, SOURCES, values=SOURCES if local_values else SOURCES[:1])
        self._change = Change(self)
        self._connections = Connections(self, "ops")
        self._samples = make(Counter, "trained_samples_total", "Number of samples that updates were trained on.")
        self._worker = make(Gauge, "worker_up", "1 if the training process is ready, 0 if not.")
        help = "Number of restarts of the training process, by the reason why the previous one ended."
        self._worker_ends = make(Counter, "worker_restarts_total", help, {"reason": _WORKER_ENDS})

    def __call__(self, fact: Fact) -> None:
        """Update the metrics from `fact`."""
        match fact:
            case events.StateChanged():
                self._state.state("draining" if fact.draining and fact.state != "stopped" else fact.state)
            case events.RoundJoined():
                self._joined.inc(fact.train)
                self.set_run(fact.run_id, fact.run_name)
                self._round.set(fact.round)
                self._in_progress.set(1)
            case events.PhaseEnded():
                self.observe(self._phase.labels(fact.phase), fact.seconds)
            case events.RoundEnded():
                self._rounds.labels(fact.outcome).inc()
                self.observe(self._duration.labels(fact.outcome), fact.seconds)
                self._in_progress.set(0)
                if fact.outcome == "completed":
                    self._completed.set_to_current_time()
            case events.ExchangeEnded():
                self._exchanges.update(fact)
            case events.Retrying():
                self._retries.labels(fact.path, fact.reason).inc()
            case events.ContactMade():
                self._reachable.set(1)
                self._contact.set_to_current_time()
            case events.ContactLost():
                self._reachable.set(0)
            case events.Registered():
                self._registrations.labels(fact.reason).inc()
            case events.WeightsMeasured():
                self._weights.update(fact)
            case events.WorkerReady():
                self._worker.set(1)
            case events.WorkerEnded():
                self._worker.set(0)
                self._worker_ends.labels(fact.cause).inc()
            case events.UpdateMeasured():
                self._samples.inc(fact.samples)
                self._change.newest = fact.change
            case events.ConnectionsChanged() | events.ConnectionClosed() | events.RequestThrottled():
                self._connections.update(fact)
            case events.MetricsReported():
                for name, value in fact.metrics:
                    if name in self._names or len(self._names) < MAX_REPORTED:
                        self._names.add(name)
                        self._reported.labels(name).set(value)
            case _:
                super().__call__(fact)
