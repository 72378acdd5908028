"""The setup of traces from the `OTEL_*` variables. It imports OpenTelemetry only if the process makes traces."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedround.common import wire
from fedround.common.text import redact
from fedround.errors import ConfigurationError
from fedround.observability import logs
from fedround.observability.relay import Relay

if TYPE_CHECKING:
    from fedround.observability.tracing import Tracing

LOG = logging.getLogger(__name__)

WARN_EVERY = 60.0
"""Seconds between two lines about the same problem."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def traces_enabled(environ: Mapping[str, str]) -> bool:
    """Return whether the variables turn on traces, by naming an exporter or an endpoint."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    wanted = exporter != "none" if exporter else any(environ.get(name) for name in ENDPOINTS)
    return wanted and not disabled(environ)


def disabled(environ: Mapping[str, str]) -> bool:
    """Return whether the variables turn off all telemetry."""
    return environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


@contextmanager
def tracing(
    service: str,
    instance: str,
    *,
    heartbeats: bool = True,
    relay: Relay | None = None,
    report: Callable[[str, bool], None] = lambda _signal, _arrived: None,
) -> Iterator["Tracing | None"]:
    """Make traces within the block, as the `OTEL_*` variables configure them. Yield None if traces are off.

    `relay` receives the spans too. `report` receives "traces", and whether a receiver accepted a batch. See `pushes.exporting` for
    the other arguments. At the end, unsent spans have 2 s to arrive.

    Raises:
        ConfigurationError: A variable is invalid, or an exporter is not installed.
    """
    if not traces_enabled(os.environ) and relay is None:
        yield None
        return
    with opentelemetry_setup():
        from fedround.observability.otlp import ReportingExporter, SpanSender, exporters
        from fedround.observability.tracing import Tracing

        to = exporters(os.environ) if traces_enabled(os.environ) else []
        to += [SpanSender(relay.sender(), relay.allow_scope)] if relay else []
        found = Tracing(service, instance, [ReportingExporter(exporter, report) for exporter in to], heartbeats=heartbeats)
    found.set_global()
    logs.correlate(found.ids)
    try:
        yield found
    finally:
        found.close()


@contextmanager
def opentelemetry_setup() -> Iterator[None]:
    """Shorten OpenTelemetry's warnings, and raise `ConfigurationError` for its errors, in a block that imports and sets it up."""
    shorten_warnings()
    try:
        yield
    except ValueError as error:
        raise ConfigurationError(f"OTEL_*: {wire.one_line(redact(_named(str(error), os.environ)))}") from error


def shorten_warnings() -> None:
    """Log OpenTelemetry's warnings as single lines without a traceback, each at most once in `WARN_EVERY` seconds."""
    library = logging.getLogger("opentelemetry")
    library.handlers, library.propagate = [_ShortWarnings()], False


def _named(problem: str, environ: Mapping[str, str]) -> str:
    """Return a problem with the variables that may cause it: the problem contains their value, or part of their name."""
    set_ = {name: value for name, value in sorted(environ.items()) if name.startswith("OTEL_") and value}
    if any(name in problem for name in set_):
        return problem
    names = [name for name, value in set_.items() if value in problem or name[9:].lower() in problem]
    return f"{problem} ({', '.join(names)})"


class _ShortWarnings(logging.Handler):
    """The handler of the SDK's warnings: see `shorten_warnings`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next: dict[tuple[str, int], float] = {}
        """When the next line may be logged, by the source line that logs."""

    def emit(self, record: logging.LogRecord) -> None:
        line = record.name, record.lineno
        if record.created >= self._next.get(line, 0.0):
            self._next[line] = record.created + WARN_EVERY
            signal = "metrics" if "metric" in record.name else "traces"
            LOG.warning("%s: %s", signal, redact(record.getMessage())[:200])
