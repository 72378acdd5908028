"""The metrics of weights: of models, and of what training changed."""

from collections.abc import Iterator, Sequence

from prometheus_client import Counter
from prometheus_client.core import GaugeHistogramMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedround import events
from fedround.observability.metrics.base import Metrics
from fedround.tensors import figures
from fedround.tensors.figures import DECADES, Statistics

SOURCES = ("global", "local")
_FIGURES = {
    "mean": "The mean of the weights.",
    "stddev": "Their standard deviation.",
    "min": "The least of them.",
    "max": "The largest of them.",
    "l2_norm": "Their L2 norm.",
}


class Weights(Collector):
    """The newest weights of each source; one by one only those of the sources in `values`."""

    def __init__(self, metrics: Metrics, sources: Sequence[str], *, values: Sequence[str]) -> None:
        self._prefix = metrics.prefix
        self._values = values
        self._newest: dict[str, events.WeightsMeasured] = {}
        self._nonfinite = metrics.make(
            Counter, "nonfinite_weights_total", "Weights that were NaN or infinite.", {"source": sources}
        )
        metrics.registry.register(self)

    def measured(self, fact: events.WeightsMeasured) -> None:
        self._newest[fact.source] = fact
        self._nonfinite.labels(fact.source).inc(fact.statistics.nonfinite)

    def collect(self) -> Iterator[Metric]:
        """Each family, without a sample before there is one to show."""
        newest = {source: fact.statistics for source, fact in self._newest.copy().items()}
        model = self._newest.get("global")
        count, size = (model.statistics.count, model.size) if model else (None, None)
        yield GaugeMetricFamily(self._prefix + "model_parameters", "Weights of the global model.", value=count)
        yield GaugeMetricFamily(self._prefix + "model_bytes", "Bytes of the global model, as they travel.", value=size)
        for name, help in _FIGURES.items():
            family = GaugeMetricFamily(f"{self._prefix}weight_{name}", help, labels=["source"])
            for source, found in newest.items():
                family.add_metric([source], found.figures[name])
            yield family
        one_by_one = GaugeMetricFamily(
            self._prefix + "weight_value",
            "The weights of a model of at most 32, one by one; those of a local model only where PARTICIPANT_OPS_TOKEN is set.",
            labels=["index", "source"],
        )
        absolute = GaugeHistogramMetricFamily(
            self._prefix + "weights", "Absolute values of the weights, by powers of ten.", labels=["source"]
        )
        for source, found in newest.items():
            for index, value in enumerate(found.values if source in self._values else ()):
                one_by_one.add_metric([str(index), source], value)
            absolute.add_metric([source], list(_buckets(found)), found.l1_norm)
        yield one_by_one
        yield absolute


class Change(Collector):
    """What the newest update changed; without a sample where that is not known."""

    def __init__(self, metrics: Metrics) -> None:
        self._prefix = metrics.prefix
        self.newest: figures.Change | None = None
        metrics.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Both families."""
        norm, cosine = (self.newest.l2_norm, self.newest.cosine_similarity) if self.newest else (None, None)
        yield GaugeMetricFamily(
            self._prefix + "update_l2_norm",
            "The L2 norm of what training changed, in the newest update; above 1 MiB an estimate.",
            value=norm,
        )
        yield GaugeMetricFamily(
            self._prefix + "update_cosine_similarity",
            "The cosine between what training changed and the last change of the global model, 1: along, -1: against; above 1 MiB "
            "an estimate.",
            value=cosine,
        )


def _buckets(found: Statistics) -> Iterator[tuple[str, float]]:
    for decade, count in zip(DECADES, found.decades, strict=True):
        yield str(decade), count
    yield "+Inf", found.count - found.nonfinite
