"""What the Prometheus metrics of all services have in common. This package alone imports prometheus_client.

Labels come from closed sets: never an id, a URL, a token or a round's number. What is known from the start begins at 0, so that a
rate is right from the first scrape on. Every class makes its metrics in a registry of its own, or in `registry`.
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
"""The names of labels, and the values that are known from the start."""
NO_LABELS: Labels = {}
M = TypeVar("M", Counter, Gauge, Histogram)

MULTIPROC = "PROMETHEUS_MULTIPROC_DIR"
REVISION = "FEDROUND_REVISION"
"""The variable in which an image tells which commit it was built from."""

WORK = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 1800, 3600)
ROUND = (*WORK, 7200, 14400, 43200)
SIZE = tuple(10.0**power for power in range(2, 11))
NOT_KEPT = ("checkpoint_failures_total", "Times that the data directory could not be written; it is tried again every second.")


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
    of_process: tuple[type[ProcessCollector | GCCollector], ...] = (ProcessCollector, GCCollector)

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
        for collector in self.of_process:
            collector(registry=self.registry)
        outcomes = {"signal": ("metrics", "traces"), "outcome": ("arrived", "failed")}
        help = "Number of OTLP requests that this process made, by whether the receiver accepted them."
        self._pushes = self.make(Counter, "telemetry_pushes_total", help, outcomes, prefix="fedround_")

    def __call__(self, fact: Fact) -> None:
        """Take note of `fact`."""
        raise NotImplementedError

    def entered(self, id: str, name: str) -> None:
        """Show the run that rounds belong to from now on."""
        self._run.clear()
        if id:
            self._run.labels(name, id).set(1)

    def sent(self, fact: events.TelemetrySent) -> None:
        """Count what was pushed."""
        self._pushes.labels(fact.signal, "arrived" if fact.arrived else "failed").inc()

    def show(self, status: Callable[[], Mapping[str, Any]]) -> None:
        """Make gauges of what `status` tells, at each scrape."""

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the format that an `Accept` header asks for, and its content type."""
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
        """Add `amount` to `histogram`, with the exemplar of this moment."""
        histogram.observe(amount, self._exemplar())
