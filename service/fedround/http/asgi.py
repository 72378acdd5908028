"""Common parts of the HTTP apps: authentication (`Front`), error responses as problem+json, bodies that are sent without a copy."""

import asyncio
import base64
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from http import HTTPStatus
from typing import Protocol

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedround.common.wire import DRAIN_BYTES, DRAIN_SECONDS, Problem
from fedround.errors import (
    BadTelemetry,
    Busy,
    FedroundError,
    Forbidden,
    Late,
    NoSeat,
    NotAdmitted,
    SpoolFull,
    TooLarge,
    TooSlow,
    Unauthorized,
    UnknownAttempt,
    WeightsError,
)
from fedround.events import Observer, RequestServed
from fedround.http.tls import CLIENT, Client
from fedround.http.tokens import NO_TOKENS, TokenCheck

SLICE = 512 << 10
"""Bytes of a large body per write. asyncio before Python 3.12 copies what the socket does not take."""
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"))
OTHER = "_OTHER"
"""OpenTelemetry's name for unknown methods."""

NO_HEADERS: Mapping[str, str] = {}


def problem(status: int, detail: str = "", headers: Mapping[str, str] | None = None) -> Response:
    """Return an error response with its reason (RFC 9457)."""
    body = Problem(status, HTTPStatus(status).phrase, detail)
    return Response(body.encode(), status, headers, media_type=body.media_type)


class Served(Protocol):
    """One request, for a tracer."""

    def answered(self, route: str, status: int | None, /) -> None: ...


Trace = Callable[[str, str, Mapping[str, str]], AbstractContextManager[Served]]
"""A function that returns a context manager for a request, from its method, path and headers."""


def application(
    routes: Sequence[BaseRoute],
    *,
    tokens: TokenCheck = NO_TOKENS,
    needs: str = "participant's token",
    origins: Iterable[str] = (),
    headers: Mapping[str, str] = NO_HEADERS,
    observe: Observer | None = None,
    trace: Trace | None = None,
) -> ASGIApp:
    """Return an app with these routes behind a `Front`. Our errors and Starlette's become problem responses.

    Args:
        routes: The endpoints.
        tokens: Tokens that clients need.
        needs: Name of the token that clients need, for error responses.
        origins: Web origins whose pages may read the responses. "*" stands for every origin, as in 0.8.
        headers: Headers of every response that does not set them itself.
        observe: Observer of each request.
        trace: Context manager around each request.
    """
    app = Starlette(routes=routes, exception_handlers=dict.fromkeys((HTTPException, ClientDisconnect, FedroundError), _problem_of))
    app.router.redirect_slashes = False
    front = Front(app, tokens, needs=needs, origins=origins, headers=headers)
    return front if observe is None else _Observed(front, routes, observe, trace)


def bearer(headers: Headers, tokens: TokenCheck, *, basic: bool = False) -> str | None:
    """Return the name of the token's owner, "" if the token has none, or None if the request lacks a valid token.

    With `basic`, the password of HTTP Basic is accepted too, for browsers.
    """
    if not tokens.required:
        return ""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if basic and scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except ValueError:
            return None
    elif scheme.lower() != "bearer":
        return None
    return tokens.owner(given.strip())


def unauthorized(headers: Headers, *, basic: bool = False, needs: str = "participant's token") -> Response:
    """Return the 401 response to a request with these headers. `needs`: the name of the token that clients need."""
    challenge = 'Basic realm="fedround"' if basic else "Bearer"
    prefix = "unknown token: " if "authorization" in headers else ""
    return problem(401, f"{prefix}send the {needs} as `Authorization: Bearer`", {"WWW-Authenticate": challenge})


def check_admitted(request: Request) -> None:
    """Raise `Unauthorized` if the token of a request was revoked during the request."""
    if not request.state.admitted():
        raise Unauthorized("the token was revoked during this request")


def identity(client: Client | None, headers: Headers, tokens: TokenCheck, *, needs: str = "participant's token") -> str | Response:
    """Return the name that a request proves, "" if it proves none, or the response that refuses the request.

    If the port requests client certificates, each client needs a certificate or an individual token. If it has both, their names
    must match.
    """
    owner = bearer(headers, tokens)
    if client is None or (client.name is None and owner):
        return unauthorized(headers, needs=needs) if owner is None else owner
    if client.name is None:
        return problem(401, "this port requires a client certificate" + (", or an individual token" if tokens.required else ""))
    if not client.name:
        return problem(403, "the client certificate names no participant: a DNS name or the common name of [a-z0-9.-]{1,63}")
    if owner is None and "authorization" in headers:
        return unauthorized(headers, needs=needs)
    if owner and owner != client.name:
        return problem(403, "the token and the client certificate belong to two participants")
    return client.name


class Front:
    """The outermost layer of an app: trailing slashes, authentication, CORS, and error responses that reach the client.

    `state.owner` of a request is the name that its certificate or token proves. `check_admitted` checks this again later.
    `state.certificate` is the validity of its client certificate; None without one.

    The app may refuse a request before it has read the body. If it closed the connection then, TCP would reset it, and many clients
    would never see the response. So `Front` reads and discards the rest of the body first, up to a bound. To respond first would
    not help: `requests`, for example, reads nothing while it writes.
    """

    def __init__(self, app: ASGIApp, tokens: TokenCheck, *, needs: str, origins: Iterable[str], headers: Mapping[str, str]) -> None:
        self._app = app
        self._tokens = tokens
        self._needs = needs
        self._origins = frozenset(origins)
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        body = _Body(headers, receive)

        async def send_response(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in self._headers.items():
                    added.setdefault(name, value)
                if (origin := headers.get("origin")) and not self._origins.isdisjoint((origin, "*")):
                    added["Access-Control-Allow-Origin"] = origin
                    added["Vary"] = "Origin"
                if message["status"] >= 400 and not await body.drained():
                    added["Connection"] = "close"
            await send(message)

        if len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope["path"] = scope["path"].rstrip("/") or "/"
        client: Client | None = scope.get("extensions", {}).get(CLIENT)

        def proved() -> str | Response:
            return identity(client, headers, self._tokens, needs=self._needs)

        owner = proved()
        scope.setdefault("state", {}).update(
            owner=owner if isinstance(owner, str) else None,
            admitted=lambda: proved() == owner,
            certificate=client.validity if client else None,
        )
        await (self._app if isinstance(owner, str) else owner)(scope, body.receive, send_response)


class _Observed:
    """An app around another one that reports and traces each request."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute], observe: Observer, trace: Trace | None) -> None:
        self._app = app
        self._routes: dict[object, Route] = {route.endpoint: route for route in routes if isinstance(route, Route)}
        self._observe = observe
        self._trace = trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._trace is None:
            await self._serve(scope, receive, send)
            return
        with self._trace(method(scope), scope["path"], Headers(scope=scope)) as served:
            served.answered(*await self._serve(scope, receive, send))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> tuple[str, int | None]:
        status: int | None = None
        began = time.monotonic()

        async def send_response(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_response)
        finally:
            found = self._routes.get(scope.get("endpoint"))  # by Starlette
            route, methods = (found.path, found.methods or ()) if found else ("", ())
            name = scope["method"] if scope["method"] in methods else OTHER
            self._observe(RequestServed(name, route, status, time.monotonic() - began))
        return route, status


def method(scope: Scope) -> str:
    """Return the method of a request, or `OTHER` if HTTP does not define it."""
    name: str = scope["method"]
    return name if name in METHODS else OTHER


class _Body:
    """The body of a request, and whether it was read completely."""

    def __init__(self, headers: Headers, receive: Receive) -> None:
        self._receive = receive
        self._ended = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        self._invited = headers.get("expect", "").lower() != "100-continue"

    async def receive(self) -> Message:
        message = await self._receive()
        self._invited = True
        self._ended = not message.get("more_body", False)
        return message

    async def drained(self) -> bool:
        """Discard the rest of the body, up to a bound. Return whether it ended. A peer that awaits `100 Continue` sends none."""
        left = DRAIN_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while self._invited and not self._ended and left > 0:
                    left -= len((await self.receive()).get("body", b""))
        return self._ended


async def read_body(request: Request, limit: int) -> bytearray:
    """Return the body of a request. Raises `TooLarge` if it has more than `limit` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"the body of this request may have at most {limit} bytes")
    return body


def is_number(text: str) -> bool:
    """Return whether a parameter is a whole number of at most 18 digits."""
    return text.isascii() and text.isdigit() and len(text) <= 18


class Slices(Response):
    """A response made of contiguous buffers of bytes, which are sent in slices and never copied."""

    def __init__(self, buffers: Iterable[bytes | memoryview], *, headers: Mapping[str, str], media_type: str) -> None:
        self._buffers = [memoryview(buffer) for buffer in buffers]
        size = sum(len(buffer) for buffer in self._buffers)
        super().__init__(headers={**headers, "Content-Length": str(size)}, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] != "HEAD":
            for buffer in self._buffers:
                for start in range(0, len(buffer), SLICE):
                    await send({"type": "http.response.body", "body": buffer[start : start + SLICE], "more_body": True})
        await send({"type": "http.response.body"})


async def _problem_of(request: Request, error: Exception) -> Response:
    match error:
        case HTTPException():
            return problem(error.status_code, headers=error.headers)
        case ClientDisconnect():
            return problem(400, "the request body is incomplete")
        case Unauthorized():
            return problem(error.status, str(error), {"WWW-Authenticate": "Bearer"})
        case Busy() | SpoolFull() | NoSeat():
            return problem(error.status, str(error), {"Retry-After": f"{error.retry_after:g}"})
        case BadTelemetry() | NotAdmitted() | Forbidden() | Late() | UnknownAttempt() | TooSlow() | WeightsError():
            return problem(error.status, str(error))
    raise error
