"""The base class of all services' Prometheus metrics. Only this package imports prometheus_client.

The values of labels come from closed sets: never an id, a URL, a token or a round number. Series with known labels start at 0, so
that `rate()` is correct from the first scrape.
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
from fedround.observability.metrics.certificates import Certificates
from fedround.observability.shared import Shared

Labels = Mapping[str, Sequence[str]]
"""The known values of each label. Each combination is a series from the start."""
NO_LABELS: Labels = {}
M = TypeVar("M", Counter, Gauge, Histogram)

MULTIPROC = "PROMETHEUS_MULTIPROC_DIR"
REVISION = "FEDROUND_REVISION"
"""The environment variable with the commit that an image was built from."""

WORK = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 1800, 3600)
ROUND = (*WORK, 7200, 14400, 43200)
SIZE = tuple(10.0**power for power in range(2, 11))
SAVE_FAILURES = ("checkpoint_failures_total", "Number of failed writes to the data directory. The service retries every second.")


def _check_directory(environ: Mapping[str, str]) -> None:
    """Check the directory to which prometheus_client writes its values, if the variable is set. Raises `ConfigurationError`."""
    directory = environ.get(MULTIPROC)
    if directory is not None and not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{MULTIPROC}: {directory}: is not a writable directory; unset it, fedround does not need it")


class Metrics:
    """The metrics of a service.

    Args:
        registry: The registry to use. Default: a new one.
        exemplar: Returns the labels of the current exemplar; None without one.
    """

    prefix = "fedround_"
    process_collectors: tuple[type[ProcessCollector | GCCollector], ...] = (ProcessCollector, GCCollector)

    def __init__(
        self, registry: CollectorRegistry | None = None, *, exemplar: Callable[[], dict[str, str] | None] = lambda: None
    ) -> None:
        _check_directory(os.environ)
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the number of series
        self.registry = registry or CollectorRegistry()
        self._exemplar = exemplar
        self._scrapes: dict[str, Shared[bytes]] = {}
        self._run = Gauge("fedround_run_info", "Name and id of the current run.", ("run", "run_id"), registry=self.registry)
        build = {"version": version("fedround"), "revision": os.environ.get(REVISION, ""), "python": platform.python_version()}
        info = Info("fedround_build", "Version of fedround, commit of its image, and version of Python.", registry=self.registry)
        info.info(build)
        for collector in self.process_collectors:
            collector(registry=self.registry)
        outcomes = {"signal": ("metrics", "traces"), "outcome": ("arrived", "failed")}
        help = "Number of OTLP requests that this process sent, by whether the receiver accepted them."
        self._pushes = self.make(Counter, "telemetry_pushes_total", help, outcomes, prefix="fedround_")
        self.certificates = Certificates(self.registry)

    def __call__(self, fact: Fact) -> None:
        """Update the metrics from `fact`."""
        match fact:
            case events.RunStarted(id, name):
                self.set_run(id, name)
            case events.TelemetrySent(signal, arrived):
                self._pushes.labels(signal, "arrived" if arrived else "failed").inc()

    def set_run(self, id: str, name: str) -> None:
        """Set the labels of the current run; an empty `id`: none."""
        self._run.clear()
        if id:
            self._run.labels(name, id).set(1)

    def show(self, status: Callable[[], Mapping[str, Any]]) -> None:
        """Set gauges from `status` at each scrape."""

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in the format that an `Accept` header asks for, and the content type."""
        encode, content_type = choose_encoder(accept)
        if content_type not in self._scrapes:
            self._scrapes[content_type] = Shared(partial(encode, self.registry))
        return self._scrapes[content_type](), content_type

    def make(
        self, kind: type[M], name: str, help: str, labels: Labels = NO_LABELS, *, prefix: str | None = None, **options: Any
    ) -> M:
        """Register a metric, with a series at 0 for each combination of known label values. `prefix` replaces that of the class."""
        metric = kind((self.prefix if prefix is None else prefix) + name, help, tuple(labels), registry=self.registry, **options)
        for values in product(*labels.values()) if labels else ():
            metric.labels(*values)
        return metric

    def observe(self, histogram: Histogram, amount: float) -> None:
        """Add `amount` to `histogram`, with the current exemplar."""
        histogram.observe(amount, self._exemplar())
