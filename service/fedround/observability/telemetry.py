"""What a service tells of itself, put together: log, metrics and traces of the same facts."""

import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fedround.events import Observer, Observers
from fedround.observability.logs import LogObserver
from fedround.observability.metrics.base import Metrics

if TYPE_CHECKING:
    from fedround.observability.tracing import Tracing

INSTANCE = socket.gethostname()
"""The name of this one among others of its service: of a pod, its own."""


class Telemetry:
    """The observers of a service.

    Args:
        metrics: Makes its metrics.
        others: Are told before the log: who has read there that something is so finds it so.
        tracing: The spans of its process.
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
        # In between a fact's span is the current one: its exemplar and its log line bear its id.
        self.log = LogObserver(keep=keep_log)
        self.observe = Observers([*first, *others, own, self.log, *last])
        self.scrape = own.scrape
        self.show = own.show
        self.client = tracing.client if tracing else None
        self.server = tracing.server if tracing else None
        self.round_context = tracing.round_context if tracing else dict
