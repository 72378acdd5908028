"""Connections of a server: limits, and clients that send or read badly."""

import asyncio
import gc
import socket
import subprocess
import sys
import weakref
from contextlib import AsyncExitStack, suppress

import numpy as np
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fedround.common.process import run
from fedround.events import ConnectionClosed, ConnectionsChanged, Fact
from fedround.http import asgi
from fedround.http.serve import MAX_HEAD, Endpoint, serving
from support.serving import GET, dialled, echo, endpoint, hello
from support.sockets import connected

WAITING = [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: here\r\n"]


ANSWERED = b"GET / HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize("sent", [*WAITING, *(ANSWERED % 0 + more for more in (b"\r\n", *WAITING[1:])), ANSWERED % 9 + b"x"])
async def test_a_client_that_does_not_complete_its_head_is_disconnected(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedround.http.serve.HEAD_TIMEOUT", 0.05)
    async with dialled() as connection:
        head, answered, more = sent.partition(b"\r\n\r\n")
        if answered:
            await connection.send(head + answered)
            assert (await connection.answer()).body == b"hello"
        await connection.send(more if answered else sent)
        assert await connection.at_end()


@pytest.mark.parametrize("head", [b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"])
@pytest.mark.parametrize("more", [b"x" * (1 << 20), b"x: y\r\n" * (1 << 17)])
async def test_a_client_that_sends_endless_headers_is_disconnected(head: bytes, more: bytes) -> None:
    async with dialled(asgi.application([Route("/", echo, methods=["GET", "POST"])])) as connection:
        await connection.send(head)
        with suppress(ConnectionError):
            await connection.send(more)
        assert (await connection.rest())[:13] in (b"", b"HTTP/1.1 400 ")


@pytest.mark.parametrize(("fields", "status"), [(99, b"200"), (100, b"400")])
async def test_a_request_with_too_many_header_fields_is_a_400(fields: int, status: bytes) -> None:
    async with dialled() as connection:
        await connection.send(b"GET / HTTP/1.1\r\nConnection: close\r\n" + b"x: y\r\n" * fields + b"\r\n")
        assert (await connection.rest()).split(b" ")[1] == status


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.1\r\nx: " + b"y" * MAX_HEAD, b"GET /" + b"y" * MAX_HEAD + b" HTTP/1.1\r\nx: y"], ids=["field", "url"]
)
async def test_a_head_that_is_too_long_is_a_400(head: bytes) -> None:
    async with dialled() as connection:
        await connection.send(head + b"\r\n\r\n")
        assert (await connection.rest())[:13] in (b"", b"HTTP/1.1 400 ")


async def test_a_client_that_pipelines_endlessly_and_reads_nothing_is_disconnected() -> None:
    async with dialled() as connection:

        async def pipeline() -> None:
            while True:
                await connection.send(b"GET / HTTP/1.1\r\n\r\n" * 2000)

        with pytest.raises(ConnectionError):
            await pipeline()


@pytest.mark.parametrize("sent", [b"", GET, GET[:9], GET * 2000])
async def test_a_closed_connection_leaves_no_garbage(sent: bytes) -> None:
    served, told = limited(10, 10)
    gc.collect()
    gc.disable()
    try:
        async with serving(served):
            async with connected(served.port) as connection:
                with suppress(ConnectionError):
                    await connection.send(sent)
                if sent == GET:
                    await connection.answer()
                elif len(sent) > len(GET):
                    await connection.rest()
            while told[-1:] != [ConnectionsChanged("public", 0)]:
                await told.more.wait()
                told.more.clear()
            await asyncio.sleep(0.1)  # running requests end when they notice
            assert not [found for found in gc.get_objects() if type(found).__name__ == "_Protocol"]
    finally:
        gc.enable()


@pytest.mark.parametrize("path", ["/", "/nowhere"])
async def test_a_response_to_an_incomplete_body_closes_the_connection(path: str) -> None:
    async with dialled() as connection:
        await connection.ask("GET", path, Content_Length="1000000000")
        await connection.answer()
        assert await connection.at_end()


async def test_slow_responses_slow_bodies_and_idle_connections_do_not_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedround.http.serve.HEAD_TIMEOUT", 0.05)
    go_on = asyncio.Event()

    async def slow(request: Request) -> Response:
        await go_on.wait()
        return Response("slow")

    served = endpoint(asgi.application([Route("/", hello), Route("/slow", slow), Route("/echo", echo, methods=["POST"])]))
    async with (
        serving(served),
        connected(served.port) as idle,
        connected(served.port) as long,
        connected(served.port) as body,
    ):
        await idle.ask("GET", "/")
        await idle.answer()
        await long.ask("GET", "/slow")
        await body.ask("POST", "/echo", Content_Length="200000")
        await body.send(bytes(100_000))
        async with connected(served.port) as silent:
            assert await silent.at_end()
        await body.send(bytes(100_000))
        assert len((await body.answer()).body) == 200_000
        go_on.set()
        assert (await long.answer()).body == b"slow"
        await idle.ask("GET", "/")
        assert (await idle.answer()).body == b"hello"


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")
async def test_a_client_that_reads_nothing_of_a_response_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedround.http.serve.STALL", 1)
    sent = asyncio.Event()

    class Endless(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while (await receive())["type"] != "http.disconnect":
                for _ in range(100):
                    await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
            sent.set()

    async def endless(request: Request) -> Response:
        return Endless()

    async with dialled(asgi.application([Route("/", endless)]), grace=0) as stalled:
        await stalled.ask("GET", "/")
        await sent.wait()


async def test_a_client_that_reads_a_response_too_slowly_is_disconnected_and_its_buffers_are_freed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedround.http.serve.MIN_RATE", 1e9)
    monkeypatch.setattr("fedround.http.serve.MIN_RATE_WINDOW", 0.05)
    released = asyncio.Event()

    async def model(request: Request) -> Response:
        array = np.zeros(64 << 20, np.uint8)
        weakref.finalize(array, released.set)
        return asgi.Slices([array.data], headers={}, media_type="application/octet-stream")

    async with dialled(asgi.application([Route("/", model)])) as slow:
        await slow.ask("GET", "/")
        assert not await slow.at_end(), "it takes a byte"
        await released.wait()


class Told(list[Fact]):
    """Return the facts that the server emitted."""

    def __init__(self) -> None:
        self.more = asyncio.Event()

    def __call__(self, fact: Fact) -> None:
        self.append(fact)
        self.more.set()

    @property
    def cuts(self) -> list[str]:
        return [fact.reason for fact in self if isinstance(fact, ConnectionClosed)]


def limited(port: int, address: int, app: ASGIApp | None = None) -> tuple[Endpoint, Told]:
    served = endpoint(app)
    served.observe, served.limits = (told := Told()), (port, address)
    return served, told


async def refused(port: int) -> bool:
    async with connected(port) as newcomer:
        with suppress(ConnectionError):
            await newcomer.send(GET)
        return await newcomer.at_end()


async def test_at_the_limit_a_new_connection_replaces_a_new_or_idle_one_but_never_a_busy_one() -> None:
    go_on = asyncio.Event()

    async def slow(request: Request) -> Response:
        await go_on.wait()
        return Response("slow")

    served, told = limited(3, 3, asgi.application([Route("/", hello), Route("/slow", slow)]))
    async with serving(served), AsyncExitStack() as stack:
        busy, idle, new = [await stack.enter_async_context(connected(served.port)) for _ in range(3)]
        await idle.send(GET)
        await idle.answer()
        await busy.ask("GET", "/slow")
        second = await stack.enter_async_context(connected(served.port))
        await second.ask("GET", "/slow")
        assert await new.at_end()
        third = await stack.enter_async_context(connected(served.port))
        await third.ask("GET", "/slow")
        assert await idle.at_end()
        assert await refused(served.port)
        assert told.cuts == ["port_limit"] * 3
        assert [fact.count for fact in told if isinstance(fact, ConnectionsChanged)][:3] == [1, 2, 3]
        go_on.set()
        for connection in (busy, second, third):
            assert (await connection.answer()).body == b"slow"
        assert not await refused(served.port)
    assert told[-1] == ConnectionsChanged("public", 0)


async def test_one_address_cannot_take_all_connections_of_a_port() -> None:
    served, told = limited(3, 2)
    async with serving(served), connected(served.port) as first, connected(served.port), connected(served.port):
        assert await first.at_end()
        assert told.cuts == ["address_limit"]


@pytest.mark.usefixtures("garbage_collection_as_before")
def test_a_crowd_of_idle_connections_does_not_keep_others_from_being_served() -> None:
    program = """
import asyncio, resource, sys
from starlette.responses import Response
from starlette.routing import Route
from fedround.http import asgi
from fedround.common.process import run
from fedround.http.serve import Endpoint, serving

async def hello(request):
    return Response("hello")

async def main():
    app = asgi.application([Route("/", hello)])
    public, ops = [Endpoint(app, host="127.0.0.1", port=0, setting="PORT", kind=kind) for kind in ("public", "ops")]
    async with serving(public, ops):
        print(public.port, ops.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))
run(main())
"""

    async def main(port: int, ops: int) -> None:
        async with AsyncExitStack() as stack:
            for _ in range(400):
                await stack.enter_async_context(connected(port))
            for number in (port, ops, port):
                async with connected(number) as honest:
                    await honest.send(GET)
                    assert (await honest.answer()).body == b"hello"

    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        run(main(*map(int, process.stdout.readline().split())))
        _, errors = process.communicate("")
        assert (process.returncode, errors) == (0, "")
