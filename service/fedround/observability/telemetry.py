"""The observers of a service together: log, metrics and traces of the same facts."""

import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fedround.events import Observer, Observers
from fedround.observability.logs import LogObserver
from fedround.observability.metrics.base import Metrics

if TYPE_CHECKING:
    from fedround.observability.tracing import Tracing

INSTANCE = socket.gethostname()
"""Name of this instance of its service; in Kubernetes, the pod's name."""


class Telemetry:
    """The observers of a service.

    Args:
        metrics: Creates the metrics.
        others: Observers that run before the log, so that a state which the log reports is already visible.
        tracing: The spans of the process.
        keep_log: See `LogObserver`.
    """

    def __init__(
        self,
        metrics: Callable[..., Metrics],
        others: Iterable[Observer] = (),
        tracing: "Tracing | None" = None,
        *,
        keep_log: bool = False,
    ) -> None:
        self.own = own = metrics(exemplar=tracing.ids) if tracing else metrics()
        first, last = ([tracing.before], [tracing.after]) if tracing else ([], [])
        # Between `before` and `after` a fact's span is current, so its exemplar and its log line have its id.
        self.log = LogObserver(keep=keep_log)
        self.observe = Observers([*first, *others, own, self.log, *last])
        self.scrape = own.scrape
        self.show = own.show
        self.client = tracing.client if tracing else None
        self.server = tracing.server if tracing else None
        self.round_context = tracing.round_context if tracing else dict
