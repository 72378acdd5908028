"""The observers of a service: its log, its metrics and its traces."""

import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fedround.events import Observer, Observers
from fedround.observability.logs import LogObserver
from fedround.observability.metrics.base import Metrics

if TYPE_CHECKING:
    from fedround.http.tls import Context
    from fedround.observability.tracing import Tracing

INSTANCE = socket.gethostname()
"""Name of this instance of its service; in Kubernetes, the pod's name."""


class Telemetry:
    """The observers of a service.

    Args:
        metrics: The class of the metrics.
        others: Observers that run before the log, so that probes already show a state that the log reports.
        tracing: The traces of the process; None: it makes none.
        keep_log: The argument `keep` of `LogObserver`.
    """

    def __init__(
        self,
        metrics: Callable[..., Metrics],
        others: Iterable[Observer] = (),
        tracing: "Tracing | None" = None,
        *,
        keep_log: bool = False,
    ) -> None:
        self.metrics = metrics(exemplar=tracing.ids) if tracing else metrics()
        first, last = ([tracing.before], [tracing.after]) if tracing else ([], [])
        # `before` starts the span of a fact and `after` ends it, so the exemplar and the log line in between have its id.
        self.log = LogObserver(keep=keep_log)
        self.observe = Observers([*first, *others, self.metrics, self.log, *last])
        self.scrape = self.metrics.scrape
        self.show = self.metrics.show
        self.client = tracing.client if tracing else None
        self.server = tracing.server if tracing else None
        self.round_context = tracing.round_context if tracing else dict

    def watched(self, context: "Context | None") -> "Context | None":
        """Show in the metrics when the certificates of a TLS context end. Return the context."""
        if context is not None:
            self.metrics.certificates.watch(context.validity)
        return context
