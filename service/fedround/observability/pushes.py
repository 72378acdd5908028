"""Export of metrics and traces as the `OTEL_*` variables configure it. `bridge.py` converts the metrics.

Each receiver of metrics has a separate thread, so a slow or unreachable one delays nothing else.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from fedround.common import wire
from fedround.common.text import redact
from fedround.errors import ConfigurationError
from fedround.events import Fact, TelemetrySent
from fedround.observability.relay import Relay
from fedround.observability.traces import disabled, opentelemetry_setup, tracing

if TYPE_CHECKING:
    from fedround.observability.bridge import Bridge
    from fedround.observability.telemetry import Telemetry
    from fedround.observability.tracing import Tracing

LOG = logging.getLogger(__name__)

INTERVAL = 60_000
"""Milliseconds between two pushes if `OTEL_METRIC_EXPORT_INTERVAL` is not set: the specification's default."""
RELAY_INTERVAL = 15_000
"""Default milliseconds between two pushes to the coordinator: a usual scrape interval of Prometheus."""
FLUSH = 2.0
"""Seconds for the last push and the last spans together."""
COLLECT = 5.0
"""Seconds within which an event loop must return its metrics."""
EXPORTERS = ("otlp", "prometheus", "none")
"""Values of `OTEL_METRICS_EXPORTER`. A scrape needs no exporter, so `prometheus` has no effect."""


class Push:
    """The pushes of one registry to one receiver, on a thread.

    Args:
        collect: Returns the registry's metric families.
        bridge: Converts the families to OpenTelemetry data.
        exporter: Sends the data.
        seconds: Seconds between two pushes.
        report: Receives the signal, and whether the receiver accepted the push.
    """

    def __init__(
        self,
        collect: Callable[[], Any],
        bridge: "Bridge",
        exporter: Any,
        seconds: float,
        report: Callable[[str, bool], None],
    ) -> None:
        self._collect = collect
        self._bridge = bridge
        self._exporter = exporter
        self._seconds = seconds
        self._report = report
        self._loop = _running_loop()
        """The event loop on which the metrics change and are read; None: they change on the thread that made this object."""
        self._stopped = threading.Event()
        self._last: Any = []
        self._thread = threading.Thread(target=self._run, name="fedround-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Start the last push, and end. Call it on the thread on which the metrics change."""
        self._last = self._collected()
        self._stopped.set()

    def join(self, within: float) -> None:
        """Wait until the last push has ended, at most `within` seconds."""
        self._thread.join(within)

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            self._push(self._collected if self._loop is None else partial(self._on_loop, self._loop))
        self._push(lambda: self._last)
        self._exporter.shutdown()

    def _push(self, collect: Callable[[], Any]) -> None:
        from fedround.observability.otlp import succeeded

        try:
            arrived = succeeded(self._exporter, self._bridge.data(collect(), time.time_ns()))
        except Exception as error:  # noqa: BLE001 the next push may succeed
            LOG.warning("failed to push metrics: %s", redact(str(error)) or type(error).__name__)
            arrived = False
        if arrived:
            self._bridge.arrived()
        self._report("metrics", arrived)

    def _collected(self) -> Any:
        return list(self._collect())

    def _on_loop(self, loop: asyncio.AbstractEventLoop) -> Any:
        """Collect on the event loop. Raises `TimeoutError` if the loop is blocked or closed."""
        found: Future[Any] = Future()
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(lambda: found.set_result(self._collected()))
        return found.result(COLLECT)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class Exports:
    """The exports of a process. `tracing`: its traces; None: it makes none."""

    tracing: "Tracing | None" = None

    def __init__(self, service: str, instance: str, relay: Relay | None) -> None:
        self._service = service
        self._instance = instance
        self._relay = relay
        self._pushes: list[Push] = []
        self._observe: Callable[[Fact], None] | None = None

    def add(self, service: str, telemetry: "Telemetry") -> None:
        """Export the metrics of one service from now on. Raises `ConfigurationError`.

        The metrics of the first service count the pushes of all.
        """
        self._observe = self._observe or telemetry.observe
        otlp_wanted = pushes_metrics(os.environ)
        if not otlp_wanted and self._relay is None:
            return
        with opentelemetry_setup():
            from fedround.observability import otlp
            from fedround.observability.bridge import Bridge

            resource = otlp.resource(service, self._instance, part=service != self._service)
            start, collect = time.time_ns(), telemetry.metrics.registry.collect
            for exporter in otlp.exporters(os.environ, "metrics") if otlp_wanted else []:
                bridge = Bridge(resource, start, otlp.temporality(os.environ))
                self._add(collect, bridge, exporter, interval(os.environ, INTERVAL))
            if self._relay is not None:
                bridge = Bridge(resource, start, allow=self._relay.allow)
                self._add(collect, bridge, otlp.MetricSender(self._relay.sender()), interval(os.environ, RELAY_INTERVAL))

    def _add(self, collect: Callable[[], Any], bridge: "Bridge", exporter: Any, seconds: float) -> None:
        self._pushes.append(Push(collect, bridge, exporter, seconds, self.report))

    def report(self, signal: str, arrived: bool) -> None:
        """Emit a fact: whether the receiver accepted data of a signal."""
        if self._observe is not None:
            self._observe(TelemetrySent(signal, arrived))

    def stop(self) -> None:
        """Start the last push to each receiver."""
        for push in self._pushes:
            push.stop()

    def join(self, within: float) -> None:
        """Wait for the last pushes, at most `within` seconds altogether."""
        until = time.monotonic() + within
        for push in self._pushes:
            push.join(max(until - time.monotonic(), 0.0))


@contextmanager
def exporting(service: str, instance: str, *, heartbeats: bool = True, relay: Relay | None = None) -> Iterator[Exports]:
    """Export the telemetry of this process within the block, as the `OTEL_*` variables configure it.

    Without an exporter, OpenTelemetry is not imported. At the end, unsent data has `FLUSH` seconds to arrive.

    Args:
        service: participant, coordinator, aggregator or platform.
        instance: Name of this instance of the service.
        heartbeats: Whether a heartbeat outside of rounds makes a trace.
        relay: A participant's connection to its coordinator, which receives metrics and traces too.

    Raises:
        ConfigurationError: A variable is invalid, or an exporter is not installed.
    """
    relay = None if disabled(os.environ) else relay
    exports = Exports(service, instance, relay)
    began = 0.0
    try:
        with tracing(service, instance, heartbeats=heartbeats, relay=relay, report=exports.report) as exports.tracing:
            try:
                yield exports
            finally:
                began = time.monotonic()
                exports.stop()
    finally:
        exports.join(FLUSH - (time.monotonic() - began))


def pushes_metrics(environ: Mapping[str, str]) -> bool:
    """Return whether to push metrics by OTLP. Raises `ConfigurationError`."""
    value = environ.get("OTEL_METRICS_EXPORTER", "")
    names = [name.strip().lower() for name in value.split(",") if name.strip()]
    if unknown := [name for name in names if name not in EXPORTERS]:
        raise ConfigurationError(
            f"OTEL_METRICS_EXPORTER: unknown exporter {wire.one_line(unknown[0])}: write {', '.join(EXPORTERS)}"
        )
    return "otlp" in names and not disabled(environ)


def interval(environ: Mapping[str, str], default: int) -> float:
    """Return the seconds between two pushes. Raises `ConfigurationError`."""
    name = "OTEL_METRIC_EXPORT_INTERVAL"
    value = environ.get(name, "").strip() or str(default)
    if not (value.isascii() and value.isdecimal() and 0 < int(value[:10]) == int(value)):
        raise ConfigurationError(f"{name}: {wire.one_line(value)}: write milliseconds, such as {INTERVAL}")
    return int(value) / 1000
