"""Exporters of traces and metrics: those that `OTEL_*` variables name, and those that push to the coordinator.

Import this module only if something is exported: it imports OpenTelemetry.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any, Literal

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from fedround.common import wire
from fedround.errors import ConfigurationError
from fedround.observability.bridge import CUMULATIVE, PREFERENCES, Temporality

HEADER = re.compile(r"\s*([!#-'*+.^_`|~\w-]+\s*=.*)?", re.ASCII)
"""A header field in a variable. The SDK logs an invalid one, with its secret."""
COMPRESSIONS = ("gzip", "deflate", "none")
Send = Callable[[str, bytes], bool]
"""Sends a message to a path, and returns whether the receiver accepted it."""
Report = Callable[[str, bool], None]
"""Receives the name of a signal, and whether the receiver accepted its data."""


def resource(service: str, instance: str, *, part: bool = False) -> Resource:
    """Return the resource: the service, the instance, and the attributes of `OTEL_RESOURCE_ATTRIBUTES`.

    `part`: whether the process has several services. Then a service name from the variables gets the service as a suffix.
    """
    own = {"service.name": f"fedround-{service}", "service.version": version("fedround"), "service.instance.id": instance}
    own |= {"fedround.participant": instance} if service == "participant" else {}
    attributes = {**own, **OTELResourceDetector().detect().attributes}
    if part and attributes["service.name"] != own["service.name"]:
        attributes["service.name"] = f"{attributes['service.name']}-{service}"
    return Resource.create(attributes)


def exporters(environ: Mapping[str, str], signal: Literal["traces", "metrics"] = "traces") -> list[Any]:
    """Return the exporters of `OTEL_TRACES_EXPORTER`, or that of metrics, by OTLP. Its default protocol is http/protobuf.

    Raises:
        ConfigurationError: An exporter is not installed, or cannot be created.
    """
    variable, own = f"OTEL_{signal.upper()}_EXPORTER", f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL"
    protocol = environ.get(own) or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    otlp = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}.get(protocol, protocol)
    for name in (name for name in sorted(environ) if name.startswith("OTEL_EXPORTER_OTLP_") and environ[name]):
        _check(name, environ[name], protocol)
    found = []
    names = (environ.get(variable) or "otlp").split(",") if signal == "traces" else ["otlp"]
    for name in dict.fromkeys(otlp if name.strip().lower() == "otlp" else name.strip() for name in names):
        known = [*entry_points(group=f"opentelemetry_{signal}_exporter", name=name)]
        if not known and name == protocol:
            raise ConfigurationError(f"OTEL_EXPORTER_OTLP_PROTOCOL: unknown protocol {name}: write http/protobuf or grpc")
        if not known:
            package = (
                f"install opentelemetry-exporter-{name.replace('_', '-')}" if name.startswith("otlp_") else "otlp, console or none?"
            )
            raise ConfigurationError(f"{variable}: unknown exporter {name}: {package}")
        try:
            found.append(known[0].load()())
        except Exception as error:
            raise ConfigurationError(f"{variable}: cannot create the exporter {name}: {error}") from error
    return found


def _check(variable: str, value: str, protocol: str) -> None:
    """Check a variable that the exporter itself does not check before it exports. Raises `ConfigurationError`."""
    if variable.endswith("_ENDPOINT") and protocol == "http/protobuf" and not wire.is_url(value):
        raise ConfigurationError(f"{variable}: not a URL: write http://host:4318")
    if variable.endswith("_HEADERS") and not all(HEADER.fullmatch(each) for each in value.split(",")):
        raise ConfigurationError(f"{variable}: write name=value, separated by commas; write a comma in a value as %2C")
    if variable.endswith("_TIMEOUT") and not re.fullmatch(r"\s*[0-9]+([.][0-9]*)?\s*", value):
        raise ConfigurationError(f"{variable}: {wire.one_line(value)}: write seconds, such as 10")
    if variable.endswith("_COMPRESSION") and value.strip().lower() not in COMPRESSIONS:
        raise ConfigurationError(f"{variable}: {wire.one_line(value)}: write gzip, deflate or none")
    if variable.endswith(("_CERTIFICATE", "_CLIENT_KEY")):
        try:
            Path(value).open("rb").close()
        except OSError as error:
            raise ConfigurationError(f"{variable}: {value}: {error.strerror}") from error


def temporality(environ: Mapping[str, str]) -> Temporality:
    """Return the temporality that the variables set. Raises `ConfigurationError`."""
    name = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
    if environ.get(name, "").strip() not in ("", "explicit_bucket_histogram"):
        raise ConfigurationError(f"{name}: {environ[name]}: only explicit_bucket_histogram is possible")
    name = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    preference = environ.get(name, "").strip().lower()
    if preference and preference not in PREFERENCES:
        raise ConfigurationError(f"{name}: {environ[name]}: write {', '.join(PREFERENCES)}")
    return PREFERENCES.get(preference, CUMULATIVE)


def succeeded(exporter: Any, data: MetricsData) -> bool:
    """Export metrics, and return whether the receiver accepted them."""
    return bool(exporter.export(data) is MetricExportResult.SUCCESS)


class ReportingExporter(SpanExporter):
    """An exporter that reports the outcome of each batch to `report`."""

    def __init__(self, exporter: SpanExporter, report: Report) -> None:
        self._exporter = exporter
        self._report = report

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter`."""
        result = self._exporter.export(spans)
        self._report("traces", result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """See `SpanExporter`."""
        self._exporter.shutdown()


class SpanSender(SpanExporter):
    """An exporter of spans that calls `send`. `allow` decides by the name of a span's instrumentation scope."""

    def __init__(self, send: Send, allow: Callable[[str], bool]) -> None:
        self._send = send
        self._allow = allow

    def export(self, spans: Iterable[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter`."""
        chosen = [span for span in spans if span.instrumentation_scope and self._allow(span.instrumentation_scope.name)]
        arrived = not chosen or self._send(wire.OTLP_TRACES, encode_spans(chosen).SerializeToString())
        return SpanExportResult.SUCCESS if arrived else SpanExportResult.FAILURE


class MetricSender:
    """An exporter of metrics that calls `send`."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def export(self, data: MetricsData) -> MetricExportResult:
        """Send metrics, as the SDK's exporters do."""
        arrived = self._send(wire.OTLP_METRICS, encode_metrics(data).SerializeToString())
        return MetricExportResult.SUCCESS if arrived else MetricExportResult.FAILURE

    def shutdown(self) -> None:
        """Do nothing: no data is buffered."""
