"""The bridge from Prometheus' metrics to OpenTelemetry's: pushed series are equal to scraped ones, cumulative or as deltas."""

import math
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info
from prometheus_client.core import GaugeHistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from fedround.observability.bridge import PREFERENCES, Bridge
from fedround.observability.metrics.aggregator import AggregatorMetrics
from fedround.observability.metrics.base import Metrics
from fedround.observability.metrics.coordinator import CoordinatorMetrics
from fedround.observability.metrics.participant import ParticipantMetrics
from observability.test_metrics import LOCAL, WEIGHTS, shown, told
from support.otlp import Receiver, Series

IDS = {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331"}
CUMULATIVE, DELTA = 2, 1
EVERY = {"fedround.test": "all"}


class Sent:
    """A registry, and what a receiver gets from it."""

    def __init__(self, registry: CollectorRegistry, preference: str = "cumulative", **options: Any) -> None:
        self.registry = registry
        self._bridge = Bridge(Resource.create(EVERY), 1000, PREFERENCES[preference], **options)
        self._now = 1000

    def push(self, *, arrives: bool = True) -> list[Series]:
        self._now += 1000
        receiver = Receiver()
        message = encode_metrics(self._bridge.data(self.registry.collect(), self._now))
        receiver.take("/v1/metrics", {}, message.SerializeToString())
        if arrives:
            self._bridge.arrived()
        return receiver.series

    def value(self, name: str, *, arrives: bool = True) -> Any:
        (point,) = (series.point for series in self.push(arrives=arrives) if series.name == name)
        return point


def series(name: str, labels: dict[str, Any]) -> tuple[str, frozenset[tuple[str, str]]]:
    """Return a series as Prometheus has it: without empty labels, and with numbers as bounds."""
    bound = {"le": repr(float(labels["le"]))} if "le" in labels else {}
    return name, frozenset((label, str(text)) for label, text in (labels | bound).items() if text)


def as_scraped(sent: list[Series]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the samples that Prometheus makes of pushed series."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}

    def add(name: str, labels: dict[str, Any], value: float) -> None:
        key = series(name, labels)
        assert key not in found, f"{key} was sent twice"
        found[key] = value

    for each in sent:
        if each.kind != "histogram":
            add(each.name, each.labels, each.point.as_double)
            continue
        count = 0
        for bound, more in zip([*each.point.explicit_bounds, math.inf], each.point.bucket_counts, strict=True):
            count += more
            add(f"{each.name}_bucket", each.labels | {"le": bound}, count)
        add(f"{each.name}_count", each.labels, each.point.count)
        add(f"{each.name}_sum", each.labels, each.point.sum)
    return found


@pytest.mark.parametrize("kind", [ParticipantMetrics, CoordinatorMetrics, AggregatorMetrics])
def test_pushed_metrics_are_those_that_are_scraped(kind: type[Metrics]) -> None:
    metrics = shown(kind())
    told(metrics, WEIGHTS, LOCAL) if kind is not CoordinatorMetrics else None
    scraped = {
        series(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        for sample in family.samples
    }
    sent = as_scraped(Sent(metrics.registry).push())
    assert sent.keys() == scraped.keys()
    same = {key: value for key, value in scraped.items() if not key[0].startswith(("process_", "python_"))}
    assert {key: sent[key] for key in same} == pytest.approx(same, nan_ok=True)


def test_each_type_of_metric_has_its_counterpart_without_a_unit() -> None:
    registry = CollectorRegistry()
    Counter("bytes", "Bytes.", ["port"], registry=registry).labels("ops").inc(3)
    Gauge("share_ratio", "A share.", registry=registry).set(0.5)
    Info("build", "What runs.", registry=registry).info({"version": "1"})
    Enum("state", "State.", states=["up", "down"], registry=registry)
    Histogram("wait_seconds", "Waited.", registry=registry, buckets=(1, 2)).observe(1.5)

    class Sizes(Collector):
        def collect(self) -> Any:
            yield GaugeHistogramMetricFamily("sizes", "Sizes.", buckets=[("1.0", 2), ("+Inf", 3)], gsum_value=9)

    registry.register(Sizes())
    found = Sent(registry).push()
    assert {(each.name, each.kind, each.temporality) for each in found} == {
        ("bytes_total", "sum", CUMULATIVE),
        ("share_ratio", "gauge", 0),
        ("build_info", "gauge", 0),
        ("state", "gauge", 0),
        ("wait_seconds", "histogram", CUMULATIVE),
        *((f"sizes_{part}", "gauge", 0) for part in ("bucket", "gcount", "gsum")),
    }
    assert {each.resource["fedround.test"] for each in found} == {"all"}
    assert {each.point.start_time_unix_nano for each in found if each.temporality} == {1000}
    assert {each.point.time_unix_nano for each in found} == {2000}


@pytest.mark.parametrize(
    ("preference", "sums", "histograms"),
    [("cumulative", CUMULATIVE, CUMULATIVE), ("delta", DELTA, DELTA), ("lowmemory", CUMULATIVE, DELTA)],
)
def test_values_are_cumulative_or_deltas_as_configured(preference: str, sums: int, histograms: int) -> None:
    registry = CollectorRegistry()
    counter = Counter("bytes", "Bytes.", registry=registry)
    histogram = Histogram("wait_seconds", "Waited.", registry=registry, buckets=(1, 2))
    sent = Sent(registry, preference)
    for round in (1, 2, 3):
        counter.inc(10)
        histogram.observe(1.5)
        found = {each.name: each for each in sent.push()}
        point, buckets = found["bytes_total"].point, found["wait_seconds"].point
        assert (found["bytes_total"].temporality, found["wait_seconds"].temporality) == (sums, histograms)
        assert point.as_double == (10 if sums == DELTA else 10 * round)
        assert (buckets.count, buckets.sum, list(buckets.bucket_counts)) == (
            (1, 1.5, [0, 1, 0]) if histograms == DELTA else (round, 1.5 * round, [0, round, 0])
        )
        assert buckets.start_time_unix_nano == (1000 * round if histograms == DELTA else 1000)


def test_a_delta_that_did_not_arrive_is_part_of_the_next_one() -> None:
    registry = CollectorRegistry()
    counter = Counter("bytes", "Bytes.", registry=registry)
    sent = Sent(registry, "delta")
    counter.inc(1)
    assert sent.value("bytes_total").as_double == 1
    counter.inc(2)
    assert sent.value("bytes_total", arrives=False).as_double == 2
    counter.inc(4)
    point = sent.value("bytes_total")
    assert (point.as_double, point.start_time_unix_nano) == (6, 2000)


def test_an_exemplar_is_sent_until_it_has_arrived_once() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("wait_seconds", "Waited.", registry=registry, buckets=(1, 2))
    sent = Sent(registry)
    sent._now = 10**19  # the real time of the exemplar is between two of these pushes
    histogram.observe(1.5, IDS)
    for arrives, expected in [(False, 1), (True, 1), (True, 0)]:
        found = sent.value("wait_seconds", arrives=arrives).exemplars
        assert [(each.trace_id.hex(), each.span_id.hex(), each.as_double) for each in found] == [
            (IDS["trace_id"], IDS["span_id"], 1.5)
        ] * expected


def test_only_allowed_series_are_sent() -> None:
    registry = CollectorRegistry()
    for source in ("global", "local"):
        Gauge(f"weight_{source}", "W.", ["source"], registry=registry).labels(source).set(1)
    Histogram("wait_seconds", "Waited.", registry=registry)
    sent = Sent(registry, allow=lambda name, labels: name.startswith("weight") and labels.get("source") != "local")
    assert {each.name for each in sent.push()} == {"weight_global"}
