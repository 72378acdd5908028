"""The coordinator's page on its operations port: one HTML file, updated by server-sent events with the status."""

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
SELDOM = 10.0
"""Maximum seconds between two events: after a longer pause, a page considers the connection lost."""
MAX_STREAMS = 50
"""Maximum number of open pages."""
POLICY = "; ".join(
    [
        *("default-src 'none'", "style-src {style}", "script-src {script}", "connect-src 'self'", "img-src data:"),
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    ]
)
"""Content Security Policy: the browser may use only the page's own script and style, which their digests identify."""


def routes(health: Health, status: Callable[[], Mapping[str, object]], access: ops.Access = ops.OPEN) -> list[Route]:
    """Return the routes `/` and `/events`, protected by `access`."""
    page = files(__package__).joinpath("page.html").read_bytes()
    policy = POLICY.format(style=_digest(page, b"style"), script=_digest(page, b"script"))
    streams = 0

    def render() -> tuple[str, float]:
        """Return the current event, and the seconds until the next."""
        now = status()
        event = f"data: {json.dumps({'reasons': health.reasons, **now})}\n\n"
        return event, min(EVERY * max(1.0, _participants(now) / MANY), SELDOM)

    rendered = Shared(render)

    async def show(request: Request) -> Response:
        return Response(page, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"}, media_type="text/html")

    async def events(request: Request) -> Response:
        if streams >= MAX_STREAMS:
            return asgi.problem(503, "too many pages are open: close some", {"Retry-After": "10"})
        # Otherwise nginx holds events back until its buffer is full.
        return Stream(sent(), headers={"X-Accel-Buffering": "no"}, media_type="text/event-stream")

    class Stream(StreamingResponse):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            # Count here, not at the first event: many simultaneous requests would all pass the check before their first event.
            nonlocal streams
            streams += 1
            try:
                await super().__call__(scope, receive, send)
            finally:
                streams -= 1

    async def sent() -> AsyncIterator[str]:
        # Milliseconds until the browser reconnects after the stream ends; short, since a restart takes only seconds.
        yield "retry: 1000\n\n"
        while not health.stopping:
            event, pause = rendered()
            yield event
            await asyncio.sleep(pause)

    # No Basic challenge for events: the browser would show its dialog repeatedly over the page. The page reloads itself instead.
    return [access.route("/", show), access.route("/events", events, basic=False)]


def _digest(page: bytes, tag: bytes) -> str:
    """Return the digest of the content of the page's only element with this tag, as the policy names it."""
    content = page.partition(b"<%s>" % tag)[2].partition(b"</%s>" % tag)[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"


def _participants(status: Mapping[str, object]) -> int:
    found = status["participants"]
    return len(found) if isinstance(found, list) else 0
