"""Conversion of Prometheus metrics to OpenTelemetry. No I/O, no clock.

Names, labels and values stay the same, so that queries work on pushed and on scraped metrics. The rules:

1. A counter becomes a monotonic sum, and a histogram stays a histogram. All other types become gauges.
2. A metric keeps the name that a scrape shows, with `_total`, `_info` or `_bucket`. It has no unit, so that a receiver that appends
   suffixes by type and unit appends none.
3. A delta is the difference from the values that the receiver accepted last. So the next delta includes values that were lost.
4. Each exemplar is sent once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

if TYPE_CHECKING:
    from prometheus_client import Metric as Family
    from prometheus_client.samples import Exemplar as Example
    from prometheus_client.samples import Sample

Labels = Mapping[str, str]
Allow = Callable[[str, Labels], bool]
"""Returns whether to send a metric's series with these labels."""


class Temporality(NamedTuple):
    """The temporality of sums and of histograms."""

    sums: AggregationTemporality
    histograms: AggregationTemporality


CUMULATIVE = Temporality(AggregationTemporality.CUMULATIVE, AggregationTemporality.CUMULATIVE)
PREFERENCES: Mapping[str, Temporality] = {
    "cumulative": CUMULATIVE,
    "delta": Temporality(AggregationTemporality.DELTA, AggregationTemporality.DELTA),
    "lowmemory": Temporality(AggregationTemporality.CUMULATIVE, AggregationTemporality.DELTA),
}
"""Temporality by value of `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`. These counters are observable instruments."""


@dataclass
class _Buckets:
    """A histogram with one set of labels. `counts` are cumulative, with `+Inf` at the end."""

    labels: Labels
    bounds: list[float] = field(default_factory=list)
    counts: list[float] = field(default_factory=list)
    sum: float = 0.0
    examples: "list[Example]" = field(default_factory=list)


class Bridge:
    """The conversion of the metric families of one registry to `MetricsData`, by the rules above.

    Args:
        resource: The service that the metrics describe.
        start: When the counters began at 0. All times are Unix time in nanoseconds.
        temporality: Whether values count from `start` (cumulative), or from the last accepted values (delta).
        allow: Decides which series are sent. Default: all.
    """

    def __init__(
        self, resource: Resource, start: int, temporality: Temporality = CUMULATIVE, allow: Allow = lambda _name, _labels: True
    ) -> None:
        self._resource = resource
        self._scope = InstrumentationScope("fedround", version("fedround"))
        self._temporality = temporality
        self._allow = allow
        self._start = self._since = self._now = start
        self._exemplars_until = 0
        self._arrived: dict[object, list[float]] = {}
        self._newest: dict[object, list[float]] = {}

    def data(self, families: "Iterable[Family]", now: int) -> MetricsData:
        """Return the data to send at `now`."""
        self._now, self._newest = now, {}
        metrics = [metric for family in families for metric in self._metrics(family) if metric.data.data_points]
        return MetricsData([ResourceMetrics(self._resource, [ScopeMetrics(self._scope, metrics, "")], "")])

    def arrived(self) -> None:
        """Begin the next deltas at the newest data, because the receiver accepted them."""
        self._arrived, self._since = self._newest, self._now
        self._exemplars_until = self._now

    def _metrics(self, family: "Family") -> "Iterator[Metric]":
        match family.type:
            case "counter":
                name = f"{family.name}_total"
                points = [self._point(sample, self._temporality.sums) for sample in self._samples(family, name)]
                yield Metric(name, family.documentation, "", Sum(points, self._temporality.sums, is_monotonic=True))
            case "histogram":
                histograms = [self._histogram(family.name, each) for each in self._buckets(family)]
                yield Metric(family.name, family.documentation, "", Histogram(histograms, self._temporality.histograms))
            case _:
                for name in dict.fromkeys(sample.name for sample in family.samples):
                    points = [self._point(sample) for sample in self._samples(family, name)]
                    yield Metric(name, family.documentation, "", Gauge(points))

    def _samples(self, family: "Family", name: str) -> "Iterator[Sample]":
        return (sample for sample in family.samples if sample.name == name and self._allow(name, sample.labels))

    def _point(self, sample: "Sample", temporality: AggregationTemporality | None = None) -> NumberDataPoint:
        labels, (value,) = dict(sample.labels), self._values(sample.name, sample.labels, [sample.value], temporality)
        # A float also for integers, so that all points of a metric have one type.
        return NumberDataPoint(labels, self._from(temporality), self._now, float(value))

    def _buckets(self, family: "Family") -> Iterable[_Buckets]:
        found: dict[object, _Buckets] = {}
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "le"}
            if not self._allow(family.name, labels):
                continue
            of_labels = found.setdefault(frozenset(labels.items()), _Buckets(labels))
            match sample.name.removeprefix(family.name):
                case "_bucket":
                    of_labels.bounds.append(float(sample.labels["le"]))
                    of_labels.counts.append(sample.value)
                    of_labels.examples.extend([sample.exemplar] if sample.exemplar else [])
                case "_sum":
                    of_labels.sum = sample.value
        return found.values()

    def _histogram(self, name: str, found: _Buckets) -> HistogramDataPoint:
        temporality = self._temporality.histograms
        each = [upper - lower for lower, upper in pairwise([0.0, *found.counts])]
        total, *counts = self._values(name, found.labels, [found.sum, *each], temporality)
        return HistogramDataPoint(
            attributes=dict(found.labels),
            start_time_unix_nano=self._from(temporality),
            time_unix_nano=self._now,
            count=int(sum(counts)),
            sum=total,
            bucket_counts=[int(count) for count in counts],
            explicit_bounds=found.bounds[:-1],
            min=None,  # type: ignore[arg-type]  # unknown, which OTLP allows
            max=None,  # type: ignore[arg-type]
            exemplars=[example for example in map(_exemplar, found.examples) if example.time_unix_nano > self._exemplars_until],
        )

    def _values(self, name: str, labels: Labels, values: list[float], temporality: AggregationTemporality | None) -> list[float]:
        if temporality is not AggregationTemporality.DELTA:
            return values
        key = name, frozenset(labels.items())
        self._newest[key] = values
        return [value - former for value, former in zip(values, self._arrived.get(key, [0.0] * len(values)), strict=True)]

    def _from(self, temporality: AggregationTemporality | None) -> int:
        return self._since if temporality is AggregationTemporality.DELTA else self._start


def _exemplar(found: "Example") -> Exemplar:
    ids = {name: int(found.labels[name], 16) if name in found.labels else None for name in ("span_id", "trace_id")}
    return Exemplar({}, float(found.value), int(float(found.timestamp or 0.0) * 1e9), **ids)
