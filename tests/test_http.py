"""What a participant asks with, against real sockets."""

import asyncio
import gc
import json
import logging
import os
import re
import socket
import tracemalloc
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Self, Unpack

import httpx
import numpy as np
import pytest

from fedround.common.text import redact
from fedround.common.wire import HeartbeatState, Problem, RendezVous, StartTraining, UpdateOutcome
from fedround.errors import (
    Aborted,
    BadAnswer,
    Busy,
    ConfigurationError,
    ExchangeError,
    FedroundError,
    NotConnected,
    Refused,
    TooLarge,
    Unreachable,
)
from fedround.events import ExchangeEnded, Fact
from fedround.http import deadlines, http_log, transport
from fedround.http.client import AggregatorClient, CoordinatorClient, Download, fetch_model
from fedround.http.exchange import Options
from fedround.http.peer import AsyncPeer
from support.peer import Peer, Reply, answer, chunked

ID = "3f1c9a52-7a84-4a0e-9d4a-1b1f0c8d2e61"
TOKEN = "b7d30e11-52c8-4c7b-8f0d-6a5e4c3b2a19"
STAND_BY = b'{"round":null,"state":"stand_by"}'
MIB = 1 << 20


def coordinator(peer: Peer | str, **options: Unpack[Options]) -> "closing[CoordinatorClient]":
    return closing(CoordinatorClient(peer if isinstance(peer, str) else peer.url, **options))


def aggregator(max_model_size: int = 64 * MIB, **options: Unpack[Options]) -> "closing[AggregatorClient]":
    return closing(AggregatorClient(max_model_size=max_model_size, **options))


def problem(status: str, detail: str) -> bytes:
    return answer(status, Problem(int(status[:3]), "No", detail).encode(), Content_Type=Problem.media_type)


def rendez_vous(peer: Peer | str, **options: Unpack[Options]) -> RendezVous:
    with coordinator(peer, **options) as client:
        return client.rendez_vous("ada")


def download(peer: Peer | str, *, etag: str | None = None, max_model_size: int = 64 * MIB) -> Download:
    with aggregator(max_model_size) as client:
        return client.download(peer if isinstance(peer, str) else peer.url, ID, TOKEN, etag=etag)


def upload(peer: Peer, *buffers: bytes | memoryview, metrics: str | None = None) -> UpdateOutcome | None:
    with aggregator() as client:
        return client.upload(peer.url, ID, TOKEN, buffers, metrics=metrics)


# The coordinator


def test_a_participant_registers_with_its_name_and_token() -> None:
    with Peer(answer("200 OK", RendezVous(ID, 3).encode())) as peer, coordinator(peer, token="secret") as client:
        assert client.rendez_vous("ada", ordinal=2) == RendezVous(ID, 3)
    request = peer.requests[0]
    assert request.line == "GET /rendez_vous HTTP/1.1"
    assert request.headers["fedround-participant"] == "ada"
    assert request.headers["fedround-ordinal"] == "2"
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("path", ["/fl", "/fl/"])
def test_the_path_of_the_coordinators_url_is_kept(path: str) -> None:
    with Peer(answer("200 OK", STAND_BY)) as peer, coordinator(peer.url + path) as client:
        client.heartbeat(ID, wait=0)
    assert peer.requests[0].line == f"GET /fl/heartbeat/{ID} HTTP/1.1"


def test_a_heartbeat_asks_to_be_held_in_whole_seconds_or_not_at_all() -> None:
    with Peer(*[answer("200 OK", STAND_BY)] * 3) as peer, coordinator(peer) as client:
        for wait in (2.5, 15, 0.0):
            assert client.heartbeat(ID, wait=wait).state is HeartbeatState.STAND_BY
    assert [request.headers["prefer"] for request in peer.requests] == ["wait=3", "wait=15", "wait=0"]


@pytest.mark.parametrize(("wait", "seconds"), [(15, 20), (0, 5)])
def test_a_heartbeat_has_five_seconds_more_than_it_may_be_held(wait: float, seconds: float) -> None:
    """One on a connection that has died in silence leaves time for others before the coordinator misses the participant."""
    seen: list[dict[str, Any]] = []

    with Peer(answer("200 OK", STAND_BY)) as peer, coordinator(peer) as client:
        client._http.event_hooks["request"].append(lambda request: seen.append(request.extensions))
        client.heartbeat(ID, wait=wait)
    assert seen[0]["timeout"]["read"] == seconds


def test_who_traces_surrounds_a_request_sends_headers_with_it_and_is_told_of_the_answer() -> None:
    seen: list[object] = []

    class Exchange:
        headers: Mapping[str, str] = {"Traceparent": "here"}

        def answered(self, status: int) -> None:
            seen.append(status)

    @contextmanager
    def trace(method: str, url: str, path: str) -> Iterator[Exchange]:
        seen.append((method, url.rpartition("/")[2], path))
        yield Exchange()
        seen.append("ended")

    with Peer(answer("200 OK", STAND_BY)) as peer, coordinator(peer, trace=trace) as client:
        client.heartbeat(ID, wait=0)
    assert seen == [("GET", ID, "/heartbeat/{id}"), 200, "ended"]
    assert peer.requests[0].headers["traceparent"] == "here"


def test_small_requests_share_a_connection() -> None:
    with Peer(*[answer("200 OK", STAND_BY)] * 3) as peer, coordinator(peer) as client:
        for _ in range(3):
            client.heartbeat(ID, wait=0)
    assert len(peer.connections) == 1


def test_start_training_tells_url_and_token() -> None:
    order = StartTraining("http://aggregator:8082", TOKEN)
    with Peer(answer("200 OK", order.encode())) as peer, coordinator(peer) as client:
        assert client.start_training(ID) == order


def test_an_empty_404_to_start_training_is_no_verdict() -> None:
    with (
        Peer(answer("404 Not Found")) as peer,
        coordinator(peer) as client,
        pytest.raises(Unreachable, match="cannot reach its aggregator"),
    ):
        client.start_training(ID)


def test_a_404_to_start_training_that_gives_a_reason_is_a_refusal() -> None:
    with Peer(problem("404 Not Found", "no UUID")) as peer, coordinator(peer) as client, pytest.raises(Refused, match="no UUID"):
        client.start_training(ID)


@pytest.mark.parametrize("status", ["204 No Content", "404 Not Found", "405 Method Not Allowed"])
def test_leaving_is_fine_with_a_coordinator_that_knows_no_such_thing(status: str) -> None:
    with Peer(answer(status)) as peer, coordinator(peer) as client:
        client.leave(ID)
    assert peer.requests[0].line == f"DELETE /rendez_vous/{ID} HTTP/1.1"
    assert peer.requests[0].body == b""


def test_a_reason_to_leave_is_one_line_without_ids() -> None:
    with Peer(answer("204 No Content")) as peer, coordinator(peer) as client:
        client.leave(ID, f"train failed:\n\tRuntimeError: {ID}\x1b[2J {'x' * 300}")
    request = peer.requests[0]
    assert request.headers["content-type"] == "application/problem+json"
    assert json.loads(request.body) == {
        "title": "Training failed",
        "detail": f"train failed:  RuntimeError: {ID[:8]} [2J {'x' * 300}"[:200],
    }


# What goes wrong


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("204 No Content", BadAnswer),
        ("302 Found", BadAnswer),
        ("304 Not Modified", BadAnswer),
        ("400 Bad Request", Refused),
        ("401 Unauthorized", Refused),
        ("404 Not Found", Refused),
        ("429 Too Many Requests", Busy),
        ("500 Internal Server Error", Unreachable),
        ("503 Service Unavailable", Busy),
        ("504 Gateway Timeout", Unreachable),
    ],
)
def test_each_status_is_one_of_our_errors(status: str, error: type[ExchangeError]) -> None:
    with Peer(answer(status)) as peer, pytest.raises(error, match=rf"^GET {peer.address}/rendez_vous: .*{status[:3]}") as caught:
        rendez_vous(peer)
    assert type(caught.value) is error


def test_a_redirect_is_not_followed() -> None:
    with Peer(answer("301 Moved", Location="/elsewhere"), answer("200 OK", RendezVous(ID).encode())) as peer:
        with pytest.raises(BadAnswer, match="301"):
            rendez_vous(peer)
        assert len(peer.requests) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("86400", 86400),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("soon", 1),
        ("-3", 1),
        ("", 1),
    ],
)
def test_a_busy_peer_says_when_to_come_back(value: str, seconds: float) -> None:
    with Peer(answer("503 Service Unavailable", Retry_After=value)) as peer, pytest.raises(Busy) as caught:
        rendez_vous(peer)
    assert caught.value.retry_after == seconds


def test_a_busy_peer_may_say_when_by_a_date() -> None:
    then = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    with Peer(answer("503 Service Unavailable", Retry_After=then)) as peer, pytest.raises(Busy) as caught:
        rendez_vous(peer)
    assert caught.value.retry_after == pytest.approx(3600, abs=100)


def test_a_busy_peer_that_does_not_say_when_is_asked_again_after_a_second() -> None:
    with Peer(answer("429 Too Many Requests")) as peer, pytest.raises(Busy) as caught:
        rendez_vous(peer)
    assert caught.value.retry_after == 1


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"title":"No","detail":"not this round"}', "not this round"),
        (b'{"title":"No"}', "No"),
        (f'{{"detail":"who is {ID}?"}}'.encode(), "who is 3f1c9a52?"),
        (b'{"detail":"%s"}' % (b"a" * 999), "a" * 200),
        (b"[]", ""),
        (b"{", ""),
        (b"[" * 60_000, ""),
        (b"\xff", ""),
    ],
)
def test_a_refusal_brings_its_reason(body: bytes, detail: str) -> None:
    with Peer(answer("409 Conflict", body, Content_Type=Problem.media_type)) as peer, pytest.raises(Refused) as caught:
        rendez_vous(peer)
    assert (caught.value.status, caught.value.detail) == (409, detail)


def test_a_refusal_stands_without_the_rest_of_its_reason() -> None:
    cut = b"HTTP/1.1 413 Too Large\r\nContent-Type: application/problem+json\r\nContent-Length: 99\r\n\r\n{"
    with Peer(Reply(cut, close=True)) as peer, pytest.raises(Refused, match="413"):
        rendez_vous(peer)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (answer("200 OK", b"<html>", Content_Type="text/html; charset=utf-8"), "HTML"),
        (answer("200 OK", b"\x1f\x8b", Content_Encoding="gzip"), "compressed"),
        (answer("200 OK", b"hello"), "hello"),
        (answer("200 OK", b'{"id":"7","ok":true}'), "no UUID"),
        (answer("200 OK", b"x" * (transport.MAX_RESPONSE + 1)), "more than"),
    ],
)
def test_an_answer_that_is_not_the_protocols_is_a_bad_answer(reply: bytes, text: str) -> None:
    with Peer(reply) as peer, pytest.raises(BadAnswer, match=rf"^GET {peer.address}/rendez_vous: .*{text}"):
        rendez_vous(peer)


@pytest.mark.parametrize(
    "reply",
    [b"", b"SSH-2.0-OpenSSH_9.9\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n{", b"HTTP/1.1 200 OK\r\nContent-"],
)
def test_an_answer_that_ends_too_early_is_unreachable(reply: bytes) -> None:
    with Peer(Reply(reply, close=True)) as peer, pytest.raises(Unreachable, match=f"^GET {peer.address}/rendez_vous: "):
        rendez_vous(peer)


def test_a_slow_answer_is_unreachable() -> None:
    over = Event()

    def late() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n"
        over.wait()

    with Peer(Reply(late())) as peer:
        with pytest.raises(Unreachable, match="timed out"):
            rendez_vous(peer, timeout=0.02)
        over.set()


class Drips:
    """Sends its pieces again and again, until the block ends."""

    def __init__(self, first: bytes, piece: bytes) -> None:
        self._first, self._piece, self._over = first, piece, Event()

    def __iter__(self) -> Iterator[bytes]:
        yield self._first
        while not self._over.wait(0.01):
            yield self._piece

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()


DRIPS = [(b"HTTP/1.1 200 OK\r\nX: ", b"y"), (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"), (b"HTTP/1.1 100 Continue\r\n", b"x: y\r\n")]
TOO_SLOW = "timed out|takes too long"


@pytest.mark.parametrize(("first", "piece"), DRIPS)
def test_a_head_that_drips_is_waited_for_until_the_deadline(first: bytes, piece: bytes) -> None:
    with Drips(first, piece) as drips, Peer(Reply(drips)) as peer, pytest.raises(Unreachable, match=TOO_SLOW):
        rendez_vous(peer, timeout=0.1)


@pytest.mark.parametrize(("first", "piece"), [*DRIPS, (answer("200 OK", bytes(50_000))[:-50_000], b"x")])
def test_a_model_that_drips_is_unreachable(first: bytes, piece: bytes) -> None:
    with (
        Drips(first, piece) as drips,
        Peer(Reply(drips)) as peer,
        aggregator(timeout=0.1) as client,
        pytest.raises(Unreachable, match=TOO_SLOW),
    ):
        client.download(peer.url, ID, TOKEN)


def test_an_update_that_nobody_takes_fast_enough_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    over = Event()

    def sip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            while not over.wait(0.01) and connection.recv(1000):
                pass

    monkeypatch.setattr(deadlines, "MIN_RATE", 1e9)
    with socket.create_server(("127.0.0.1", 0)) as server, aggregator(timeout=0.2) as client, ThreadPoolExecutor() as pool:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        done = pool.submit(sip, server)
        with pytest.raises(Unreachable, match=TOO_SLOW):
            client.upload(f"http://127.0.0.1:{server.getsockname()[1]}", ID, TOKEN, [bytes(8 * MIB)])
        over.set()
        done.result()


def test_a_model_at_the_minimum_rate_may_take_longer_than_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = 60

    def steady() -> Iterator[bytes]:
        yield answer("200 OK", bytes(1000 * pieces))[: -1000 * pieces]
        pause = Event()
        for _ in range(pieces):
            pause.wait(0.01)
            yield bytes(1000)

    monkeypatch.setattr(deadlines, "MIN_RATE", 1000.0)
    with Peer(Reply(steady())) as peer, aggregator(timeout=0.5) as client:
        model = client.download(peer.url, ID, TOKEN)
    assert isinstance(model.body, memoryview)
    assert len(model.body) == 1000 * pieces


@pytest.mark.parametrize(("first", "piece"), [*DRIPS, (answer("200 OK", bytes(50_000))[:-50_000], b"x")])
def test_whoever_asks_without_blocking_has_one_deadline_too(first: bytes, piece: bytes) -> None:
    async def main(peer: Peer) -> None:
        client = AsyncPeer(peer.url)
        try:
            await client.ask("GET", "/books/ledger", timeout=0.1, max_response=1 << 20)
        finally:
            await client.aclose()

    with Drips(first, piece) as drips, Peer(Reply(drips)) as peer, pytest.raises(Unreachable):
        asyncio.run(main(peer))


@pytest.mark.parametrize("head", ["200 OK\r\n", "404 No\r\nContent-Type: application/problem+json\r\n"])
def test_an_answer_that_comes_byte_by_byte_is_not_waited_for(head: str) -> None:
    over = Event()

    def drop_by_drop() -> Iterator[bytes]:
        yield f"HTTP/1.1 {head}Content-Length: 60000\r\n\r\n".encode()
        while not over.wait(0.01):
            yield b" "

    with Peer(Reply(drop_by_drop())) as peer:
        with pytest.raises((Unreachable, Refused), match=r"^GET 127.*(timed out|takes too long|refused with 404)$"):
            rendez_vous(peer, timeout=0.05)
        over.set()


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1", "http://nowhere.invalid", f"http://{'a' * 64}.example", "http://a..b", "http://127.0.0.1:99999"],
)
def test_a_peer_that_is_not_there_was_sent_nothing(url: str) -> None:
    with pytest.raises(NotConnected, match=f"^GET {url[7:]}/rendez_vous: "):
        rendez_vous(url)


def test_a_peer_behind_a_proxy_that_does_not_reach_it_was_sent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Peer(answer("502 Bad Gateway")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(NotConnected, match="502"):
            rendez_vous("https://nowhere.invalid")


def test_a_peer_that_hangs_up_may_have_got_what_was_sent() -> None:
    with Peer(Reply(b"", close=True)) as peer, pytest.raises(Unreachable) as caught:
        upload(peer, b"update")
    assert not isinstance(caught.value, NotConnected)


def test_a_peer_without_tls_is_unreachable_by_https() -> None:
    with Peer() as peer, pytest.raises(Unreachable):
        rendez_vous(peer.url.replace("http", "https"))


@pytest.mark.parametrize("url", ["", "http://", "coordinator:8081", "ftp://coordinator"])
def test_a_coordinator_url_that_is_none_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="http://host:port"):
        CoordinatorClient(url)


@pytest.mark.parametrize("url", ["", "http://", "aggregator:8082", "ftp://aggregator", "http://[::1", "http://a\0b"])
def test_an_aggregator_url_that_is_none_is_a_bad_answer(url: str) -> None:
    with pytest.raises(BadAnswer, match=r"^GET "):
        download(url)


@pytest.mark.parametrize("token", ["", "two words", "line\n", "schlüssel"])
def test_a_token_that_no_header_can_hold_is_a_configuration_error(token: str) -> None:
    with pytest.raises(ConfigurationError, match="visible ASCII"):
        AggregatorClient(max_model_size=1, token=token)


def test_every_exception_of_httpx_has_its_place() -> None:
    """Fails when httpx gains one: is it the peer's, and so in `FOREIGN`, or a mistake of ours?"""
    ours = (httpx.StreamError, httpx.HTTPStatusError)
    bases = {httpx.HTTPError, httpx.RequestError}
    found = {kind for kind in vars(httpx).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert {kind for kind in found - bases if not issubclass(kind, (*transport.FOREIGN, *ours))} == set()
    assert set(transport.FOREIGN) - found == {OSError, UnicodeError}


# Downloads


def test_a_model_comes_in_a_writable_buffer_with_its_etag() -> None:
    model = os.urandom(3 * MIB)
    with Peer(answer("200 OK", model, ETag='"4"')) as peer:
        received = download(peer.url + "/fl/")
    assert peer.requests[0].line == f"GET /fl/{ID}/{TOKEN} HTTP/1.1"
    assert received.body is not None
    assert not received.body.readonly
    assert (bytes(received.body), received.etag) == (model, '"4"')


def test_a_model_of_unannounced_size_is_received_too() -> None:
    with Peer(chunked(b"one ", b"two")) as peer:
        received = download(peer)
    assert received.body is not None
    assert not received.body.readonly
    assert bytes(received.body) == b"one two"


@pytest.mark.parametrize("reply", [answer("200 OK"), chunked()])
def test_before_the_first_aggregation_the_model_is_empty(reply: bytes) -> None:
    with Peer(reply) as peer:
        assert download(peer) == Download(memoryview(b""), None)


def test_a_model_that_did_not_change_is_not_sent_again() -> None:
    not_modified = b'HTTP/1.1 304 Not Modified\r\nETag: "4"\r\n\r\n'
    with Peer(not_modified, not_modified) as peer, aggregator() as client:
        for _ in range(2):
            assert client.download(peer.url, ID, TOKEN, etag='"4"') == Download(None, '"4"')
    assert peer.requests[0].headers["if-none-match"] == '"4"'
    assert len(peer.connections) == 1


@pytest.mark.parametrize("reply", [b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999\r\n\r\n", chunked(b"12345678", b"9")])
def test_a_model_above_the_limit_is_not_received(reply: bytes) -> None:
    with Peer(Reply(reply, close=True)) as peer, pytest.raises(TooLarge, match="PARTICIPANT_MAX_MODEL_SIZE allows 8"):
        download(peer, max_model_size=8)


def test_a_model_of_just_the_limit_is_received() -> None:
    with Peer(answer("200 OK", b"12345678")) as peer:
        assert download(peer, max_model_size=8) == Download(memoryview(b"12345678"), None)


def test_a_model_that_is_cut_short_is_unreachable() -> None:
    with Peer(Reply(answer("200 OK", bytes(MIB))[:-1], close=True)) as peer, pytest.raises(Unreachable):
        download(peer)


def test_an_html_page_is_no_model() -> None:
    with Peer(answer("200 OK", b"<html>", Content_Type="text/html")) as peer, pytest.raises(BadAnswer, match="HTML"):
        download(peer)


def test_the_405_of_a_0_8_aggregator_is_a_refusal() -> None:
    reply = answer("405 Method Not Allowed", b"HTTP method not allowed", Content_Type="text/plain")
    with Peer(reply) as peer, pytest.raises(Refused) as caught:
        download(peer)
    assert caught.value.status == 405


def test_a_model_is_received_in_the_memory_that_it_takes() -> None:
    with Peer(answer("200 OK", bytes(16 * MIB))) as peer:
        assert peak_of(lambda: download(peer)) < 17 * MIB


# Uploads


def test_an_update_is_sent_as_its_buffers_one_after_the_other() -> None:
    weights = np.arange(200_000, dtype="<f8")
    with Peer(answer("200 OK", Fedround_Update="counted")) as peer:
        assert upload(peer, b"\0\0\0\1", b"", weights.data, np.float32(0).data, metrics='{"loss":1}') is UpdateOutcome.COUNTED
    request = peer.requests[0]
    assert request.line == f"POST /{ID}/{TOKEN} HTTP/1.1"
    assert request.body == b"\0\0\0\1" + weights.tobytes() + bytes(4)
    assert request.headers["content-type"] == "application/octet-stream"
    assert request.headers["fedround-metrics"] == '{"loss":1}'
    assert "transfer-encoding" not in request.headers


def test_the_200_of_a_0_8_aggregator_says_nothing() -> None:
    with Peer(answer("200 OK")) as peer:
        assert upload(peer, b"update") is None
    assert "fedround-metrics" not in peer.requests[0].headers


def test_an_outcome_that_the_protocol_does_not_know_is_a_bad_answer() -> None:
    with Peer(answer("200 OK", Fedround_Update="perhaps")) as peer, pytest.raises(BadAnswer, match="perhaps"):
        upload(peer, b"update")


def test_a_refusal_in_mid_body_is_read_although_the_write_fails() -> None:
    refusal = problem("413 Content Too Large", "16 bytes are allowed")
    with Peer(Reply(refusal, read=1000, close=True)) as peer, pytest.raises(Refused) as caught:
        upload(peer, bytes(32 * MIB))
    assert (caught.value.status, caught.value.detail) == (413, "16 bytes are allowed")


def test_an_upload_that_is_cut_without_a_reason_is_unreachable() -> None:
    with Peer(Reply(b"", read=1000, close=True)) as peer, pytest.raises(Unreachable):
        upload(peer, bytes(32 * MIB))


def test_an_update_is_sent_without_being_copied_whole() -> None:
    weights = np.zeros(32 * MIB, np.uint8)
    with Peer(Reply(answer("200 OK"), read=1000)) as peer:
        assert peak_of(lambda: upload(peer, weights.data)) < 2 * MIB


@pytest.fixture
def garbage_stays() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("garbage_stays")
@pytest.mark.parametrize("reply", [Reply(answer("200 OK")), Reply(answer("413 Content Too Large"), read=1000, close=True)])
def test_nothing_of_a_transfer_is_kept(reply: Reply) -> None:
    """Not even until the garbage is collected: it would be another model's memory."""
    with Peer(answer("200 OK", bytes(16 * MIB)), reply) as peer, aggregator() as client:
        body = client.download(peer.url, ID, TOKEN).body
        assert body is not None
        kept = weakref.ref(body.obj)
        with suppress(ExchangeError):
            client.upload(peer.url, ID, TOKEN, [body])
        del body
        assert kept() is None


def test_an_upload_follows_a_download_on_the_same_connection() -> None:
    with Peer(answer("200 OK"), answer("200 OK")) as peer, aggregator() as client:
        client.download(peer.url, ID, TOKEN)
        client.upload(peer.url, ID, TOKEN, [b"update"])
    assert len(peer.connections) == 1


def test_an_upload_gets_a_new_connection_when_the_old_one_has_been_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "KEEPALIVE", 0.0)
    with Peer(answer("200 OK"), answer("200 OK")) as peer, aggregator() as client:
        client.download(peer.url, ID, TOKEN)
        client.upload(peer.url, ID, TOKEN, [b"update"])
    assert len(peer.connections) == 2


def test_an_idle_connection_is_used_again_for_four_seconds() -> None:
    """Servers close theirs after 5 s (uvicorn, Node.js) and more."""
    assert transport.KEEPALIVE == 4


def test_a_connection_that_the_peer_has_closed_is_not_used_again() -> None:
    with Peer(Reply(answer("200 OK"), close=True), answer("200 OK")) as peer, aggregator() as client:
        client.download(peer.url, ID, TOKEN)
        peer.hung_up.wait()
        client.upload(peer.url, ID, TOKEN, [b"update"])


def test_a_transfer_can_be_cut_from_another_thread_and_the_next_one_is_whole() -> None:
    halfway, go_on = Event(), Event()

    def slow() -> Iterator[bytes]:
        yield answer("200 OK", bytes(100))[:-50]
        halfway.set()
        go_on.wait()
        yield bytes(50)

    with Peer(Reply(slow()), answer("200 OK", b"model")) as peer, aggregator() as client, ThreadPoolExecutor() as pool:
        cut = pool.submit(client.download, peer.url, ID, TOKEN)
        halfway.wait()
        client.abort()
        go_on.set()
        with pytest.raises(Aborted):
            cut.result()
        assert client.download(peer.url, ID, TOKEN) == Download(memoryview(b"model"), None)


def test_an_upload_can_be_cut_from_another_thread() -> None:
    halfway, go_on = Event(), Event()

    def slow() -> Iterator[bytes]:
        halfway.set()
        go_on.wait()
        yield b""

    with Peer(Reply(slow(), read=1000)) as peer, aggregator() as client, ThreadPoolExecutor() as pool:
        cut = pool.submit(client.upload, peer.url, ID, TOKEN, [bytes(64 * MIB)])
        halfway.wait()
        client.abort()
        go_on.set()
        with pytest.raises(Aborted):
            cut.result()


# The result


def test_the_newest_model_is_fetched_with_its_round() -> None:
    with Peer(answer("200 OK", b"model", ETag='"17"')) as peer:
        assert fetch_model(peer.url + "/", token="secret") == (memoryview(b"model"), 17)
    assert peer.requests[0].line == "GET /model HTTP/1.1"
    assert peer.requests[0].headers["authorization"] == "Bearer secret"


def test_a_former_model_is_asked_for_by_its_round() -> None:
    with Peer(answer("200 OK", b"model", ETag='"3"')) as peer:
        assert fetch_model(peer.url, round="3") == (memoryview(b"model"), 3)
    assert peer.requests[0].line == "GET /model?round=3 HTTP/1.1"


def test_a_model_without_an_etag_is_of_an_unknown_round() -> None:
    with Peer(answer("200 OK", b"model")) as peer:
        assert fetch_model(peer.url) == (memoryview(b"model"), None)


# Events and logs


def told_of(call: Any, *arguments: Any) -> ExchangeEnded:
    """The one event of an exchange that fails or not."""
    facts: list[Fact] = []
    with aggregator(observe=facts.append) as client, suppress(FedroundError):
        getattr(client, call)(*arguments)
    (fact,) = facts
    assert isinstance(fact, ExchangeEnded)
    return fact


def test_observers_are_told_of_an_exchange() -> None:
    with Peer(answer("200 OK", b"model")) as peer:
        fact = told_of("download", peer.url, ID, TOKEN)
    assert 0 < fact.seconds < 10
    assert fact == ExchangeEnded("GET", "/{id}/{token}", 200, None, fact.seconds, sent=0, received=5)


def test_observers_are_told_of_what_was_sent() -> None:
    with Peer(answer("404 Not Found")) as peer:
        fact = told_of("upload", peer.url, ID, TOKEN, [b"update", b"s"])
    assert (fact.method, fact.status, fact.error, fact.sent) == ("POST", 404, "Refused", 7)


def test_observers_are_told_of_an_exchange_without_an_answer() -> None:
    fact = told_of("download", "http://127.0.0.1:1", ID, TOKEN)
    assert (fact.status, fact.error) == (None, "ConnectError")


def exercise(url: str) -> None:
    """Requests of every kind, with ids and tokens in paths, headers and reasons."""
    with coordinator(url, token="geheim") as client:
        client.heartbeat(ID, wait=1)
    with aggregator(token="geheim") as client, pytest.raises(Refused):
        client.upload(url, ID, TOKEN, [b"update"])


REPLIES = answer("200 OK", STAND_BY), answer("404 Not Found", Location=f"/{ID}/{TOKEN}")


def assert_no_secrets(text: str) -> None:
    assert ID[:8] in text
    for secret in (ID, TOKEN, TOKEN[9:], "geheim", "Z2VoZWlt"):
        assert secret not in text


def test_no_line_of_a_library_has_an_id_or_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Peer(*REPLIES) as peer:
        exercise(peer.url)
    assert {"httpx", "httpcore.connection", "httpcore.http11"} <= {record.name for record in caplog.records}
    assert_no_secrets(caplog.text)


def test_no_line_about_a_proxy_has_an_id_or_token(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.DEBUG)
    with Peer(*REPLIES) as peer:
        monkeypatch.setenv("HTTP_PROXY", f"http://ada:geheim@{peer.address}")
        exercise("http://platform.invalid")
    assert peer.requests[0].line == f"GET http://platform.invalid/heartbeat/{ID} HTTP/1.1"
    assert_no_secrets(caplog.text)


def test_the_filters_are_on_every_logger_of_httpx_and_httpcore() -> None:
    import httpcore

    sources = [source.read_text() for package in (httpx, httpcore) for source in Path(package.__path__[0]).rglob("*.py")]
    assert {name for source in sources for name in re.findall(r'getLogger\("(.*?)"\)', source)} == set(http_log.FOREIGN)


def test_no_error_has_an_id_or_token() -> None:
    with Peer(*REPLIES) as peer, aggregator() as client:
        client.download(peer.url, ID, TOKEN)
        with pytest.raises(Refused) as caught:
            client.download(peer.url, ID, TOKEN)
    assert str(caught.value) == f"GET {peer.address}/{{id}}/{{token}}: refused with 404"


@pytest.fixture
def request_log() -> Iterator[None]:
    http_log.log_requests(True)
    yield
    http_log.log_requests(False)


@pytest.mark.usefixtures("request_log")
def test_requests_are_logged_as_xain_sdk_does(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "xain-sdk.http")
    with Peer(*REPLIES) as peer:
        exercise(peer.url)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "xain-sdk.http"]
    heartbeat, update = f"{peer.url}/heartbeat/{ID[:8]}", f"{peer.url}/{ID[:8]}/***"
    for line in [
        ("INFO", f">>> GET {heartbeat}"),
        ("DEBUG", "prefer: wait=1"),
        ("DEBUG", "authorization: Bearer ***"),
        ("INFO", f"<<< GET {heartbeat} [200]"),
        ("INFO", f">>> POST {update}"),
        ("WARNING", f"<<< POST {update} [404]"),
    ]:
        assert line in lines
    assert_no_secrets(caplog.text)


def test_requests_are_not_logged_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Peer(*REPLIES) as peer:
        exercise(peer.url)
    assert ">>>" not in caplog.text


def test_redaction_leaves_the_rest_alone() -> None:
    assert redact("GET http://ada:pw@h/x?a=1 'Bearer t0ken'") == "GET http://***@h/x?a=1 'Bearer ***'"
    assert redact(f"/{ID.upper()}/{TOKEN.upper()}/x") == f"/{ID[:8].upper()}/***/x"


# Proxies


def test_a_peer_on_loopback_is_asked_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with Peer(answer("200 OK", RendezVous(ID).encode())) as peer:
        assert rendez_vous(peer) == RendezVous(ID)


@pytest.mark.parametrize("proxy", ["gopher://ada:geheim@proxy", "http://[::1"])
def test_a_proxy_that_cannot_be_used_is_a_configuration_error(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(ConfigurationError, match="proxy") as caught:
        CoordinatorClient("http://coordinator")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("no_proxy", ["localhost,fd00:1::/64", "[::1]", "127.0.0.0/8", "[", "://"])
def test_variables_that_are_meant_for_other_urls_do_no_harm(no_proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://nowhere.invalid")
    monkeypatch.setenv("HTTPS_PROXY", "gopher://[")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    monkeypatch.setenv("SSL_CERT_FILE", "/nope")
    with Peer(answer("200 OK", RendezVous(ID).encode()), answer("200 OK", b"model")) as peer:
        assert rendez_vous(peer) == RendezVous(ID)
        assert download(peer).body == b"model"


def test_what_no_proxy_excepts_is_asked_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    host = socket.gethostname()
    monkeypatch.setattr(socket, "getaddrinfo", partial(_here, socket.getaddrinfo, host))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with Peer(*[answer("200 OK", RendezVous(ID).encode())] * 2) as peer:
        url = peer.url.replace("127.0.0.1", host)
        with pytest.raises(NotConnected):
            rendez_vous(url)
        monkeypatch.setenv("NO_PROXY", f"example.org, {host}:{peer.server_address[1]}")
        assert rendez_vous(url) == RendezVous(ID)


def _here(resolve: Any, name: str, host: Any, *others: Any, **options: Any) -> Any:
    return resolve("127.0.0.1" if host in (name, name.encode()) else host, *others, **options)


def test_a_socks_proxy_that_is_needed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "find_spec", lambda _name: None)
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy")
    with pytest.raises(ConfigurationError, match=r"^ALL_PROXY: .*pip install 'httpx\[socks\]'$"):
        CoordinatorClient("http://coordinator")
    with pytest.raises(ConfigurationError, match="ALL_PROXY"):
        download("http://aggregator")
    with pytest.raises(ConfigurationError, match="ALL_PROXY"):
        AsyncPeer("http://aggregator:7082")


def test_authorities_that_cannot_be_read_are_a_configuration_error_where_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    transport._default_tls.cache_clear()
    monkeypatch.setenv("SSL_CERT_FILE", "/nope")
    CoordinatorClient("http://coordinator").close()
    with pytest.raises(ConfigurationError, match=r"^SSL_CERT_FILE: /nope: No such file"):
        CoordinatorClient("https://coordinator")


def peak_of(call: Any) -> int:
    """Bytes that were allocated at most at a time during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
