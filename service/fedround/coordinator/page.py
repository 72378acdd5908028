"""The page of the federation on the coordinator's ops port: one HTML file, kept live by server-sent events of the status."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from fedround import asgi
from fedround.observability.health import Health
from fedround.tokens import OPEN, Tokens

EVERY = 1.0
"""Seconds between two events."""
MANY = 500
"""With more participants than that, events come as many times more seldom, but ..."""
SELDOM = 10.0
"""... at least so often: a page that hears nothing for longer believes that the connection is lost."""
MAX_STREAMS = 50
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


def routes(health: Health, status: Callable[[], Mapping[str, object]], tokens: Tokens = OPEN) -> list[Route]:
    """`/` and `/events`; with tokens, for who has one, as a password or as a bearer."""
    page = files(__package__).joinpath("page.html").read_bytes()
    streams = 0

    async def show(request: Request) -> Response:
        if asgi.bearer(request.headers, tokens, basic=True) is None:
            return asgi.unauthorized(request.headers, basic=True)
        return Response(page, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}, media_type="text/html")

    async def events(request: Request) -> Response:
        if asgi.bearer(request.headers, tokens, basic=True) is None:
            # Not a word of Basic: a browser would ask for it over the page, again and again. The page loads itself anew instead.
            return asgi.unauthorized(request.headers)
        if streams >= MAX_STREAMS:
            return asgi.problem(503, "too many pages are open", {"Retry-After": "10"})
        # nginx would keep events back until it has a buffer full of them.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return Stream(told(), headers=headers, media_type="text/event-stream")

    class Stream(StreamingResponse):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            # From here on, and not from its first event: of many that are asked for at once none has come that far.
            nonlocal streams
            streams += 1
            try:
                await super().__call__(scope, receive, send)
            finally:
                streams -= 1

    async def told() -> AsyncIterator[str]:
        # Soon, since a restart takes seconds: the browser asks again so many milliseconds after a stream has ended.
        yield "retry: 1000\n\n"
        while not health.stopping:
            now = status()
            yield f"data: {json.dumps({'reasons': health.reasons, **now})}\n\n"
            await asyncio.sleep(min(EVERY * max(1.0, _participants(now) / MANY), SELDOM))

    return [Route("/", show), Route("/events", events)]


def _participants(status: Mapping[str, object]) -> int:
    found = status["participants"]
    return len(found) if isinstance(found, list) else 0
