"""What a service tells of itself, put together: log, metrics and traces of the same facts."""

from collections.abc import Iterable

from fedround.events import Observer, Observers
from fedround.observability.logs import LogObserver
from fedround.observability.metrics import Metrics


class Telemetry:
    """The observers of a service.

    Args:
        metrics: The service's own kind.
        others: Are told after them.
    """

    def __init__(self, metrics: Metrics, others: Iterable[Observer] = ()) -> None:
        self.observe = Observers([metrics, LogObserver(), *others])
        self.scrape = metrics.scrape
        self.show = metrics.show
