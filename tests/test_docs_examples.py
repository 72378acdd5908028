"""The names on the pages exist in the code."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

import fedround
from fedround import errors
from fedround.aggregator import app as aggregator_app
from fedround.aggregator import ledger, operators, spool, strategies
from fedround.aggregator import service as aggregator_service
from fedround.aggregator.build import build
from fedround.aggregator.internal import MAX_CALL, internal
from fedround.common import wire
from fedround.common.books import Books, Outcome, Verdict
from fedround.common.settings import AggregatorSettings, CoordinatorSettings, ParticipantSettings
from fedround.coordinator import app as coordinator_app
from fedround.coordinator import attempt, plan, presence, reliability
from fedround.coordinator import service as coordinator_service
from fedround.events import Observers
from fedround.http import asgi, client, exchange, remote_books, serve, tls_transport, transport
from fedround.participant import lane, moves, work
from fedround.tensors import npy, safetensors, weights

DOCS = Path(__file__).parent.parent / "docs"
PROTOCOL = (DOCS / "reference" / "protocol.md").read_text()
STRATEGIES = (DOCS / "guides" / "strategies.md").read_text()
WIRE = {value for name, value in vars(wire).items() if name.isupper() and isinstance(value, str) and " " not in value}
"""Paths and headers."""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def quoted(page: str) -> set[str]:
    """Return the code spans of a page, and each name in them."""
    found = re.findall(r"`([^`\n]+)`", page)
    return {*found, *(name for text in found for name in re.findall(r"[\w./{}-]+", text))}


def section(page: str, title: str) -> str:
    """Return the text from a heading to the next one."""
    found = re.search(rf"^#+ {title}\n(.*?)(?=^#+ |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def rows(table: str) -> Iterator[list[str]]:
    for line in re.findall(r"^\| (.*) \|$", table, re.MULTILINE):
        yield line.split(" | ")


def test_every_strategy_has_a_row() -> None:
    table = section(STRATEGIES, "All strategies")
    assert {name for first, *_ in rows(table) for name in re.findall("`(.*)`", first)} == strategies.STRATEGIES.keys()


def test_every_public_name_is_in_the_python_reference() -> None:
    page = (DOCS / "reference" / "python.md").read_text()
    named = set(re.findall(r":: (\w+)$", page, re.MULTILINE))
    assert set(fedround.__all__) - named == set(fedround.__all__) & vars(errors).keys()


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_every_named_setting_and_header_exists(page: Path) -> None:
    services = (ParticipantSettings, CoordinatorSettings, AggregatorSettings)
    settings = {row.variable for service in services for row in service.rows()} | {"FEDROUND_TOKEN", "FEDROUND_REVISION"}
    settings |= {f"{name}_FILE" for name in settings if name.endswith("TOKEN")}
    settings |= set(re.findall(r"^#? ?(\w+)=", (DOCS.parent / ".env.example").read_text(), re.MULTILINE))  # of the compose file
    text = page.read_text()
    assert set(re.findall(r"\b(?:PARTICIPANT|COORDINATOR|AGGREGATOR|FEDROUND)_[A-Z_]+[A-Z]\b(?!\*)", text)) <= settings
    assert set(re.findall(r"\bFedround-\w+\b", text)) <= WIRE


# Protocol


def inner(app: object) -> Starlette:
    assert isinstance(app, asgi.Front)
    assert isinstance(app._app, Starlette)
    return app._app


def requests(routes: Iterable[object]) -> Iterator[str]:
    """Requests such as `GET /rendez_vous`. HEAD goes with GET."""
    for route in routes:
        assert isinstance(route, Route)
        paths = [route.path]
        if route.path == "/books/{operation}":
            paths = [f"/books/{name}" for name in vars(Books) if not name.startswith("_") and name != "ledger"]
        for method in (route.methods or set()) - {"HEAD"}:
            yield from (f"{method} {path}" for path in paths)


def test_the_documented_requests_are_the_routes_of_the_apps() -> None:
    aggregator = build(AggregatorSettings(), Observers())
    coordinator = coordinator_app.build(CoordinatorSettings(), aggregator, Observers())
    apps = coordinator_app.public(coordinator), aggregator_app.public(aggregator), internal(aggregator)
    served = {request for app in apps for request in requests(inner(app).routes)}
    served |= set(requests([operators.model_route(aggregator), operators.rollback_route(aggregator)]))
    assert set(re.findall(r"^\| `([A-Z]+ /[^`]*)`", PROTOCOL, re.MULTILINE)) == served


def test_every_path_and_header_of_the_protocol_is_documented() -> None:
    assert len(WIRE) > 10
    assert quoted(PROTOCOL) >= WIRE


@pytest.mark.parametrize("words", [wire.HeartbeatState, wire.UpdateOutcome, Verdict, Outcome, moves.State, moves.Outcome])
def test_every_word_of_the_protocol_is_documented(words: Iterable[str]) -> None:
    assert set(words) <= quoted(PROTOCOL)


def test_every_state_of_a_participant_in_an_attempt_is_documented() -> None:
    assert {state.value for state in attempt.State} <= quoted(section(PROTOCOL, "The coordinator's rules"))


def test_every_field_of_the_messages_is_documented() -> None:
    for message in (wire.RendezVous, wire.Heartbeat, wire.StartTraining):
        assert set(message.__dataclass_fields__) <= quoted(PROTOCOL)


def test_the_documented_statuses_are_those_of_the_errors() -> None:
    ours = {status for error in vars(errors).values() if isinstance(status := getattr(error, "status", None), int)}
    told = {int(row[0]) for row in rows(section(PROTOCOL, "Refusals")) if row[0].isdecimal()}
    assert told == ours | {400, 401, 405}


@pytest.mark.parametrize("line", [line for block in blocks(PROTOCOL, "json") for line in block.splitlines()])
def test_documented_messages_are_sent_byte_by_byte(line: str) -> None:
    fields = json.loads(line)
    if "status" in fields:
        assert wire.Problem(**fields).encode() == line.encode()
        return
    message = next(cls for key, cls in MESSAGES.items() if key in fields)
    assert message.decode(line.encode()).encode() == line.encode()


MESSAGES: dict[str, type[wire.RendezVous | wire.Heartbeat | wire.StartTraining]] = {
    "state": wire.Heartbeat,
    "url": wire.StartTraining,
    "id": wire.RendezVous,
}


async def test_internal_requests_are_answered_as_documented() -> None:
    aggregator = build(AggregatorSettings(), Observers())
    calls = section(PROTOCOL, "The books")
    told = re.findall(r"^(GET|POST) (\S+)(?: (\{.*))?\n(\{.*)$", calls, re.MULTILINE)
    assert len(told) == 7
    transport = httpx.ASGITransport(internal(aggregator))
    async with httpx.AsyncClient(transport=transport, base_url="http://books") as peer:
        for method, path, body, expected in told:
            answer = await peer.request(method, path, content=body, headers={"Content-Type": "application/json"})
            assert expected == re.sub(r'(?<="incarnation":")[^"]+', "INCARNATION", answer.text)


KIB, MIB = 1 << 10, 1 << 20
LIMITS: dict[str, list[float]] = {
    "registrations that wait for their first heartbeat": [presence.MOST_REGISTERED],
    "old seat of a name that registers again": [presence.PROBE, presence.PROBE],
    "reason with which a participant leaves": [wire.MAX_PROBLEM],
    "shards of a data set": [wire.MAX_SHARDS],
    "participant: a number in a message": [wire.MAX_NUMBER],
    "participants whose failures the coordinator remembers": [reliability.MOST_RECORDS],
    "upload: after the round's deadline": [plan.UPLOAD_GRACE],
    "long poll": [wire.MAX_HOLD, coordinator_service.HOLD_RATIO],
    "participant: to connect": [transport.CONNECT_TIMEOUT],
    "participant: a response other than a transfer's": [exchange.RESPONSE_TIMEOUT, transport.MAX_RESPONSE / KIB],
    "participant: the response to a long poll of N seconds": [client.HOLD_MARGIN],
    "participant: the head of a transfer's response, and each part of the body that takes this long at the minimum rate": [
        client.TRANSFER_TIMEOUT
    ],
    "participant: reuse of an idle connection": [transport.KEEPALIVE],
    "participant: `Retry-After`": [lane.RETRY_AFTER_MAX],
    "server: an idle connection": [serve.KEEP_ALIVE],
    "server: the head of a request": [serve.HEAD_TIMEOUT, serve.MAX_HEAD / KIB, serve.MAX_HEADERS],
    "server: pipelined requests that wait on one connection": [serve.MAX_PIPELINED, serve.MAX_HEAD / KIB],
    "server: bytes of TLS records without data": [tls_transport.MAX_SILENT / KIB],
    "server: minimum rate at which a client reads a response": [wire.MIN_RATE, wire.MIN_RATE_WINDOW],
    "server: a response of which the client reads nothing": [serve.STALL],
    "server: running requests when it stops": [serve.GRACE],
    "upload: minimum rate": [wire.MIN_RATE, wire.MIN_RATE_WINDOW],
    "upload: simultaneous uploads with one token": [ledger.MOST_AT_ONCE],
    "upload: part in memory; the rest goes to the spool": [spool.IN_MEMORY / MIB],
    "upload: wait for the coordinator before the response": [aggregator_service.PATIENCE],
    "body that is read and discarded before a refusal": [wire.DRAIN_SECONDS, wire.DRAIN_BYTES / MIB],
    "samples": [2 ** (8 * weights.SAMPLES_BYTES) - 1],
    "`.npy` header": [npy.MAX_PREFIX - 12],
    "safetensors header, name": [safetensors.MAX_HEADER >> 20, safetensors.MAX_NAME],
    "`Fedround-Metrics`": [wire.MAX_METRICS_BYTES, wire.MAX_METRICS, wire.MAX_METRIC_NAME],
    "metrics of training that a round keeps": [wire.MAX_METRICS],
    "repeated uploads without a confirmation": [work.MAX_CONFIRMS],
    "requests for another upload token": [work.MAX_DEAD_TOKENS],
    "books: long poll of the ledger": [aggregator_service.HOLD],
    "books: the response to a call, to `close`, to `ledger`": [
        exchange.RESPONSE_TIMEOUT,
        remote_books.CLOSE_TIMEOUT,
        remote_books.LEDGER_TIMEOUT,
    ],
    "books: size of a call, of a response": [MAX_CALL / MIB, remote_books.MAX_RESPONSE / MIB],
    "books: delays between retries": [coordinator_service.RETRY_FIRST, coordinator_service.RETRY_MOST],
}


def test_the_documented_limits_are_those_of_the_code() -> None:
    table = [row for row in rows(section(PROTOCOL, "Time-outs and limits")) if row[0] not in ("what", "---")]
    assert {what: [float(number) for number in re.findall(r"\d+(?:\.\d+)?", limit)] for what, limit in table} == LIMITS
