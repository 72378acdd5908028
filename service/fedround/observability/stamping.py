"""The check of participants' OTLP messages, which also stamps each with the name of its sender. No I/O, no clock.

1. The size of a message, also decompressed, and the number of its parts are bounded. An empty resource has 2 bytes, and a stamped
   one more than 100.
2. A message may contain only metrics of participants, by name: a participant cannot report for another service.
3. Resource and scopes are replaced, except for the version: collectors make labels of them. The new resource has the authenticated
   identity of the sender.
4. Labels that name a service, a participant or a namespace are removed. `fedround_participant_info` gets the name of the sender,
   and all data points get the coordinator's namespace.
5. Data points get the time of their arrival, so that a wrong clock does not harm the collector.
6. An inconsistent message is rejected. Otherwise the collector would reject it together with the rest of its batch.
7. A metric that this version knows must have its type, because a collector may keep only one type for each name. Counters are
   finite and not negative. Otherwise a sum over all silos would be wrong.
"""

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # its stubs are another package
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric

from fedround.common import wire
from fedround.errors import BadTelemetry, TooLarge
from fedround.observability.metrics.participant import ParticipantMetrics

MAX_BYTES = 1 << 20
"""Maximum bytes of a message, as sent and decompressed."""
MAX_ITEMS = 2000
"""Maximum number of data points and exemplars, or of spans, in a message. Also of resources, of scopes, and of metrics."""
MAX_ATTRIBUTES = 32_000
"""Maximum number of attributes in a message, of resources, data points and spans together."""
MAX_LABELS, MAX_TEXT, MAX_BUCKETS = 16, 256, 64
"""Maximum labels of a data point; characters of a label's value or a description; buckets of a histogram."""
METRIC = re.compile(
    r"(fedround_(participant|http|telemetry|tls)|http_client|process|python)_[a-z0-9_]{1,100}|fedround_(build|run)_info"
)
LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]{0,63}")
NAMESPACE = "namespace"
"""The label by which dashboards and alerts group a federation."""
RESOURCE_LABELS = ("fedround.participant", "service.name", "service.namespace", "service.instance.id")
IDENTITY_LABELS = frozenset(
    {"participant", "job", "instance", NAMESPACE, *RESOURCE_LABELS, *(name.replace(".", "_") for name in RESOURCE_LABELS)}
)
"""Labels that name a sender, also as Prometheus writes them if it promotes attributes of the resource."""
INFO = "fedround_participant_info"
"""The metric whose label `name` is the participant's name."""
SERVICE, SCOPE = "fedround-participant", "fedround"
M = TypeVar("M", ExportMetricsServiceRequest, ExportTraceServiceRequest)


class Stamped(NamedTuple):
    """A message that may be forwarded. `series`: the number of Prometheus series of each data point, by its hash."""

    message: bytes
    series: Mapping[int, int]


def inflated(body: bytes | bytearray, encoding: str) -> bytes:
    """Return a body without its content encoding. Raises `BadTelemetry` or `TooLarge`."""
    if encoding in ("", "identity"):
        return bytes(body)
    if encoding != "gzip":
        raise BadTelemetry("the content encoding must be gzip or identity", status=415)
    inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        found = inflate.decompress(body, MAX_BYTES + 1)
    except zlib.error as error:
        raise BadTelemetry("the body is not in gzip format") from error
    if len(found) > MAX_BYTES:
        raise TooLarge(f"a decompressed message has at most {MAX_BYTES} bytes")
    if not inflate.eof or inflate.unused_data:
        raise BadTelemetry("the body is not one whole gzip stream")
    return found


def stamped(path: str, body: bytes, name: str, now: int, namespace: str | None = None) -> Stamped:
    """Check a message, and stamp it with the name of its sender.

    Args:
        path: The path of its signal: `wire.OTLP_METRICS` or `wire.OTLP_TRACES`.
        body: The message.
        name: The authenticated name of the sender.
        now: Unix time in nanoseconds.
        namespace: Label `namespace` of all data points. None: no label.

    Raises:
        BadTelemetry: The message breaks a rule.
    """
    return _metrics(body, name, now, namespace) if path == wire.OTLP_METRICS else _spans(body, name)


def _metrics(body: bytes, name: str, now: int, namespace: str | None) -> Stamped:
    added = {NAMESPACE: namespace} if namespace else {}
    request = _parse(ExportMetricsServiceRequest, body)
    kinds = _kinds()
    attributes = 0
    _check_items(len(request.resource_metrics))
    _check_items(sum(len(of_resource.scope_metrics) for of_resource in request.resource_metrics))
    _check_items(sum(len(scope.metrics) for of_resource in request.resource_metrics for scope in of_resource.scope_metrics))
    series: dict[int, int] = {}
    items = 0
    for of_resource in request.resource_metrics:
        attributes = _check_attributes(attributes + len(of_resource.resource.attributes))
        version = _stamp(of_resource, name)
        series[hash(version)] = 1  # target_info, which has the version as a label
        for scope in of_resource.scope_metrics:
            scope.ClearField("schema_url")
            scope.scope.Clear()
            scope.scope.name, scope.scope.version = SCOPE, version
            for metric in scope.metrics:
                points = _points(metric, kinds.get(metric.name))
                items += len(points) + sum(len(point.exemplars) for point in points)
                _check_items(items)
                for point in points:
                    attributes = _check_attributes(attributes + len(point.attributes))
                    labels = _labels(point, now, added | ({"name": name} if metric.name == INFO else {}))
                    series[hash((metric.name, version, labels))] = _series_of(metric, point)
    return Stamped(request.SerializeToString(), series)


@cache
def _kinds() -> Mapping[str, str]:
    """Return the type of each metric of a participant of this version, by its name."""
    kinds = {}
    for family in ParticipantMetrics(name="").registry.collect():
        names = {sample.name for sample in family.samples} | {family.name}
        match family.type:
            case "counter":
                kinds[f"{family.name}_total"] = "sum"
            case "histogram":
                kinds[family.name] = "histogram"
            case _:
                kinds |= dict.fromkeys(names, "gauge")
    return kinds


def _points(metric: Metric, known: str | None) -> Sequence[Any]:
    """Check a metric. Return its data points. `known`: the type that it must have."""
    if METRIC.fullmatch(metric.name) is None:
        raise BadTelemetry(f"{wire.one_line(metric.name[:100])!r} is not a metric of a participant")
    kind = metric.WhichOneof("data")
    if kind not in ("gauge", "sum", "histogram"):
        raise BadTelemetry(f"{metric.name} must be a gauge, a sum or a histogram")
    data = getattr(metric, kind)
    if kind != "gauge" and data.aggregation_temporality != AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE:
        raise BadTelemetry(f"{metric.name} must be cumulative")
    if known not in (None, kind):
        raise BadTelemetry(f"{metric.name} must be a {known}")
    metric.unit, metric.description = "", metric.description[:MAX_TEXT]
    metric.ClearField("metadata")
    points: Sequence[Any] = data.data_points
    if kind == "sum" and not metric.sum.is_monotonic:
        raise BadTelemetry(f"{metric.name} must only increase: it is not monotonic")
    if kind == "sum" and not all(0 <= getattr(point, point.WhichOneof("value") or "as_int") < math.inf for point in points):
        raise BadTelemetry(f"{metric.name} must be a finite number that is not negative")
    return points


def _labels(point: Any, now: int, stamp: dict[str, str]) -> frozenset[tuple[str, str]]:
    """Check a data point, remove the labels that name a sender, and add those of `stamp`. Return the labels."""
    labels = {each.key: each.value.string_value for each in point.attributes if each.key not in IDENTITY_LABELS}
    if len(labels) > MAX_LABELS:
        raise BadTelemetry(f"a data point has {MAX_LABELS} labels at most")
    for each in point.attributes:
        if LABEL.fullmatch(each.key) is None and each.key not in IDENTITY_LABELS:
            raise BadTelemetry(f"{wire.one_line(each.key[:100])!r} is not a valid label name")
        if each.value.WhichOneof("value") != "string_value" or len(each.value.string_value) > MAX_TEXT:
            raise BadTelemetry(f"a label is a text of at most {MAX_TEXT} characters")
    labels = dict(sorted((labels | stamp).items()))
    _set_attributes(point.attributes, labels)
    point.time_unix_nano = now
    point.start_time_unix_nano = min(point.start_time_unix_nano, now)
    for exemplar in point.exemplars:
        exemplar.ClearField("filtered_attributes")
        exemplar.time_unix_nano = min(exemplar.time_unix_nano, now)
        _check_ids((exemplar.trace_id, 16, True), (exemplar.span_id, 8, True))
    return frozenset(labels.items())


def _series_of(metric: Metric, point: Any) -> int:
    """Return the number of series of a data point. Raises `BadTelemetry` for an invalid histogram."""
    if metric.WhichOneof("data") != "histogram":
        return 1
    bounds, counts = point.explicit_bounds, point.bucket_counts
    fit = len(counts) <= MAX_BUCKETS and len(counts) == len(bounds) + 1 and sum(counts) == point.count
    rising = fit and all(lower < upper for lower, upper in pairwise(bounds)) and all(map(math.isfinite, bounds))
    if not rising:
        raise BadTelemetry(f"{metric.name}: the buckets of a histogram do not fit together, or are more than {MAX_BUCKETS}")
    return len(counts) + 2


def _spans(body: bytes, name: str) -> Stamped:
    request = _parse(ExportTraceServiceRequest, body)
    _check_items(len(request.resource_spans))
    _check_items(sum(len(of_resource.scope_spans) for of_resource in request.resource_spans))
    items = attributes = 0
    for of_resource in request.resource_spans:
        attributes = _check_attributes(attributes + len(of_resource.resource.attributes))
        _stamp(of_resource, name)
        for scope in of_resource.scope_spans:
            scope.scope.ClearField("attributes")
            items += len(scope.spans)
            _check_items(items)
            for span in scope.spans:
                _check_ids((span.trace_id, 16, False), (span.span_id, 8, False), (span.parent_span_id, 8, True))
                attributes = _check_attributes(attributes + len(span.attributes))
                own = [each for each in span.attributes if each.key not in IDENTITY_LABELS]
                span.ClearField("attributes")
                span.attributes.extend(own)
    return Stamped(request.SerializeToString(), {})


def _parse(kind: type[M], body: bytes) -> M:
    request = kind()
    try:
        request.ParseFromString(body)
    except DecodeError as error:
        raise BadTelemetry(f"the body is not an OTLP {kind.DESCRIPTOR.name}") from error
    request.DiscardUnknownFields()
    return request


def _stamp(of_resource: Any, name: str) -> str:
    """Replace the resource by one with the sender's name. Return the claimed version of fedround."""
    claimed = {each.key: each.value.string_value for each in of_resource.resource.attributes}
    attributes = {"service.name": SERVICE, "service.instance.id": name, "fedround.participant": name}
    version: str = claimed.get("service.version", "")[:MAX_TEXT]
    attributes |= {"service.version": version} if version else {}
    of_resource.ClearField("schema_url")
    of_resource.resource.Clear()
    _set_attributes(of_resource.resource.attributes, attributes)
    return version


def _set_attributes(attributes: Any, values: Mapping[str, str]) -> None:
    del attributes[:]
    attributes.extend(KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in values.items())


def _check_ids(*ids: tuple[bytes, int, bool]) -> None:
    """Check the lengths of ids, given as (id, length, whether it may be empty)."""
    if not all(len(id) == length or (missing and not id) for id, length, missing in ids):
        raise BadTelemetry("a trace id has 16 bytes, a span id has 8")


def _check_attributes(attributes: int) -> int:
    if attributes > MAX_ATTRIBUTES:
        raise BadTelemetry(f"a message has at most {MAX_ATTRIBUTES} attributes", status=413)
    return attributes


def _check_items(items: int) -> None:
    if items > MAX_ITEMS:
        raise BadTelemetry(f"a message has at most {MAX_ITEMS} resources, metrics, data points, exemplars or spans", status=413)
