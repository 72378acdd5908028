"""The page of the federation on the coordinator's ops port: one HTML file, kept live by server-sent events of the status."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from fedround.http import asgi
from fedround.observability import ops
from fedround.observability.health import Health
from fedround.observability.shared import Shared

EVERY = 1.0
"""Seconds between two events."""
MANY = 500
"""With more participants than that, events come as many times more seldom, but ..."""
SELDOM = 10.0
"""... at least so often: a page that hears nothing for longer believes that the connection is lost."""
MAX_STREAMS = 50
POLICY = "; ".join(
    [
        *("default-src 'none'", "style-src {style}", "script-src {script}", "connect-src 'self'", "img-src data:"),
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    ]
)
"""What a browser may do for the page: run its one script and its one style, which their digests name, and nothing else."""


def routes(health: Health, status: Callable[[], Mapping[str, object]], access: ops.Access = ops.OPEN) -> list[Route]:
    """`/` and `/events`, for those whom `access` lets in."""
    page = files(__package__).joinpath("page.html").read_bytes()
    policy = POLICY.format(style=_digest(page, b"style"), script=_digest(page, b"script"))
    streams = 0

    def render() -> tuple[str, float]:
        """The event of this moment, and the seconds until the next."""
        now = status()
        event = f"data: {json.dumps({'reasons': health.reasons, **now})}\n\n"
        return event, min(EVERY * max(1.0, _participants(now) / MANY), SELDOM)

    rendered = Shared(render)

    async def show(request: Request) -> Response:
        return Response(page, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"}, media_type="text/html")

    async def events(request: Request) -> Response:
        if streams >= MAX_STREAMS:
            return asgi.problem(503, "too many pages are open", {"Retry-After": "10"})
        # nginx would keep events back until it has a buffer full of them.
        return Stream(told(), headers={"X-Accel-Buffering": "no"}, media_type="text/event-stream")

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
            event, pause = rendered()
            yield event
            await asyncio.sleep(pause)

    # No Basic challenge for events: a browser would show its dialog over the page again and again. The page reloads itself instead.
    return [access.route("/", show), access.route("/events", events, basic=False)]


def _digest(page: bytes, tag: bytes) -> str:
    """The one element of that tag in the page, as a policy names its content."""
    content = page.partition(b"<%s>" % tag)[2].partition(b"</%s>" % tag)[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"


def _participants(status: Mapping[str, object]) -> int:
    found = status["participants"]
    return len(found) if isinstance(found, list) else 0
