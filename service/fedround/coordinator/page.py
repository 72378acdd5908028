"""The coordinator's page on its operations port: one HTML file, which server-sent events with the status update."""

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
"""Number of participants above which the interval between events grows in proportion."""
MOST_SECONDS = 10.0
"""Maximum seconds between two events. After a longer pause, the page shows that the connection is lost."""
MAX_STREAMS = 50
"""Maximum number of open pages."""
POLICY = "; ".join(
    [
        *("default-src 'none'", "style-src {style}", "script-src {script}", "connect-src 'self'", "img-src data:"),
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    ]
)
"""Content Security Policy: the browser may use only the page's own script and style, identified by their digests."""


def routes(health: Health, status: Callable[[], Mapping[str, object]], access: ops.Access = ops.OPEN) -> list[Route]:
    """Return the routes `/` and `/events`.

    Args:
        health: The reasons why the service is not ready. When it stops, the streams end.
        status: Returns the status, as JSON-able data.
        access: Protects the routes.
    """
    page = files(__package__).joinpath("page.html").read_bytes()
    policy = POLICY.format(style=_digest(page, b"style"), script=_digest(page, b"script"))
    streams = 0

    def render() -> tuple[str, float]:
        """Return the current event, and the seconds until the next."""
        now = status()
        event = f"data: {json.dumps({'reasons': health.reasons, **now})}\n\n"
        return event, min(EVERY * max(1.0, _participants(now) / MANY), MOST_SECONDS)

    rendered = Shared(render)

    async def show(request: Request) -> Response:
        return Response(page, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"}, media_type="text/html")

    async def events(request: Request) -> Response:
        if streams >= MAX_STREAMS:
            return asgi.problem(503, "too many pages are open: close some", {"Retry-After": "10"})
        # The header turns off nginx's buffer, which would delay events until it is full.
        return Stream(sent(), headers={"X-Accel-Buffering": "no"}, media_type="text/event-stream")

    class Stream(StreamingResponse):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            # Count now: before the first event, many simultaneous requests could all pass the check.
            nonlocal streams
            streams += 1
            try:
                await super().__call__(scope, receive, send)
            finally:
                streams -= 1

    async def sent() -> AsyncIterator[str]:
        # Milliseconds until the browser reconnects after the stream ends. A restart takes only seconds.
        yield "retry: 1000\n\n"
        while not health.stopping:
            event, pause = rendered()
            yield event
            await asyncio.sleep(pause)

    # Without a Basic challenge for events: the browser would show its dialog over the page, again and again.
    return [access.route("/", show), access.route("/events", events, basic=False)]


def _digest(page: bytes, tag: bytes) -> str:
    """Return the digest of the page's only element with this tag, in the form that the policy requires."""
    content = page.partition(b"<%s>" % tag)[2].partition(b"</%s>" % tag)[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"


def _participants(status: Mapping[str, object]) -> int:
    found = status["participants"]
    return len(found) if isinstance(found, list) else 0
