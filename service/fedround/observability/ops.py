"""The ops app of every service: is it alive, is it ready, what is it doing. What else one shows there comes as further routes."""

import json
from collections.abc import Callable, Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from fedround import asgi
from fedround.observability.health import Health

Scrape = Callable[[str], tuple[bytes, str]]
"""Gives all metrics in the format that an `Accept` header asks for, and its content type."""


def app(
    health: Health, status: Callable[[], Mapping[str, object]], *, scrape: Scrape | None = None, routes: Sequence[BaseRoute] = ()
) -> ASGIApp:
    """`/livez`, `/readyz` (200, or 503 with the reasons), `/status` (what `status` returns, as JSON), `/metrics`, and `routes`."""

    async def livez(request: Request) -> Response:
        return _json({"alive": health.alive}, 200 if health.alive else 503)

    async def readyz(request: Request) -> Response:
        reasons = health.reasons
        return _json({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def show_status(request: Request) -> Response:
        reasons = health.reasons
        return _json({"ready": not reasons, "reasons": reasons, **status()}, 200)

    async def metrics(request: Request) -> Response:
        if scrape is None:
            return asgi.problem(404, "this service keeps no metrics")
        body, content_type = scrape(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    own = [Route("/livez", livez), Route("/readyz", readyz), Route("/status", show_status), Route("/metrics", metrics)]
    return asgi.application([*own, *routes])


def _json(data: Mapping[str, object], status: int) -> Response:
    # A probe's answer of a minute ago is worth nothing.
    return Response(json.dumps(data) + "\n", status, {"Cache-Control": "no-store"}, media_type="application/json")
