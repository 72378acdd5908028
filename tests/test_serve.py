"""Serving: ports, shutdown, and pipelined requests."""

import asyncio
import gc
import socket
from contextlib import AsyncExitStack, suppress

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from fedround.errors import ConfigurationError
from fedround.http import asgi
from fedround.http.serve import MAX_PIPELINED, Endpoint, serving
from support.serving import GET, dialled, echo, endpoint
from support.sockets import connected


async def test_port_0_is_any_free_port_and_the_endpoint_has_its_number() -> None:
    first, second = endpoint(), endpoint()
    async with serving(first, second):
        assert 0 != first.port != second.port != 0
        async with connected(second.port) as connection:
            await connection.ask("GET", "/")
            assert (await connection.answer()).body == b"hello"


async def test_a_port_in_use_is_a_configuration_error_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"SOME_PORT={port}: cannot listen on 127.0.0.1: Address already in use"):
            async with serving(endpoint(), endpoint(port=port)):
                raise AssertionError("it serves")


def test_a_host_of_another_machine_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match=r"SOME_PORT=0: cannot listen on 192\.0\.2\.1") as raised:
        Endpoint(endpoint().app, host="192.0.2.1", port=0, setting="SOME_PORT").bind()
    assert "another port" not in str(raised.value)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6 here")
def test_listening_on_all_ipv6_addresses_includes_ipv4() -> None:
    with Endpoint(endpoint().app, host="::", port=0, setting="SOME_PORT").bind() as bound:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, bound.getsockname()[1])).close()


async def test_an_exception_while_serving_is_raised_unchanged() -> None:
    with pytest.raises(LookupError):
        async with serving(endpoint()):
            raise LookupError


async def test_an_idle_connection_does_not_delay_the_shutdown() -> None:
    async with dialled(grace=60) as idle:
        await idle.ask("GET", "/")
        await idle.answer()


async def test_a_shutdown_waits_for_running_requests_and_serves_operators_until_then() -> None:
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


async def test_a_request_that_outlasts_the_grace_gets_503_and_retry_after(caplog: pytest.LogCaptureFixture) -> None:
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
    assert "Traceback" not in caplog.text


async def test_a_running_request_learns_that_its_connection_is_closed_and_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    told = asyncio.Event()

    async def held(request: Request) -> Response:
        await request.receive()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        told.set()
        return Response("too late")

    async with dialled(asgi.application([Route("/", held)])) as connection:
        await connection.send(GET * 2)
        with suppress(ConnectionError):
            await connection.send(GET * 5000)
        await told.wait()
        await connection.rest()
    assert not caplog.records


async def test_pipelined_requests_are_answered_in_order_and_few_are_read_ahead() -> None:
    go_on = asyncio.Event()

    async def held(request: Request) -> Response:
        hung_up = asyncio.ensure_future(request.receive())  # like a held heartbeat: it makes uvicorn resume reading
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
        gc.collect()
        parsed = sum(isinstance(found, RequestResponseCycle) for found in gc.get_objects())
        assert parsed <= MAX_PIPELINED + 2
        go_on.set()
        for n in range(500):
            assert (await connection.answer()).body == b"/%d" % n


@pytest.mark.parametrize("slice", [1, 100, 1 << 20])
async def test_bodies_of_pipelined_requests_arrive_whole(slice: int) -> None:
    bodies = [b"", b"\r\n\r\n" * 100, b"x", b"\r\n\r", b"y" * 3000]
    sent = b"".join(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body) for body in bodies)
    chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
    sent += b"".join(chunked % (len(body), body) for body in bodies[1:])
    async with dialled(asgi.application([Route("/", echo, methods=["POST"])])) as connection, asyncio.TaskGroup() as tasks:

        async def send() -> None:
            for start in range(0, len(sent), slice):
                await connection.send(sent[start : start + slice])
                await asyncio.sleep(0)

        tasks.create_task(send())
        for body in [*bodies, *bodies[1:]]:
            assert (await connection.answer()).body == body
