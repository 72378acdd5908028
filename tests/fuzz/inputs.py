"""Inputs for parsers: hypothesis strategies, from noise to valid inputs with some bytes changed."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource

from fedround.common import wire
from fedround.common.settings import Settings
from fedround.observability.bridge import Bridge
from fedround.observability.metrics.participant import ParticipantMetrics
from support.updates import claiming, npy, update

ID = "0b8b3f6e-52a5-4b44-8e51-5f0a3c1f0a77"
TOKEN = "6e0c1d9a-9d3f-4a55-b0a8-3d0f7c2b9e11"
SPECIAL = st.sampled_from(
    [
        b"\0",
        b"\n",
        b"\r\n",
        b"\r",
        b"\x1b[2J",
        b"\xff",
        b"\x80",
        b" ",
        b'"',
        b"{",
        b"[" * 2000,
        b"-",
        b"9" * 400,
        b"1e400",
        b":",
        b",",
    ]
)


@st.composite
def mutated(draw: st.DrawFn, valid: Sequence[bytes]) -> bytes:
    """One of the valid inputs, with up to five pieces replaced, removed or repeated."""
    data = draw(st.sampled_from(valid))
    for _ in range(draw(st.integers(0, 5))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 8)))
        piece = draw(st.one_of(st.binary(max_size=4), SPECIAL, st.just(data[start:end] * 2)))
        data = data[:start] + piece + data[end:]
    return data


def noisy(*valid: bytes) -> st.SearchStrategy[bytes]:
    """Noise, and inputs that are nearly valid."""
    return st.one_of(mutated(valid), st.binary(max_size=300))


# Weights

SHAPES = [
    "()",
    "(1,)",
    "(0,)",
    "(-1,)",
    "(2, 3)",
    "(True,)",
    "(1.0,)",
    "[1]",
    "(2**70,)",
    str((1,) * 39 + (4,)),
    str((2**31,) * 3),
    "None",
]
DESCRS = ["<f4", ">f8", "|O", "<f16", "<U5", "|b1", "<i4", "f2", "", "<c8", "|V8", "<M8[s]"]

UPDATES = [
    update(1, 1.0, 2.0),
    update(0, 1.0, dtype="<f8"),
    (1).to_bytes(4, "big") + npy(np.ones((2, 3), ">f2", order="F")),
    (1).to_bytes(4, "big") + npy(np.arange(3), version=(3, 0)),
]
updates = st.one_of(
    noisy(*UPDATES), st.builds(claiming, st.sampled_from(SHAPES), descr=st.sampled_from(DESCRS), data=st.binary(max_size=40))
)
models = updates.map(lambda update: update[4:])


# JSON

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 2**63, -1, 0]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from([ID, TOKEN, "round", "stand_by", "finish", "reject", "http://a:1", "http://[", "counted", "\x1b[2J\n"]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12
)
deep = st.sampled_from([b"[" * 5000, b'{"a":' * 5000, b"[" * 5000 + b"]" * 5000])


@st.composite
def _resembling(draw: st.DrawFn, example: Any) -> Any:
    """A value of this form. Some of its parts are arbitrary."""
    if draw(st.integers(0, 5)) == 0:
        return draw(values)
    match example:
        case dict():
            kept = {name: draw(_resembling(inner)) for name, inner in example.items() if draw(st.integers(0, 9)) != 0}
            return kept | (draw(st.dictionaries(st.text(max_size=8), values, max_size=2)) if draw(st.booleans()) else {})
        case list():
            return [draw(_resembling(inner)) for inner in example] * draw(st.sampled_from([1, 1, 1, 0, 2]))
    return example


def documents(*examples: object) -> st.SearchStrategy[bytes]:
    """JSON of the form of these examples, arbitrary JSON, and bytes that are nearly JSON."""
    shaped = st.sampled_from(examples).flatmap(_resembling).map(lambda value: json.dumps(value).encode())
    return st.one_of(shaped, noisy(*(json.dumps(example).encode() for example in examples)), deep)


RENDEZ_VOUS = {"id": ID, "ok": True, "ordinal": 3}
HEARTBEAT = {"round": 7, "state": "round", "url": "http://localhost:8082", "token": TOKEN, "counted": 6, "traceparent": "00-a-b-01"}
START_TRAINING = {"url": "http://localhost:8082", "token": TOKEN, "ok": True, "tracelink": "00-a-b-01"}
PROBLEM = {"title": "Conflict", "status": 409, "detail": "the round of this token is over"}
CALLS = {
    "open": {"attempt": "a1", "round": 0, "admissions": [["id-1", "token-1"]], "forget": ["id-2"]},
    "admit": {"attempt": "a1", "admissions": [["id-2", "token-2"]]},
    "revoke": {"attempt": "a1", "id": "id-2"},
    "close": {"attempt": "a1", "ids": ["id-1"]},
}
PAGE = {
    "incarnation": "x",
    "entries": [[1, "a1", "id-1", "counted", 5, {"loss": 0.5}]],
    "newest": [3, 5],
    "measured": [[3, {"mean": 1.0}]],
    "faults": ["full"],
}
ANSWERS = [{}, {"verdict": "revoked"}, {"closed": {"parameters": 5}}, {"difference": {"missing": ["a"], "surplus": []}}]
KEPT = {
    "round": 3,
    "participants": [{"id": ID, "name": "silo-0", "ordinal": 0, "extended": True, "counted": 2, "counted_rounds": 1}],
    "history": [
        {
            "round": 2,
            "seconds": 1.0,
            "counted": 3,
            "dropped": 0,
            "late": 1,
            "samples": 3,
            "parameters": 5,
            "figures": {},
            "weights": {"mean": 1.0},
        }
    ],
}
MODELS = [{"round": 3, "size": 10, "checksum": "00000000", "state_size": 8, "state_checksum": "00000000"}]


# Text

texts = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            "1s",
            "500ms",
            "1e9h",
            "9" * 400 + "s",
            "1GiB",
            "0",
            "-1",
            "nan",
            "inf",
            "3/10",
            "0/0",
            "10/3",
            "http://h:1",
            "http://[::1",
        ]
    ),
    st.sampled_from(["true", "off", "a:B", "[1]", '{"a": 1}', "{" * 2000, "\x00", "١", "http://u:p@h", "http://h:99999", "٣/٤"]),
)


def variables(cls: type[Settings]) -> st.SearchStrategy[dict[str, str]]:
    """An environment with some variables of a service, without those for files of secrets, which may have any path."""
    names = [row.variable for row in cls.rows() if not row.variable.endswith("_FILE")]
    return st.dictionaries(st.sampled_from(names), texts, max_size=6)


TOML = [
    b"""
aggregator_url = "http://a:1"
[api]
bind_address = "0.0.0.0:8081"
[federated_learning]
rounds = 10
participants_ratio = 1.0
min_clients = 1
heartbeat_timeout = 15
[rpc]
x = 1
""",
    b'[aggregation.python]\nmodule = "a.b"\nclass = "C"\n[api]\nbind_address = "[::]:80"\n',
    b"[federated_learning]\nrounds = 1979-05-27T07:32:00Z\nmin_clients = inf\nheartbeat_timeout = nan\n",
]
toml = st.one_of(
    noisy(*TOML),
    st.sampled_from([b"a = " + b"[" * 5000, b"a" + b".a" * 5000 + b" = 1", b"[federated_learning]\nrounds = 1" + b"0" * 5000]),
)
tokens = noisy(
    b"# people\nsilo-0 secret-of-0\n\nsilo-1 secret-of-1\n", b"silo-0 a\nsilo-1 a\n", b"silo-0\tsecret\r\nsilo-1  secret-1"
)


# Requests

REQUESTS = [
    b"GET /rendez_vous HTTP/1.1\r\nHost: here\r\nFedround-Participant: silo-0\r\nFedround-Ordinal: 3\r\n\r\n",
    f"GET /heartbeat/{ID} HTTP/1.1\r\nHost: here\r\nPrefer: wait=1\r\nAuthorization: Bearer a\r\n\r\n".encode(),
    f"GET /start_training/urn:uuid:{ID}?x=1 HTTP/1.1\r\nHost: here\r\nOrigin: http://a\r\n\r\n".encode(),
    f"POST /{ID}/{TOKEN} HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\nFedround-Metrics: {{}}\r\n\r\nhello".encode(),
    f"POST /{ID}/{TOKEN} HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n5\r\nhello\r\n0\r\n\r\n".encode(),
    f'GET /{ID}/{TOKEN} HTTP/1.1\r\nHost: here\r\nIf-None-Match: W/"1", "2"\r\nRange: bytes=0-1\r\n\r\n'.encode(),
    b"GET /model?round=3 HTTP/1.1\r\nHost: here\r\nAuthorization: Basic YTpi\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: here\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n",
    b"GET /status HTTP/1.1\r\nHost: here\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n",
    f"DELETE /rendez_vous/{ID} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode(),
]
requests = noisy(*REQUESTS)


# Telemetry of participants

LABELS = ["service.name", "service.instance.id", "fedround.participant", "namespace", "job", "name", "le"]
METRICS = ["fedround_participant_info", "fedround_participant_rounds_total", "process_x"]
NOT_ALLOWED = ["fedround_coordinator_round", "node_load1", ""]
few = st.integers(0, 3)
stamps = st.sampled_from([0, 1, 2**63, 2**64 - 1])


def _or(draw: st.DrawFn, right: Any, *wrong: Any) -> Any:
    """Mostly the valid value: a single invalid one makes the whole message invalid."""
    return draw(st.sampled_from(wrong)) if draw(st.integers(0, 29)) == 7 else right


def _attributes(draw: st.DrawFn, attributes: Any) -> None:
    for _ in range(draw(few)):
        value = attributes.add(key=_or(draw, draw(st.sampled_from(LABELS)), "service.version", "a b", "")).value
        match _or(draw, "text", "long", "number", "list", "none"):
            case "text":
                value.string_value = draw(st.sampled_from(["berta", "fedround-coordinator", "x\n", "1.0"]))
            case "long":
                value.string_value = "x" * 5000
            case "number":
                value.int_value = 7
            case "list":
                value.kvlist_value.values.add(key="service.instance.id").value.string_value = "berta"


def _points(draw: st.DrawFn, metric: Any) -> None:
    kind = _or(draw, draw(st.sampled_from(["gauge", "sum", "histogram"])), "summary", "exponential_histogram", "")
    if kind:
        getattr(metric, kind).SetInParent()
    if kind in ("sum", "histogram"):
        getattr(metric, kind).aggregation_temporality = _or(draw, 2, 0, 1, 9)
    for _ in range(draw(few) if kind else 0):
        point = getattr(metric, kind).data_points.add(time_unix_nano=draw(stamps), start_time_unix_nano=draw(stamps))
        _attributes(draw, point.attributes)
        if kind == "histogram":
            bounds = draw(st.sampled_from([[], [0.5], [0.5, 1.0]]))
            point.explicit_bounds.extend(_or(draw, bounds, [float("nan")], [float("inf")], [2.0, 1.0]))
            point.bucket_counts.extend(_or(draw, [3] * (len(bounds) + 1), [2**64 - 1] * 2, []))
            point.count = _or(draw, 3 * (len(bounds) + 1), 0, 2**64 - 2)
        for _ in range(draw(few) if kind in ("gauge", "sum", "histogram") else 0):
            exemplar = point.exemplars.add(trace_id=_or(draw, b"t" * 16, b"", b"x"), span_id=_or(draw, b"s" * 8, b"", b"x"))
            _attributes(draw, exemplar.filtered_attributes)


def _spans(draw: st.DrawFn, spans: Any) -> None:
    for _ in range(draw(few)):
        trace, span, parent = (_or(draw, right, b"", b"x") for right in (b"t" * 16, b"s" * 8, b"p" * 8))
        made = spans.add(trace_id=trace, span_id=span, parent_span_id=parent, name="train")
        for attributes in (made.attributes, made.events.add().attributes, made.links.add().attributes):
            _attributes(draw, attributes)


@st.composite
def _messages(draw: st.DrawFn, path: str) -> bytes:
    """A message with every part that a sender may set."""
    metrics = path == wire.OTLP_METRICS
    request: Any = ExportMetricsServiceRequest() if metrics else ExportTraceServiceRequest()
    for _ in range(draw(few)):
        of_resource = (request.resource_metrics if metrics else request.resource_spans).add(schema_url="https://x")
        _attributes(draw, of_resource.resource.attributes)
        for _ in range(draw(few)):
            scope = (of_resource.scope_metrics if metrics else of_resource.scope_spans).add(schema_url="https://x")
            _attributes(draw, scope.scope.attributes)
            if metrics:
                for _ in range(draw(few)):
                    name = _or(draw, draw(st.sampled_from(METRICS)), *NOT_ALLOWED)
                    _points(draw, scope.metrics.add(name=name, unit="s", description="x" * 300))
            else:
                _spans(draw, scope.spans)
    message: bytes = request.SerializeToString()
    return message


_PUSHED = encode_metrics(Bridge(Resource.create({}), 1).data(ParticipantMetrics(name="berta").registry.collect(), 2))
telemetry = st.sampled_from(wire.OTLP).flatmap(
    lambda path: st.tuples(
        st.just(path),
        st.one_of(_messages(path), _messages(path), noisy(_PUSHED.SerializeToString())),
        st.sampled_from([0, 0, 0, 0, 0, 0, 0, 0, 1, 100, 100_000]),
        st.sampled_from(["", "", "identity", "gzip", "half a gzip", "br"]),
    )
)
"""A path, a message, the number of empty resources after it, and its encoding."""
