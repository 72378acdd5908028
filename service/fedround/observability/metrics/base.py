"""The base class of all services' Prometheus metrics. Only this package imports prometheus_client.

Label values come from closed sets: never an id, a URL, a token or a round number. Series with known labels start at 0, so that
`rate()` is correct from the first scrape. Each class registers its metrics in its own registry, or in `registry`.
"""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from itertools import product
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from fedround import events
from fedround.errors import ConfigurationError
from fedround.events import Fact
from fedround.observability.shared import Shared

Labels = Mapping[str, Sequence[str]]
"""Names of labels, and their values that are known from the start."""
NO_LABELS: Labels = {}
M = TypeVar("M", Counter, Gauge, Histogram)

MULTIPROC = "PROMETHEUS_MULTIPROC_DIR"
REVISION = "FEDROUND_REVISION"
"""The environment variable with the commit that an image was built from."""

WORK = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 1800, 3600)
ROUND = (*WORK, 7200, 14400, 43200)
SIZE = tuple(10.0**power for power in range(2, 11))
NOT_KEPT = ("checkpoint_failures_total", "Number of failed writes to the data directory. The service retries every second.")


def _check_directory(environ: Mapping[str, str]) -> None:
    """Check the directory that prometheus_client writes its values to, if the variable names one. The first metric would fail."""
    directory = environ.get(MULTIPROC)
    if directory is not None and not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{MULTIPROC}: {directory}: is not a writable directory; unset it, fedround does not need it")


class Metrics:
    """The metrics of a service.

    Args:
        registry: Where the metrics are registered. Default: a new registry.
        exemplar: Returns the labels of the current exemplar, or None.
    """

    prefix = "fedround_"
    of_process: tuple[type[ProcessCollector | GCCollector], ...] = (ProcessCollector, GCCollector)

    def __init__(
        self, registry: CollectorRegistry | None = None, *, exemplar: Callable[[], dict[str, str] | None] = lambda: None
    ) -> None:
        _check_directory(os.environ)
        disable_created_metrics()  # type: ignore[no-untyped-call]  # each labelset would be two series
        self.registry = registry or CollectorRegistry()
        self._exemplar = exemplar
        self._scrapes: dict[str, Shared[bytes]] = {}
        self._run = Gauge("fedround_run_info", "Name and id of the current run.", ("run", "run_id"), registry=self.registry)
        build = {"version": version("fedround"), "revision": os.environ.get(REVISION, ""), "python": platform.python_version()}
        Info("fedround_build", "Version of fedround, commit of its image, and version of Python.", registry=self.registry).info(
            build
        )
        for collector in self.of_process:
            collector(registry=self.registry)
        outcomes = {"signal": ("metrics", "traces"), "outcome": ("arrived", "failed")}
        help = "Number of OTLP requests that this process sent, by whether the receiver accepted them."
        self._pushes = self.make(Counter, "telemetry_pushes_total", help, outcomes, prefix="fedround_")

    def __call__(self, fact: Fact) -> None:
        """Update the metrics from `fact`."""
        raise NotImplementedError

    def entered(self, id: str, name: str) -> None:
        """Show this run as the current one."""
        self._run.clear()
        if id:
            self._run.labels(name, id).set(1)

    def sent(self, fact: events.TelemetrySent) -> None:
        """Count a push."""
        self._pushes.labels(fact.signal, "arrived" if fact.arrived else "failed").inc()

    def show(self, status: Callable[[], Mapping[str, Any]]) -> None:
        """Set the gauges from `status` at each scrape."""

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in the format that an `Accept` header asks for, and the content type."""
        encode, content_type = choose_encoder(accept)
        if content_type not in self._scrapes:
            self._scrapes[content_type] = Shared(partial(encode, self.registry))
        return self._scrapes[content_type](), content_type

    def make(
        self, kind: type[M], name: str, help: str, labels: Labels = NO_LABELS, *, prefix: str | None = None, **options: Any
    ) -> M:
        """Register a metric, with a series at 0 for each combination of the known values of its labels."""
        metric = kind((self.prefix if prefix is None else prefix) + name, help, tuple(labels), registry=self.registry, **options)
        for values in product(*labels.values()) if labels else ():
            metric.labels(*values)
        return metric

    def observe(self, histogram: Histogram, amount: float) -> None:
        """Add `amount` to `histogram`, with the current exemplar."""
        histogram.observe(amount, self._exemplar())
