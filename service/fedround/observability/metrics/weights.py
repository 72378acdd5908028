"""The metrics of weights, and of their changes by training."""

from collections.abc import Iterator, Sequence

from prometheus_client import Counter
from prometheus_client.core import GaugeHistogramMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedround import events
from fedround.observability.metrics.base import Metrics
from fedround.tensors import statistics
from fedround.tensors.statistics import DECADES, Statistics

SOURCES = ("global", "local")
_STATISTICS = {
    "mean": "Mean of the weights.",
    "stddev": "Standard deviation of the weights.",
    "min": "Smallest weight.",
    "max": "Largest weight.",
    "l2_norm": "L2 norm of the weights.",
}


class Weights(Collector):
    """The metrics of the newest weights of each source: the global model, the local one. Sources in `values` show each weight."""

    def __init__(self, metrics: Metrics, sources: Sequence[str], *, values: Sequence[str]) -> None:
        self._prefix = metrics.prefix
        self._values = values
        self._newest: dict[str, events.WeightsMeasured] = {}
        self._nonfinite = metrics.make(
            Counter, "nonfinite_weights_total", "Number of weights that were NaN or infinite.", {"source": sources}
        )
        metrics.registry.register(self)

    def update(self, fact: events.WeightsMeasured) -> None:
        """Update the metrics from `fact`."""
        self._newest[fact.source] = fact
        self._nonfinite.labels(fact.source).inc(fact.statistics.nonfinite)

    def collect(self) -> Iterator[Metric]:
        """Return all families. A family without a value has no samples."""
        newest = {source: fact.statistics for source, fact in self._newest.copy().items()}
        model = self._newest.get("global")
        count, size = (model.statistics.count, model.size) if model else (None, None)
        yield GaugeMetricFamily(self._prefix + "model_parameters", "Number of weights of the global model.", value=count)
        yield GaugeMetricFamily(self._prefix + "model_bytes", "Size of the serialized global model, in bytes.", value=size)
        for name, help in _STATISTICS.items():
            family = GaugeMetricFamily(f"{self._prefix}weight_{name}", help, labels=["source"])
            for source, found in newest.items():
                family.add_metric([source], found.summary[name])
            yield family
        each_weight = GaugeMetricFamily(
            self._prefix + "weight_value",
            "Each weight of a model with at most 32 weights. Local models only if PARTICIPANT_OPS_TOKEN is set.",
            labels=["index", "source"],
        )
        absolute = GaugeHistogramMetricFamily(
            self._prefix + "weights", "Absolute values of the weights, in buckets by powers of ten.", labels=["source"]
        )
        for source, found in newest.items():
            for index, value in enumerate(found.values if source in self._values else ()):
                each_weight.add_metric([str(index), source], value)
            absolute.add_metric([source], list(_buckets(found)), found.l1_norm)
        yield each_weight
        yield absolute


class Change(Collector):
    """The metrics of the newest update's change to the global model. The families have no samples if the change is unknown."""

    def __init__(self, metrics: Metrics) -> None:
        self._prefix = metrics.prefix
        self.newest: statistics.Change | None = None
        metrics.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Return both families."""
        norm, cosine = (self.newest.l2_norm, self.newest.cosine_similarity) if self.newest else (None, None)
        yield GaugeMetricFamily(
            self._prefix + "update_l2_norm",
            "L2 norm of the newest update's change to the global model. An estimate for models above 1 MiB.",
            value=norm,
        )
        yield GaugeMetricFamily(
            self._prefix + "update_cosine_similarity",
            "Cosine of the newest update's change and the last change of the global model. 1: same direction, -1: opposite. An "
            "estimate for models above 1 MiB.",
            value=cosine,
        )


def _buckets(found: Statistics) -> Iterator[tuple[str, float]]:
    for decade, count in zip(DECADES, found.decades, strict=True):
        yield str(decade), count
    yield "+Inf", found.count - found.nonfinite
