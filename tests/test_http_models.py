"""Models and updates between a participant and an aggregator, with real sockets."""

import gc
import os
import tracemalloc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event
from typing import Any

import numpy as np
import pytest

from fedround.common.wire import UpdateOutcome
from fedround.errors import Aborted, BadAnswer, ExchangeError, Refused, TooLarge, Unreachable
from fedround.http import transport
from fedround.http.client import Download, fetch_model
from support.exchanges import ID, MIB, TOKEN, aggregator, download, problem, upload
from support.peer import Peer, Reply, answer, chunked


def peak_of(call: Any) -> int:
    """Return the maximum number of bytes that a call allocates at a time."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_model_is_received_in_a_writable_buffer_with_its_etag() -> None:
    model = os.urandom(3 * MIB)
    with Peer(answer("200 OK", model, ETag='"4"')) as peer:
        received = download(peer.url + "/fl/")
    assert peer.requests[0].line == f"GET /fl/{ID}/{TOKEN} HTTP/1.1"
    assert received.body is not None
    assert not received.body.readonly
    assert (bytes(received.body), received.etag) == (model, '"4"')


def test_a_model_without_a_content_length_is_received() -> None:
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


def test_a_model_larger_than_the_memory_is_too_large() -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {1 << 61}\r\n\r\n".encode()
    with Peer(Reply(head, close=True)) as peer, pytest.raises(TooLarge, match=f"has {1 << 61} bytes, and there is no memory"):
        download(peer, max_model_size=1 << 62)


def test_a_model_of_exactly_the_limit_is_received() -> None:
    with Peer(answer("200 OK", b"12345678")) as peer:
        assert download(peer, max_model_size=8) == Download(memoryview(b"12345678"), None)


def test_a_model_that_is_cut_short_is_unreachable() -> None:
    with Peer(Reply(answer("200 OK", bytes(MIB))[:-1], close=True)) as peer, pytest.raises(Unreachable):
        download(peer)


def test_an_html_page_is_not_a_model() -> None:
    with Peer(answer("200 OK", b"<html>", Content_Type="text/html")) as peer, pytest.raises(BadAnswer, match="HTML"):
        download(peer)


def test_receiving_a_model_takes_only_the_memory_of_the_model() -> None:
    with Peer(answer("200 OK", bytes(16 * MIB))) as peer:
        assert peak_of(lambda: download(peer)) < 17 * MIB


def test_an_update_is_sent_buffer_by_buffer() -> None:
    weights = np.arange(200_000, dtype="<f8")
    with Peer(answer("200 OK", Fedround_Update="counted")) as peer:
        assert upload(peer, b"\0\0\0\1", b"", weights.data, np.float32(0).data, metrics='{"loss":1}') is UpdateOutcome.COUNTED
    request = peer.requests[0]
    assert request.line == f"POST /{ID}/{TOKEN} HTTP/1.1"
    assert request.body == b"\0\0\0\1" + weights.tobytes() + bytes(4)
    assert request.headers["content-type"] == "application/octet-stream"
    assert request.headers["fedround-metrics"] == '{"loss":1}'
    assert "transfer-encoding" not in request.headers


def test_a_0_8_aggregator_responds_without_an_outcome() -> None:
    with Peer(answer("200 OK")) as peer:
        assert upload(peer, b"update") is None
    assert "fedround-metrics" not in peer.requests[0].headers


def test_an_unknown_outcome_is_a_bad_answer() -> None:
    with Peer(answer("200 OK", Fedround_Update="perhaps")) as peer, pytest.raises(BadAnswer, match="perhaps"):
        upload(peer, b"update")


def test_a_refusal_during_the_upload_is_read_although_the_write_fails() -> None:
    refusal = problem("413 Content Too Large", "16 bytes are allowed")
    with Peer(Reply(refusal, read=1000, close=True)) as peer, pytest.raises(Refused) as caught:
        upload(peer, bytes(32 * MIB))
    assert (caught.value.status, caught.value.detail) == (413, "16 bytes are allowed")


def test_an_upload_that_is_cut_off_is_unreachable() -> None:
    with Peer(Reply(b"", read=1000, close=True)) as peer, pytest.raises(Unreachable):
        upload(peer, bytes(32 * MIB))


def test_an_update_is_sent_without_a_copy_of_it() -> None:
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
def test_no_transfer_keeps_its_buffers(reply: Reply) -> None:
    """Not even until the next garbage collection: this memory would hold another model."""
    with Peer(answer("200 OK", bytes(16 * MIB)), reply) as peer, aggregator() as client:
        body = client.download(peer.url, ID, TOKEN).body
        assert body is not None
        kept = weakref.ref(body.obj)
        with suppress(ExchangeError):
            client.upload(peer.url, ID, TOKEN, [body])
        del body
        assert kept() is None


@pytest.mark.parametrize(("keepalive", "connections"), [(transport.KEEPALIVE, 1), (0.0, 2)])
def test_an_upload_uses_the_connection_of_the_download_unless_it_was_idle_too_long(
    keepalive: float, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "KEEPALIVE", keepalive)
    with Peer(answer("200 OK"), answer("200 OK")) as peer, aggregator() as client:
        client.download(peer.url, ID, TOKEN)
        client.upload(peer.url, ID, TOKEN, [b"update"])
    assert len(peer.connections) == connections


def test_a_connection_is_closed_before_servers_close_it() -> None:
    """Other servers keep connections open for 5 s (uvicorn, Node.js) or longer."""
    assert transport.KEEPALIVE == 4


def test_a_connection_that_the_peer_closed_is_not_reused() -> None:
    with Peer(Reply(answer("200 OK"), close=True), answer("200 OK")) as peer, aggregator() as client:
        client.download(peer.url, ID, TOKEN)
        peer.hung_up.wait()
        client.upload(peer.url, ID, TOKEN, [b"update"])


@pytest.mark.parametrize(
    ("call", "arguments", "begun"), [("download", (), answer("200 OK", bytes(100))[:-50]), ("upload", ([bytes(64 * MIB)],), b"")]
)
def test_a_transfer_can_be_aborted_from_another_thread_and_the_next_one_is_whole(
    call: str, arguments: tuple[object, ...], begun: bytes
) -> None:
    halfway, go_on = Event(), Event()

    def slow() -> Iterator[bytes]:
        yield begun
        halfway.set()
        go_on.wait()
        yield bytes(50) if begun else b""

    replies = Reply(slow(), read=None if begun else 1000), answer("200 OK", b"model")
    with Peer(*replies) as peer, aggregator() as client, ThreadPoolExecutor() as pool:
        cut = pool.submit(getattr(client, call), peer.url, ID, TOKEN, *arguments)
        halfway.wait()
        client.abort()
        go_on.set()
        with pytest.raises(Aborted):
            cut.result()
        assert client.download(peer.url, ID, TOKEN) == Download(memoryview(b"model"), None)


@pytest.mark.parametrize(
    ("asked", "etag", "path", "number"),
    [(None, '"17"', "/model", 17), ("3", '"3"', "/model?round=3", 3), (None, "", "/model", None)],
)
def test_a_model_is_fetched_with_its_round(asked: str | None, etag: str, path: str, number: int | None) -> None:
    with Peer(answer("200 OK", b"model", ETag=etag)) as peer:
        assert fetch_model(peer.url + "/", round=asked, token="secret") == (memoryview(b"model"), number)
    assert peer.requests[0].line == f"GET {path} HTTP/1.1"
    assert peer.requests[0].headers["authorization"] == "Bearer secret"
