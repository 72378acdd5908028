"""A real Jaeger. It receives spans by OTLP, and serves traces by the HTTP API that Grafana uses."""

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.processes import at_work, free_port
from support.tools import tool

PORTS = ("collector.otlp.http", "query.http-server", "admin.http")
"""The ports for spans, for queries, and for the health check."""
UNUSED = ("collector.otlp.grpc", "collector.grpc-server", "collector.http-server", "query.grpc-server")


@dataclass(frozen=True)
class Span:
    """`instance` distinguishes the processes of a `service`; for a participant it is the name."""

    service: str
    instance: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Jaeger:
    """`url` answers queries; `endpoint` is for `OTEL_EXPORTER_OTLP_ENDPOINT`."""

    url: str
    endpoint: str

    def search(self, **query: object) -> list[list[Span]]:
        """Return the spans of each trace that is found, as Grafana's data source searches."""
        return [_spans(trace) for trace in self._get(f"traces?{urllib.parse.urlencode(query)}")]

    def trace(self, id: str) -> list[Span]:
        """Return the spans of one trace; an empty list if the store does not have it."""
        try:
            (trace,) = self._get(f"traces/{id}")
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 404:
                raise
            return []
        return _spans(trace)

    def _get(self, path: str) -> list[Any]:
        with urllib.request.urlopen(f"{self.url}/api/{path}", timeout=20) as answer:
            found: list[Any] = json.load(answer)["data"] or []
        return found


def _spans(trace: Any) -> list[Span]:
    found = []
    for span in trace["spans"]:
        process, attributes = trace["processes"][span["processID"]], _attributes(span)
        (*_, parent) = ("", *(reference["spanID"] for reference in span["references"] if reference["refType"] == "CHILD_OF"))
        made = process["serviceName"], _attributes(process)["service.instance.id"], span["operationName"], attributes["span.kind"]
        found.append(Span(*made, span["traceID"], span["spanID"], parent, attributes))
    return found


def _attributes(tagged: Any) -> dict[str, Any]:
    return {tag["key"]: tag["value"] for tag in tagged["tags"]}


@contextmanager
def jaeger(directory: Path) -> Iterator[Jaeger]:
    """Run a store in memory within the block."""
    addresses = {name: f"127.0.0.1:{free_port()}" for name in PORTS}
    flags = [f"--{name}.host-port={address}" for name, address in (addresses | dict.fromkeys(UNUSED, "127.0.0.1:0")).items()]
    otlp, query, admin = (f"http://{addresses[name]}" for name in PORTS)
    with at_work([tool("jaeger"), *flags], f"{admin}/", directory / "jaeger.log", env=os.environ | {"SPAN_STORAGE_TYPE": "memory"}):
        yield Jaeger(query, otlp)
