"""Metrics that a process pushes, as the `OTEL_*` variables say, and its traces beside them. See `fedround.observability.bridge`.

Each receiver has a thread of its own: one that is slow or away delays nothing else.
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
"""Milliseconds between two pushes where `OTEL_METRIC_EXPORT_INTERVAL` is not set, as the specification wants it; ..."""
RELAY_INTERVAL = 15_000
"""... and to the coordinator: as often as Prometheus would scrape."""
FLUSH = 2.0
"""Seconds for the last push and the last spans, together."""
COLLECT = 5.0
"""Seconds within which an event loop has to show its metrics."""
KNOWN = ("otlp", "prometheus", "none")


class Shown(Protocol):
    """What a service shows to operators (`Telemetry`)."""

    @property
    def own(self) -> "Metrics": ...

    @property
    def observe(self) -> Callable[[Fact], None]: ...


class Push:
    """One registry on its way to one receiver.

    Args:
        collect: Gives its families.
        bridge: Turns them into data.
        exporter: Sends the data.
        seconds: Between two pushes.
        tell: Is told whether each push arrived.
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
        """What a service shows changes on its event loop, and is read there."""
        self._stopped = threading.Event()
        self._last: Any = []
        self._thread = threading.Thread(target=self._run, name="fedround-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Push once more, and end. To be called where the metrics may be read."""
        self._last = self._collected()
        self._stopped.set()

    def join(self, within: float) -> None:
        """Wait for the end."""
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
        except Exception as error:  # noqa: BLE001 the next push may succeed, and no thread ends in silence
            LOG.warning("metrics are not pushed this time: %s", redact(str(error)) or type(error).__name__)
            arrived = False
        if arrived:
            self._bridge.arrived()
        self._tell("metrics", arrived)

    def _collected(self) -> Any:
        return list(self._collect())

    def _on_loop(self, loop: asyncio.AbstractEventLoop) -> Any:
        """Raises `TimeoutError` where the loop does not turn, or turns no more."""
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
    """What a process sends. `tracing`: its spans, None where nobody wants any."""

    tracing: "Tracing | None" = None

    def __init__(self, service: str, instance: str, relay: Relay | None) -> None:
        self._service = service
        self._instance = instance
        self._relay = relay
        self._pushes: list[Push] = []
        self._observe: Callable[[Fact], None] | None = None

    def show(self, service: str, shown: Shown) -> None:
        """Push the metrics of one service from now on. The first one counts what is sent. Raises `ConfigurationError`."""
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
        """Take note of whether data of a signal arrived."""
        if self._observe is not None:
            self._observe(TelemetrySent(signal, arrived))

    def stop(self) -> None:
        """Begin the last push of each."""
        for push in self._pushes:
            push.stop()

    def join(self, within: float) -> None:
        """Wait for the last pushes, for so many seconds together."""
        until = time.monotonic() + within
        for push in self._pushes:
            push.join(max(until - time.monotonic(), 0.0))


@contextmanager
def exporting(service: str, instance: str, *, heartbeats: bool = True, relay: Relay | None = None) -> Iterator[Exports]:
    """What this process sends, as the `OTEL_*` variables say; nothing is imported where nobody wants any.

    At the end what was not sent yet has `FLUSH` seconds. Raises `ConfigurationError`.
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
    """Whether metrics are to be pushed by OTLP. Raises `ConfigurationError`."""
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
