"""How often one may ask: an ASGI app around another one, which refuses or delays requests beyond the rates of `budgets`.

1. A request on behalf of a known participant counts for this participant, at its address. All others count for their address: those
   without a known id, registrations, and those of operators.
2. A request beyond the rate is refused with 429, after `DELAY`: a client that waits for each answer slows down.
3. Probes beyond the rate are delayed but never refused: an orchestrator kills what does not answer them.
4. Only so many requests are delayed at a time. Beyond that refusals are immediate, and end the connection.
"""

import asyncio
import time
from collections.abc import Callable, Hashable

from starlette.types import ASGIApp, Receive, Scope, Send

from fedround.events import Observer, RequestThrottled
from fedround.http import asgi
from fedround.http.budgets import Buckets, PortKind, network

RATE, BURST = 100.0, 1000.0
"""Requests a second, and at once, of one address that names no known participant."""
KNOWN_RATE, KNOWN_BURST = 50.0, 100.0
"""The same of a known participant, in one attempt of a round."""
TABLE = 4096
"""Addresses, and participants, that are remembered."""
DELAY = 1.0
"""Seconds before a refusal. `Retry-After` asks for as many again."""
MOST_DELAYED = 1000
"""Requests that are delayed at a time."""
GIVES_WAY = "fedround.gives_way"
"""What a scope may have: called when the request's connection may be closed for a newcomer, although the request is under way."""
PROBES = frozenset(("/livez", "/readyz"))

EXEMPT = object()
Known = Callable[[Scope], Hashable | None]
"""Says for which known participant a request is, and in which attempt. None: for none. `EXEMPT`: it does not count."""


def nobody(scope: Scope) -> None:
    """No participant is known here."""


class Throttle:
    """`app` on the port `kind`. `observe` is told of each request that was refused or delayed; `clock` gives monotonic seconds."""

    def __init__(
        self,
        app: ASGIApp,
        kind: PortKind,
        observe: Observer,
        *,
        known: Known = nobody,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._fact = RequestThrottled(kind)
        self._observe = observe
        self._known = known
        self._clock = clock
        self._addresses = Buckets[str](RATE, BURST, TABLE)
        self._participants = Buckets[tuple[str, Hashable]](KNOWN_RATE, KNOWN_BURST, TABLE)
        self._delayed = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._in_time(scope):
            await self._app(scope, receive, send)
            return
        self._observe(self._fact)
        delayed = await self._delay(scope)
        if scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        headers = {"Retry-After": f"{DELAY:.0f}"} | ({} if delayed else {"Connection": "close"})
        await asgi.problem(429, "too many requests", headers)(scope, receive, send)

    def _in_time(self, scope: Scope) -> bool:
        address, now = network(scope["client"][0] if scope.get("client") else ""), self._clock()
        participant = self._known(scope)
        if participant is None:
            return self._addresses.take(address, now)
        return participant is EXEMPT or self._participants.take((address, participant), now)

    async def _delay(self, scope: Scope) -> bool:
        if self._delayed >= MOST_DELAYED:
            return False
        if scope["path"] not in PROBES and (gives_way := scope.get(GIVES_WAY)):
            gives_way()
        self._delayed += 1
        try:
            await asyncio.sleep(DELAY)
        finally:
            self._delayed -= 1
        return True
