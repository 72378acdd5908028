"""The metrics of HTTP: requests of clients, requests to servers, and connections to ports."""

from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from fedround import events
from fedround.common import wire
from fedround.events import Fact
from fedround.observability.metrics.base import Metrics

MAX_FAILURES = 16
"""Maximum number of series for responses and failures that are not known from the start."""
OTHER = "_OTHER"

REQUEST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30)
_CLIENT_REQUEST = (0.01, 0.1, 0.5, 2.5, 30)
"""Few buckets, because a federation has many participants. The last bound is longer than any long poll."""
_TRANSFERRED = (1e6, 1e8)
_ALWAYS = (
    ("GET", wire.RENDEZ_VOUS, "200"),
    ("GET", wire.HEARTBEAT, "200"),
    ("GET", wire.UPDATE, "200"),
    ("POST", wire.UPDATE, "200"),
)
"""Series that exist from the start."""
_SOMETIMES = (("DELETE", wire.LEAVE, "204"), ("GET", wire.START_TRAINING, "200"), ("GET", wire.UPDATE, "304"))
"""Known series that exist from the first such response."""
PATHS = tuple(dict.fromkeys(path for _, path, _ in (*_ALWAYS, *_SOMETIMES)))


class Exchanges:
    """The metrics of a participant's HTTP requests, including failed ones. The names are those of OpenTelemetry."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        labels = dict.fromkeys(("http_request_method", "url_template", "http_response_status_code", "error_type"), ())
        self._duration = metrics.make(
            Histogram,
            "http_client_request_duration_seconds",
            "Time from sending a request to reading its response, in seconds, including failed requests.",
            labels,
            prefix="",
            buckets=_CLIENT_REQUEST,
        )
        for exchange in _ALWAYS:
            self._duration.labels(*exchange, "")
        self._failures: set[tuple[str, str, str, str]] = set()
        sizes: Any = {"labels": {"url_template": [wire.UPDATE]}, "prefix": "", "buckets": _TRANSFERRED}
        self._sent = metrics.make(Histogram, "http_client_request_body_size_bytes", "Size of sent updates, in bytes.", **sizes)
        self._received = metrics.make(
            Histogram, "http_client_response_body_size_bytes", "Size of responses to downloads and uploads, in bytes.", **sizes
        )

    def update(self, fact: events.ExchangeEnded) -> None:
        """Update the metrics from `fact`."""
        self._metrics.observe(self._duration.labels(*self._labels(fact)), fact.seconds)
        if fact.path == wire.UPDATE:
            if fact.sent:
                self._sent.labels(fact.path).observe(fact.sent)
            self._received.labels(fact.path).observe(fact.received)

    def _labels(self, fact: events.ExchangeEnded) -> tuple[str, str, str, str]:
        """Return the values of the labels: with the status of a complete response, otherwise with the error."""
        complete = fact.error is None or (fact.status or 0) >= 400
        labels = (fact.method, fact.path, _text(fact.status) if complete else "", "" if complete else fact.error or "")
        if labels[:3] not in (*_ALWAYS, *_SOMETIMES) and labels not in self._failures:
            if len(self._failures) >= MAX_FAILURES:
                return fact.method, fact.path, "", OTHER
            self._failures.add(labels)
        return labels


class Requests:
    """The metrics of requests to a server, except probes and scrapes. The name is that of OpenTelemetry."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        labels = dict.fromkeys(("http_request_method", "http_route", "http_response_status_code"), ())
        self._duration = metrics.make(
            Histogram,
            "http_server_request_duration_seconds",
            "Time from receiving a request to sending its response, in seconds. Without a status: the connection was cut.",
            labels,
            prefix="",
            buckets=REQUEST,
        )

    def update(self, fact: events.RequestServed) -> None:
        """Update the metrics from `fact`."""
        self._metrics.observe(self._duration.labels(fact.method, fact.route, _text(fact.status)), fact.seconds)


class Connections:
    """The metrics of the connections to a service's ports."""

    def __init__(self, metrics: Metrics, *ports: str) -> None:
        self._open = metrics.make(
            Gauge, "http_connections", "Number of open connections to a port of this process.", {"port": ports}, prefix="fedround_"
        )
        self._cut = metrics.make(
            Counter,
            "http_connections_closed_total",
            "Number of connections that a port closed to protect itself. port_limit, address_limit: too many connections. head: a "
            "request's header was too long or too slow. pipeline: too many pipelined requests. slow: a client read too slowly.",
            {"port": ports, "reason": ("port_limit", "address_limit", "head", "pipeline", "slow")},
            prefix="fedround_",
        )
        self._throttled = metrics.make(
            Counter,
            "http_requests_throttled_total",
            "Number of requests that a port rejected with 429, or delayed, because the client sends too many.",
            {"port": ports},
            prefix="fedround_",
        )

    def update(self, fact: Fact) -> None:
        """Update the metrics from `fact`."""
        match fact:
            case events.RequestThrottled(port):
                self._throttled.labels(port).inc()
            case events.ConnectionsChanged(port, count):
                self._open.labels(port).set(count)
            case events.ConnectionClosed(port, reason):
                self._cut.labels(port, reason).inc()


def _text(status: int | None) -> str:
    return "" if status is None else str(status)
