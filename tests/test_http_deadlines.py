"""Slow peers: every exchange has a deadline."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Self

import pytest

from fedround.errors import Refused, Unreachable
from fedround.http import deadlines
from fedround.http.peer import AsyncPeer
from support.exchanges import ID, MIB, TOKEN, aggregator, download, rendez_vous
from support.peer import Peer, Reply, answer


class Drips:
    """Send the pieces again and again until the block ends."""

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


TOO_SLOW = "timed out|takes too long|TimeoutError"


def test_a_peer_that_reads_an_update_too_slowly_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_model_at_the_minimum_rate_may_take_longer_than_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
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


def ask_without_blocking(peer: Peer, timeout: float) -> None:
    async def main() -> None:
        client = AsyncPeer(peer.url)
        try:
            await client.ask("GET", "/books/ledger", timeout=timeout, max_response=1 << 20)
        finally:
            await client.aclose()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        (b"HTTP/1.1 100 Continue\r\n", b"x: y\r\n"),
        (answer("200 OK", bytes(50_000))[:-50_000], b" "),
    ],
)
@pytest.mark.parametrize("ask", [rendez_vous, download, ask_without_blocking])
def test_a_response_that_drips_is_unreachable_at_the_deadline(ask: Callable[..., object], first: bytes, piece: bytes) -> None:
    with Drips(first, piece) as drips, Peer(Reply(drips)) as peer, pytest.raises(Unreachable, match=TOO_SLOW):
        ask(peer, timeout=0.1)


def test_a_refusal_does_not_wait_for_a_reason_that_drips() -> None:
    head = b"HTTP/1.1 404 No\r\nContent-Type: application/problem+json\r\nContent-Length: 60000\r\n\r\n"
    with Drips(head, b" ") as drips, Peer(Reply(drips)) as peer, pytest.raises(Refused, match="refused with 404"):
        rendez_vous(peer, timeout=0.05)
