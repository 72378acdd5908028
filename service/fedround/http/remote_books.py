"""The coordinator's client of the aggregator's internal port: `RemoteBooks`."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fedround.common.books import Admission, Closed, Difference, Open, Page, Verdict, admissions_to_json, page_from_json
from fedround.errors import BadAnswer, Refused, UnknownAttempt
from fedround.http.exchange import RESPONSE_TIMEOUT, Trace
from fedround.http.peer import AsyncPeer, Query
from fedround.http.tls import Context

T = TypeVar("T")

CLOSE_TIMEOUT = 120.0
"""Seconds. Closing a round makes the new model, which may be large."""
LEDGER_TIMEOUT = 30.0
"""Seconds. The aggregator holds its response for up to 20 s."""
MAX_RESPONSE = 64 << 20
"""Bytes. A response may name every participant."""


class RemoteBooks:
    """`Books` over HTTP: the calls of the internal API.

    Args:
        url: URL of the aggregator's internal port.
        secret: Returns the current internal secret.
        tls: TLS context for an https URL.
        trace: See `fedround.http.exchange.Options`.
    """

    def __init__(
        self, url: str, *, secret: Callable[[], str | None] = lambda: None, tls: Context | None = None, trace: Trace | None = None
    ) -> None:
        self._peer = AsyncPeer(url, token=secret, tls=tls, trace=trace)

    async def aclose(self) -> None:
        """Close the connections. (`close` closes a round.)"""
        await self._peer.aclose()

    async def open(self, call: Open) -> None:
        more = {} if call.train else {"train": False}
        admitted, run = admissions_to_json(call.admissions), [call.run.id, call.run.name]
        await self._call("open", call.attempt, round=call.round, admissions=admitted, forget=list(call.forget), run=run, **more)

    async def admit(self, attempt: str, admissions: Sequence[Admission]) -> None:
        await self._call("admit", attempt, admissions=admissions_to_json(admissions))

    async def revoke(self, attempt: str, id: str, patience: float = 0.0) -> Verdict:
        return _decoded(await self._call("revoke", attempt, id=id, patience=patience), lambda data: Verdict(data["verdict"]))

    async def close(self, attempt: str, ids: Sequence[str]) -> Closed | Difference:
        return _decoded(await self._call("close", attempt, timeout=CLOSE_TIMEOUT, ids=list(ids)), _closed_from_json)

    async def ledger(self, incarnation: str, after: int, best: int | None = None) -> Page:
        query: Query = {"incarnation": incarnation, "after": after, **({} if best is None else {"best": best})}
        body = await self._peer.ask("GET", "/books/ledger", query=query, timeout=LEDGER_TIMEOUT, max_response=MAX_RESPONSE)
        return _decoded(body, page_from_json)

    async def _call(self, operation: str, attempt: str, *, timeout: float = RESPONSE_TIMEOUT, **message: object) -> bytes:
        message["attempt"] = attempt
        try:
            return await self._peer.ask("POST", f"/books/{operation}", json=message, timeout=timeout, max_response=MAX_RESPONSE)
        except Refused as refused:
            if refused.status == 409:
                raise UnknownAttempt(attempt) from refused
            raise


def _closed_from_json(data: Any) -> Closed | Difference:
    if "closed" in data:
        return Closed(data["closed"]["parameters"])
    return Difference(frozenset(data["difference"]["missing"]), frozenset(data["difference"]["surplus"]))


def _decoded(body: bytes, decode: Callable[[Any], T]) -> T:
    try:
        return decode(json.loads(body))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadAnswer("unexpected response: is this URL an aggregator's internal port?") from error
