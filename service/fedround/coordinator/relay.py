"""The relay: it forwards participants' telemetry to the operators' collector, so that silos connect only to the coordinator.

The relay has its own tasks, connections and time-outs, so a slow collector delays nothing else.
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
"""Time-out for receiving a message."""
ANSWER_SECONDS = 10.0
"""Time-out for the collector's response."""
RETRY_FOR = 60.0
"""Seconds for which the relay retries a batch while the collector is unavailable."""
LAST_SECONDS = 2.0
"""Maximum seconds to forward the queue when the coordinator stops."""
WARN_EVERY = 60.0
"""Seconds between two log lines about rejected telemetry."""
RETRY_LATER = {429, 502, 503, 504}
"""Status codes after which OTLP over HTTP requires a retry."""
SIGNALS = {wire.OTLP_METRICS: "metrics", wire.OTLP_TRACES: "traces"}

Post = Callable[[str, bytes], Awaitable[int]]
"""Sends a message to a path of the collector, and returns the status code. Raises `ExchangeError`."""


class Answer(Enum):
    """The collector's response to a batch."""

    ACCEPTED = auto()
    REJECTED = auto()
    UNAVAILABLE = auto()


class Relay:
    """A relay from the participants' port to the collector. For one event loop.

    Args:
        post: Sends a message to the collector.
        observe: Receives a fact about each message that arrives, and about each batch that is forwarded or dropped.
        namespace: Label `namespace` of all metrics. None: no label.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self, post: Post, observe: Observer, *, namespace: str | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._post = post
        self._observe = observe
        self._namespace = namespace
        self._clock = clock
        self._backlog = Backlog()
        self._queued = {path: asyncio.Event() for path in wire.OTLP}
        """Set while the queue may have messages for the path."""
        self._unavailable: set[str] = set()
        """Paths at which the collector is unavailable now."""
        self._warn_from = -math.inf

    async def receive(self, path: str, request: Request) -> Response:
        """Respond to a request with a message from the participant whose identity it proves."""
        name: str = request.state.owner
        if not name:
            reason = "telemetry needs an identity: a token of COORDINATOR_TOKENS_FILE or a client certificate"
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
            return self._refuse(path, "full", 503, "the telemetry queue is full: try again later")
        self._observe(TelemetryReceived(SIGNALS[path], "accepted"))
        return Response(media_type=wire.PROTOBUF)

    def _refuse(self, path: str, outcome: str, status: int, reason: str) -> Response:
        self._observe(TelemetryReceived(SIGNALS[path], outcome))
        return asgi.problem(status, reason, {"Retry-After": "5"})

    async def _accept(self, path: str, name: str, request: Request) -> bool:
        from fedround.observability import stamping  # here, because it imports OpenTelemetry

        if wire.media_type(request.headers) != wire.PROTOBUF:
            raise BadTelemetry(f"the content type must be {wire.PROTOBUF}", status=415)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await asgi.read_body(request, stamping.MAX_BYTES)
        except TimeoutError:
            raise TooSlow(f"the message did not arrive within {BODY_SECONDS:.0f} s") from None
        encoding = request.headers.get("content-encoding", "").strip().lower()

        def stamp() -> stamping.Stamped:
            return stamping.stamped(path, stamping.inflated(body, encoding), name, time.time_ns(), self._namespace)

        message, series = await asyncio.to_thread(stamp)
        asgi.check_admitted(request)
        if not self._backlog.add_series(name, series, self._clock()):
            raise BadTelemetry("too many series within an hour: use labels with few values")
        if not self._backlog.add(path, name, message):
            return False
        self._queued[path].set()
        return True

    async def run(self) -> None:
        """Forward until cancelled, then flush the queue for `LAST_SECONDS`. Metrics and traces have separate tasks."""
        async with asyncio.TaskGroup() as tasks:
            for path in wire.OTLP:
                tasks.create_task(self._forward_all(path))

    async def _forward_all(self, path: str) -> None:
        try:
            while True:
                await self._queued[path].wait()
                if batch := self._backlog.batch(path):
                    await self._forward(path, batch)
                else:
                    self._queued[path].clear()
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_SECONDS):
                    while batch := self._backlog.batch(path):
                        self._report(path, batch, arrived=await self._send(path, batch) is Answer.ACCEPTED)

    async def _forward(self, path: str, batch: Sequence[Waiting]) -> None:
        until = self._clock() + RETRY_FOR
        for delay in delays(random, first=0.5, most=10.0, spread=0.5):
            match await self._send(path, batch):
                case Answer.ACCEPTED:
                    self._report(path, batch, arrived=True)
                    return
                case Answer.REJECTED if len(batch) > 1:
                    for each in batch:  # one message may be invalid, but not those of the other participants
                        await self._forward(path, [each])
                    return
                case Answer.UNAVAILABLE if self._clock() < until:
                    await asyncio.sleep(delay)
                case _:
                    self._report(path, batch, arrived=False)
                    return

    async def _send(self, path: str, batch: Sequence[Waiting]) -> Answer:
        try:
            status = await self._post(path, b"".join(each.message for each in batch))
        except ExchangeError as error:
            return self._failed(path, str(error))
        if status in RETRY_LATER:
            return self._failed(path, f"status {status}")
        if path in self._unavailable:
            self._unavailable.discard(path)
            LOG.info("the collector accepts %s again", SIGNALS[path])
        if 200 <= status < 300:
            return Answer.ACCEPTED
        if len(batch) == 1 and self._clock() >= self._warn_from:
            self._warn_from = self._clock() + WARN_EVERY
            LOG.warning("the collector rejects %s, for example from %s: status %d", SIGNALS[path], batch[0].name, status)
        return Answer.REJECTED

    def _failed(self, path: str, reason: str) -> Answer:
        if path not in self._unavailable:
            self._unavailable.add(path)
            LOG.warning("cannot forward %s to the collector; retrying: %s", SIGNALS[path], reason)
        return Answer.UNAVAILABLE

    def _report(self, path: str, batch: Sequence[Waiting], *, arrived: bool) -> None:
        self._observe(TelemetryForwarded(SIGNALS[path], len(batch), arrived))


def routes(relay: Relay | None) -> list[Route]:
    """Return the routes for telemetry. Without a `relay`, they respond with 404."""

    def route(path: str) -> Route:
        async def endpoint(request: Request) -> Response:
            if relay is None:
                return asgi.problem(404, "this coordinator forwards no telemetry: its COORDINATOR_OTLP_ENDPOINT is not set")
            return await relay.receive(path, request)

        return Route(path, endpoint, methods=["POST"])

    return [route(path) for path in wire.OTLP]


@asynccontextmanager
async def relaying(settings: CoordinatorSettings, observe: Observer) -> AsyncIterator[Relay | None]:
    """Run a relay within the block if the settings name a collector; otherwise yield None. Raises `ConfigurationError`."""
    if settings.otlp_endpoint is None:
        yield None
        return
    async with aclosing(AsyncPeer(settings.otlp_endpoint)) as collector:
        headers = {"Content-Type": wire.PROTOBUF, **settings.otlp_header_fields}

        async def post(path: str, message: bytes) -> int:
            return await collector.post(path, message, headers, timeout=ANSWER_SECONDS)

        relay = Relay(post, observe, namespace=settings.otlp_namespace)
        task = asyncio.create_task(relay.run())
        try:
            yield relay
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
