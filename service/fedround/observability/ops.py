"""The app on the operations port of every service: health, status and metrics. Services add their own routes.

`Access` decides which clients may use which endpoint. A participant's token is not valid here.
"""

import json
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Scope

from fedround.common.settings import ParticipantSettings, PlatformSettings, reveal
from fedround.http import asgi
from fedround.http.throttle import EXEMPT
from fedround.http.tokens import Tokens
from fedround.observability import endpoints
from fedround.observability.health import Health
from fedround.observability.openapi import Api
from fedround.observability.shared import Shared

Endpoint = Callable[[Request], Awaitable[Response]]
Scrape = Callable[[str], tuple[bytes, str]]
"""Returns all metrics in the format that an `Accept` header asks for, and the content type."""

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every response. They forbid browsers to cache it, to load resources, to frame it, and to guess its content type."""


class Access:
    """The clients that may use the endpoints of one operations port.

    Args:
        token: The operators' token. None: no endpoint requires a token.
        variable: The setting with that token, for error messages.
        closed: Whether private endpoints are closed without an operators' token. This is so if participants authenticate.
    """

    def __init__(self, token: str | None = None, variable: str = "", *, closed: bool = False) -> None:
        self._tokens = Tokens(token)
        self._variable = variable
        self._closed = closed

    def route(self, path: str, endpoint: Endpoint, *, private: bool = True, basic: bool = True, method: str = "GET") -> Route:
        """Return a route for operators only. A route that changes something always requires the operators' bearer token.

        Args:
            path: The path.
            endpoint: Handles the requests of operators.
            private: Whether this access may close the route: see `closed`.
            basic: Whether a browser may ask for the token as a password.
            method: The only method of the route.
        """

        async def guarded(request: Request) -> Response:
            changes = method not in ("GET", "HEAD")
            if (changes or (private and self._closed)) and not self._tokens.required:
                return asgi.problem(403, f"this endpoint is closed: set {self._variable}, and send that token")
            if asgi.bearer(request.headers, self._tokens, basic=not changes) is None:
                return asgi.unauthorized(request.headers, basic=basic, needs=f"operators' token ({self._variable})")
            return await endpoint(request)

        return Route(path, guarded, methods=[method])

    def known(self, scope: Scope) -> Hashable | None:
        """Return `EXEMPT` for operators with the token, which exempts them from throttling; None for others."""
        proved = self._tokens.required and asgi.bearer(Headers(scope=scope), self._tokens, basic=True) is not None
        return EXEMPT if proved else None


OPEN = Access()
"""Access without a token."""


def access(settings: PlatformSettings | ParticipantSettings) -> Access:
    """Return the access that a service's settings describe."""
    proofs = ("token", "tokens_file", "tls_client_ca_file") if isinstance(settings, PlatformSettings) else ()
    closed = any(getattr(settings, name) is not None for name in proofs)
    return Access(reveal(settings.ops_token), f"{settings.prefix}_OPS_TOKEN", closed=closed)


def app(
    health: Health,
    status: Callable[[], Mapping[str, object]],
    *,
    scrape: Scrape | None = None,
    routes: Sequence[BaseRoute] = (),
    access: Access = OPEN,
    api: Api = endpoints.PARTICIPANT,
) -> ASGIApp:
    """Return the app of an operations port: `/livez`, `/readyz`, `/status`, `/metrics`, `/openapi.json` and `routes`.

    Args:
        health: Decides the probes `/livez` and `/readyz`, which are open.
        status: Returns the content of `/status`, as JSON-able data.
        scrape: Returns the content of `/metrics`; None: the service has none.
        routes: Further routes, from `Access.route`.
        access: Protects all endpoints but the probes.
        api: The endpoints of the service, for `/openapi.json`.
    """

    async def livez(request: Request) -> Response:
        return _json({"alive": health.alive}, 200 if health.alive else 503)

    async def readyz(request: Request) -> Response:
        reasons = health.reasons
        return _json({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    def render() -> str:
        reasons = health.reasons
        return json.dumps({"ready": not reasons, "reasons": reasons, **status()}) + "\n"

    rendered = Shared(render)

    async def show_status(request: Request) -> Response:
        return Response(rendered(), media_type="application/json")

    async def metrics(request: Request) -> Response:
        if scrape is None:
            return asgi.problem(404, "this service has no metrics")
        body, content_type = scrape(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    async def description(request: Request) -> Response:
        return Response(api.json, media_type="application/json")

    probes = [Route("/livez", livez), Route("/readyz", readyz)]
    readable = {"/status": show_status, "/metrics": metrics, endpoints.PATH: description}
    shown = [access.route(path, endpoint, private=False) for path, endpoint in readable.items()]
    return asgi.application([*probes, *shown, *routes], headers=HEADERS)


def _json(data: Mapping[str, object], status: int) -> Response:
    return Response(json.dumps(data) + "\n", status, media_type="application/json")
