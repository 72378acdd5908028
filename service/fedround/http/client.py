"""HTTP from the side that asks: of the coordinator, of the aggregator, of its books. The only file that imports httpx.

Whatever goes wrong becomes one of our errors, in `_mapped` and `answers.check`: its text has the peer's address and the template of
the path.
What a participant asks with is synchronous: an asynchronous request costs httpx twice the CPU.
"""

import asyncio
import gzip
import math
import os
import re
import ssl
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from threading import Event
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypedDict, TypeVar, Unpack
from urllib.parse import urlsplit

import httpx

from fedround.common import wire
from fedround.common.text import redact
from fedround.common.wire import Claim, Departure, Heartbeat, Problem, RendezVous, StartTraining, UpdateOutcome
from fedround.errors import (
    Aborted,
    BadAnswer,
    ConfigurationError,
    ExchangeError,
    NotConnected,
    Refused,
    TooLarge,
    Unreachable,
    Untrusted,
)
from fedround.events import ExchangeEnded, Observer, Observers
from fedround.http import deadlines, http_log
from fedround.http.answers import Asked, check
from fedround.http.proxies import VARIABLES, Proxy, proxy_for
from fedround.http.tls import Context, File, Names, explained
from fedround.http.tls import client as tls_client

if TYPE_CHECKING:
    from starlette.types import ASGIApp

Transport = httpx.BaseTransport


class Exchange(Protocol):
    """One request as whoever traces sees it: `headers` go with it, and it is told when the head of an answer has come."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    def answered(self, status: int, /) -> None: ...


Trace = Callable[[str, str, str], AbstractContextManager[Exchange]]
"""Is given the method, the URL and the template of its path."""
Query = Mapping[str, str | int]


class Room(Protocol):
    """Where a model is received, from its first byte to its last. It is closed if the model does not arrive whole."""

    def write(self, chunk: bytes, /) -> object: ...

    def close(self) -> None: ...


class Piece(Protocol):
    """Bytes of an update that are elsewhere: a slice of it reads them."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


CONNECT_TIMEOUT = 5.0
ANSWER_TIMEOUT = 15.0
"""Seconds for the answer to a small request."""
HOLD_MARGIN = 5.0
"""Seconds for the answer to a heartbeat, on top of the time for which it may be held: a silent one must not cost the id."""
TRANSFER_TIMEOUT = 60.0
"""Seconds for the head of a transfer's answer, and for each part of a model that the minimum rate makes in that time."""
KEEPALIVE = 4.0
"""Seconds for which an idle connection is used again. Servers close theirs after 5 s and more: none does so just when we use it."""
MAX_ANSWER = 64 << 10
"""Bytes of an answer that is no model."""
SLICE = 256 << 10
"""Bytes of an update that are copied at a time."""
MODEL = "/model"
OURS = Names(*(f"PARTICIPANT_TLS_{file}_FILE (tls_{file.lower()}_file)" for file in ("CERT", "KEY", "CA")))
"""The settings that a participant's files come from."""
NO_IDS: Mapping[str, str] = {}
T = TypeVar("T")

# What httpx and the sockets below it raise. The first class that fits decides.
FOREIGN: Mapping[type[Exception], type[ExchangeError]] = {
    httpx.LocalProtocolError: BadAnswer,
    httpx.UnsupportedProtocol: BadAnswer,
    httpx.ConnectError: NotConnected,
    httpx.ConnectTimeout: NotConnected,
    httpx.PoolTimeout: NotConnected,
    httpx.ProxyError: NotConnected,
    httpx.TransportError: Unreachable,
    httpx.DecodingError: BadAnswer,
    httpx.TooManyRedirects: BadAnswer,
    httpx.InvalidURL: BadAnswer,
    httpx.CookieConflict: BadAnswer,
    OSError: Unreachable,
    UnicodeError: NotConnected,  # the resolver's, for a host name with a part of more than 63 characters
}


class Options(TypedDict, total=False):
    """What the synchronous clients may be given."""

    token: str | None
    """Sent as a bearer token."""
    tls: Context | None
    """See `tls`; without it, httpx's authorities."""
    trusted: Callable[[str], bool]
    """Whether a URL may be sent the token; by default any may."""
    transport: httpx.BaseTransport | None
    """In place of httpx's own, and of the environment's proxies."""
    observe: Observer
    """Told of each exchange, failed ones too."""
    trace: Trace | None
    """Surrounds each request."""
    timeout: float
    """Seconds for the answer's head, and for the rest of the answer."""


class _Client:
    """An httpx client, and `_exchange`, through which all its requests go. `url` None: it asks whom it is told to ask."""

    def __init__(self, url: str | None, **options: Unpack[Options]) -> None:
        self._observe = options.get("observe", Observers())
        self._timeout = options.get("timeout", ANSWER_TIMEOUT)
        self._tls = options.get("tls")
        self._names = self._tls.names if self._tls else OURS
        self._made_with = self._tls and self._tls.current()
        hooks: Any = {"request": [self._renew, http_log.request], "response": [http_log.response]}
        headers, transport = _headers(options.get("token")), options.get("transport") or _Routed(options.get("tls"), url)
        self._http = httpx.Client(headers=headers, transport=transport, event_hooks=hooks, trust_env=False)
        self._trace = options.get("trace") or _untraced
        self._trusted = options.get("trusted") if options.get("token") else None

    def close(self) -> None:
        self._http.close()

    def _renew(self, request: httpx.Request) -> None:
        """Let a connection that was made with former certificates end with this request."""
        if self._tls is not None and (current := self._tls.current()) is not self._made_with:
            self._made_with = current
            request.headers["Connection"] = "close"

    @contextmanager
    def _exchange(
        self,
        method: str,
        url: str,
        path: str,
        ids: Mapping[str, str] = NO_IDS,
        *,
        accept: Collection[int] = (200,),
        headers: dict[str, str] | None = None,
        body: "_Slices | None" = None,
        timeout: float | None = None,
    ) -> Iterator[httpx.Response]:
        """Ask, and lend the answer to be read, if its status is one of `accept`."""
        if self._trusted is not None and not self._trusted(url):
            raise Untrusted(_origin(url))
        where, actual = _where(method, url, path), path.format_map(ids)
        url = url.rstrip("/") + actual
        asked = Asked(where, url, actual, body.size if body else 0)
        response: httpx.Response | None = None
        failed: str | None = None
        began = time.monotonic()
        timeout = timeout or self._timeout
        with self._trace(method, url, path) as exchange:
            try:
                with (
                    _mapped(where, self._names),
                    deadlines.within(timeout) as deadline,
                    self._http.stream(
                        method,
                        url,
                        headers={**(headers or {}), **({"Content-Length": str(body.size)} if body else {}), **exchange.headers},
                        content=body,
                        timeout=_timeout(timeout),
                    ) as response,
                ):
                    deadline.next_step()
                    exchange.answered(response.status_code)
                    check(asked, response.status_code, response.headers, _read_problem(response), accept)
                    yield response
            except BaseException as error:
                failed = type(error.__cause__ or error).__name__
                raise
            finally:
                seconds = time.monotonic() - began
                status, received = (None, 0) if response is None else (response.status_code, response.num_bytes_downloaded)
                self._observe(ExchangeEnded(method, path, status, failed, seconds, body.sent if body else 0, received))


class CoordinatorClient(_Client):
    """What a participant asks of its coordinator. Every method raises `ExchangeError`.

    Args:
        url: the coordinator's base URL; its path is kept.
        options: see `Options`.
    """

    def __init__(self, url: str, **options: Unpack[Options]) -> None:
        if not wire.is_url(url):
            raise ConfigurationError(f"{redact(str(url))} is no URL of a coordinator: write http://host:port or https://host")
        super().__init__(url, **options)
        self._url = url

    def rendez_vous(
        self, name: str, ordinal: int | None = None, *, evaluates: bool = False, claim: Claim | None = None
    ) -> RendezVous:
        """Register, under a name to be shown; `ordinal` is the one to get again. `evaluates`: models, if asked to.

        `claim`: what is to be said about shards.
        """
        headers = {wire.PARTICIPANT_NAME: name} | ({} if ordinal is None else {wire.ORDINAL: str(ordinal)})
        headers |= ({wire.EVALUATES: "true"} if evaluates else {}) | (claim.headers() if claim else {})
        with self._exchange("GET", self._url, wire.RENDEZ_VOUS, headers=headers) as response:
            return RendezVous.decode(_read(response))

    def heartbeat(self, id: str, *, wait: float, trouble: str = "", phase: str = "") -> Heartbeat:
        """Say that we are alive, and ask that an answer without news be held for `wait` seconds at most; 0: not at all.

        `trouble`: what keeps us from the aggregator, for people. `phase`: one of `wire.PHASES`.
        """
        hold = math.ceil(wait)
        headers, timeout = {wire.PREFER: f"wait={hold}"}, hold + HOLD_MARGIN
        if trouble:
            headers[wire.TROUBLE] = wire.one_line(redact(trouble).encode("ascii", "replace").decode())
        if phase:
            headers[wire.PHASE] = phase
        with self._exchange("GET", self._url, wire.HEARTBEAT, {"id": id}, headers=headers, timeout=timeout) as response:
            return Heartbeat.decode(_read(response))

    def start_training(self, id: str) -> StartTraining:
        """Ask for the aggregator and a token."""
        try:
            with self._exchange("GET", self._url, wire.START_TRAINING, {"id": id}) as response:
                return StartTraining.decode(_read(response))
        except Refused as refused:
            if refused.status == 404 and not refused.detail:
                raise Unreachable(f"{refused}: the way of 0.8 to say that its aggregator is away") from refused
            raise

    def leave(self, id: str, reason: str = "") -> None:
        """Leave at once. `reason` tells people why a participant left that failed. A 0.8 coordinator ignores the request."""
        headers = {"Content-Type": Problem.media_type} if reason else {}
        body = _Slices([Departure(redact(reason)).encode()], Event()) if reason else None
        with self._exchange("DELETE", self._url, wire.LEAVE, {"id": id}, accept=(200, 204, 404, 405), headers=headers, body=body):
            pass

    def push(self, path: str, message: bytes) -> None:
        """Send telemetry to be passed on."""
        headers = {"Content-Type": wire.PROTOBUF, "Content-Encoding": "gzip"}
        body = _Slices([gzip.compress(message, 1)], Event())
        with self._exchange("POST", self._url, path, headers=headers, body=body) as response:
            _read(response)


@dataclass(frozen=True, slots=True)
class Download:
    """A global model. `body`: its bytes, writable, or the `Room` that it is in; None when the model is still that of the etag."""

    body: Any
    etag: str | None


class AggregatorClient(_Client):
    """What a participant asks of its aggregator: one transfer at a time. Every method raises `ExchangeError`.

    Args:
        max_model_size: the bytes that a global model may have.
        room: makes the room that a model is received in; by default this process's own memory.
        options: see `Options`.
    """

    def __init__(self, *, max_model_size: int, room: Callable[[], Room] | None = None, **options: Unpack[Options]) -> None:
        super().__init__(None, **Options(timeout=TRANSFER_TIMEOUT) | options)
        self._max_model_size = max_model_size
        self._room = room
        self._aborted = Event()

    def download(self, url: str, id: str, token: str, *, etag: str | None = None) -> Download:
        """Fetch the global model, if it is another than that of `etag`; empty before the first aggregation.

        Raises:
            TooLarge: it has more bytes than are allowed; nothing was allocated for it.
        """
        return self.fetch(url, wire.UPDATE, {"id": id, "token": token}, etag=etag)

    def fetch(self, url: str, path: str, ids: Mapping[str, str] = NO_IDS, *, etag: str | None = None) -> Download:
        """Fetch a model from another path."""
        self._aborted.clear()
        headers, accept = ({}, [200]) if etag is None else ({"If-None-Match": etag}, [200, 304])
        with self._exchange("GET", url, path, ids, accept=accept, headers=headers) as response:
            unchanged = response.status_code == 304
            body = _read(response) if unchanged else self._receive(response)
            return Download(None if unchanged else body, response.headers.get("ETag"))

    def upload(
        self,
        url: str,
        id: str,
        token: str,
        buffers: Sequence[bytes | memoryview | Piece],
        *,
        metrics: str | None = None,
        evaluation: str | None = None,
    ) -> UpdateOutcome | None:
        """Send an update: the bytes of all buffers, one after the other.

        Returns:
            What the aggregator says became of it; None from a 0.8 aggregator, which says nothing.
        """
        self._aborted.clear()
        reported = {wire.METRICS: metrics, wire.EVALUATION: evaluation}
        headers = {"Content-Type": "application/octet-stream"} | {name: text for name, text in reported.items() if text is not None}
        with (
            closing(_Slices(buffers, self._aborted)) as body,
            self._exchange("POST", url, wire.UPDATE, {"id": id, "token": token}, headers=headers, body=body) as response,
        ):
            _read(response)
            return _outcome(response.headers.get(wire.UPDATE_OUTCOME))

    def abort(self) -> None:
        """From another thread: end the transfer under way, if any, with `Aborted` as soon as its current read or write is over."""
        self._aborted.set()

    def _receive(self, response: httpx.Response) -> memoryview | Room:
        headers = response.headers
        announced = "Content-Length" in headers and "Transfer-Encoding" not in headers
        size = self._allowed(int(headers["Content-Length"])) if announced else None
        if self._room is not None:
            return self._receive_in(self._room(), response)
        if size is None:
            return self._receive_unannounced(response)
        import numpy as np  # here only: a process that receives in a `Room` does without it

        body = np.empty(size, np.uint8).data  # a bytearray would write zeros first
        end = 0
        for chunk in _until(self._aborted, response.iter_raw()):
            body[end : end + len(chunk)] = chunk
            end += len(chunk)
        return body

    def _receive_in(self, room: Room, response: httpx.Response) -> Room:
        size = 0
        try:
            for chunk in _until(self._aborted, response.iter_raw()):
                size = self._allowed(size + len(chunk))
                room.write(chunk)
        except BaseException:
            room.close()
            raise
        return room

    def _receive_unannounced(self, response: httpx.Response) -> memoryview:
        body = bytearray()
        for chunk in _until(self._aborted, response.iter_raw()):
            body += chunk
            self._allowed(len(body))
        return memoryview(body)

    def _allowed(self, size: int) -> int:
        if size > self._max_model_size:
            raise TooLarge(f"the global model has {size} bytes or more, PARTICIPANT_MAX_MODEL_SIZE allows {self._max_model_size}")
        return size


def _outcome(value: str | None) -> UpdateOutcome | None:
    try:
        return None if value is None else UpdateOutcome(value)
    except ValueError:
        raise BadAnswer(f"an update cannot be {value!r}") from None


def fetch_model(
    url: str, *, round: str | None = None, token: str | None = None, ca_file: File | None = None, max_model_size: int = 1 << 40
) -> tuple[memoryview, int | None]:
    """Fetch the newest global model, or that of a former `round`, a number or `best`, from an aggregator's ops port.

    `ca_file` is an authority (PEM) that is trusted beside the usual ones.

    Returns:
        The bytes of a `.npy` file, and the round that the model comes from.

    Raises:
        ExchangeError: no answer, or not the hoped for.
    """
    names = Names("", "", "--ca-file")
    context = tls_client(names, ca_file, None, None, base=httpx.create_ssl_context) if url.startswith("https://") else None
    with closing(AggregatorClient(max_model_size=max_model_size, token=token, tls=context)) as aggregator:
        model = aggregator.fetch(url, MODEL if round is None else f"{MODEL}?round={round}")
    etag = (model.etag or "").removeprefix("W/").strip('"')
    return model.body or memoryview(b""), int(etag) if etag.isdecimal() else None


class AsyncPeer:
    """One HTTP server, asked without blocking the event loop. Raises `ExchangeError`.

    Args:
        url: its base URL.
        token: gives the bearer token for the next request; None: none is sent.
        tls: what it is asked with, where the URL is https.
        trace: see `Options`.
    """

    def __init__(
        self, url: str, *, token: Callable[[], str | None] = lambda: None, tls: Context | None = None, trace: Trace | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._names = tls.names if tls else OURS
        self._token = token
        self._http = httpx.AsyncClient(headers=_headers(None), transport=_AsyncRouted(tls, url), trust_env=False)
        self._trace = trace or _untraced

    async def ask(
        self, method: str, path: str, *, timeout: float, max_answer: int, json: object = None, query: Query | None = None
    ) -> bytes:
        """Send a request. Returns the answer's body."""
        where, url = _where(method, self._url, path), self._url + path
        body = bytearray()
        with self._trace(method, url, path) as exchange, _mapped(where, self._names):
            headers = {**exchange.headers, **_bearer(self._token())}
            async with (
                asyncio.timeout(timeout),
                self._http.stream(method, url, json=json, params=query, headers=headers, timeout=_timeout(timeout)) as response,
            ):
                exchange.answered(response.status_code)
                async for chunk in response.aiter_raw():
                    body += chunk
                    _bounded(body, max_answer)
            check(Asked(where, url, path), response.status_code, response.headers, bytes(body), accept=(200, 204))
        return bytes(body)

    async def post(self, path: str, body: bytes, headers: Mapping[str, str], *, timeout: float) -> int:
        """Send a body to a server that is none of ours. Returns the status of its answer, of which nothing else is read."""
        with _mapped(_where("POST", self._url, path), self._names):
            async with (
                asyncio.timeout(timeout),
                self._http.stream("POST", self._url + path, content=body, headers=headers, timeout=_timeout(timeout)) as response,
            ):
                return response.status_code

    async def aclose(self) -> None:
        await self._http.aclose()


# Answers


@contextmanager
def _mapped(where: str, names: Names) -> Iterator[None]:
    try:
        yield
    except BadAnswer as error:
        raise type(error)(f"{where}: {error}") from error
    except tuple(FOREIGN) as error:
        ours = next(ours for theirs, ours in FOREIGN.items() if isinstance(error, theirs))
        text = explained(error, names) or redact(str(error)) or type(error).__name__
        raise ours(f"{where}: {text}") from error


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _where(method: str, url: str, path: str) -> str:
    address = re.search(r"//(?:[^/@]*@)?([^/?#]*)", url)
    return f"{method} {address[1] if address else ''}{path}"


def _read_problem(response: httpx.Response) -> bytes:
    """The reason for a refusal; the refusal stands without it."""
    with suppress(httpx.TransportError, TimeoutError, BadAnswer):
        return _read(response) if response.status_code >= 400 else b""
    return b""


def _read(response: httpx.Response) -> bytes:
    """A small answer."""
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        _bounded(body, MAX_ANSWER)
    return bytes(body)


def _bounded(body: bytearray, limit: int) -> None:
    if len(body) > limit:
        raise BadAnswer(f"the answer has more than {limit} bytes")


# Bodies


def _until(aborted: Event, chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        if aborted.is_set():
            raise Aborted("the transfer was cut: it is not wanted any more")
        yield chunk
        deadlines.moved(len(chunk))


class _Slices:
    """A request's body out of several buffers. Counts what was sent."""

    def __init__(self, buffers: Sequence[bytes | memoryview | Piece], aborted: Event) -> None:
        self._pieces = [piece for piece in map(_piece, buffers) if len(piece)]
        self._aborted = aborted
        self.size = sum(map(len, self._pieces))
        self.sent = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in _until(self._aborted, self._copies()):
            yield chunk
            self.sent += len(chunk)
        deadlines.next_step()

    def close(self) -> None:
        """Let go of the buffers: httpx's requests and answers refer to each other, and live until the garbage is collected."""
        for piece in self._pieces:
            if isinstance(piece, memoryview):
                piece.release()
        self._pieces = []

    def _copies(self) -> Iterator[bytes]:
        for piece in self._pieces:
            for start in range(0, len(piece), SLICE):
                yield bytes(piece[start : start + SLICE])


def _piece(buffer: bytes | memoryview | Piece) -> memoryview | Piece:
    return memoryview(buffer).cast("B") if isinstance(buffer, bytes | memoryview) else buffer


# Connections


@cache
def _default_tls() -> Context:
    """Made only when a URL is https: it takes 30 ms. Raises `ConfigurationError`."""
    try:
        return tls_client(OURS, None, None, None, base=httpx.create_ssl_context)
    except OSError as error:
        variable = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
        raise ConfigurationError(f"{variable}: {os.environ.get(variable)}: {error.strerror or error}") from error


def tls(ca_file: File | None, cert_file: File | None, key_file: File | None, names: Names = OURS) -> Context | None:
    """The usual authorities and one of your own, and the certificate that is shown to who asks; None where no file is set.

    Raises `ConfigurationError`, which names the settings.
    """
    if ca_file is cert_file is key_file is None:
        return None
    return tls_client(names, ca_file, cert_file, key_file, base=httpx.create_ssl_context)


class _Routes(Generic[T]):
    """Transports: one for each proxy, with TLS and without, made when it is needed. `url`: one that is needed in any case."""

    def __init__(self, make: Callable[..., T], tls: Context | None, url: str | None) -> None:
        self._make = make
        self._tls = tls
        self._environ = {name: value for name, value in os.environ.items() if name.lower() in VARIABLES}
        self._made: dict[tuple[Proxy | None, bool], T] = {}
        if url is not None:
            self.to(url)

    def __iter__(self) -> Iterator[T]:
        return iter(self._made.values())

    def to(self, url: str) -> T:
        """Raises `ConfigurationError` where the environment's proxy or authorities cannot be used."""
        proxy, secure = proxy_for(url, self._environ), url.startswith("https:")
        if (found := self._made.get((proxy, secure))) is None:
            verify = (self._tls or _default_tls()) if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            through = None if proxy is None else _checked(proxy)
            found = self._make(verify=verify, limits=_limits(), trust_env=False, proxy=through)
            self._made[proxy, secure] = found
        return found


def _checked(proxy: Proxy) -> httpx.Proxy:
    if not proxy.is_valid:
        raise ConfigurationError(f"{proxy.variable}: is no proxy's URL: write http://host:port")
    if proxy.url.startswith("socks") and find_spec("socksio") is None:
        raise ConfigurationError(f"{proxy.variable}: a SOCKS proxy needs one more package: pip install 'httpx[socks]'")
    return httpx.Proxy(proxy.url)


class _Routed(httpx.BaseTransport):
    """Each request on its route."""

    def __init__(self, tls: Context | None, url: str | None) -> None:
        self._routes = _Routes(_transport, tls, url)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._routes.to(str(request.url)).handle_request(request)

    def close(self) -> None:
        for transport in self._routes:
            transport.close()


def _transport(**options: Any) -> httpx.HTTPTransport:
    transport = httpx.HTTPTransport(**options)
    transport._pool._network_backend = deadlines.Backend()  # httpcore takes one, httpx does not pass one on
    return transport


class _AsyncRouted(httpx.AsyncBaseTransport):
    """Each request on its route."""

    def __init__(self, tls: Context | None, url: str | None) -> None:
        self._routes = _Routes(httpx.AsyncHTTPTransport, tls, url)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._routes.to(str(request.url)).handle_async_request(request)

    async def aclose(self) -> None:
        for transport in self._routes:
            await transport.aclose()


def _limits() -> httpx.Limits:
    return httpx.Limits(max_connections=4, max_keepalive_connections=2, keepalive_expiry=KEEPALIVE)


def _headers(token: str | None) -> dict[str, str]:
    return {"Accept-Encoding": "identity", "User-Agent": "fedround"} | _bearer(token)


def _bearer(token: str | None) -> dict[str, str]:
    if token is not None and not re.fullmatch("[!-~]+", token):
        raise ConfigurationError("a token is sent in a header: visible ASCII characters, at least one, and no blanks")
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _timeout(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(seconds, CONNECT_TIMEOUT))


class _Untraced:
    headers: Mapping[str, str] = {}

    def answered(self, status: int) -> None: ...


@contextmanager
def _untraced(_method: str, _url: str, _path: str) -> Iterator[Exchange]:
    yield _Untraced()


class InMemory(httpx.BaseTransport):
    """For tests: in place of sockets, ASGI apps by the names of their hosts, at work on an event loop of another thread."""

    def __init__(self, apps: "Mapping[str, ASGIApp]", loop: asyncio.AbstractEventLoop) -> None:
        self._hosts = {host: httpx.ASGITransport(app, raise_app_exceptions=False) for host, app in apps.items()}
        self._loop = loop

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Whole bodies in both directions."""
        return asyncio.run_coroutine_threadsafe(self._ask(request, request.read()), self._loop).result()

    async def _ask(self, request: httpx.Request, body: bytes) -> httpx.Response:
        asked = httpx.Request(request.method, request.url, headers=request.headers, content=body)
        answer = await self._hosts[request.url.host].handle_async_request(asked)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(await answer.aread()))
