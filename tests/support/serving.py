"""Small apps behind our server, in this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from fedround.http import asgi
from fedround.http.serve import Endpoint, serving
from support.sockets import Connection, connected


async def hello(request: Request) -> Response:
    return Response("hello")


async def echo(request: Request) -> Response:
    return Response(await request.body())


def endpoint(app: ASGIApp | None = None, port: int = 0) -> Endpoint:
    return Endpoint(app or asgi.application([Route("/", hello)]), host="127.0.0.1", port=port, setting="SOME_PORT")


@asynccontextmanager
async def dialled(app: ASGIApp | None = None, *, grace: int = 5) -> AsyncIterator[Connection]:
    """Yield a connection to a server that serves an app."""
    served = endpoint(app)
    async with serving(served, grace=grace), connected(served.port) as connection:
        yield connection


GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
