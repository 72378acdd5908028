"""Rate limiting: an ASGI app around another one that delays or refuses requests beyond the rates below.

1. A request of a known participant counts for this participant at its address. Every other request counts for its address:
   those without a known id, registrations, and those of operators.
2. A request beyond the rate gets a 429 after `DELAY`. A client that waits for each response slows down.
3. Probes beyond the rate are delayed but never refused: an orchestrator kills a container that does not respond to them.
4. At most `MAX_DELAYED` requests are delayed at a time. Further refusals are immediate and end the connection.
"""

import asyncio
import time
from collections.abc import Callable, Hashable

from starlette.types import ASGIApp, Receive, Scope, Send

from fedround.events import Observer, RequestThrottled
from fedround.http import asgi
from fedround.http.budgets import Buckets, PortKind, network

RATE, BURST = 100.0, 1000.0
"""Requests per second, and bucket size, of one address, for requests without a known participant."""
KNOWN_RATE, KNOWN_BURST = 50.0, 100.0
"""The same for a known participant in one attempt of a round."""
TABLE = 4096
"""Maximum number of addresses, and of participants, with a bucket."""
DELAY = 1.0
"""Seconds before a refusal, and in its `Retry-After`."""
MAX_DELAYED = 1000
"""Maximum number of requests that are delayed at a time."""
MARK_IDLE = "fedround.mark_idle"
"""Key of a callback in a scope. It lets a new connection replace this one, although its request is running."""
PROBES = frozenset(("/livez", "/readyz"))

EXEMPT = object()
Known = Callable[[Scope], Hashable | None]
"""A function that returns the known participant of a request, and its attempt.

None: no known participant. `EXEMPT`: do not count the request.
"""


def no_participant(scope: Scope) -> None:
    """Return None: this port knows no participants."""


class Throttle:
    """An ASGI app that limits the rate of requests to another one.

    Args:
        app: The other app.
        kind: The port, for metrics.
        observe: Observer of each request that is delayed or refused.
        known: Returns the participant that a request is for.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        kind: PortKind,
        observe: Observer,
        *,
        known: Known = no_participant,
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
        if self._within_rate(scope):
            await self._app(scope, receive, send)
            return
        self._observe(self._fact)
        delayed = await self._delay(scope)
        if scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        headers = {"Retry-After": f"{DELAY:.0f}"} | ({} if delayed else {"Connection": "close"})
        await asgi.problem(429, "too many requests", headers)(scope, receive, send)

    def _within_rate(self, scope: Scope) -> bool:
        address, now = network(scope["client"][0] if scope.get("client") else ""), self._clock()
        participant = self._known(scope)
        if participant is None:
            return self._addresses.take(address, now)
        return participant is EXEMPT or self._participants.take((address, participant), now)

    async def _delay(self, scope: Scope) -> bool:
        if self._delayed >= MAX_DELAYED:
            return False
        if scope["path"] not in PROBES and (mark_idle := scope.get(MARK_IDLE)):
            mark_idle()
        self._delayed += 1
        try:
            await asyncio.sleep(DELAY)
        finally:
            self._delayed -= 1
        return True
