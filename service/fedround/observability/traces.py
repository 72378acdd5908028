"""Whether a process makes traces, as the `OTEL_*` variables say. Nothing of OpenTelemetry is imported where nobody wants any."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedround.observability import logs

if TYPE_CHECKING:
    from fedround.observability.tracing import Tracing

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def traced(environ: Mapping[str, str]) -> bool:
    """Whether somebody asked for traces: by an exporter, or by an endpoint to export to."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    wanted = exporter != "none" if exporter else any(environ.get(name) for name in ENDPOINTS)
    return wanted and environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"


@contextmanager
def tracing(service: str, instance: str, *, heartbeats: bool = True) -> Iterator["Tracing | None"]:
    """The traces of this process, as the `OTEL_*` variables say; None, and nothing imported, where nobody wants any.

    At the end what was not sent yet has 2 s. Raises `ConfigurationError`.
    """
    if not traced(os.environ):
        yield None
        return
    from fedround.observability.tracing import Tracing, exporters

    found = Tracing(service, instance, exporters(os.environ), heartbeats=heartbeats)
    found.serve_user_code()
    logs.correlate(found.ids)
    try:
        yield found
    finally:
        found.close()
