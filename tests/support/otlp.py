"""A receiver of traces: what a collector would get, decoded."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    service: str
    name: str
    trace: str
    id: str
    parent: str


class Receiver:
    """`spans` is all that came."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._news = threading.Condition()

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._news:
            for resource in request.resource_spans:
                service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
                for span in (span for scope in resource.scope_spans for span in scope.spans):
                    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                    self.spans.append(Span(service, span.name, *ids))
            self._news.notify_all()

    def wait_for(self, condition: Callable[[list[Span]], bool], *, within: float = 20) -> list[Span]:
        """Until the spans are as they should be."""
        with self._news:
            came = self._news.wait_for(lambda: condition(self.spans), timeout=within)
            assert came, sorted({(span.service, span.name) for span in self.spans})
            return list(self.spans)


@contextmanager
def receiving(*, answers: threading.Event | None = None) -> Iterator[tuple[str, Receiver]]:
    """A receiver and its URL. It answers nobody before `answers`, where that is given."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if answers is not None:
                answers.wait()
            receiver.take(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", receiver
        finally:
            if answers is not None:
                answers.set()
            server.shutdown()
