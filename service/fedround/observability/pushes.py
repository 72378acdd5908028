"""Pushes metrics, and traces beside them, as the `OTEL_*` variables say. See `fedround.observability.bridge`.

Each receiver has a separate thread, so a slow or unreachable one delays nothing else.
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
from typing import TYPE_CHECKING, Any, Protocol

from fedround.common import wire
from fedround.common.text import redact
from fedround.errors import ConfigurationError
from fedround.events import Fact, TelemetrySent
from fedround.observability.relay import Relay
from fedround.observability.traces import configured, disabled, tracing

if TYPE_CHECKING:
    from fedround.observability.bridge import Bridge
    from fedround.observability.metrics.base import Metrics
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
KNOWN = ("otlp", "prometheus", "none")


class Shown(Protocol):
    """The telemetry of a service (`Telemetry`)."""

    @property
    def own(self) -> "Metrics": ...

    @property
    def observe(self) -> Callable[[Fact], None]: ...


class Push:
    """Pushes one registry to one receiver.

    Args:
        collect: Returns the registry's metric families.
        bridge: Converts the families to OpenTelemetry data.
        exporter: Sends the data.
        seconds: Seconds between two pushes.
        tell: Receives the signal, and whether each push arrived.
    """

    def __init__(
        self,
        collect: Callable[[], Any],
        bridge: "Bridge",
        exporter: Any,
        seconds: float,
        tell: Callable[[str, bool], None],
    ) -> None:
        self._collect = collect
        self._bridge = bridge
        self._exporter = exporter
        self._seconds = seconds
        self._tell = tell
        self._loop = _running_loop()
        """The service's event loop. Metrics change on it, so they are read on it."""
        self._stopped = threading.Event()
        self._last: Any = []
        self._thread = threading.Thread(target=self._run, name="fedround-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Push once more, and end. Call it on the thread that the metrics change on."""
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
        self._tell("metrics", arrived)

    def _collected(self) -> Any:
        return list(self._collect())

    def _on_loop(self, loop: asyncio.AbstractEventLoop) -> Any:
        """Collect on the event loop. Raises `TimeoutError` if it is blocked, or has ended."""
        found: Future[Any] = Future()
        with suppress(RuntimeError):  # it was closed
            loop.call_soon_threadsafe(lambda: found.set_result(self._collected()))
        return found.result(COLLECT)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class Exports:
    """The telemetry that a process exports. `tracing`: its spans; None: it makes none."""

    tracing: "Tracing | None" = None

    def __init__(self, service: str, instance: str, relay: Relay | None) -> None:
        self._service = service
        self._instance = instance
        self._relay = relay
        self._pushes: list[Push] = []
        self._observe: Callable[[Fact], None] | None = None

    def show(self, service: str, shown: Shown) -> None:
        """Push one service's metrics from now on. The first service counts all pushes. Raises `ConfigurationError`."""
        self._observe = self._observe or shown.observe
        to_otlp = pushed(os.environ)
        if not to_otlp and self._relay is None:
            return
        with configured():
            from fedround.observability import otlp
            from fedround.observability.bridge import Bridge

            resource = otlp.resource(service, self._instance, part=service != self._service)
            start, collect = time.time_ns(), shown.own.registry.collect
            for exporter in otlp.exporters(os.environ, "metrics") if to_otlp else []:
                bridge = Bridge(resource, start, otlp.temporality(os.environ))
                self._add(collect, bridge, exporter, interval(os.environ, INTERVAL))
            if self._relay is not None:
                bridge = Bridge(resource, start, allow=self._relay.allow)
                self._add(collect, bridge, otlp.Points(self._relay.sender()), interval(os.environ, RELAY_INTERVAL))

    def _add(self, collect: Callable[[], Any], bridge: "Bridge", exporter: Any, seconds: float) -> None:
        self._pushes.append(Push(collect, bridge, exporter, seconds, self.tell))

    def tell(self, signal: str, arrived: bool) -> None:
        """Report whether data of a signal arrived."""
        if self._observe is not None:
            self._observe(TelemetrySent(signal, arrived))

    def stop(self) -> None:
        """Start the last push of each."""
        for push in self._pushes:
            push.stop()

    def join(self, within: float) -> None:
        """Wait for the last pushes, at most `within` seconds altogether."""
        until = time.monotonic() + within
        for push in self._pushes:
            push.join(max(until - time.monotonic(), 0.0))


@contextmanager
def exporting(service: str, instance: str, *, heartbeats: bool = True, relay: Relay | None = None) -> Iterator[Exports]:
    """Export this process's telemetry as the `OTEL_*` variables say. Without an exporter nothing is imported.

    At the end unsent data has `FLUSH` seconds. Raises `ConfigurationError`.
    """
    relay = None if disabled(os.environ) else relay
    exports = Exports(service, instance, relay)
    began = 0.0
    try:
        with tracing(service, instance, heartbeats=heartbeats, relay=relay, tell=exports.tell) as exports.tracing:
            try:
                yield exports
            finally:
                began = time.monotonic()
                exports.stop()
    finally:
        exports.join(FLUSH - (time.monotonic() - began))


def pushed(environ: Mapping[str, str]) -> bool:
    """Return whether to push metrics by OTLP. Raises `ConfigurationError`."""
    value = environ.get("OTEL_METRICS_EXPORTER", "")
    names = [name.strip().lower() for name in value.split(",") if name.strip()]
    if unknown := [name for name in names if name not in KNOWN]:
        raise ConfigurationError(
            f"OTEL_METRICS_EXPORTER: there is no exporter {wire.one_line(unknown[0])}: write {', '.join(KNOWN)}"
        )
    return "otlp" in names and not disabled(environ)


def interval(environ: Mapping[str, str], default: int) -> float:
    """Return the seconds between two pushes. Raises `ConfigurationError`."""
    name = "OTEL_METRIC_EXPORT_INTERVAL"
    value = environ.get(name, "").strip() or str(default)
    if not (value.isascii() and value.isdecimal() and 0 < int(value[:10]) == int(value)):
        raise ConfigurationError(f"{name}: {wire.one_line(value)}: write milliseconds, such as {INTERVAL}")
    return int(value) / 1000
