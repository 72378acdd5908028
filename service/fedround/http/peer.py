"""The client of a service on its event loop: for the aggregator's internal port, or for a telemetry collector."""

import asyncio
from collections.abc import Callable, Mapping

from fedround.http.exchange import Trace, target, untraced
from fedround.http.responses import RequestInfo, check
from fedround.http.tls import Context
from fedround.http.transport import TLS_FILES, async_client, bearer, check_size, mapped, timeouts

Query = Mapping[str, str | int]


class AsyncPeer:
    """An asynchronous client of one HTTP server. Raises `ExchangeError`.

    Args:
        url: Base URL of the server.
        token: Returns the bearer token of the next request. None: no token.
        tls: TLS context for an https URL.
        trace: See `exchange.Options`.
    """

    def __init__(
        self, url: str, *, token: Callable[[], str | None] = lambda: None, tls: Context | None = None, trace: Trace | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._names = tls.names if tls else TLS_FILES
        self._token = token
        self._http = async_client(tls, url)
        self._trace = trace or untraced

    async def ask(
        self, method: str, path: str, *, timeout: float, max_response: int, json: object = None, query: Query | None = None
    ) -> bytes:
        """Send a request, and return the body of the response. `timeout` is in seconds, `max_response` in bytes."""
        where, url = target(method, self._url, path), self._url + path
        body = bytearray()
        with self._trace(method, url, path) as exchange, mapped(where, self._names):
            headers = {**exchange.headers, **bearer(self._token())}
            async with (
                asyncio.timeout(timeout),
                self._http.stream(method, url, json=json, params=query, headers=headers, timeout=timeouts(timeout)) as response,
            ):
                exchange.answered(response.status_code)
                async for chunk in response.aiter_raw():
                    body += chunk
                    check_size(body, max_response)
            check(RequestInfo(where, url, path), response.status_code, response.headers, bytes(body), accept=(200, 204))
        return bytes(body)

    async def post(self, path: str, body: bytes, headers: Mapping[str, str], *, timeout: float) -> int:
        """Send a body to a server of another project, and return the status of the response. `timeout` is in seconds."""
        with mapped(target("POST", self._url, path), self._names):
            async with (
                asyncio.timeout(timeout),
                self._http.stream("POST", self._url + path, content=body, headers=headers, timeout=timeouts(timeout)) as response,
            ):
                return response.status_code

    async def aclose(self) -> None:
        await self._http.aclose()
