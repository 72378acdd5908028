"""One request of a participant and its response: traced, observed, within a deadline, and only to trusted servers.

Every failure becomes one of our errors, in `transport.mapped` or `responses.check`. Its text has the server's address and the
template of the path, never ids or tokens. Requests are synchronous: an asynchronous one costs httpx twice the CPU.
"""

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypedDict, Unpack
from urllib.parse import urlsplit

from fedround.common import wire
from fedround.common.text import redact
from fedround.errors import BadAnswer, Untrusted
from fedround.events import ExchangeEnded, Observer, Observers
from fedround.http import deadlines
from fedround.http.bodies import Slices
from fedround.http.responses import RequestInfo, check
from fedround.http.tls import Context
from fedround.http.transport import TLS_FILES, Request, Response, Routed, Transport, mapped, read_problem, sync_client, timeouts

RESPONSE_TIMEOUT = 15.0
"""Seconds for the response to a small request."""
NO_IDS: Mapping[str, str] = {}


class Exchange(Protocol):
    """One request, for a tracer: `headers` are sent with it, and `answered` is called when the head of the response arrives."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    def answered(self, status: int, /) -> None: ...


Trace = Callable[[str, str, str], AbstractContextManager[Exchange]]
"""A function that returns a context manager for a request, from its method, its URL and the template of its path."""


class Options(TypedDict, total=False):
    """Options of the synchronous clients."""

    token: str | None
    """Bearer token of each request."""
    tls: Context | None
    """See `transport.tls`. Unset: the public CAs."""
    trusted: Callable[[str], bool]
    """Function that returns whether a URL may get the token. Unset: any URL may."""
    transport: Transport | None
    """Transport that replaces httpx's and the environment's proxies."""
    observe: Observer
    """Observer of each exchange, including failed ones."""
    trace: Trace | None
    """Context manager around each request."""
    timeout: float
    """Seconds for the head of the response, and again for its body."""


class Client:
    """The base of the synchronous clients: all requests use `_exchange`. `url`: the server, if it is always the same."""

    def __init__(self, url: str | None, **options: Unpack[Options]) -> None:
        self._observe = options.get("observe", Observers())
        self._timeout = options.get("timeout", RESPONSE_TIMEOUT)
        self._tls = options.get("tls")
        self._names = self._tls.names if self._tls else TLS_FILES
        self._made_with = self._tls and self._tls.current()
        transport = options.get("transport") or Routed(self._tls, url)
        self._http = sync_client(options.get("token"), transport, self._renew)
        self._trace = options.get("trace") or untraced
        self._trusted = options.get("trusted") if options.get("token") else None

    def close(self) -> None:
        self._http.close()

    def _renew(self, request: Request) -> None:
        """Close the connection after this request if the certificates have changed since."""
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
        body: Slices | None = None,
        timeout: float | None = None,
    ) -> Iterator[Response]:
        """Send a request, and yield the response for reading if its status is one of `accept`."""
        if not wire.is_url(url):  # a peer may have sent it
            raise BadAnswer(f"{target(method, url, path)}: {wire.one_line(redact(url))} is not a URL such as http://host:port")
        if self._trusted is not None and not self._trusted(url):
            raise Untrusted(origin(url))
        where, actual = target(method, url, path), path.format_map(ids)
        url = url.rstrip("/") + actual
        request = RequestInfo(where, url, actual, body.size if body else 0)
        response: Response | None = None
        failed: str | None = None
        began = time.monotonic()
        timeout = timeout or self._timeout
        with self._trace(method, url, path) as exchange:
            try:
                with (
                    mapped(where, self._names),
                    deadlines.within(timeout) as deadline,
                    self._http.stream(
                        method,
                        url,
                        headers={**(headers or {}), **({"Content-Length": str(body.size)} if body else {}), **exchange.headers},
                        content=body,
                        timeout=timeouts(timeout),
                    ) as response,
                ):
                    deadline.next_step()
                    exchange.answered(response.status_code)
                    check(request, response.status_code, response.headers, read_problem(response), accept)
                    yield response
            except BaseException as error:
                failed = type(error.__cause__ or error).__name__
                raise
            finally:
                seconds = time.monotonic() - began
                status, received = (None, 0) if response is None else (response.status_code, response.num_bytes_downloaded)
                self._observe(ExchangeEnded(method, path, status, failed, seconds, body.sent if body else 0, received))


def origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def target(method: str, url: str, path: str) -> str:
    address = re.search(r"//(?:[^/@]*@)?([^/?#]*)", url)
    return f"{method} {address[1] if address else ''}{path}"


class _Untraced:
    headers: Mapping[str, str] = {}

    def answered(self, status: int) -> None: ...


@contextmanager
def untraced(_method: str, _url: str, _path: str) -> Iterator[Exchange]:
    yield _Untraced()
