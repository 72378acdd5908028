"""Turns on traces as the `OTEL_*` variables say. OpenTelemetry is imported only if a process makes traces."""

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

COMPLAIN_EVERY = 60.0
"""Seconds between two lines about the same problem: a failing exporter fails again and again."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def traced(environ: Mapping[str, str]) -> bool:
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
    tell: Callable[[str, bool], None] = lambda _signal, _arrived: None,
) -> Iterator["Tracing | None"]:
    """Make traces as the `OTEL_*` variables say, within the block. If they are off, yield None and import nothing.

    `relay` receives the spans too. `tell` receives whether they arrived. At the end unsent spans have 2 s.
    Raises `ConfigurationError`.
    """
    if not traced(os.environ) and relay is None:
        yield None
        return
    with configured():
        from fedround.observability.otlp import Spans, Told, exporters
        from fedround.observability.tracing import Tracing

        to = exporters(os.environ) if traced(os.environ) else []
        to += [Spans(relay.sender(), relay.allow_scope)] if relay else []
        found = Tracing(service, instance, [Told(exporter, tell) for exporter in to], heartbeats=heartbeats)
    found.serve_user_code()
    logs.correlate(found.ids)
    try:
        yield found
    finally:
        found.close()


@contextmanager
def configured() -> Iterator[None]:
    """Import and set up OpenTelemetry in the block: it reads its variables in both steps. Raises `ConfigurationError`."""
    complain_shortly()
    try:
        yield
    except ValueError as error:
        raise ConfigurationError(f"OTEL_*: {wire.one_line(redact(_named(str(error), os.environ)))}") from error


def complain_shortly() -> None:
    """Log OpenTelemetry's warnings as single lines without a traceback, each at most once in `COMPLAIN_EVERY` seconds."""
    library = logging.getLogger("opentelemetry")
    library.handlers, library.propagate = [_Complaints()], False


def _named(problem: str, environ: Mapping[str, str]) -> str:
    """Return a problem and the variables that may cause it: it repeats their value, or contains part of their name."""
    set_ = {name: value for name, value in sorted(environ.items()) if name.startswith("OTEL_") and value}
    if any(name in problem for name in set_):
        return problem
    names = [name for name, value in set_.items() if value in problem or name[9:].lower() in problem]
    return f"{problem} ({', '.join(names)})"


class _Complaints(logging.Handler):
    """Logs the SDK's warnings: see `complain_shortly`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next: dict[tuple[str, int], float] = {}
        """When the next line may be logged, by the source line that logs."""

    def emit(self, record: logging.LogRecord) -> None:
        line = record.name, record.lineno
        if record.created >= self._next.get(line, 0.0):
            self._next[line] = record.created + COMPLAIN_EVERY
            signal = "metrics" if "metric" in record.name else "traces"
            LOG.warning("%s: %s", signal, redact(record.getMessage())[:200])
