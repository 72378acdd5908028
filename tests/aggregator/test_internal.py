"""The aggregator's internal port, for the coordinator."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest

from fedround.aggregator.internal import internal
from fedround.aggregator.service import AggregatorService
from fedround.common.books import Admission, Closed, Difference, Entry, Open, Outcome, Verdict
from fedround.common.secret import SecretHolder
from fedround.errors import ExchangeError, UnknownAttempt
from fedround.http.remote_books import RemoteBooks
from fedround.http.serve import Endpoint, serving
from fedround.http.tokens import NO_TOKENS
from support.aggregating import ANNA, BERT, open_round, send, service
from support.sockets import connected
from support.updates import update


@asynccontextmanager
async def remote(
    aggregator: AggregatorService, *, secret: str | None = None, sent: str | None = None
) -> AsyncIterator[RemoteBooks]:
    tokens = NO_TOKENS if secret is None else SecretHolder(lambda: secret)
    endpoint = Endpoint(internal(aggregator, tokens=tokens), host="127.0.0.1", port=0, setting="PORT")
    async with serving(endpoint):
        books = RemoteBooks(f"http://127.0.0.1:{endpoint.port}", secret=lambda: sent)
        try:
            yield books
        finally:
            await books.aclose()


async def test_the_internal_port_serves_the_ledger() -> None:
    aggregator = service()
    async with remote(aggregator) as books:
        await books.open(Open("attempt-0", 0, (Admission(ANNA, f"{ANNA} 0"),), ("somebody-gone",)))
        await books.admit("attempt-0", [Admission(BERT, f"{BERT} 0")])
        await send(aggregator, ANNA, update(1, 1, 2), metrics={"loss": 0.5})
        page = await books.ledger("another", 0)
        assert page.entries == (Entry(1, "attempt-0", ANNA, Outcome.COUNTED, 1, {"loss": 0.5}),)
        assert await books.revoke("attempt-0", ANNA) is Verdict.COUNTED
        assert await books.revoke("attempt-0", BERT) is Verdict.REVOKED
        assert await books.close("attempt-0", [BERT]) == Difference(frozenset([BERT]), frozenset([ANNA]))
        assert await books.close("attempt-0", [ANNA]) == Closed(parameters=2)
        with pytest.raises(UnknownAttempt):
            await books.close("attempt-9", [ANNA])


async def test_the_internal_port_requires_its_secret() -> None:
    aggregator = service()
    async with remote(aggregator, secret="secret", sent="secret") as books:
        await books.open(Open("attempt-0", 0, ()))
    for wrong in (None, "wrong"):
        async with remote(aggregator, secret="secret", sent=wrong) as books:
            with pytest.raises(ExchangeError):
                await books.open(Open("attempt-1", 0, ()))
    assert aggregator.status()["attempt"] == "attempt-"


async def test_a_server_with_an_open_long_poll_stops_immediately() -> None:
    aggregator = service(patience=60.0)
    await open_round(aggregator)
    async with AsyncExitStack() as after, asyncio.timeout(4):  # the poll would last for a minute, the grace is 5 s
        endpoint = Endpoint(internal(aggregator), host="127.0.0.1", port=0, setting="PORT")
        async with serving(endpoint), asyncio.TaskGroup() as tasks:
            upload = tasks.create_task(send(aggregator, ANNA, update(1, 1, 2)))
            incarnation = (await aggregator.ledger("another", 0)).incarnation
            coordinator = await after.enter_async_context(connected(endpoint.port))
            await coordinator.ask("GET", f"/books/ledger?incarnation={incarnation}&after=1")
            await upload  # this poll has begun: it acknowledges the update
            aggregator.stop()
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
async def test_a_web_page_on_the_same_machine_cannot_call_the_internal_port(headers: Mapping[str, str], status: int) -> None:
    """Without a preflight, a page can send text, a form, or no content type. Otherwise the request has its origin."""
    aggregator = service()
    transport = httpx.ASGITransport(internal(aggregator))
    opened = json.dumps({"attempt": "a", "round": 0, "admissions": [], "forget": []}).encode()
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        answer = await client.post("/books/open", content=opened, headers=headers)
        assert answer.status_code == status
        assert (aggregator.status()["attempt"] == "a") is (status == 200)
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
async def test_an_invalid_internal_request_is_refused(method: str, address: str, body: bytes, status: int) -> None:
    transport = httpx.ASGITransport(internal(service()))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        answer = await client.request(method, address, content=body, headers=JSON)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


async def test_an_internal_request_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedround.aggregator.internal.MAX_CALL", 100)
    transport = httpx.ASGITransport(internal(service()))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        assert (await client.post("/books/open", content=bytes(101), headers=JSON)).status_code == 413
