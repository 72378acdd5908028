import asyncio
import gc
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress

import numpy as np
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from fedround.common.process import run
from fedround.errors import ConfigurationError
from fedround.events import ConnectionClosed, ConnectionsChanged, Fact
from fedround.http import asgi
from fedround.http.serve import MAX_HEAD, MAX_PIPELINED, Endpoint, serving
from support.sockets import connected


@pytest.fixture(autouse=True)
def garbage_collection_as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


async def hello(request: Request) -> Response:
    return Response("hello")


def endpoint(app: ASGIApp | None = None, port: int = 0) -> Endpoint:
    return Endpoint(app or asgi.application([Route("/", hello)]), host="127.0.0.1", port=port, setting="SOME_PORT")


def test_port_0_is_any_free_port_and_the_endpoint_tells_which() -> None:
    async def main() -> None:
        first, second = endpoint(), endpoint()
        async with serving(first, second):
            assert 0 != first.port != second.port != 0
            async with connected(second.port) as connection:
                await connection.ask("GET", "/")
                assert (await connection.answer()).body == b"hello"

    run(main())


def test_a_port_in_use_is_told_with_the_name_of_its_setting() -> None:
    async def main(port: int) -> None:
        async with serving(endpoint(), endpoint(port=port)):
            raise AssertionError("it serves")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"SOME_PORT={port}: cannot listen on 127.0.0.1: Address already in use"):
            run(main(port))


def test_a_host_that_is_none_of_ours_is_told_too() -> None:
    with pytest.raises(ConfigurationError, match=r"SOME_PORT=0: cannot listen on 192\.0\.2\.1") as raised:
        Endpoint(endpoint().app, host="192.0.2.1", port=0, setting="SOME_PORT").bind()
    assert "another port" not in str(raised.value)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6 here")
def test_all_addresses_of_ipv6_are_those_of_ipv4_too() -> None:
    with Endpoint(endpoint().app, host="::", port=0, setting="SOME_PORT").bind() as bound:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, bound.getsockname()[1])).close()


def test_what_is_raised_while_serving_comes_out_as_it_is() -> None:
    async def main() -> None:
        async with serving(endpoint()):
            raise LookupError

    with pytest.raises(LookupError):
        run(main())


def test_an_idle_connection_does_not_delay_the_end() -> None:
    async def main() -> None:
        served = endpoint()
        async with serving(served, grace=60), connected(served.port) as idle:
            await idle.ask("GET", "/")
            await idle.answer()

    run(main())


def test_a_request_that_is_running_at_the_end_is_answered_and_operators_are_served_until_then() -> None:
    async def main() -> None:
        started, go_on = asyncio.Event(), asyncio.Event()

        async def slow(request: Request) -> Response:
            started.set()
            await go_on.wait()
            return Response("done")

        public = endpoint(asgi.application([Route("/", slow)]))
        operators = Endpoint(endpoint().app, host="127.0.0.1", port=0, setting="OPS_PORT", last=True)

        async def ask_while_it_ends() -> None:
            with suppress(ConnectionError):
                while True:
                    async with connected(public.port):
                        pass
            async with connected(operators.port) as connection:
                await connection.ask("GET", "/")
                assert (await connection.answer()).body == b"hello"
            go_on.set()

        async with AsyncExitStack() as after, asyncio.TaskGroup() as tasks:
            async with serving(operators, public, grace=60):
                connection = await after.enter_async_context(connected(public.port))
                await connection.ask("GET", "/")
                await started.wait()
                tasks.create_task(ask_while_it_ends())
            assert (await connection.answer()).body == b"done"

    run(main())


def test_a_request_that_outlasts_the_grace_is_told_to_come_again(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        started = asyncio.Event()

        async def endless(request: Request) -> Response:
            started.set()
            await asyncio.Future()
            raise AssertionError

        served = endpoint(asgi.application([Route("/", endless)]))
        async with AsyncExitStack() as after:
            async with serving(served, grace=0):
                connection = await after.enter_async_context(connected(served.port))
                await connection.ask("GET", "/")
                await started.wait()
            answer = await connection.answer()
            assert (answer.status, answer.headers["retry-after"], answer.headers["connection"]) == (503, "5", "close")

    run(main())
    assert "Traceback" not in caplog.text


async def echo(request: Request) -> Response:
    return Response(await request.body())


WAITING = [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: here\r\n"]
ANSWERED = b"GET / HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize("sent", [*WAITING, *(ANSWERED % 0 + more for more in (b"\r\n", *WAITING[1:])), ANSWERED % 9 + b"x"])
def test_a_peer_that_does_not_come_to_the_end_of_a_head_is_cut_off(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedround.http.serve.HEAD_TIMEOUT", 0.05)

    async def main() -> None:
        served = endpoint()
        async with serving(served), connected(served.port) as connection:
            head, answered, more = sent.partition(b"\r\n\r\n")
            if answered:
                await connection.send(head + answered)
                assert (await connection.answer()).body == b"hello"
            await connection.send(more if answered else sent)
            assert await connection.at_end()

    run(main())


@pytest.mark.parametrize("head", [b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"])
@pytest.mark.parametrize("more", [b"x" * (1 << 20), b"x: y\r\n" * (1 << 17)])
def test_a_peer_that_sends_headers_without_an_end_is_cut_off(head: bytes, more: bytes) -> None:
    async def main() -> None:
        served = endpoint(asgi.application([Route("/", echo, methods=["GET", "POST"])]))
        async with serving(served), connected(served.port) as connection:
            await connection.send(head)
            with suppress(ConnectionError):
                await connection.send(more)
            assert (await connection.rest())[:13] in (b"", b"HTTP/1.1 400 ")

    run(main())


GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.mark.parametrize(("fields", "status"), [(99, b"200"), (100, b"400")])
def test_a_request_with_too_many_header_fields_is_invalid(fields: int, status: bytes) -> None:
    async def main() -> None:
        served = endpoint()
        async with serving(served), connected(served.port) as connection:
            await connection.send(b"GET / HTTP/1.1\r\nConnection: close\r\n" + b"x: y\r\n" * fields + b"\r\n")
            assert (await connection.rest()).split(b" ")[1] == status

    run(main())


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.1\r\nx: " + b"y" * MAX_HEAD, b"GET /" + b"y" * MAX_HEAD + b" HTTP/1.1\r\nx: y"], ids=["field", "url"]
)
def test_a_head_that_is_too_long_is_refused_although_it_comes_at_once(head: bytes) -> None:
    async def main() -> None:
        served = endpoint()
        async with serving(served), connected(served.port) as connection:
            await connection.send(head + b"\r\n\r\n")
            assert (await connection.rest())[:13] in (b"", b"HTTP/1.1 400 ")

    run(main())


def test_a_request_that_runs_when_its_connection_is_cut_is_told_and_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        told = asyncio.Event()

        async def held(request: Request) -> Response:
            await request.receive()
            while (await request.receive())["type"] != "http.disconnect":
                pass
            told.set()
            return Response("too late")

        served = endpoint(asgi.application([Route("/", held)]))
        async with serving(served), connected(served.port) as connection:
            await connection.send(GET * 2)
            with suppress(ConnectionError):
                await connection.send(GET * 5000)
            await told.wait()
            await connection.rest()

    run(main())
    assert not caplog.records


def test_pipelined_requests_are_answered_in_order_and_only_a_few_are_read_ahead() -> None:
    async def main() -> None:
        go_on, parsed = asyncio.Event(), 0

        class Parsed(list[tuple[bytes, bytes]]):
            pass

        async def held(request: Request) -> Response:
            hung_up = asyncio.ensure_future(request.receive())  # as a held heartbeat: it makes uvicorn resume reading
            await go_on.wait()
            hung_up.cancel()
            return Response(request.url.path)

        served = endpoint(asgi.application([Route("/{n}", held)]))
        async with serving(served), connected(served.port) as connection:
            for n in range(500):
                await connection.send(GET.replace(b"/ ", b"/%d " % n))
            async with connected(served.port) as other:
                await other.send(GET)
                assert (await other.answer()).status == 404
            parsed = sum(isinstance(found, RequestResponseCycle) for found in gc.get_objects())
            assert parsed <= MAX_PIPELINED + 2
            go_on.set()
            for n in range(500):
                assert (await connection.answer()).body == b"/%d" % n

    run(main())


@pytest.mark.parametrize("slice", [1, 100, 1 << 20])
def test_bodies_of_pipelined_requests_arrive_whole(slice: int) -> None:
    bodies = [b"", b"\r\n\r\n" * 100, b"x", b"\r\n\r", b"y" * 3000]
    sent = b"".join(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body) for body in bodies)
    chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
    sent += b"".join(chunked % (len(body), body) for body in bodies[1:])

    async def main() -> None:
        served = endpoint(asgi.application([Route("/", echo, methods=["POST"])]))
        async with serving(served), connected(served.port) as connection, asyncio.TaskGroup() as tasks:

            async def send() -> None:
                for start in range(0, len(sent), slice):
                    await connection.send(sent[start : start + slice])
                    await asyncio.sleep(0)

            tasks.create_task(send())
            for body in [*bodies, *bodies[1:]]:
                assert (await connection.answer()).body == body

    run(main())


def test_a_peer_that_pipelines_without_an_end_and_reads_nothing_is_cut_off() -> None:
    async def main() -> None:
        served = endpoint()
        async with serving(served), connected(served.port) as connection:

            async def pipeline() -> None:
                while True:
                    await connection.send(b"GET / HTTP/1.1\r\n\r\n" * 2000)

            with pytest.raises(ConnectionError):
                await pipeline()

    run(main())


@pytest.mark.parametrize("sent", [b"", GET, GET[:9], GET * 2000])
def test_a_connection_that_is_over_leaves_nothing_to_the_garbage_collector(sent: bytes) -> None:
    async def main() -> None:
        served, told = limited(10, 10)
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
                await asyncio.sleep(0.1)  # requests that run end when they notice
                assert not [found for found in gc.get_objects() if type(found).__name__ == "_Protocol"]
        finally:
            gc.enable()

    run(main())


@pytest.mark.parametrize("path", ["/", "/nowhere"])
def test_a_connection_ends_with_the_answer_to_a_request_whose_body_is_not_whole(path: str) -> None:
    async def main() -> None:
        served = endpoint()
        async with serving(served), connected(served.port) as connection:
            await connection.ask("GET", path, Content_Length="1000000000")
            await connection.answer()
            assert await connection.at_end()

    run(main())


def test_a_long_answer_a_slow_body_and_an_idle_connection_are_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedround.http.serve.HEAD_TIMEOUT", 0.05)

    async def main() -> None:
        go_on = asyncio.Event()

        async def slow(request: Request) -> Response:
            await go_on.wait()
            return Response("slow")

        served = endpoint(asgi.application([Route("/", hello), Route("/slow", slow), Route("/echo", echo, methods=["POST"])]))
        async with serving(served), connected(served.port) as idle, connected(served.port) as long, connected(served.port) as body:
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

    run(main())


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")
def test_a_peer_that_takes_nothing_of_an_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedround.http.serve.STALL", 1)

    async def main() -> None:
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

        served = endpoint(asgi.application([Route("/", endless)]))
        async with serving(served, grace=0), connected(served.port) as stalled:
            await stalled.ask("GET", "/")
            await sent.wait()

    run(main())


def test_a_peer_that_takes_an_answer_too_slowly_is_cut_off_and_keeps_nothing_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedround.http.serve.MIN_RATE", 1e9)
    monkeypatch.setattr("fedround.http.serve.MIN_RATE_WINDOW", 0.05)

    async def main() -> None:
        released = asyncio.Event()

        async def model(request: Request) -> Response:
            array = np.zeros(64 << 20, np.uint8)
            weakref.finalize(array, released.set)
            return asgi.Slices([array.data], headers={}, media_type="application/octet-stream")

        served = endpoint(asgi.application([Route("/", model)]))
        async with serving(served), connected(served.port) as slow:
            await slow.ask("GET", "/")
            assert not await slow.at_end(), "it takes a byte"
            await released.wait()

    run(main())


class Told(list[Fact]):
    """The facts that a server told."""

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


def test_at_the_limit_a_newcomer_takes_the_place_of_a_connection_that_is_new_or_idle_but_of_none_that_is_busy() -> None:
    async def main() -> None:
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

    run(main())


def test_one_address_does_not_take_all_connections_of_a_port() -> None:
    async def main() -> None:
        served, told = limited(3, 2)
        async with serving(served), connected(served.port) as first, connected(served.port), connected(served.port):
            assert await first.at_end()
            assert told.cuts == ["address_limit"]

    run(main())


def test_a_crowd_of_idle_connections_keeps_nobody_from_being_answered_nor_operators() -> None:
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
