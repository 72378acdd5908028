"""The Prometheus metrics of the three services, each an observer of facts. The only file that imports prometheus_client.

Labels come from closed sets: never an id, a URL, a token or a round's number. What is known from the start begins at 0, so that a
rate is right from the first scrape on. Every class makes its metrics in a registry of its own, or in `registry`.
"""

import os
import platform
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from itertools import product
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.core import GaugeHistogramMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from fedround import events, wire
from fedround.errors import ConfigurationError
from fedround.events import Fact
from fedround.figures import DECADES, Change, Statistics
from fedround.observability.shared import Shared

Labels = Mapping[str, Sequence[str]]
"""The names of labels, and the values that are known from the start."""
NO_LABELS: Labels = {}
M = TypeVar("M", Counter, Gauge, Histogram)

MULTIPROC = "PROMETHEUS_MULTIPROC_DIR"
REVISION = "FEDROUND_REVISION"
"""The variable in which an image tells which commit it was built from."""
MAX_REPORTED = 20
"""How many names of what user code reports become series."""

MAX_FAILURES = 16
"""How many kinds of answers and failures of exchanges become series, beside those that are known."""
OTHER = "_OTHER"

_REQUEST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30)
_WORK = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 1800, 3600)
_ROUND = (*_WORK, 7200, 14400, 43200)
_SIZE = tuple(10.0**power for power in range(2, 11))
_EXCHANGES = (
    ("GET", wire.RENDEZ_VOUS, "200"),
    ("DELETE", wire.LEAVE, "204"),
    ("GET", wire.HEARTBEAT, "200"),
    ("GET", wire.START_TRAINING, "200"),
    ("GET", wire.UPDATE, "200"),
    ("GET", wire.UPDATE, "304"),
    ("POST", wire.UPDATE, "200"),
)
_PATHS = tuple(dict.fromkeys(path for _, path, _ in _EXCHANGES))
_SOURCES = ("global", "local")
_NOT_KEPT = ("checkpoint_failures_total", "Times that the data directory could not be written; it is tried again every second.")


def _check_directory(environ: Mapping[str, str]) -> None:
    """prometheus_client keeps values in files where this variable names a directory; the first metric would fail without it."""
    directory = environ.get(MULTIPROC)
    if directory is not None and not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{MULTIPROC}: {directory}: is no directory that can be written to; fedround does not need it")


class Metrics:
    """What the metrics of all services have in common.

    Args:
        registry: Where the metrics are registered; by default a registry of their own.
        exemplar: Gives the labels of an exemplar for what is observed now, or None.
    """

    prefix = "fedround_"

    def __init__(
        self, registry: CollectorRegistry | None = None, *, exemplar: Callable[[], dict[str, str] | None] = lambda: None
    ) -> None:
        _check_directory(os.environ)
        disable_created_metrics()  # type: ignore[no-untyped-call]  # each labelset would be two series
        self.registry = registry or CollectorRegistry()
        self._exemplar = exemplar
        self._scrapes: dict[str, Shared[bytes]] = {}
        self._run = Gauge("fedround_run_info", "Run that the rounds belong to.", ("run", "run_id"), registry=self.registry)
        build = {"version": version("fedround"), "revision": os.environ.get(REVISION, ""), "python": platform.python_version()}
        Info("fedround_build", "What is running.", registry=self.registry).info(build)
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def __call__(self, fact: Fact) -> None:
        """Take note of `fact`."""
        raise NotImplementedError

    def _entered(self, id: str, name: str) -> None:
        self._run.clear()
        if id:
            self._run.labels(name, id).set(1)

    def show(self, status: Callable[[], Mapping[str, Any]]) -> None:
        """Make gauges of what `status` tells, at each scrape."""

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the format that an `Accept` header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        if content_type not in self._scrapes:
            self._scrapes[content_type] = Shared(partial(encode, self.registry))
        return self._scrapes[content_type](), content_type

    def _make(
        self, kind: type[M], name: str, help: str, labels: Labels = NO_LABELS, *, prefix: str | None = None, **options: Any
    ) -> M:
        metric = kind((self.prefix if prefix is None else prefix) + name, help, tuple(labels), registry=self.registry, **options)
        for values in product(*labels.values()) if labels else ():
            metric.labels(*values)
        return metric

    def _observe(self, histogram: Histogram, amount: float) -> None:
        histogram.observe(amount, self._exemplar())


class ParticipantMetrics(Metrics):
    """Of a participant. `local_values`: show the single weights of a small local model, too, which are the silo's own."""

    prefix = "fedround_participant_"

    def __init__(self, registry: CollectorRegistry | None = None, *, local_values: bool = False, **options: Any) -> None:
        super().__init__(registry, **options)
        states = ["registering", "waiting", "training", "confirming", "finished", "stopped", "draining"]
        outcomes = {"outcome": ["completed", "evaluated", "unconfirmed", "failed", "refused", "abandoned"]}
        phases = {"phase": ["download", "decode", "evaluate", "train", "encode", "check", "upload", "confirm"]}
        make = self._make
        self._state = Enum(f"{self.prefix}state", "What it is doing.", states=states, registry=self.registry)
        self._joined = make(Counter, "rounds_joined_total", "Orders to train that it accepted.")
        self._rounds = make(Counter, "rounds_total", "Rounds that ended for it.", outcomes)
        self._round = make(Gauge, "round_number", "The newest round that it was asked for, counted from 0.")
        self._in_progress = make(Gauge, "round_in_progress", "1 from an order until the end of its round.")
        self._completed = make(
            Gauge, "last_round_completed_timestamp_seconds", "When an update of its was last counted, in Unix time; 0: never."
        )
        self._duration = make(Histogram, "round_duration_seconds", "From an order to its end.", outcomes, buckets=_ROUND)
        self._phase = make(
            Histogram,
            "round_phase_duration_seconds",
            "The phases of a round; each try of a transfer is one.",
            phases,
            buckets=_ROUND,
        )
        self._retries = make(
            Counter, "retries_total", "Exchanges that are tried again.", {"url_template": _PATHS, "reason": ["unreachable"]}
        )
        self._reachable = make(Gauge, "coordinator_reachable", "1 while the coordinator answers.")
        self._contact = make(Gauge, "coordinator_last_contact_timestamp_seconds", "Its last answer, in Unix time; 0: none yet.")
        self._registrations = make(
            Counter, "registrations_total", "Ids that it was given.", {"reason": ["start", "rejected", "round_failed"]}
        )
        self._reported = make(Gauge, "training_metric", "What the training code reports, the newest of each name.", {"name": []})
        self._names: set[str] = set()
        self._exchanges = _Exchanges(self)
        self._weights = _Weights(self, _SOURCES, values=_SOURCES if local_values else _SOURCES[:1])
        self._change = _Change(self)
        self._connections = _Connections(self, "ops")
        self._samples = make(Counter, "trained_samples_total", "Samples that its updates were trained on.")
        self._worker = make(Gauge, "worker_up", "1 while the training code can run: its process has made the participant.")
        self._worker_ends = make(
            Counter,
            "worker_restarts_total",
            "Restarts of the process that the training code runs in, by why the former one ended.",
            {"reason": ["exited", "killed", "crashed", "cancelled", "unusable", "lost"]},
        )

    def __call__(self, fact: Fact) -> None:
        """Take note of `fact`."""
        match fact:
            case events.StateChanged():
                self._state.state("draining" if fact.draining and fact.state != "stopped" else fact.state)
            case events.OrderAccepted():
                self._joined.inc(fact.train)
                self._entered(fact.run_id, fact.run_name)
                self._round.set(fact.round)
                self._in_progress.set(1)
            case events.PhaseEnded():
                self._observe(self._phase.labels(fact.phase), fact.seconds)
            case events.RoundEnded():
                self._rounds.labels(fact.outcome).inc()
                self._observe(self._duration.labels(fact.outcome), fact.seconds)
                self._in_progress.set(0)
                if fact.outcome == "completed":
                    self._completed.set_to_current_time()
            case events.ExchangeEnded():
                self._exchanges.ended(fact)
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
                self._weights.measured(fact)
            case events.WorkerReady():
                self._worker.set(1)
            case events.WorkerEnded():
                self._worker.set(0)
                self._worker_ends.labels(fact.cause).inc()
            case events.UpdateMeasured():
                self._samples.inc(fact.samples)
                self._change.newest = fact.change
            case events.ConnectionsChanged() | events.ConnectionCut() | events.RequestThrottled():
                self._connections.told(fact)
            case events.Reported():
                for name, value in fact.figures:
                    if name in self._names or len(self._names) < MAX_REPORTED:
                        self._names.add(name)
                        self._reported.labels(name).set(value)


class CoordinatorMetrics(Metrics):
    """Of a coordinator."""

    prefix = "fedround_coordinator_"

    def __init__(self, registry: CollectorRegistry | None = None, **options: Any) -> None:
        super().__init__(registry, **options)
        make = self._make
        self._rounds = make(
            Counter, "rounds_total", "Attempts of rounds that ended.", {"outcome": ["completed", "failed", "timed_out"]}
        )
        self._duration = make(Histogram, "round_duration_seconds", "Of rounds that were completed.", buckets=_ROUND)
        self._selected = make(Counter, "selected_total", "Participants that were told of a round.")
        self._dropped = make(
            Counter,
            "dropped_total",
            "Participants that fell silent, left or were replaced, and parts in rounds that ended at the deadline or were late for "
            "the quorum.",
            {"reason": ["silent", "deadline", "late", "left", "failed", "replaced"]},
        )
        self._sat_out = make(
            Counter, "sit_outs_total", "Number of times that a participant had to sit out after failures in a row."
        )
        self._not_kept = make(Counter, *_NOT_KEPT)
        self._requests = _Requests(self)
        self._connections = _Connections(self, "public", "ops")

    def show(self, status: Callable[[], Mapping[str, Any]]) -> None:
        """Make gauges of what `status` tells, at each scrape."""
        self.registry.register(_CoordinatorState(self.prefix, status))

    def __call__(self, fact: Fact) -> None:
        """Take note of `fact`."""
        match fact:
            case events.RoundCompleted():
                self._rounds.labels("completed").inc()
                self._observe(self._duration, fact.seconds)
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
            case events.NotKept():
                self._not_kept.inc()
            case events.RunEntered(id, name):
                self._entered(id, name)
            case events.RequestServed():
                self._requests.served(fact)
            case events.ConnectionsChanged() | events.ConnectionCut() | events.RequestThrottled():
                self._connections.told(fact)


class AggregatorMetrics(Metrics):
    """Of an aggregator."""

    prefix = "fedround_aggregator_"

    def __init__(self, registry: CollectorRegistry | None = None, **options: Any) -> None:
        super().__init__(registry, **options)
        outcomes = ["accepted", "repeated", "unauthorized", "late", "invalid", "implausible", "too_large"]
        make = self._make
        self._updates = make(Counter, "updates_total", "Updates that were delivered.", {"outcome": outcomes})
        self._size = make(Histogram, "update_bytes", "The size of updates that were counted.", buckets=_SIZE)
        self._aggregation = make(
            Histogram, "aggregation_duration_seconds", "To make the global model of a round's sum.", buckets=_WORK
        )
        self._checkpoint = make(
            Histogram, "checkpoint_duration_seconds", "To write a model to the data directory, flushed to the disk.", buckets=_WORK
        )
        self._not_kept = make(Counter, *_NOT_KEPT)
        self._uploads = make(Gauge, "uploads_in_progress", "Updates that are being received.")
        self._dominated = make(
            Counter, "dominated_rounds_total", "Rounds of three or more updates of which one had more than half of all samples."
        )
        self._usable = make(Gauge, "model_usable", "1 unless the newest model has weights that nobody can train on.")
        self._usable.set(1)
        self._weights = _Weights(self, _SOURCES[:1], values=_SOURCES[:1])
        self._requests = _Requests(self)
        self._connections = _Connections(self, "public", "internal", "ops")

    def show(self, status: Callable[[], Mapping[str, Any]]) -> None:
        """Make gauges of what `status` tells, at each scrape."""
        self._uploads.set_function(lambda: status()["receiving"])

    def __call__(self, fact: Fact) -> None:
        """Take note of `fact`."""
        match fact:
            case events.UpdateReceived():
                self._updates.labels(fact.outcome).inc()
                if fact.outcome == "accepted":
                    self._observe(self._size, fact.size)
            case events.Aggregated():
                self._observe(self._aggregation, fact.seconds)
            case events.WasKept():
                self._observe(self._checkpoint, fact.seconds)
            case events.NotKept():
                self._not_kept.inc()
            case events.WeightsMeasured():
                self._weights.measured(fact)
                self._usable.set(not fact.statistics.flaw)
            case events.Dominated():
                self._dominated.inc()
            case events.RunEntered(id, name):
                self._entered(id, name)
            case events.RequestServed():
                self._requests.served(fact)
            case events.ConnectionsChanged() | events.ConnectionCut() | events.RequestThrottled():
                self._connections.told(fact)


class _Exchanges:
    """What a participant asks over HTTP, failed attempts too. The names are OpenTelemetry's."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        labels = dict.fromkeys(("http_request_method", "url_template", "http_response_status_code", "error_type"), ())
        self._duration = metrics._make(
            Histogram,
            "http_client_request_duration_seconds",
            "Requests, until the answer was read; those that failed too.",
            labels,
            prefix="",
            buckets=_REQUEST,
        )
        self._known = {(method, path, status, "") for method, path, status in _EXCHANGES}
        for known in self._known:
            self._duration.labels(*known)
        sizes: Any = {"prefix": "", "buckets": _SIZE}
        self._sent = metrics._make(
            Histogram, "http_client_request_body_size_bytes", "Bodies that were sent.", {"url_template": [wire.UPDATE]}, **sizes
        )
        self._received = metrics._make(
            Histogram, "http_client_response_body_size_bytes", "Bodies that came.", {"url_template": _PATHS}, **sizes
        )

    def ended(self, fact: events.ExchangeEnded) -> None:
        self._metrics._observe(self._duration.labels(*self._kind(fact)), fact.seconds)
        if fact.sent:
            self._sent.labels(fact.path).observe(fact.sent)
        self._received.labels(fact.path).observe(fact.received)

    def _kind(self, fact: events.ExchangeEnded) -> tuple[str, str, str, str]:
        """By the status of a whole answer, else by the error; both would say the same twice."""
        answered = fact.error is None or (fact.status or 0) >= 400
        kind = (fact.method, fact.path, _text(fact.status) if answered else "", "" if answered else fact.error or "")
        if kind not in self._known:
            if len(self._known) >= len(_EXCHANGES) + MAX_FAILURES:
                return fact.method, fact.path, "", OTHER
            self._known.add(kind)
        return kind


class _Requests:
    """What a server was asked; probes and scrapes are not told of. The name is OpenTelemetry's."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        labels = dict.fromkeys(("http_request_method", "http_route", "http_response_status_code"), ())
        self._duration = metrics._make(
            Histogram,
            "http_server_request_duration_seconds",
            "Requests, until the answer was sent; without a status: cut off.",
            labels,
            prefix="",
            buckets=_REQUEST,
        )

    def served(self, fact: events.RequestServed) -> None:
        self._metrics._observe(self._duration.labels(fact.method, fact.route, _text(fact.status)), fact.seconds)


class _Connections:
    """The connections to a service's ports."""

    def __init__(self, metrics: Metrics, *ports: str) -> None:
        self._open = metrics._make(
            Gauge, "http_connections", "Number of open connections to a port of this process.", {"port": ports}, prefix="fedround_"
        )
        self._cut = metrics._make(
            Counter,
            "http_connections_closed_total",
            "Number of connections that a port closed to protect itself. port_limit, address_limit: too many of them. head: the "
            "head of a request was too long or too slow. pipeline: too many requests ahead. slow: an answer was read too slowly.",
            {"port": ports, "reason": ("port_limit", "address_limit", "head", "pipeline", "slow")},
            prefix="fedround_",
        )

        self._throttled = metrics._make(
            Counter,
            "http_requests_throttled_total",
            "Number of requests that a port refused with 429, or delayed, because the client sends too many.",
            {"port": ports},
            prefix="fedround_",
        )

    def told(self, fact: Fact) -> None:
        match fact:
            case events.RequestThrottled(port):
                self._throttled.labels(port).inc()
            case events.ConnectionsChanged(port, count):
                self._open.labels(port).set(count)
            case events.ConnectionCut(port, reason):
                self._cut.labels(port, reason).inc()


class _Weights(Collector):
    """The newest weights of each source; one by one only those of the sources in `values`."""

    def __init__(self, metrics: Metrics, sources: Sequence[str], *, values: Sequence[str]) -> None:
        self._prefix = metrics.prefix
        self._values = values
        self._newest: dict[str, events.WeightsMeasured] = {}
        self._nonfinite = metrics._make(
            Counter, "nonfinite_weights_total", "Weights that were NaN or infinite.", {"source": sources}
        )
        metrics.registry.register(self)

    def measured(self, fact: events.WeightsMeasured) -> None:
        self._newest[fact.source] = fact
        self._nonfinite.labels(fact.source).inc(fact.statistics.nonfinite)

    def collect(self) -> Iterator[Metric]:
        """Each family, without a sample before there is one to show."""
        newest = {source: fact.statistics for source, fact in self._newest.copy().items()}
        model = self._newest.get("global")
        count, size = (model.statistics.count, model.size) if model else (None, None)
        yield GaugeMetricFamily(self._prefix + "model_parameters", "Weights of the global model.", value=count)
        yield GaugeMetricFamily(self._prefix + "model_bytes", "Bytes of the global model, as they travel.", value=size)
        for name, help in _FIGURES.items():
            family = GaugeMetricFamily(f"{self._prefix}weight_{name}", help, labels=["source"])
            for source, found in newest.items():
                family.add_metric([source], found.figures[name])
            yield family
        one_by_one = GaugeMetricFamily(
            self._prefix + "weight_value",
            "The weights of a model of at most 32, one by one; those of a local model only where PARTICIPANT_OPS_TOKEN is set.",
            labels=["index", "source"],
        )
        absolute = GaugeHistogramMetricFamily(
            self._prefix + "weights", "Absolute values of the weights, by powers of ten.", labels=["source"]
        )
        for source, found in newest.items():
            for index, value in enumerate(found.values if source in self._values else ()):
                one_by_one.add_metric([str(index), source], value)
            absolute.add_metric([source], list(_buckets(found)), found.l1_norm)
        yield one_by_one
        yield absolute


_FIGURES = {
    "mean": "The mean of the weights.",
    "stddev": "Their standard deviation.",
    "min": "The least of them.",
    "max": "The largest of them.",
    "l2_norm": "Their L2 norm.",
}


def _buckets(found: Statistics) -> Iterator[tuple[str, float]]:
    for decade, count in zip(DECADES, found.decades, strict=True):
        yield str(decade), count
    yield "+Inf", found.count - found.nonfinite


class _Change(Collector):
    """What the newest update changed; without a sample where that is not known."""

    def __init__(self, metrics: Metrics) -> None:
        self._prefix = metrics.prefix
        self.newest: Change | None = None
        metrics.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Both families."""
        norm, cosine = (self.newest.l2_norm, self.newest.cosine_similarity) if self.newest else (None, None)
        yield GaugeMetricFamily(
            self._prefix + "update_l2_norm",
            "The L2 norm of what training changed, in the newest update; above 1 MiB an estimate.",
            value=norm,
        )
        yield GaugeMetricFamily(
            self._prefix + "update_cosine_similarity",
            "The cosine between what training changed and the last change of the global model, 1: along, -1: against; above 1 MiB "
            "an estimate.",
            value=cosine,
        )


class _CoordinatorState(Collector):
    """What a coordinator's status says in numbers."""

    def __init__(self, prefix: str, status: Callable[[], Mapping[str, Any]]) -> None:
        self._prefix = prefix
        self._status = status
        self._round: int | None = None
        self._since = 0.0

    def collect(self) -> Iterator[Metric]:
        """The state at this moment."""
        status = self._status()
        if status["round"] != self._round:
            self._round, self._since = status["round"], time.time()
        state: str = status["state"]
        gauges = (
            ("round", "The round that is open or comes next, counted from 0.", status["round"]),
            ("rounds_configured", "Rounds of the whole training; 0: it does not end.", status["rounds"]),
            ("round_since_timestamp_seconds", "When a scrape first saw this round.", self._since),
            ("round_timeout_seconds", "How long the selected have to deliver.", status["round_timeout"]),
            ("aggregator_reachable", "1 while the aggregator answers.", status["aggregator_reachable"]),
            ("participants_missing", "Who fell silent in the last hour and has not come back.", len(status["missing"])),
            ("participants_sitting_out", "Participants that sit out the round, after failures in a row.", status["sitting_out"]),
            ("round_failed_attempts", "Attempts of the round that failed for lasting reasons.", status["failed_attempts"]),
            ("waiting_for_participants", "1 while there are too few to begin.", state.startswith("waiting for participants")),
            ("training_complete", "1 after the last round.", state == "complete"),
        )
        for name, help, value in gauges:
            yield GaugeMetricFamily(self._prefix + name, help, value=value)
        parts = Counts(p["state"] for p in status["participants"])
        family = GaugeMetricFamily(self._prefix + "participants", "Who is present, by their part in the round.", labels=["state"])
        for part in ("waiting", "chosen", "selected", "revoking", "done", "ignored"):
            family.add_metric([part], parts[part])
        yield family


def _text(status: int | None) -> str:
    return "" if status is None else str(status)
