"""Passes on the telemetry of participants to the operators' collector, so that a silo needs no way out but that to its coordinator.

Nothing else waits for it: it has a task, a connection and time-outs of its own.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from enum import Enum, auto
from random import random

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fedround.common import wire
from fedround.common.backoff import delays
from fedround.common.settings import CoordinatorSettings
from fedround.coordinator.backlog import Backlog, Waiting
from fedround.errors import BadTelemetry, ExchangeError, TooLarge, TooSlow
from fedround.events import Observer, TelemetryForwarded, TelemetryReceived
from fedround.http import asgi
from fedround.http.peer import AsyncPeer

LOG = logging.getLogger(__name__)

BODY_SECONDS = 10.0
"""Seconds within which a message has to arrive."""
ANSWER_SECONDS = 10.0
"""Seconds for the collector's answer."""
RETRY_FOR = 60.0
"""Seconds for which a batch is sent again to a collector that is away."""
LAST_SECONDS = 2.0
"""Seconds for what waits when the coordinator ends."""
COMPLAIN_EVERY = 60.0
"""Seconds between two log lines about what a collector refuses."""
RETRY_LATER = {429, 502, 503, 504}
"""Answers of a collector that wants the same batch later (OTLP over HTTP)."""
SIGNALS = {wire.OTLP_METRICS: "metrics", wire.OTLP_TRACES: "traces"}

Post = Callable[[str, bytes], Awaitable[int]]
"""Sends a message to a path of the collector. Returns the status of its answer. Raises `ExchangeError`."""


class Answer(Enum):
    """What a collector says to a batch."""

    ARRIVED = auto()
    REFUSED = auto()
    AWAY = auto()


class Relay:
    """Receives telemetry on the participants' port and forwards it. For one event loop.

    Args:
        post: Reaches the collector.
        observe: Is told of each message that came, and of each that was sent on or dropped.
        clock: Gives monotonic seconds.
    """

    def __init__(self, post: Post, observe: Observer, clock: Callable[[], float] = time.monotonic) -> None:
        self._post = post
        self._observe = observe
        self._clock = clock
        self._backlog = Backlog()
        self._news = {path: asyncio.Event() for path in wire.OTLP}
        self._away: set[str] = set()
        """Paths that the collector does not serve now."""
        self._complain_from = -math.inf

    async def receive(self, path: str, request: Request) -> Response:
        """Take a message of the participant whose identity the request proves."""
        name: str = request.state.owner
        if not name:
            reason = "telemetry needs a proved name: a token of your own (COORDINATOR_TOKENS_FILE) or a client certificate"
            return asgi.problem(403, reason)
        if not self._backlog.begin(path, name, self._clock()):
            return self._refuse(path, "throttled", 429, "too many messages: push less often")
        try:
            accepted = await self._accept(path, name, request)
        except (BadTelemetry, TooLarge, TooSlow):
            self._observe(TelemetryReceived(SIGNALS[path], "refused"))
            raise
        finally:
            self._backlog.end(path, name)
        if not accepted:
            return self._refuse(path, "full", 503, "too much waits for the collector")
        self._observe(TelemetryReceived(SIGNALS[path], "accepted"))
        return Response(media_type=wire.PROTOBUF)

    def _refuse(self, path: str, outcome: str, status: int, reason: str) -> Response:
        self._observe(TelemetryReceived(SIGNALS[path], outcome))
        return asgi.problem(status, reason, {"Retry-After": "5"})

    async def _accept(self, path: str, name: str, request: Request) -> bool:
        from fedround.observability import stamping  # where nobody relays, nothing of OpenTelemetry is imported

        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != wire.PROTOBUF:
            raise BadTelemetry(f"the content type must be {wire.PROTOBUF}", status=415)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await asgi.whole(request, stamping.MAX_BYTES)
        except TimeoutError:
            raise TooSlow(f"the message did not arrive within {BODY_SECONDS:.0f} s") from None
        encoding = request.headers.get("content-encoding", "").strip().lower()

        def stamp() -> stamping.Stamped:
            return stamping.stamped(path, stamping.inflated(body, encoding), name, time.time_ns())

        message, series = await asyncio.to_thread(stamp)
        asgi.check_admitted(request)
        if not self._backlog.know(name, series, self._clock()):
            raise BadTelemetry("too many series within an hour: labels with ever new values?")
        if not self._backlog.add(path, name, message):
            return False
        self._news[path].set()
        return True

    async def run(self) -> None:
        """Forward until cancelled; then what waits has `LAST_SECONDS`. Metrics and traces do not wait for each other."""
        async with asyncio.TaskGroup() as tasks:
            for path in wire.OTLP:
                tasks.create_task(self._follow(path))

    async def _follow(self, path: str) -> None:
        try:
            while True:
                await self._news[path].wait()
                if batch := self._backlog.batch(path):
                    await self._forward(path, batch)
                else:
                    self._news[path].clear()
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_SECONDS):
                    while batch := self._backlog.batch(path):
                        self._told(path, batch, arrived=await self._send(path, batch) is Answer.ARRIVED)

    async def _forward(self, path: str, batch: Sequence[Waiting]) -> None:
        until = self._clock() + RETRY_FOR
        for delay in delays(random, first=0.5, most=10.0, spread=0.5):
            match await self._send(path, batch):
                case Answer.ARRIVED:
                    self._told(path, batch, arrived=True)
                    return
                case Answer.REFUSED if len(batch) > 1:
                    for each in batch:  # one that the collector does not like must not cost those of others
                        await self._forward(path, [each])
                    return
                case Answer.AWAY if self._clock() < until:
                    await asyncio.sleep(delay)
                case _:
                    self._told(path, batch, arrived=False)
                    return

    async def _send(self, path: str, batch: Sequence[Waiting]) -> Answer:
        try:
            status = await self._post(path, b"".join(each.message for each in batch))
        except ExchangeError as error:
            return self._failed(path, str(error))
        if status in RETRY_LATER:
            return self._failed(path, f"it answers {status}")
        if path in self._away:
            self._away.discard(path)
            LOG.info("the collector takes %s again", SIGNALS[path])
        if 200 <= status < 300:
            return Answer.ARRIVED
        if len(batch) == 1 and self._clock() >= self._complain_from:
            self._complain_from = self._clock() + COMPLAIN_EVERY
            LOG.warning("the collector refuses %s, for example of %s: it answers %d", SIGNALS[path], batch[0].name, status)
        return Answer.REFUSED

    def _failed(self, path: str, reason: str) -> Answer:
        if path not in self._away:
            self._away.add(path)
            LOG.warning("the collector takes no %s, and is tried again: %s", SIGNALS[path], reason)
        return Answer.AWAY

    def _told(self, path: str, batch: Sequence[Waiting], *, arrived: bool) -> None:
        self._observe(TelemetryForwarded(SIGNALS[path], len(batch), arrived))


def routes(relay: Relay | None) -> list[Route]:
    """The routes for telemetry; without a relay, they say so."""

    def route(path: str) -> Route:
        async def endpoint(request: Request) -> Response:
            if relay is None:
                return asgi.problem(404, "this coordinator passes no telemetry on: its COORDINATOR_OTLP_ENDPOINT is not set")
            return await relay.receive(path, request)

        return Route(path, endpoint, methods=["POST"])

    return [route(path) for path in wire.OTLP]


@asynccontextmanager
async def relaying(settings: CoordinatorSettings, observe: Observer) -> AsyncIterator[Relay | None]:
    """Forward within the block, where the settings name a collector. Raises `ConfigurationError`."""
    if settings.otlp_endpoint is None:
        yield None
        return
    async with aclosing(AsyncPeer(settings.otlp_endpoint)) as collector:
        headers = {"Content-Type": wire.PROTOBUF, **settings.otlp_header_fields}

        async def post(path: str, message: bytes) -> int:
            return await collector.post(path, message, headers, timeout=ANSWER_SECONDS)

        relay = Relay(post, observe)
        task = asyncio.create_task(relay.run())
        try:
            yield relay
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
