"""The coordinator's side of the internal port, with real sockets."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from threading import Event
from typing import TypeVar

import pytest

from fedround.common.books import (
    Admission,
    Books,
    Closed,
    Difference,
    Entry,
    Evaluation,
    Measured,
    Newest,
    Open,
    Outcome,
    Page,
    ServerEvaluation,
    Verdict,
    admissions_from_json,
    page_from_json,
    page_to_json,
)
from fedround.errors import BadAnswer, Busy, ExchangeError, Refused, UnknownAttempt, Unreachable
from fedround.http.remote_books import RemoteBooks
from support.peer import Peer, Reply, answer

T = TypeVar("T")
ATTEMPT = "6f1c9a52-7a84-4a0e-9d4a-1b1f0c8d2e61"
PAGE = Page(
    "first life",
    (
        Entry(1, ATTEMPT, "an id", Outcome.COUNTED, 5, {"loss": 0.5}, evaluation=Evaluation(2, 9, {"accuracy": 0.9})),
        Entry(2, ATTEMPT, "b", Outcome.REFUSED),
    ),
    Newest(3, parameters=5, run="first"),
    (Measured(2, {"mean": 0.25}, "digest"), Measured(3, {"mean": 0.5})),
    ("the disk hangs",),
    strategy="median",
    evaluator="my:function",
    evaluations=(ServerEvaluation(None, "first", 5, {"loss": 0.5}), ServerEvaluation(3, "first", reason="it failed")),
)


def ask(url: str, call: Callable[[RemoteBooks], Awaitable[T]], secret: str | None = None) -> T:
    async def asked() -> T:
        books = RemoteBooks(url, secret=lambda: secret)
        try:
            return await call(books)
        finally:
            await books.aclose()

    return asyncio.run(asked())


def sent_by(call: Callable[[RemoteBooks], Awaitable[object]], reply: bytes) -> tuple[str, object]:
    with Peer(reply) as peer:
        ask(peer.url + "/", call)
    (request,) = peer.requests
    return request.line, json.loads(request.body)


def test_remote_books_are_books() -> None:
    books: Books = RemoteBooks("http://aggregator:7082")
    assert isinstance(books, RemoteBooks)


def test_an_attempt_is_opened() -> None:
    line, message = sent_by(
        lambda books: books.open(Open(ATTEMPT, 3, (Admission("a", "t", "anna"),), ("b",))), answer("204 No Content")
    )
    assert line == "POST /books/open HTTP/1.1"
    assert message == {"attempt": ATTEMPT, "round": 3, "admissions": [["a", "t", "anna"]], "forget": ["b"], "run": ["", ""]}


def test_participants_are_admitted() -> None:
    line, message = sent_by(lambda books: books.admit(ATTEMPT, [Admission("a", "t")]), answer("200 OK", b"{}"))
    assert line == "POST /books/admit HTTP/1.1"
    assert message == {"attempt": ATTEMPT, "admissions": [["a", "t", ""]]}


def test_an_upload_permission_is_revoked() -> None:
    async def call(books: RemoteBooks) -> None:
        assert await books.revoke(ATTEMPT, "a", 12.5) is Verdict.RECEIVING

    line, message = sent_by(call, answer("200 OK", b'{"verdict":"receiving"}'))
    assert line == "POST /books/revoke HTTP/1.1"
    assert message == {"attempt": ATTEMPT, "id": "a", "patience": 12.5}


@pytest.mark.parametrize(
    ("reply", "result"),
    [
        (b'{"closed":{"parameters":7}}', Closed(7)),
        (b'{"difference":{"missing":["a"],"surplus":["b","c"]}}', Difference(frozenset("a"), frozenset("bc"))),
    ],
)
def test_an_attempt_is_closed(reply: bytes, result: Closed | Difference) -> None:
    async def call(books: RemoteBooks) -> None:
        assert await books.close(ATTEMPT, ["a"]) == result

    line, message = sent_by(call, answer("200 OK", reply))
    assert line == "POST /books/close HTTP/1.1"
    assert message == {"attempt": ATTEMPT, "ids": ["a"]}


def test_the_ledger_is_read_with_the_secret() -> None:
    with Peer(answer("200 OK", json.dumps(page_to_json(PAGE)).encode())) as peer:
        assert ask(peer.url, lambda books: books.ledger("first life", 7), secret="secret") == PAGE
    assert peer.requests[0].line == "GET /books/ledger?incarnation=first+life&after=7 HTTP/1.1"
    assert peer.requests[0].headers["authorization"] == "Bearer secret"


def test_pages_and_admissions_of_older_versions_are_accepted() -> None:
    page = page_to_json(PAGE)
    page["entries"] = [entry[:6] for entry in page["entries"]]
    page["measured"] = [measured[:2] for measured in page["measured"]]
    for name in ("strategy", "evaluator", "evaluations"):
        del page[name]
    older = page_from_json(page)
    assert [entry.evaluation for entry in older.entries] == [None, None]
    assert (older.newest, older.strategy, older.evaluator, older.evaluations) == (PAGE.newest, "", "", ())
    assert admissions_from_json([["a", "t"]]) == [Admission("a", "t")]


def test_metrics_in_the_ledger_are_limited_by_the_reader() -> None:
    page = json.dumps(page_to_json(PAGE)).replace('{"loss": 0.5}', '{"loss": 1.7e308, "a\\nb": 1, "kept": 2}')
    page = page.replace('{"mean": 0.5}', '{"mean": Infinity, "min": 0.5}')
    with Peer(answer("200 OK", page.encode())) as peer:
        found = ask(peer.url, lambda books: books.ledger("first life", 7))
    assert (found.entries[0].metrics, found.measured) == ({"kept": 2.0}, (PAGE.measured[0], Measured(3, {"min": 0.5})))


def test_calls_continue_during_a_long_poll_of_the_ledger() -> None:
    asked, called = Event(), Event()

    def held() -> Iterator[bytes]:
        asked.set()
        called.wait()
        yield answer("200 OK", json.dumps(page_to_json(PAGE)).encode())

    async def both(books: RemoteBooks) -> None:
        async with asyncio.TaskGroup() as group:
            page = group.create_task(books.ledger("first life", 0))
            await asyncio.to_thread(asked.wait)
            await books.admit(ATTEMPT, [])
            await books.admit(ATTEMPT, [])
            called.set()
        assert await page == PAGE

    with Peer(Reply(held()), answer("204 No Content"), answer("204 No Content")) as peer:
        ask(peer.url, both)
    assert len(peer.connections) == 2


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (answer("409 Conflict"), UnknownAttempt),
        (answer("401 Unauthorized"), Refused),
        (answer("503 Service Unavailable"), Busy),
        (answer("500 Internal Server Error"), Unreachable),
        (b"", Unreachable),
        (answer("200 OK", b"<html>", Content_Type="text/html"), BadAnswer),
        (answer("200 OK", b"["), BadAnswer),
        (answer("200 OK", b"[" * 60_000), BadAnswer),
        (answer("200 OK", b"[]"), BadAnswer),
        (answer("200 OK", b"{}"), BadAnswer),
        (answer("200 OK", b'{"verdict":"perhaps"}'), BadAnswer),
    ],
)
def test_each_failure_has_its_error(reply: bytes, error: type[ExchangeError]) -> None:
    with Peer(Reply(reply, close=True)) as peer, pytest.raises(error):
        ask(peer.url, lambda books: books.revoke(ATTEMPT, "a"))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://nowhere.invalid", f"http://{'a' * 64}.example"])
def test_a_missing_aggregator_is_unreachable(url: str) -> None:
    with pytest.raises(Unreachable, match=f"^GET {url[7:]}/books/ledger: "):
        ask(url, lambda books: books.ledger("", 0))


def test_an_oversized_response_is_a_bad_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedround.http.remote_books.MAX_RESPONSE", 10)
    with Peer(answer("200 OK", b'{"verdict":"revoked"}')) as peer, pytest.raises(BadAnswer, match="more than 10 bytes"):
        ask(peer.url, lambda books: books.revoke(ATTEMPT, "a"))
