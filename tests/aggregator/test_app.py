import asyncio
import base64
import json
import math
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fedround.aggregator import app, operators
from fedround.aggregator.build import build
from fedround.aggregator.internal import internal
from fedround.aggregator.running import Folded
from fedround.aggregator.service import AggregatorService
from fedround.aggregator.spool import Spool
from fedround.aggregator.store import ModelStore
from fedround.aggregator.strategies import WeightedAverage
from fedround.common.books import Admission, Closed, Difference, Entry, Open, Outcome, Verdict
from fedround.common.durable import Directory
from fedround.common.secret import SecretHolder
from fedround.common.settings import AggregatorSettings
from fedround.errors import ConfigurationError, DataDamaged, ExchangeError, UnknownAttempt, WrongWeights
from fedround.events import Fact, Observer, Observers, UploadFailed
from fedround.http.remote_books import RemoteBooks
from fedround.http.serve import Endpoint, serving
from fedround.http.tokens import NO_TOKENS, Tokens
from fedround.observability import ops
from fedround.observability.health import Health, running
from fedround.tensors.weights import Spec
from support.sockets import Connection, connected
from support.updates import claiming, npy, update

ANNA, BERT = "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa", "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"
TOKEN = {ANNA: "11111111-1111-4111-8111-111111111111", BERT: "22222222-2222-4222-8222-222222222222"}
MAX_SIZE = 4 << 20

Answer = httpx.Response


def path(id: str) -> str:
    return f"/{id}/{TOKEN[id]}"


def make(
    *,
    directory: Path | None = None,
    window: float = 60.0,
    patience: float = 0.0,
    observer: Observer | None = None,
    store: ModelStore | None = None,
) -> AggregatorService:
    spool = Spool(directory, max_size=MAX_SIZE, window=window)
    return AggregatorService(
        partial(Folded, make=WeightedAverage), spool, store=store, observer=observer, hold=60.0, patience=patience
    )


async def open_round(service: AggregatorService, attempt: str = "attempt-0", round: int = 0) -> None:
    await service.open(Open(attempt, round, tuple(Admission(id, token) for id, token in TOKEN.items())))


async def assert_the_others_go_on(service: AggregatorService, client: httpx.AsyncClient) -> None:
    """Bert's update is counted, and his alone, and becomes the model."""
    answer = await client.post(path(BERT), content=update(2, 1, 2))
    assert (answer.status_code, answer.content, answer.headers["fedround-update"]) == (200, b"", "counted")
    assert await service.close("attempt-0", [BERT]) == Closed(parameters=2)


@asynccontextmanager
async def asking(service: AggregatorService, *, token: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app.public(service, tokens=Tokens(token)))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        yield client


@asynccontextmanager
async def on_sockets(service: AggregatorService) -> AsyncIterator[tuple[int, httpx.AsyncClient]]:
    """The public app's port, and a client of it."""
    endpoint = Endpoint(app.public(service), host="127.0.0.1", port=0, setting="PORT")
    async with serving(endpoint), httpx.AsyncClient(base_url=f"http://127.0.0.1:{endpoint.port}") as client:
        yield endpoint.port, client


async def test_before_the_first_aggregation_the_global_model_is_empty() -> None:
    service = make()
    await open_round(service)
    async with asking(service) as client:
        answer = await client.get(path(ANNA))
        assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert (await client.get(path(ANNA), headers={"If-None-Match": answer.headers["etag"]})).status_code == 304


async def test_the_global_model_is_what_numpy_would_have_saved() -> None:
    service = make()
    await open_round(service)
    await service.deliver(ANNA, TOKEN[ANNA], only(update(1, 1, 2)))
    await service.close("attempt-0", [ANNA])
    async with asking(service) as client:
        answer = await client.get(path(ANNA))
        expected = npy(np.array([1, 2], "<f4"), version=(1, 0))
        assert (answer.content, answer.headers["content-length"]) == (expected, str(len(expected)))


async def only(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_who_has_the_newest_model_is_told_so() -> None:
    service = make()
    await open_round(service)
    async with asking(service) as client:
        await client.post(path(ANNA), content=update(1, 1, 2))
        await service.close("attempt-0", [ANNA])
        etag = (await client.get(path(ANNA))).headers["etag"]
        for known in (etag, f'"other", W/{etag}'):
            answer = await client.get(path(ANNA), headers={"If-None-Match": known})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
        assert (await client.get(path(ANNA), headers={"If-None-Match": '"none"'})).status_code == 200


async def test_ids_and_tokens_are_read_as_tolerantly_as_in_0_8() -> None:
    service = make()
    await open_round(service)
    async with asking(service) as client:
        for written in (ANNA.upper(), ANNA.replace("-", ""), f"urn:uuid:{ANNA}"):
            assert (await client.get(f"/{written}/{TOKEN[ANNA].replace('-', '')}/?x=y")).status_code == 200


async def test_an_update_may_come_in_chunks_without_a_length() -> None:
    service = make()
    await open_round(service)

    async def chunks() -> AsyncIterator[bytes]:
        for byte in update(1, 1, 2):
            yield bytes([byte])

    async with on_sockets(service) as (_, client):
        assert (await client.post(path(ANNA), content=chunks())).headers["fedround-update"] == "counted"


async def test_a_repeat_is_answered_with_200_and_says_so() -> None:
    service = make()
    await open_round(service)
    async with asking(service) as client:
        await client.post(path(ANNA), content=update(1, 1, 2))
        again = await client.post(path(ANNA), content=update(1, 1, 2))
        assert (again.status_code, again.content, again.headers["fedround-update"]) == (200, b"", "repeated")
        await assert_both_counted(service, client)


async def assert_both_counted(service: AggregatorService, client: httpx.AsyncClient) -> None:
    await client.post(path(BERT), content=update(1, 1, 2))
    assert await service.close("attempt-0", [ANNA, BERT]) == Closed(parameters=2)


@pytest.mark.parametrize("samples", [0, 1, 100_000_000])
async def test_every_sample_count_up_to_the_limit_is_valid(samples: int) -> None:
    service = make()
    await open_round(service)
    async with asking(service) as client:
        assert (await client.post(path(ANNA), content=update(samples, 1, 2))).status_code == 200
        assert [entry.samples for entry in (await service.ledger("another", 0)).entries] == [samples]
        await assert_both_counted(service, client)


@pytest.mark.parametrize(
    "address",
    [
        f"/{ANNA}/{TOKEN[BERT]}",
        f"/{TOKEN[ANNA]}/{ANNA}",
        "/no-uuid/neither",
        f"/{ANNA}/{TOKEN[ANNA]}0",
        f"/{ANNA}",
        "/",
    ],
)
async def test_without_credentials_there_is_nothing(address: str) -> None:
    service = make()
    await open_round(service)
    async with asking(service) as client:
        for method in ("GET", "POST"):
            answer = await client.request(method, address, content=update(1, 1, 2) if method == "POST" else None)
            assert answer.status_code == 404
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["title"] == "Not Found"
        await assert_the_others_go_on(service, client)


async def test_an_aggregator_with_a_token_serves_nobody_without_it() -> None:
    service = make()
    await open_round(service)
    async with asking(service, token="secret") as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = await client.post(path(ANNA), content=update(1, 1, 2), headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert (await client.get(path(ANNA), headers=headers)).status_code == 401
        client.headers["Authorization"] = "Bearer secret"
        await assert_the_others_go_on(service, client)


async def test_an_update_for_a_round_that_is_over_is_told_so() -> None:
    service = make()
    await open_round(service)
    await service.revoke("attempt-0", ANNA)
    async with asking(service) as client:
        answer = await client.post(path(ANNA), content=update(1, 1, 2))
        assert answer.status_code == 409
        assert answer.json() == {
            "title": "Conflict",
            "status": 409,
            "detail": "the round of this token is over, or was reassigned to other participants",
        }
        await assert_the_others_go_on(service, client)


GOOD = update(1, 1, 2)
OBJECTS = b"\0\0\0\1" + npy(np.array([{}], object))


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        pytest.param(b"", 422, "begins with a sample count of 4 bytes, but this one has 0 bytes", id="empty"),
        pytest.param(GOOD[:50], 422, "ends within its header", id="cut within the header"),
        pytest.param(GOOD[:-1], 422, "announces 8 bytes of weights, but 7 follow", id="cut within the weights"),
        pytest.param(GOOD + b"!", 422, "announces 8 bytes of weights, but 9 follow", id="too long"),
        pytest.param(b"\0\0\0\1" + b"PK\3\4" + bytes(100), 415, "neither an .npy array nor safetensors", id="wrong magic"),
        pytest.param(GOOD[:10] + b"\x09" + GOOD[11:], 415, "of version 9.0", id="version 9"),
        pytest.param(OBJECTS, 415, "objects are pickled, which is never accepted", id="objects"),
        pytest.param(claiming("(1000000000000,)"), 422, "announces 4000000000000 bytes", id="a terabyte in a row"),
        pytest.param(claiming("(1048576, 1048576)"), 422, "announces 4398046511104 bytes", id="a terabyte in a square"),
        pytest.param(claiming("(2,)", descr="<c8", data=bytes(16)), 415, "dtype '<c8' cannot be averaged", id="complex"),
        pytest.param(update(1, 1, float("nan")), 422, "weights: NaN in 1 of 2 elements", id="NaN"),
        pytest.param(update(1, 1, float("inf")), 422, "weights: infinity in 1 of 2 elements", id="infinite"),
        pytest.param(bytes(MAX_SIZE + 1), 413, f"more than {MAX_SIZE} bytes", id="too large"),
    ],
)
async def test_what_is_no_update_is_refused_with_the_reason(body: bytes, status: int, detail: str) -> None:
    service = make()
    await open_round(service)
    async with on_sockets(service) as (_, client):
        answer = await client.post(path(ANNA), content=body)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        assert detail in answer.json()["detail"]
        entry = (await service.ledger("another", 0)).entries[0]
        assert (entry.id, entry.outcome) == (ANNA, Outcome.REFUSED)
        await assert_the_others_go_on(service, client)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (update(1, 1, 2, 3), "of shape (3,), but the global model has float32 weights of shape (2,)"),
        (update(1, 1, 2, dtype="<f8"), "these are float64 weights"),
    ],
)
async def test_an_update_unlike_the_others_is_refused(body: bytes, detail: str) -> None:
    service = make()
    await open_round(service)
    async with asking(service) as client:
        await client.post(path(BERT), content=GOOD)
        answer = await client.post(path(ANNA), content=body)
        assert answer.status_code == 422
        assert detail in answer.json()["detail"]
        assert await service.close("attempt-0", [BERT]) == Closed(parameters=2)


async def test_what_grows_too_large_without_an_announcement_is_refused() -> None:
    service = make()
    await open_round(service)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(100_000)

    async with on_sockets(service) as (_, client):
        answer = await client.post(path(ANNA), content=endless())
        assert answer.status_code == 413
        await assert_the_others_go_on(service, client)


async def test_a_full_spool_asks_to_come_again(tmp_path: Path) -> None:
    service = make(directory=tmp_path / "gone")
    await open_round(service)
    async with asking(service) as client:
        large = b"\0\0\0\1" + npy(np.zeros(1 << 19, "<f4"))
        answer = await client.post(path(ANNA), content=large)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "cannot write the update to the spool directory" in answer.json()["detail"]
        (tmp_path / "gone").mkdir()
        assert (await client.post(path(ANNA), content=large)).headers["fedround-update"] == "counted"


@pytest.mark.parametrize(
    ("header", "figures"),
    [
        ('{"loss": 0.5, "epochs": 3}', {"loss": 0.5, "epochs": 3.0}),
        ("{}", {}),
        ("no JSON", {}),
        ("[1]", {}),
        ('{"loss": NaN}', {}),
        ('{"loss": 1e999}', {}),
        ('{"loss": "low"}', {}),
        ('{"loss": true}', {}),
        ('{"loss": 1' + "0" * 400 + "}", {}),
        ("[" * 1500, {}),
        ('{"loss": 0.5, "x": "' + "x" * 2048 + '"}', {}),
        ('{"loss": 1e290, "gain": -1e290}', {"loss": 1e290, "gain": -1e290}),
        ('{"loss": 0.5, "gain": 1.1e290, "depth": -1.7e308, "epochs": "3"}', {"loss": 0.5}),
        ('{"loss": 0.5, "a\\nERROR forged": 1, "\\u001b[31m": 1, "\\u202e": 1, "\\ud800": 1, "": 1}', {"loss": 0.5}),
        (json.dumps({"n" * 64: 1, "m" * 65: 1, "größe \u65e5": 2}), {"n" * 64: 1.0, "größe \u65e5": 2.0}),
        (json.dumps({f"figure {n}": n for n in range(25)}), {f"figure {n}": float(n) for n in range(20)}),
    ],
)
async def test_of_what_a_participant_reports_the_numbers_are_entered_that_can_be_shown(
    header: str, figures: Mapping[str, float]
) -> None:
    service = make()
    await open_round(service)
    async with asking(service) as client:
        await client.post(path(ANNA), content=GOOD, headers={"Fedround-Metrics": header})
        assert (await service.ledger("another", 0)).entries == (Entry(1, "attempt-0", ANNA, Outcome.COUNTED, 1, figures),)


# What only sockets show

Misbehaving = Callable[[Connection], Awaitable[None]]


async def hang_up(connection: Connection) -> None:
    await connection.ask("POST", path(ANNA), Content_Length=str(len(GOOD)))
    await connection.send(GOOD[:-1])
    connection.reset()


async def hang_up_in_a_large_one(connection: Connection) -> None:
    await connection.ask("POST", path(ANNA), Content_Length=str(3 << 20))
    await connection.send(bytes(2 << 20))
    connection.reset()


async def hang_up_in_a_chunk(connection: Connection) -> None:
    await connection.ask("POST", path(ANNA), Transfer_Encoding="chunked")
    await connection.send(b"5\r\nhel")
    connection.reset()


async def be_slow(connection: Connection) -> None:
    await connection.ask("POST", path(ANNA), Content_Length=str(len(GOOD)))
    await connection.send(GOOD[:-1])
    answer = await connection.answer()
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert "less than 10000 bytes per second" in json.loads(answer.body)["detail"]


@pytest.mark.parametrize("misbehave", [hang_up, hang_up_in_a_large_one, hang_up_in_a_chunk, be_slow])
async def test_an_upload_that_does_not_arrive_whole_counts_for_nothing(
    misbehave: Misbehaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedround.http.asgi.DRAIN_SECONDS", 0.05)
    failed = asyncio.Event()

    def observe(fact: Fact) -> None:
        if isinstance(fact, UploadFailed):
            assert fact.id == ANNA
            failed.set()

    service = make(window=0.2, observer=observe)
    await open_round(service)
    async with on_sockets(service) as (port, client):
        async with connected(port) as connection:
            await misbehave(connection)
            await failed.wait()
        await assert_the_others_go_on(service, client)


async def test_more_than_was_announced_harms_nobody() -> None:
    service = make()
    await open_round(service)
    async with on_sockets(service) as (port, client):
        async with connected(port) as connection:
            await connection.ask("POST", path(ANNA), Content_Length=str(len(GOOD) - 1))
            await connection.send(GOOD)
            # What is too much is no request: it is answered with 400, and that ends the connection.
            assert (await connection.answer()).status in (400, 422)
        answer = await client.post(path(BERT), content=GOOD)
        assert answer.headers["fedround-update"] == "counted"
        assert await service.close("attempt-0", [BERT]) == Closed(parameters=2)


async def test_a_refusal_reaches_who_reads_nothing_before_everything_is_written() -> None:
    service = make()
    await open_round(service)
    async with on_sockets(service) as (port, _), connected(port) as connection:
        for address, status in [(f"/{ANNA}/{TOKEN[BERT]}", 404), (path(ANNA), 413)]:
            await connection.ask("POST", address, Content_Length=str(5 << 20))
            await connection.send(bytes(5 << 20))
            answer = await connection.answer()
            assert (answer.status, json.loads(answer.body)["status"]) == (status, status)


async def test_a_reader_that_hangs_up_in_the_middle_of_a_model_harms_nobody() -> None:
    service = make()
    await open_round(service)
    await service.deliver(ANNA, TOKEN[ANNA], only(b"\0\0\0\1" + npy(np.zeros(1 << 18))))
    await service.close("attempt-0", [ANNA])
    async with on_sockets(service) as (port, client):
        async with connected(port) as connection:
            await connection.ask("GET", path(ANNA))
            connection.reset()
        assert len((await client.get(path(ANNA))).content) == (8 << 18) + 128


# The coordinator's side


@asynccontextmanager
async def remote(service: AggregatorService, *, secret: str | None = None, sent: str | None = None) -> AsyncIterator[RemoteBooks]:
    tokens = NO_TOKENS if secret is None else SecretHolder(lambda: secret)
    endpoint = Endpoint(internal(service, tokens=tokens), host="127.0.0.1", port=0, setting="PORT")
    async with serving(endpoint):
        books = RemoteBooks(f"http://127.0.0.1:{endpoint.port}", secret=lambda: sent)
        try:
            yield books
        finally:
            await books.aclose()


async def test_the_books_are_the_same_over_the_internal_port() -> None:
    service = make()
    async with remote(service) as books:
        await books.open(Open("attempt-0", 0, (Admission(ANNA, TOKEN[ANNA]),), ("somebody-gone",)))
        await books.admit("attempt-0", [Admission(BERT, TOKEN[BERT])])
        await service.deliver(ANNA, TOKEN[ANNA], only(GOOD), metrics={"loss": 0.5})
        page = await books.ledger("another", 0)
        assert page.entries == (Entry(1, "attempt-0", ANNA, Outcome.COUNTED, 1, {"loss": 0.5}),)
        assert await books.revoke("attempt-0", ANNA) is Verdict.COUNTED
        assert await books.revoke("attempt-0", BERT) is Verdict.REVOKED
        assert await books.close("attempt-0", [BERT]) == Difference(frozenset([BERT]), frozenset([ANNA]))
        assert await books.close("attempt-0", [ANNA]) == Closed(parameters=2)
        with pytest.raises(UnknownAttempt):
            await books.close("attempt-9", [ANNA])


async def test_the_internal_port_asks_for_its_secret() -> None:
    service = make()
    async with remote(service, secret="secret", sent="secret") as books:
        await books.open(Open("attempt-0", 0, ()))
    for wrong in (None, "wrong"):
        async with remote(service, secret="secret", sent=wrong) as books:
            with pytest.raises(ExchangeError):
                await books.open(Open("attempt-1", 0, ()))
    assert service.status()["attempt"] == "attempt-"


async def test_a_server_with_an_open_long_poll_stops_at_once() -> None:
    service = make(patience=60.0)
    await open_round(service)
    async with AsyncExitStack() as after, asyncio.timeout(4):  # the poll would last for a minute, the grace is 5 s
        endpoint = Endpoint(internal(service), host="127.0.0.1", port=0, setting="PORT")
        async with serving(endpoint), asyncio.TaskGroup() as tasks:
            upload = tasks.create_task(service.deliver(ANNA, TOKEN[ANNA], only(GOOD)))
            incarnation = (await service.ledger("another", 0)).incarnation
            coordinator = await after.enter_async_context(connected(endpoint.port))
            await coordinator.ask("GET", f"/books/ledger?incarnation={incarnation}&after=1")
            await upload  # this poll has begun: it acknowledges the update
            service.stop()
        answer = await coordinator.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")


JSON = {"Content-Type": "application/json; charset=utf-8"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "text/plain; application/json"}, 415),
        ({}, 415),
        ({**JSON, "Origin": "https://evil.example"}, 403),
        ({**JSON, "Origin": "null"}, 403),
        (JSON, 200),
    ],
)
async def test_a_web_page_on_the_same_machine_cannot_call_the_books(headers: Mapping[str, str], status: int) -> None:
    """Without asking first a page can send text, a form, or no type at all; with anything else comes its origin."""
    service = make()
    transport = httpx.ASGITransport(internal(service))
    opened = json.dumps({"attempt": "a", "round": 0, "admissions": [], "forget": []}).encode()
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        answer = await client.post("/books/open", content=opened, headers=headers)
        assert answer.status_code == status
        assert (service.status()["attempt"] == "a") is (status == 200)
        page = await client.get("/books/ledger", headers=headers)
        assert page.status_code == (403 if "Origin" in headers else 200)


@pytest.mark.parametrize(
    ("method", "address", "body", "status"),
    [
        ("POST", "/books/open", b"no JSON", 400),
        ("POST", "/books/open", b"{}", 400),
        ("POST", "/books/open", b"[]", 400),
        ("POST", "/books/admit", b'{"attempt": "a", "admissions": [["only an id"]]}', 400),
        ("POST", "/books/burn", b"{}", 400),
        ("GET", "/books/ledger?after=soon", b"", 400),
        ("GET", "/books/open", b"", 405),
    ],
)
async def test_what_is_no_call_of_the_books_changes_nothing(method: str, address: str, body: bytes, status: int) -> None:
    transport = httpx.ASGITransport(internal(make()))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        answer = await client.request(method, address, content=body, headers=JSON)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


async def test_a_call_of_the_books_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedround.aggregator.internal.MAX_CALL", 100)
    transport = httpx.ASGITransport(internal(make()))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        assert (await client.post("/books/open", content=bytes(101), headers=JSON)).status_code == 413


# The operators' side


def ask_ops(service: AggregatorService, address: str, *, token: str | None = None, **headers: str) -> Answer:
    async def main() -> Answer:
        routes = [operators.model_route(service, ops.Access(token))]
        transport = httpx.ASGITransport(ops.app(Health(), service.status, routes=routes))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.get(address, headers=headers)

    return asyncio.run(main())


def trained(*rounds: int, store: ModelStore | None = None) -> AggregatorService:
    async def main() -> None:
        for round in rounds:
            token = f"{TOKEN[ANNA]} {round}"
            await service.open(Open(f"attempt-{round}", round, (Admission(ANNA, token),)))
            await service.deliver(ANNA, token, only(update(1, round, 2)))
            await service.close(f"attempt-{round}", [ANNA])

    service = make(store=store)
    asyncio.run(main())
    return service


def test_the_newest_model_can_be_fetched_from_the_ops_port() -> None:
    answer = ask_ops(trained(7), "/model")
    assert (answer.status_code, answer.headers["etag"]) == (200, '"7"')
    assert list(np.load(BytesIO(answer.content))) == [7, 2]


def test_the_model_of_a_former_round_can_be_fetched_while_it_is_kept(tmp_path: Path) -> None:
    service = trained(0, 1, 2, store=ModelStore(Directory(tmp_path), keep=2))
    for round in (1, 2):
        answer = ask_ops(service, f"/model?round={round}")
        assert (answer.status_code, answer.headers["etag"]) == (200, f'"{round}"')
        assert list(np.load(BytesIO(answer.content))) == [round, 2]
    for address, status, detail in [
        ("/model?round=0", 404, "`/status` lists the rounds with one"),
        ("/model?round=-1", 400, "`round` must be the number of a round"),
        (f"/model?round={'9' * 5000}", 400, "`round` must be the number of a round"),
        ("/model?round=\u0661", 400, "`round` must be the number of a round"),
    ]:
        answer = ask_ops(service, address)
        assert (answer.status_code, detail in answer.json()["detail"]) == (status, True)


def test_a_former_model_that_is_damaged_says_so_and_the_others_can_be_had(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = trained(0, 1, store=ModelStore(Directory(tmp_path)))
    (tmp_path / "round-000000.npy").write_bytes(b"something else")
    answer = ask_ops(service, "/model?round=0")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "round-000000.npy in the data directory cannot be used" in answer.json()["detail"]
    assert answer.json()["detail"] in caplog.text
    assert ask_ops(service, "/model?round=1").status_code == 200


def test_a_former_model_that_gives_way_to_a_newer_one_while_it_is_read_is_not_there(tmp_path: Path) -> None:
    class Slow(Directory):
        def read(self, name: str) -> memoryview:
            if name == "round-000000.npy":
                store.save(2, [b"a newer one"])
            return super().read(name)

    store = ModelStore(Slow(tmp_path), keep=2)
    assert ask_ops(trained(0, 1, store=store), "/model?round=0").status_code == 404


def test_a_model_that_was_never_kept_is_none_that_waits_for_ever(tmp_path: Path) -> None:
    with pytest.raises(DataDamaged, match="no model of round 3"):
        ModelStore(Directory(tmp_path)).read(3)


def test_before_the_first_round_there_is_no_model_to_fetch() -> None:
    answer = ask_ops(make(), "/model")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert "there is no global model yet" in answer.json()["detail"]


def test_the_model_is_given_to_who_has_the_token_also_as_a_password() -> None:
    service = trained(0)
    refused = ask_ops(service, "/model", token="secret")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Basic realm="fedround"')
    basic = base64.b64encode(b"somebody:secret").decode()
    for given in ("Bearer secret", f"Basic {basic}"):
        assert ask_ops(service, "/model", token="secret", Authorization=given).status_code == 200
    assert ask_ops(service, "/readyz", token="secret").status_code == 200


def test_the_status_is_on_the_ops_port() -> None:
    status = ask_ops(trained(7), "/status").json()
    assert status["model"] == {"round": 7, "parameters": 2, "dtype": "float32"}
    assert status["ready"] is True


# The process


def settings(**values: Any) -> AggregatorSettings:
    return AggregatorSettings(bind="127.0.0.1", port=0, internal_port=0, ops_port=0, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spool_dir": "/nowhere"}, "AGGREGATOR_SPOOL_DIR"),
        ({"strategy": "unheard_of"}, "AGGREGATOR_STRATEGY"),
        ({"strategy_options": '{"no": "such"}'}, "AGGREGATOR_STRATEGY_OPTIONS: weighted_average does not take them"),
        (
            {"strategy": "trimmed_mean", "strategy_options": '{"trim": 0.5}'},
            "does not take them: trim .* must be at least 0 and less than 0.5",
        ),
        ({"strategy": "builtins:str"}, "builtins:str has neither `fold` and `result` nor `combine`"),
    ],
)
def test_settings_that_cannot_work_are_told_at_the_start(values: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build(settings(**values), Observers())


class Longest:
    codec = "bytes"

    def __init__(self, spec: Spec) -> None:
        pass

    def combine(self, samples: Sequence[int], updates: Sequence[memoryview]) -> memoryview:
        return max(updates, key=len)


def test_models_of_bytes_are_kept_and_served_and_a_strategy_of_arrays_does_not_take_them(tmp_path: Path) -> None:
    disk = Directory(tmp_path)
    given = settings(strategy=f"{__name__}:Longest")

    async def train() -> None:
        service = build(given, Observers(), disk)
        await open_round(service, round=3)
        await service.deliver(ANNA, TOKEN[ANNA], only(bytes(4) + b"a model"))
        with pytest.raises(WrongWeights):
            await service.deliver(BERT, TOKEN[BERT], only(bytes(4)))
        assert await service.close("attempt-0", [ANNA]) == Closed(parameters=0)

    asyncio.run(train())
    again = build(given, Observers(), disk)
    assert again.status()["model"] == {"round": 3, "parameters": 0, "dtype": "uint8"}
    answer = ask_ops(again, "/model")
    assert answer.content == b"a model"
    assert answer.headers["content-disposition"].endswith('"model.bin"')
    with pytest.raises(
        ConfigurationError, match="AGGREGATOR_STRATEGY=median: the model of round 3 in AGGREGATOR_DATA_DIR is of another"
    ):
        build(settings(strategy="median"), Observers(), disk)


def test_training_begins_with_the_initial_model_and_goes_on_from_the_newest(tmp_path: Path) -> None:
    initial = tmp_path / "initial.npy"
    np.save(initial, np.array([5.0, 6.0], "<f4"))
    disk = Directory(tmp_path)
    given = settings(initial_model=initial)
    first = build(given, Observers(), disk).model
    assert first is not None
    assert (first.round, list(first.tensors[0])) == (None, [5, 6])
    trained(3, store=ModelStore(disk))
    again = build(given, Observers(), disk).model
    assert again is not None
    assert (again.round, list(again.tensors[0])) == (3, [3, 2])


def test_an_initial_model_that_is_too_large_is_told_at_the_start(tmp_path: Path) -> None:
    np.save(file := tmp_path / "initial.npy", np.ones(1000, "|i1"))
    build(settings(initial_model=file, max_model_size=8000), Observers())
    with pytest.raises(ConfigurationError, match=r"AGGREGATOR_INITIAL_MODEL=.*more than 7999 bytes \(AGGREGATOR_MAX_MODEL_SIZE\)"):
        build(settings(initial_model=file, max_model_size=7999), Observers())


@pytest.mark.parametrize(("content", "message"), [(None, "No such file"), (b"nonsense", "neither an .npy array nor safetensors")])
def test_an_initial_model_that_is_none_is_told_at_the_start(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "initial.npy"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"AGGREGATOR_INITIAL_MODEL=.*: .*{message}"):
        build(settings(initial_model=file), Observers())


@pytest.mark.parametrize("kind", ["spool", "data"])
async def test_a_directory_that_cannot_be_written_makes_unready_until_it_can(kind: str, tmp_path: Path) -> None:
    directories = {name: tmp_path / name for name in ("spool", "data")}
    for directory in directories.values():
        directory.mkdir()

    class Telling(Health):
        looked = asyncio.Event()

        def fault(self, topic: str, reason: str) -> None:
            super().fault(topic, reason)
            self.looked.set()

        def clear(self, topic: str, *, within: float = math.inf) -> None:
            super().clear(topic, within=within)
            self.looked.set()

        async def until(self, reasons: list[str]) -> None:
            async with asyncio.timeout(20):
                while self.reasons != reasons:
                    self.looked.clear()
                    await self.looked.wait()

    health = Telling()
    values = {f"{name}_dir": str(directory) for name, directory in directories.items()}
    async with running(health, app.keep_checking(settings(**values), health, every=0.001)):
        directories[kind].rmdir()
        await health.until([f"the {kind} directory cannot be written: No such file or directory"])
        directories[kind].mkdir()
        await health.until([])


def test_an_aggregator_serves_three_ports_until_it_is_told_to_stop() -> None:
    command = [sys.executable, "-m", "fedround", "aggregator", "--port", "0", "--internal-port", "0", "--ops-port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"}) as process:
        assert process.stderr is not None
        ports: list[str] = []
        while len(ports) < 3:
            ports += re.findall(r"AGGREGATOR_\w*PORT: listening on .*, port (\d+)", process.stderr.readline())
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[2]}/readyz", timeout=10) as answer:
            assert json.load(answer) == {"ready": True, "reasons": []}
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert "Traceback" not in process.stderr.read()
