"""A receiver of traces and metrics, like a collector. It decodes what it receives."""

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support.http_server import Handler, Server


@dataclass(frozen=True)
class Series:
    """A data point. `kind` is gauge, sum or histogram; `point` is its message, and `resource` its resource."""

    resource: dict[str, object]
    name: str
    kind: str
    temporality: int
    labels: dict[str, object]
    point: Any


@dataclass(frozen=True)
class Span:
    resource: dict[str, object]
    service: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    attributes: dict[str, object]
    error: bool


class Receiver:
    """The received data: `raw` bodies, decoded `spans` and `series`, and `requests`, the headers of each request by path."""

    def __init__(self) -> None:
        self.raw = b""
        self.spans: list[Span] = []
        self.series: list[Series] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._news = threading.Condition()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        with self._news:
            self.raw += body
            self.requests.append((path, headers))
            if path == "/v1/metrics":
                self._metrics(ExportMetricsServiceRequest.FromString(body))
            else:
                self._spans(ExportTraceServiceRequest.FromString(body))
            self._news.notify_all()

    def _spans(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            whose = values(resource.resource.attributes)
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                attributes = values(span.attributes)
                kind = (span.name, span.kind)
                self.spans.append(Span(whose, str(whose["service.name"]), *kind, *ids, attributes, span.status.code == 2))

    def _metrics(self, request: ExportMetricsServiceRequest) -> None:
        for resource in request.resource_metrics:
            whose = values(resource.resource.attributes)
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                kind = str(metric.WhichOneof("data"))
                data = getattr(metric, kind)
                temporality = getattr(data, "aggregation_temporality", 0)
                for point in data.data_points:
                    self.series.append(Series(whose, metric.name, kind, temporality, values(point.attributes), point))

    def wait_for_series(self, name: str, *, within: float = 20, **labels: str) -> Series:
        """Return the first series with this name and at least these labels."""

        def found() -> Series | None:
            return next((each for each in self.series if each.name == name and labels.items() <= each.labels.items()), None)

        with self._news:
            series = self._news.wait_for(found, timeout=within)
            assert series is not None, sorted({each.name for each in self.series})
            return series

    def wait_for(self, condition: Callable[[list[Span]], bool], *, within: float = 20) -> list[Span]:
        """Wait until the spans meet a condition."""
        with self._news:
            came = self._news.wait_for(lambda: condition(self.spans), timeout=within)
            assert came, sorted({(span.service, span.name) for span in self.spans})
            return list(self.spans)


def values(attributes: Any) -> dict[str, object]:
    """Return attributes by name."""
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in attributes}


@contextmanager
def receiving(
    *, answers: threading.Event | None = None, refuses: Callable[[bytes], int] | None = None
) -> Iterator[tuple[str, Receiver]]:
    """Run a receiver, and yield its URL. It responds only after `answers`. `refuses` returns the status of a refusal, or 0."""
    receiver = Receiver()

    class Receiving(Handler):
        def take(self) -> None:
            body = self.body()
            if answers is not None:
                answers.wait()
            refused = refuses(body) if refuses else 0
            if not refused:
                plain = gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body
                receiver.take(self.path, {name.lower(): value for name, value in self.headers.items()}, plain)
            self.answer(status=refused or 200)

    with Server(Receiving) as server:
        try:
            yield server.url, receiver
        finally:
            if answers is not None:
                answers.set()
