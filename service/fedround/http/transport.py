"""Connections to servers: TLS, proxies, time-outs, limits, and the mapping of httpx's exceptions to ours.

The only file that imports httpx. The other clients import its types and ready clients from here.
"""

import asyncio
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import httpx

from fedround.common.text import redact
from fedround.errors import BadAnswer, ConfigurationError, ExchangeError, NotConnected, Unreachable
from fedround.http import deadlines, http_log
from fedround.http.proxies import VARIABLES, Proxy, proxy_for
from fedround.http.tls import Context, File, Names, explained
from fedround.http.tls import client as tls_client

if TYPE_CHECKING:
    from starlette.types import ASGIApp

Transport = httpx.BaseTransport
Request = httpx.Request
Response = httpx.Response
CONNECT_TIMEOUT = 5.0
KEEPALIVE = 4.0
"""Seconds for which an idle connection is reused. Servers close theirs after 5 s or later, so none closes one while we reuse it."""
MAX_RESPONSE = 64 << 10
"""Maximum bytes of a response other than a model."""
TLS_FILES = Names(*(f"PARTICIPANT_TLS_{file}_FILE (tls_{file.lower()}_file)" for file in ("CERT", "KEY", "CA")))
"""The settings that name a participant's TLS files."""
T = TypeVar("T")

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
"""Exceptions of httpx and of sockets, and ours. The first class that matches decides."""


# Clients


def sync_client(token: str | None, transport: Transport, *on_request: Callable[[Request], None]) -> httpx.Client:
    """Make a synchronous client. It calls `on_request` before each request, and logs requests and responses."""
    hooks: Any = {"request": [*on_request, http_log.request], "response": [http_log.response]}
    return httpx.Client(
        headers=default_headers(token), cookies=_no_cookies(), transport=transport, event_hooks=hooks, trust_env=False
    )


def async_client(tls: Context | None, url: str) -> httpx.AsyncClient:
    """Make an asynchronous client for `url`. Each request must bring its own token."""
    return httpx.AsyncClient(headers=default_headers(None), cookies=_no_cookies(), transport=AsyncRouted(tls, url), trust_env=False)


def _no_cookies() -> CookieJar:
    """Return a jar that accepts no cookie. Otherwise a server could set ever more of them, for us to keep and to send."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


# Responses


@contextmanager
def mapped(where: str, names: Names) -> Iterator[None]:
    """Raise foreign exceptions as `ExchangeError`. `where` begins the message; `names` are the settings that TLS errors name."""
    try:
        yield
    except BadAnswer as error:
        raise type(error)(f"{where}: {error}") from error
    except tuple(FOREIGN) as error:
        ours = next(ours for theirs, ours in FOREIGN.items() if isinstance(error, theirs))
        text = explained(error, names) or redact(str(error)) or type(error).__name__
        raise ours(f"{where}: {text}") from error


def read_problem(response: Response) -> bytes:
    """Return the body of an error response; empty if it cannot be read, since the status alone is enough."""
    with suppress(httpx.TransportError, TimeoutError, BadAnswer):
        return read(response) if response.status_code >= 400 else b""
    return b""


def read(response: Response) -> bytes:
    """Return the body of a small response."""
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        check_size(body, MAX_RESPONSE)
    return bytes(body)


def check_size(body: bytearray, limit: int) -> None:
    """Raise `BadAnswer` if a body has more than `limit` bytes."""
    if len(body) > limit:
        raise BadAnswer(f"the response has more than {limit} bytes")


# Connections


@cache
def _default_tls() -> Context:
    """Load the public CAs, only when a URL is https: it takes 30 ms. Raises `ConfigurationError`."""
    return authorities(None, TLS_FILES)


def _public_authorities() -> ssl.SSLContext:
    """Return a context with the public CAs. Raises `ConfigurationError` if a file that a variable of OpenSSL names is unusable."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        variable = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
        if error.filename and error.filename == os.environ.get("SSLKEYLOGFILE"):
            variable = "SSLKEYLOGFILE"
        raise ConfigurationError(f"{variable}: {os.environ.get(variable)}: {error.strerror or error}") from error


def authorities(ca_file: File | None, names: Names) -> Context:
    """Return a context with the public CAs and those in `ca_file`."""
    return tls_client(names, ca_file, None, None, base=_public_authorities)


def tls(ca_file: File | None, cert_file: File | None, key_file: File | None, names: Names = TLS_FILES) -> Context | None:
    """Return a context with the public CAs, those in `ca_file`, and the client certificate; None if no file is set.

    Raises:
        ConfigurationError: A file cannot be used. The message names its setting.
    """
    if ca_file is cert_file is key_file is None:
        return None
    return tls_client(names, ca_file, cert_file, key_file, base=_public_authorities)


class _Routes(Generic[T]):
    """Transports by proxy, with TLS and without, made on first use. The one for `url` is made immediately."""

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
        """Return the transport for a URL. Raises `ConfigurationError` if the environment's proxy or CAs are unusable."""
        proxy, secure = proxy_for(url, self._environ), url.startswith("https:")
        if (found := self._made.get((proxy, secure))) is None:
            verify = (self._tls or _default_tls()) if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            through = None if proxy is None else _checked(proxy)
            found = self._make(verify=verify, limits=_limits(), trust_env=False, proxy=through)
            self._made[proxy, secure] = found
        return found


def _checked(proxy: Proxy) -> httpx.Proxy:
    if not proxy.is_valid:
        raise ConfigurationError(f"{proxy.variable}: invalid proxy URL: write http://host:port")
    if proxy.url.startswith("socks") and find_spec("socksio") is None:
        raise ConfigurationError(f"{proxy.variable}: a SOCKS proxy needs another package: pip install 'httpx[socks]'")
    return httpx.Proxy(proxy.url)


class Routed(httpx.BaseTransport):
    """A transport that sends each request through the proxy of its URL."""

    def __init__(self, tls: Context | None, url: str | None) -> None:
        self._routes = _Routes(_transport, tls, url)

    def handle_request(self, request: Request) -> Response:
        return self._routes.to(str(request.url)).handle_request(request)

    def close(self) -> None:
        for transport in self._routes:
            transport.close()


def _transport(**options: Any) -> httpx.HTTPTransport:
    transport = httpx.HTTPTransport(**options)
    transport._pool._network_backend = deadlines.Backend()  # httpx does not pass a backend on to httpcore
    return transport


class AsyncRouted(httpx.AsyncBaseTransport):
    """See `Routed`."""

    def __init__(self, tls: Context | None, url: str | None) -> None:
        self._routes = _Routes(httpx.AsyncHTTPTransport, tls, url)

    async def handle_async_request(self, request: Request) -> Response:
        return await self._routes.to(str(request.url)).handle_async_request(request)

    async def aclose(self) -> None:
        for transport in self._routes:
            await transport.aclose()


def _limits() -> httpx.Limits:
    return httpx.Limits(max_connections=4, max_keepalive_connections=2, keepalive_expiry=KEEPALIVE)


def default_headers(token: str | None) -> dict[str, str]:
    return {"Accept-Encoding": "identity", "User-Agent": "fedround"} | bearer(token)


def bearer(token: str | None) -> dict[str, str]:
    if token is not None and not re.fullmatch("[!-~]+", token):
        raise ConfigurationError("the token must consist of visible ASCII characters, without spaces")
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def timeouts(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(seconds, CONNECT_TIMEOUT))


class InMemory(httpx.BaseTransport):
    """A transport for tests, without sockets: it sends requests to ASGI apps, by host name, on the event loop of another thread."""

    def __init__(self, apps: "Mapping[str, ASGIApp]", loop: asyncio.AbstractEventLoop) -> None:
        self._hosts = {host: httpx.ASGITransport(app, raise_app_exceptions=False) for host, app in apps.items()}
        self._loop = loop

    def handle_request(self, request: Request) -> Response:
        """Send a request. It buffers both bodies."""
        return asyncio.run_coroutine_threadsafe(self._send(request, request.read()), self._loop).result()

    async def _send(self, request: Request, body: bytes) -> Response:
        copy = Request(request.method, request.url, headers=request.headers, content=body)
        response = await self._hosts[request.url.host].handle_async_request(copy)
        return Response(response.status_code, headers=response.headers, stream=httpx.ByteStream(await response.aread()))
