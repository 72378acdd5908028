"""Pushed telemetry: the coordinator sets the proved name, and refuses harmful messages with a reason."""

import gzip
import os
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.sdk.resources import Resource

from fedround.common import wire
from fedround.errors import BadTelemetry, TooLarge
from fedround.http import transport
from fedround.observability.bridge import Bridge
from fedround.observability.metrics.participant import ParticipantMetrics
from fedround.observability.stamping import (
    MAX_ATTRIBUTES,
    MAX_BUCKETS,
    MAX_BYTES,
    MAX_ITEMS,
    MAX_LABELS,
    MAX_TEXT,
    Stamped,
    inflated,
    stamped,
)
from observability.test_metrics import LOCAL, WEIGHTS, told
from support.certificates import Authority
from support.otlp import Receiver, values

NOW = 10**18
NAME = "fedround_participant_round_number"


def metrics(**resource: str) -> ExportMetricsServiceRequest:
    """Return one gauge with one point."""
    request = ExportMetricsServiceRequest()
    of_resource = request.resource_metrics.add()
    for key, value in resource.items():
        of_resource.resource.attributes.add(key=key.replace("__", ".")).value.string_value = value
    metric = of_resource.scope_metrics.add().metrics.add(name=NAME)
    metric.gauge.data_points.add(as_double=7, time_unix_nano=5)
    return request


def metric_of(request: ExportMetricsServiceRequest) -> Any:
    return request.resource_metrics[0].scope_metrics[0].metrics[0]


def label(point: Any, key: str, value: str = "x") -> Any:
    added = point.attributes.add(key=key)
    added.value.string_value = value
    return added


def histogram(request: ExportMetricsServiceRequest, bounds: list[float], counts: list[int], count: int) -> None:
    metric_of(request).name = "fedround_participant_round_duration_seconds"
    data = metric_of(request).histogram
    data.aggregation_temporality = 2
    data.data_points.add(explicit_bounds=bounds, bucket_counts=counts, count=count)


def counter(request: ExportMetricsServiceRequest, value: float) -> Any:
    metric = metric_of(request)
    metric.name = "fedround_participant_rounds_total"
    metric.sum.aggregation_temporality, metric.sum.is_monotonic = 2, True
    metric.sum.data_points.add(as_double=value)
    return metric.sum


def stamp(request: Any, name: str = "anna") -> Stamped:
    path = wire.OTLP_METRICS if isinstance(request, ExportMetricsServiceRequest) else wire.OTLP_TRACES
    return stamped(path, request.SerializeToString(), name, NOW)


def of(found: Stamped) -> Any:
    return ExportMetricsServiceRequest.FromString(found.message)


def test_the_proved_name_replaces_the_claimed_one() -> None:
    claims = {
        "service__name": "fedround-coordinator",
        "fedround__participant": "berta",
        "host": "x",
    }
    request = metrics(**claims, service__instance__id="berta", service__version="1.2")
    for key in ("job", "instance", "participant", "service.name", "service_instance_id", "fedround_participant", "namespace"):
        label(metric_of(request).gauge.data_points[0], key, "berta")
    label(metric_of(request).gauge.data_points[0], "source", "global")
    found = of(stamp(request))
    assert values(found.resource_metrics[0].resource.attributes) == {
        "service.name": "fedround-participant",
        "service.instance.id": "anna",
        "fedround.participant": "anna",
        "service.version": "1.2",
    }
    (point,) = metric_of(found).gauge.data_points
    assert values(point.attributes) == {"source": "global"}
    assert (point.as_double, point.time_unix_nano) == (7, NOW), "a silo with a wrong clock is heard at the time of its arrival"


def test_the_coordinators_namespace_is_a_label_of_each_point() -> None:
    request = metrics()
    point = metric_of(request).gauge.data_points[0]
    for number in range(MAX_LABELS):
        label(point, f"own{number}")
    label(point, "namespace", "of-others")
    found = stamped(wire.OTLP_METRICS, request.SerializeToString(), "anna", NOW, "fl")
    labels = values(metric_of(of(found)).gauge.data_points[0].attributes)
    assert (labels["namespace"], len(labels)) == ("fl", MAX_LABELS + 1)


def test_messages_of_a_participant_pass_unchanged(authority: Authority) -> None:
    own = told(ParticipantMetrics(name="anna", local_values=True), WEIGHTS, LOCAL)
    own.certificates.watch(transport.authorities(authority.file, transport.TLS_FILES).validity)
    message = encode_metrics(Bridge(Resource.create({}), 1).data(own.registry.collect(), NOW)).SerializeToString()
    found = stamped(wire.OTLP_METRICS, message, "anna", NOW)
    before, after = Receiver(), Receiver()
    before.take(wire.OTLP_METRICS, {}, message)
    after.take(wire.OTLP_METRICS, {}, found.message)
    assert [(each.name, each.kind, each.labels) for each in after.series] == [
        (each.name, each.kind, each.labels) for each in before.series
    ]
    assert "fedround_tls_certificate_not_after_timestamp_seconds" in {each.name for each in after.series}
    assert sum(found.series.values()) < 1000
    assert stamped(wire.OTLP_METRICS, message, "anna", NOW).series == found.series


def test_the_spans_of_a_participant_keep_their_trace() -> None:
    request = ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    of_resource.resource.attributes.add(key="service.name").value.string_value = "fedround-coordinator"
    span = of_resource.scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"s" * 8, parent_span_id=b"p" * 8, name="train")
    label(span, "service.instance.id", "berta")
    label(span, "fedround.round.number", "7")
    found = ExportTraceServiceRequest.FromString(stamp(request).message).resource_spans[0]
    assert values(found.resource.attributes)["service.instance.id"] == "anna"
    (kept,) = found.scope_spans[0].spans
    assert (kept.trace_id, kept.parent_span_id, kept.name) == (span.trace_id, span.parent_span_id, "train")
    assert values(kept.attributes) == {"fedround.round.number": "7"}


def _rename(name: str) -> Callable[[Any], None]:
    return lambda request: setattr(metric_of(request), "name", name)


def _point(change: Callable[[Any], object]) -> Callable[[Any], object]:
    return lambda request: change(metric_of(request).gauge.data_points[0])


def _delta(request: Any) -> None:
    metric_of(request).sum.aggregation_temporality = 1


def _repeated(part: str) -> Callable[[Any], object]:
    """Add this many empty parts of a kind. Each has two bytes."""

    def change(request: Any) -> None:
        of_resource = request.resource_metrics[0]
        parts = {"resources": request.resource_metrics, "scopes": of_resource.scope_metrics}
        added = parts.get(part, of_resource.scope_metrics[0].metrics)
        for _ in range(MAX_ITEMS):
            added.add()

    return change


HARMFUL: dict[str, tuple[Callable[[Any], object], str]] = {
    "a metric of the coordinator": (_rename("fedround_coordinator_round"), "is not a metric of a participant"),
    "a metric of another program": (_rename("node_load1"), "is not a metric of a participant"),
    "a name with a line in it": (_rename("process_x\n"), "is not a metric"),
    "a metric without data": (lambda request: metric_of(request).ClearField("gauge"), "must be a gauge, a sum or a histogram"),
    "a summary": (lambda request: metric_of(request).summary.SetInParent(), "must be a gauge, a sum or a histogram"),
    "a difference": (_delta, "must be cumulative"),
    "a wrong label": (_point(lambda point: label(point, "a b")), "is not a valid label name"),
    "a reserved label": (_point(lambda point: label(point, "__name__", "up")), "is not a valid label name"),
    "a long label": (_point(lambda point: label(point, "a", "x" * (MAX_TEXT + 1))), "a text of at most"),
    "a label that is a number": (_point(lambda point: setattr(point.attributes.add(key="a").value, "int_value", 7)), "a text"),
    "many labels": (_point(lambda point: [label(point, f"l{n}") for n in range(MAX_LABELS + 1)]), "labels at most"),
    "very many labels": (_point(lambda point: point.attributes.extend([KeyValue()] * MAX_ATTRIBUTES * 2)), "attributes"),
    "very many attributes": (
        lambda request: request.resource_metrics[0].resource.attributes.extend([KeyValue()] * MAX_ATTRIBUTES * 2),
        "attributes",
    ),
    "a counter that is no number": (lambda request: counter(request, float("nan")), "a finite number that is not negative"),
    "an endless counter": (lambda request: counter(request, float("inf")), "a finite number that is not negative"),
    "a negative counter": (lambda request: counter(request, -1.0), "a finite number that is not negative"),
    "a counter that may fall": (lambda request: setattr(counter(request, 1.0), "is_monotonic", False), "must only increase"),
    "a counter as a gauge": (_rename("fedround_participant_rounds_total"), "must be a sum"),
    "a gauge as a counter": (lambda request: (counter(request, 1.0), _rename(NAME)(request)), "must be a gauge"),
    "a histogram as a gauge": (_rename("fedround_participant_round_duration_seconds"), "must be a histogram"),
    "a short trace id": (_point(lambda point: point.exemplars.add(trace_id=b"t")), "a trace id has 16 bytes"),
    "many exemplars": (_point(lambda point: [point.exemplars.add() for _ in range(MAX_ITEMS)]), "data points, exemplars or spans"),
    **{f"many {part}": (_repeated(part), "at most 2000 resources") for part in ("resources", "scopes", "metrics")},
    "many points": (
        lambda request: [metric_of(request).gauge.data_points.add() for _ in range(MAX_ITEMS)],
        "data points, exemplars or spans",
    ),
    "buckets without bounds": (lambda request: histogram(request, [], [1, 2], 3), "do not fit"),
    "falling bounds": (lambda request: histogram(request, [2, 1], [1, 1, 1], 3), "do not fit"),
    "endless bounds": (lambda request: histogram(request, [1, float("inf")], [1, 1, 1], 3), "do not fit"),
    "another count": (lambda request: histogram(request, [1], [1, 1], 3), "do not fit"),
    "many buckets": (lambda request: histogram(request, [*range(MAX_BUCKETS)], [0] * (MAX_BUCKETS + 1), 0), "do not fit"),
}


@pytest.mark.parametrize("harm", HARMFUL)
def test_harmful_messages_are_refused(harm: str) -> None:
    change, says = HARMFUL[harm]
    request = metrics()
    change(request)
    with pytest.raises(BadTelemetry, match=says):
        stamp(request)


def test_very_many_attributes_of_a_span_are_refused_before_they_are_read() -> None:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"s" * 8)
    span.attributes.extend([KeyValue()] * MAX_ATTRIBUTES * 2)
    with pytest.raises(BadTelemetry, match="attributes"):
        stamp(request)


def test_a_counter_passes() -> None:
    counter(request := metrics(), 3.0)
    assert metric_of(of(stamp(request))).sum.data_points[0].as_double == 3.0


def test_a_span_without_an_id_is_refused() -> None:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"t" * 16, name="train")
    with pytest.raises(BadTelemetry, match="a trace id has 16 bytes, a span id has 8"):
        stamp(request)


@pytest.mark.parametrize("part", ["resources", "scopes"])
def test_too_many_empty_parts_of_traces_are_refused(part: str) -> None:
    request = ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    for _ in range(MAX_ITEMS + 1):
        (request.resource_spans if part == "resources" else of_resource.scope_spans).add()
    with pytest.raises(BadTelemetry, match="at most 2000 resources"):
        stamp(request)


def test_scopes_make_no_series_and_each_version_counts() -> None:
    """A collector has the scope in labels of each series, and the version in a label of `target_info`."""
    request = ExportMetricsServiceRequest()
    for number in range(3):
        of_resource = metrics(service__version=f"1.{number}").resource_metrics[0]
        of_resource.scope_metrics[0].schema_url = of_resource.scope_metrics[0].scope.name = f"https://{number}"
        of_resource.scope_metrics[0].scope.version = f"{number}"
        request.resource_metrics.append(of_resource)
    found = stamp(request)
    assert sum(found.series.values()) == 3 + 3
    scopes = [scope for of_resource in of(found).resource_metrics for scope in of_resource.scope_metrics]
    assert {(scope.scope.name, scope.schema_url) for scope in scopes} == {("fedround", "")}
    assert [scope.scope.version for scope in scopes] == ["1.0", "1.1", "1.2"]


def test_a_histogram_counts_as_its_series_in_prometheus() -> None:
    request = metrics()
    histogram(request, [1, 2], [1, 0, 2], 3)
    assert sorted(stamp(request).series.values()) == [1, 5], "one is target_info"


@pytest.mark.parametrize("path", wire.OTLP)
@given(body=st.binary(max_size=300))
def test_any_bytes_are_accepted_or_refused(path: str, body: bytes) -> None:
    try:
        found = stamped(path, body, "anna", NOW)
    except BadTelemetry:
        return
    assert stamped(path, found.message, "anna", NOW).message == found.message, "what was stamped once stays as it is"


def test_a_compressed_body_is_decompressed() -> None:
    assert inflated(gzip.compress(b"abc"), "gzip") == inflated(b"abc", "") == inflated(bytearray(b"abc"), "identity") == b"abc"
    with pytest.raises(BadTelemetry, match="gzip or identity") as refused:
        inflated(b"abc", "br")
    assert refused.value.status == 415


ZIPPED = gzip.compress(b"abc", mtime=0)  # without the time: each process of pytest collects the same tests


@pytest.mark.parametrize("body", [b"", b"abc", ZIPPED[:-1], ZIPPED + b"x", zlib.compress(b"abc")])
def test_an_invalid_compression_is_refused(body: bytes) -> None:
    with pytest.raises(BadTelemetry, match="gzip"):
        inflated(body, "gzip")


def test_a_decompression_bomb_is_refused_before_it_is_large() -> None:
    assert len(inflated(gzip.compress(bytes(MAX_BYTES)), "gzip")) == MAX_BYTES
    bomb = gzip.compress(bytes(100 << 20))
    assert len(bomb) < MAX_BYTES
    before = _peak()
    with pytest.raises(TooLarge, match="decompressed"):
        inflated(bomb, "gzip")
    assert _peak() - before < 20 << 20


def _peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if os.uname().sysname == "Linux" else 1)
