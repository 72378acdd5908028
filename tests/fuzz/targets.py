"""Every parser of foreign input: it understands the input, or refuses it with one of our errors."""

import asyncio
import gzip
import re
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, aclosing, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from fedround.aggregator.internal import internal
from fedround.aggregator.store import ModelStore
from fedround.aggregator.updates import UpdateReader
from fedround.common import wire
from fedround.common.books import valid_metrics
from fedround.common.settings import AggregatorSettings, CoordinatorSettings, ParticipantSettings, Settings
from fedround.common.sources import load
from fedround.coordinator import store
from fedround.errors import BadAnswer, BadTelemetry, ConfigurationError, DataDamaged, ExchangeError, TooLarge, WeightsError
from fedround.http.client import AggregatorClient, CoordinatorClient
from fedround.http.remote_books import RemoteBooks
from fedround.http.tokens import Tokens
from fedround.observability.stamping import MAX_BYTES, MAX_ITEMS, inflated, stamped
from fedround.tensors.weights import decode, parse_head
from fuzz import inputs
from support.coordinating import MemoryBooks
from support.disks import MemoryDisk
from support.http_server import Handler, Server
from support.otlp import values
from support.processes import Process, running

Feed = Callable[[Any], None]
MAX_GROWTH = 64e6
"""Maximum growth of a service, in bytes, for any input."""


@dataclass(frozen=True)
class Target:
    """`serving` lends, for as long as its block lasts, what is fed; that raises where the parser does what it must not."""

    name: str
    inputs: st.SearchStrategy[Any]
    serving: Callable[[], AbstractContextManager[Feed]]


def plain(name: str, strategy: st.SearchStrategy[Any], feed: Callable[[Any], object], *refusals: type[Exception]) -> Target:
    """A target that is a function, which may raise these."""

    def guarded(data: Any) -> None:
        with suppress(*refusals):
            feed(data)

    return Target(name, strategy, lambda: nullcontext(guarded))


# In this process


def _update(data: bytes) -> None:
    reader = UpdateReader(data, len(data))
    reader.check()
    for tensor in reader.tensors():
        for _ in tensor:
            pass


def _environment(cls: type[Settings], environ: dict[str, str]) -> None:
    load(cls, environ, {})


def _headers(text: str) -> None:
    wait = wire.parse_prefer_wait(f"wait={text}")
    assert wait is None or 0 <= wait <= 10**9
    assert wire.parse_name(wire.clean_name(text))
    id = wire.parse_id(text)
    assert id is None or wire.parse_id(id) == id


def _figures(value: object) -> None:
    found = valid_metrics(value)
    assert len(found) <= wire.MAX_METRICS
    assert all(name.isprintable() and abs(figure) < 1e300 for name, figure in found.items())


def _stored(name: str, read: Callable[[MemoryDisk], object]) -> Feed:
    def feed(data: bytes) -> None:
        read(MemoryDisk({name: data}))

    return feed


NAME, NAMESPACE, NOW = "anna", "fl", 10**18
ADDED = 512
"""Maximum number of bytes that a stamp adds to each part of a message."""


EMPTY = b"\n\0"
"""An empty resource."""


def _encoded(message: bytes, encoding: str) -> tuple[bytes, str]:
    """Return a body, and the encoding that its sender claims."""
    if encoding in ("gzip", "half a gzip"):
        whole = gzip.compress(message, mtime=0)
        return whole[: len(whole) // 2] if encoding == "half a gzip" else whole, "gzip"
    return message, encoding


def _stamped(data: tuple[str, bytes, int, str]) -> None:
    """A message that passes belongs to its sender, and is not much larger than the received one."""
    path, message, empty, encoding = data
    found = stamped(path, inflated(*_encoded(message + EMPTY * empty, encoding)), NAME, NOW, NAMESPACE)
    assert len(found.message) <= MAX_BYTES + ADDED * MAX_ITEMS
    metrics = path == wire.OTLP_METRICS
    request: Any = (ExportMetricsServiceRequest if metrics else ExportTraceServiceRequest).FromString(found.message)
    whole = request.SerializeToString()
    request.DiscardUnknownFields()
    assert request.SerializeToString() == whole
    resources = request.resource_metrics if metrics else request.resource_spans
    points: list[Any] = []
    for of_resource in resources:
        attributes = values(of_resource.resource.attributes)
        attributes.pop("service.version", "")
        assert attributes == {"service.name": "fedround-participant", "service.instance.id": NAME, "fedround.participant": NAME}
        for scope in of_resource.scope_metrics if metrics else of_resource.scope_spans:
            points += [point for metric in scope.metrics for point in _points(metric)] if metrics else scope.spans
    assert len(resources) + len(points) <= 2 * MAX_ITEMS
    for point in points:
        labels = {each.key: each.value.string_value for each in point.attributes}
        assert not {"job", "instance", "participant", "service.name", "service.instance.id", "fedround.participant"} & labels.keys()
        assert labels.get("namespace") == (NAMESPACE if metrics else None)
    assert stamped(path, found.message, NAME, NOW, NAMESPACE).message == found.message


def _points(metric: Any) -> Any:
    assert not metric.name.startswith("fedround_coordinator")
    points = getattr(metric, metric.WhichOneof("data")).data_points
    for point in points:
        assert point.time_unix_nano == NOW
        assert metric.name != "fedround_participant_info" or values(point.attributes)["name"] == NAME
    return points


@contextmanager
def _file(read: Callable[[Path], object]) -> Iterator[Feed]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"

        def feed(data: bytes) -> None:
            path.write_bytes(data)
            with suppress(ConfigurationError):
                read(path)

        yield feed


def _tokens(file: Path) -> None:
    tokens = Tokens(None, file)
    assert tokens.owner("nobody's") is None
    for line in file.read_bytes().decode(errors="replace").splitlines():
        tokens.owner(line)


# Answers to a participant, and to a coordinator


@contextmanager
def _answers(ask: Callable[[httpx.MockTransport], object]) -> Iterator[Feed]:
    def feed(data: tuple[int, bytes, str]) -> None:
        status, body, kind = data
        headers = {"Content-Type": kind, "ETag": kind, wire.UPDATE_OUTCOME: kind}
        with suppress(ExchangeError, WeightsError):
            ask(httpx.MockTransport(lambda _: httpx.Response(status, headers=headers, stream=httpx.ByteStream(body))))

    yield feed


def _ask_coordinator(transport: httpx.MockTransport) -> None:
    with closing(CoordinatorClient("http://coordinator", transport=transport)) as client:
        for call in (
            partial(client.rendez_vous, "a"),
            partial(client.heartbeat, inputs.ID, wait=1.0),
            partial(client.start_training, inputs.ID),
        ):
            with suppress(ExchangeError):
                call()
        client.leave(inputs.ID)


def _ask_aggregator(transport: httpx.MockTransport) -> None:
    with closing(AggregatorClient(max_model_size=1000, transport=transport)) as client:
        with suppress(ExchangeError):
            client.upload("http://aggregator", inputs.ID, inputs.TOKEN, [b"update"])
        model = client.download("http://aggregator", inputs.ID, inputs.TOKEN)
        decode(model.body or b"")


statuses = st.sampled_from([200, 200, 204, 304, 302, 400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 500, 503])
kinds = st.sampled_from(["application/json", wire.Problem.media_type, "text/html", 'W/"3"', "counted", ""])


def answers(*bodies: st.SearchStrategy[bytes]) -> st.SearchStrategy[tuple[int, bytes, str]]:
    return st.tuples(statuses, st.one_of(*bodies), kinds)


@contextmanager
def _calls_of_the_books() -> Iterator[Feed]:
    """The aggregator's side of the internal port: every call gets a response below 500."""
    transport = httpx.ASGITransport(internal(MemoryBooks()))

    async def call(operation: str, body: bytes) -> int:
        headers = {"Content-Type": "application/json"}
        async with httpx.AsyncClient(transport=transport, base_url="http://aggregator") as client:
            return (await client.post(f"/books/{operation}", content=body, headers=headers)).status_code

    def feed(data: tuple[str, bytes]) -> None:
        status = asyncio.run(call(*data))
        assert status < 500, status

    yield feed


@contextmanager
def _answers_of_the_books() -> Iterator[Feed]:
    """The coordinator's side of the internal port."""
    body = b""

    class Answering(Handler):
        def take(self) -> None:
            self.body()
            self.answer(body)

    async def ask(url: str) -> None:
        async with aclosing(RemoteBooks(url)) as books:
            for call in (books.ledger("x", 0), books.close("a1", ["id-1"]), books.revoke("a1", "id-1")):
                with suppress(BadAnswer):
                    await call

    with Server(Answering) as server:

        def feed(data: bytes) -> None:
            nonlocal body
            body = data
            asyncio.run(ask(server.url))

        yield feed


# Over sockets, against processes


def _resident(process: Process) -> int:
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[0]) * 1024


@contextmanager
def _live_platform() -> Iterator[Feed]:
    """All ports of a platform: it never responds with 5xx, stays alive, and grows little."""
    with running("platform") as platform:
        ports = [int(port) for port in platform.ports.values()]
        before: list[int] = []

        def feed(data: bytes) -> None:
            for port in ports:
                status = _status(port, data)
                assert status is None or status < 500, (port, status)
            before[:] = before or [_resident(platform)]
            assert platform.ended is None
            assert _resident(platform) - before[0] < MAX_GROWTH

        yield feed
        assert platform.probe("/livez")[0] == 200


def _status(port: int, data: bytes) -> int | None:
    """Return the status of the first response; None without a response."""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection, suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        match = re.match(rb"HTTP/1\.1 (\d{3})", connection.recv(4096))
        return None if match is None else int(match[1])
    return None


TARGETS: Sequence[Target] = (
    plain("npy headers", inputs.models, parse_head, WeightsError),
    plain("models", inputs.models, lambda data: decode(bytearray(data)), WeightsError),
    plain("updates", inputs.updates, _update, WeightsError),
    plain("answers of rendez_vous", inputs.documents(inputs.RENDEZ_VOUS), wire.RendezVous.decode, BadAnswer),
    plain("answers of heartbeat", inputs.documents(inputs.HEARTBEAT), wire.Heartbeat.decode, BadAnswer),
    plain("answers of start_training", inputs.documents(inputs.START_TRAINING), wire.StartTraining.decode, BadAnswer),
    plain("headers", inputs.texts, _headers),
    plain("reported metrics", inputs.values, _figures),
    plain(
        "participant settings",
        inputs.variables(ParticipantSettings),
        partial(_environment, ParticipantSettings),
        ConfigurationError,
    ),
    plain(
        "coordinator settings",
        inputs.variables(CoordinatorSettings),
        partial(_environment, CoordinatorSettings),
        ConfigurationError,
    ),
    plain(
        "aggregator settings", inputs.variables(AggregatorSettings), partial(_environment, AggregatorSettings), ConfigurationError
    ),
    plain("rounds.json", inputs.documents(inputs.KEPT), _stored(store.NAME, store.load), DataDamaged),
    plain("models.json", inputs.documents(inputs.MODELS), _stored("models.json", ModelStore), DataDamaged),
    Target("TOML of a coordinator", inputs.toml, lambda: _file(lambda file: load(CoordinatorSettings, {}, {}, file=file))),
    Target("TOML of an aggregator", inputs.toml, lambda: _file(lambda file: load(AggregatorSettings, {}, {}, file=file))),
    plain("telemetry", inputs.telemetry, _stamped, BadTelemetry, TooLarge),
    Target("files of tokens", inputs.tokens, lambda: _file(_tokens)),
    Target(
        "a coordinator's answers",
        answers(
            *(inputs.documents(form) for form in (inputs.RENDEZ_VOUS, inputs.HEARTBEAT, inputs.START_TRAINING, inputs.PROBLEM))
        ),
        lambda: _answers(_ask_coordinator),
    ),
    Target("an aggregator's answers", answers(inputs.documents(inputs.PROBLEM), inputs.models), lambda: _answers(_ask_aggregator)),
    Target(
        "calls of the books",
        st.sampled_from([*inputs.CALLS]).flatmap(lambda name: st.tuples(st.just(name), inputs.documents(inputs.CALLS[name]))),
        _calls_of_the_books,
    ),
    Target("answers of the books", inputs.documents(inputs.PAGE, *inputs.ANSWERS), _answers_of_the_books),
    Target("requests on sockets", inputs.requests, _live_platform),
)


@contextmanager
def served(targets: Sequence[Target]) -> Iterator[Sequence[tuple[Target, Feed]]]:
    """Yield each target with its function."""
    with ExitStack() as stack:
        yield [(target, stack.enter_context(target.serving())) for target in targets]
