"""What a service tells of itself, put together: log, metrics and traces of the same facts."""

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedround.events import Observer, Observers
from fedround.observability import logs
from fedround.observability.logs import LogObserver
from fedround.observability.metrics import Metrics

if TYPE_CHECKING:
    from fedround.observability.tracing import Tracing

INSTANCE = socket.gethostname()
"""The name of this one among others of its service: of a pod, its own."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def traced(environ: Mapping[str, str]) -> bool:
    """Whether somebody asked for traces: by an exporter, or by an endpoint to export to."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    wanted = exporter != "none" if exporter else any(environ.get(name) for name in ENDPOINTS)
    return wanted and environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"


@contextmanager
def tracing(service: str, instance: str, *, heartbeats: bool = True) -> Iterator["Tracing | None"]:
    """The traces of this process, as the `OTEL_*` variables say; None, and nothing imported, where nobody wants any.

    At the end what was not sent yet has 2 s. Raises `ConfigurationError`.
    """
    if not traced(os.environ):
        yield None
        return
    from fedround.observability.tracing import Tracing, exporters

    found = Tracing(service, instance, exporters(os.environ), heartbeats=heartbeats)
    found.serve_user_code()
    logs.correlate(found.ids)
    try:
        yield found
    finally:
        found.close()


class Telemetry:
    """The observers of a service.

    Args:
        metrics: Makes its metrics.
        others: Are told before the log: who has read there that something is so finds it so.
        tracing: The spans of its process.
    """

    def __init__(self, metrics: Callable[..., Metrics], others: Iterable[Observer] = (), tracing: "Tracing | None" = None) -> None:
        own = metrics(exemplar=tracing.ids) if tracing else metrics()
        first, last = ([tracing.before], [tracing.after]) if tracing else ([], [])
        # In between a fact's span is the current one: its exemplar and its log line bear its id.
        self.log = LogObserver()
        self.observe = Observers([*first, *others, own, self.log, *last])
        self.scrape = own.scrape
        self.show = own.show
        self.client = tracing.client if tracing else None
        self.server = tracing.server if tracing else None
        self.round_context = tracing.round_context if tracing else dict
