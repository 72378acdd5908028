"""The HTTP servers: uvicorn in one event loop, with limits on each connection. The only file that imports uvicorn."""

import asyncio
import errno
import logging
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any

import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from fedround.common.wire import MIN_RATE, MIN_RATE_WINDOW
from fedround.errors import ConfigurationError
from fedround.events import ConnectionClosed, ConnectionsChanged, Observer, Observers
from fedround.http.budgets import Connections, Limits, PortKind, PortSettings, network, share_out
from fedround.http.throttle import MARK_IDLE, Known, Throttle, no_participant
from fedround.http.tls import CLIENT, Context
from fedround.http.tls_transport import HANDSHAKE, STALE, TlsTransport

LOG = logging.getLogger(__name__)

KEEP_ALIVE = 75
"""Seconds before an idle connection is closed."""
HEAD_TIMEOUT = 30
"""Seconds in which the head of a request must arrive, from the start of the connection or from the head's first byte."""
MAX_HEAD = 32 << 10
"""Maximum number of bytes of a head, of trailers, or between two pieces of a body."""
MAX_HEADERS = 100
"""Maximum number of header fields of a request, including trailers."""
MAX_PIPELINED = 4
"""Maximum number of pipelined requests that wait on a connection. Reading pauses while there are as many."""
END_OF_HEAD = b"\r\n\r\n"
GRACE = 5
"""Seconds that running requests have to finish when a server stops."""
STALL = 60
"""Seconds after which a peer that reads nothing of a response is disconnected: it would keep a whole model in memory."""
BACKLOG, BACKLOG_OPS = 2048, 100
"""Backlogs of ports. asyncio accepts up to this many connections in one step, before they are counted."""
REFUSALS_EVERY = 60.0
"""Minimum seconds between two log lines with the same reason for refused connections of a port."""


@dataclass
class Endpoint:
    """An app and its address.

    Attributes:
        app: The ASGI app.
        host: IP address to bind.
        port: Port to bind. 0: any free port.
        setting: Variable that holds the port, for messages.
        last: Whether this endpoint stops after all others, so that operators can watch the shutdown.
        tls: TLS context. None: no TLS.
        kind: Name of the port in metrics.
        limits: Maximum number of connections, and of those from one address. 0: derived from the limit of open files.
        observe: Observer of connections.
        known: Returns the participant that a request is for (see `throttle`).
    """

    app: ASGIApp
    _: KW_ONLY
    host: str
    port: int
    setting: str
    last: bool = False
    tls: Context | None = None
    kind: PortKind = "public"
    limits: tuple[int, int] = (0, 0)
    observe: Observer = field(default_factory=Observers)
    known: Known = no_participant

    @property
    def backlog(self) -> int:
        return BACKLOG_OPS if self.kind == "ops" else BACKLOG

    def bind(self) -> socket.socket:
        """Bind and listen. Clients that connect now wait. Sets `port` to the real port. Raises `ConfigurationError`."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            both = self.host == "::" and socket.has_dualstack_ipv6()
            bound = socket.create_server((self.host, self.port), family=family, backlog=self.backlog, dualstack_ipv6=both)
        except OSError as error:
            text = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            reason = f"cannot listen on {self.host}: {text}"
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                reason += "; choose another port, or 0 for any free port"
            raise ConfigurationError(f"{self.setting}={self.port}: {reason}") from error
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux; accepted connections inherit it
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALL * 1000)
        self.port = bound.getsockname()[1]
        return bound


@asynccontextmanager
async def serving(*endpoints: Endpoint, grace: int = GRACE) -> AsyncIterator[None]:
    """Serve within the block. All ports are bound before the first request is served.

    At the end, idle connections are closed. Running requests have `grace` seconds; those that are left get a 503.

    Raises:
        ConfigurationError: A port cannot be bound.
    """
    async with AsyncExitStack() as stack:
        sockets = [stack.enter_context(endpoint.bind()) for endpoint in endpoints]
        limits = share_out(_descriptors(), [PortSettings(each.kind, *each.limits) for each in endpoints])
        servers = [_Server(endpoint, grace, limit) for endpoint, limit in zip(endpoints, limits, strict=True)]
        running = [asyncio.create_task(server.serve([bound])) for server, bound in zip(servers, sockets, strict=True)]
        for endpoint in endpoints:
            secured = ", with TLS" if endpoint.tls else ""
            LOG.info("%s: listening on %s, port %d%s", endpoint.setting, endpoint.host, endpoint.port, secured)
        try:
            yield
        finally:
            for last in (False, True):
                ending = [n for n, endpoint in enumerate(endpoints) if endpoint.last is last]
                for n in ending:
                    servers[n].should_exit = True
                await asyncio.gather(*(running[n] for n in ending))


def _descriptors() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


class _Port:
    """The state that all connections of a port share: their limits, and the observer."""

    def __init__(self, endpoint: Endpoint, limits: Limits) -> None:
        self.connections = Connections["_Protocol"](limits)
        self._endpoint = endpoint
        self._log_after: dict[str, float] = {}

    def opened(self, protocol: "_Protocol", address: str) -> None:
        closed = self.connections.opened(protocol, address)
        if closed is None:
            self._changed()
        else:
            closed[0].cut(closed[1])

    def closed(self, protocol: "_Protocol") -> None:
        self.connections.closed(protocol)
        self._changed()

    def refused(self, reason: str) -> None:
        """Log why the port refuses a connection, each reason at most once a minute."""
        now = time.monotonic()
        if now >= self._log_after.get(reason, now):
            self._log_after[reason] = now + REFUSALS_EVERY
            LOG.warning("%s: refused a connection: %s", self._endpoint.setting, reason)

    def count_cut(self, reason: str) -> None:
        self._endpoint.observe(ConnectionClosed(self._endpoint.kind, reason))

    def _changed(self) -> None:
        self._endpoint.observe(ConnectionsChanged(self._endpoint.kind, len(self.connections)))


class _Flow(FlowControl):
    """uvicorn's flow control, but reading stays paused while enough has been read ahead.

    In uvicorn, every request that waits for its body resumes reading. Reading also stays paused while the peer reads nothing: with
    TLS, a peer's input alone can produce output.
    """

    full = False

    def resume_reading(self) -> None:
        if not self.full and not self.write_paused:
            super().resume_reading()


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol with limits on the size, the duration and the number of requests.

    - It disconnects a peer that sends endless headers, trailers or chunk sizes.
    - Without a running request, a peer must finish the head of its next request within `HEAD_TIMEOUT`. A peer that has sent nothing
      since the last response is idle: uvicorn closes its connection after `KEEP_ALIVE`.
    - It disconnects a peer that reads a response more slowly than the minimum rate of uploads: it would keep a model in memory.
    - Pipelined requests wait. uvicorn creates many objects for each head that it parses, and one read may contain thousands of
      heads. So the parser gets one head at a time, and none while `MAX_PIPELINED` requests wait. It disconnects the peer if more
      than `MAX_HEAD` bytes wait behind those.
    - A connection ends after the response to a request whose body was not read completely.
    - The port closes connections in favour of new ones by the rules of `budgets`.
    """

    port: _Port
    _size = 0
    """Bytes received since the last end of a head, or of a piece of a body."""
    _head = 0
    """Bytes of the header fields of the newest request."""
    _body = 0
    """Bytes that are missing from the body of the newest request, if it has a `Content-Length`."""
    _unread = b""
    """Received bytes. Those from `_at` on are not parsed yet."""
    _at = 0
    _running: RequestResponseCycle | None = None
    _timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self.flow = self._flow = _Flow(transport)
        self._await_head()
        self.port.opened(self, network(self.client[0] if self.client else ""))

    def cut(self, reason: str) -> None:
        """Close the connection immediately. Unsent data is lost."""
        self.port.count_cut(reason)
        self._hang_up()
        self.transport.abort()

    def _hang_up(self) -> None:
        """Disconnect the running request. uvicorn disconnects only the newest one, which may wait behind it."""
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
            self._running = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _mark_idle(self) -> None:
        self.port.connections.idle(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._hang_up()
        self._head_complete()
        self._cancel_stall_timer()
        self._unset_keepalive_if_required()  # uvicorn keeps the timer after a reset, and with it this object for another 75 s
        for cycle, _ in self.pipeline:
            cycle.on_response = lambda: None  # they never run, and would stay in memory until a garbage collection
        self.pipeline.clear()
        if self.scope is not None:
            self.scope.pop(MARK_IDLE, None)  # type: ignore[misc]  # our own key
        self._unread = b""
        super().connection_lost(exc)
        self.port.closed(self)

    def data_received(self, data: bytes) -> None:
        if self.scope is None and self.scheme == "http" and data[0] == HANDSHAKE:  # the first bytes
            self.port.refused("a client speaks TLS, and this port does not")
            self.send_400_response("this port does not speak TLS: use http://")
            return
        self._unread, self._at = self._unread[self._at :] + data, 0
        self._parse()

    def _parse(self) -> None:
        """Parse received bytes, in pieces that end where a head may end, while another request may wait."""
        while self._at < len(self._unread) and len(self.pipeline) < MAX_PIPELINED and not self.transport.is_closing():
            start, end = self._at, self._unread.find(END_OF_HEAD, self._at + self._body)
            self._at = len(self._unread) if end < 0 else end + len(END_OF_HEAD)
            self._size += self._at - start
            super().data_received(memoryview(self._unread)[start : self._at])  # type: ignore[arg-type]  # httptools takes any buffer
            if self._size > MAX_HEAD:
                self.cut("head")
        left = len(self._unread) - self._at
        if left > MAX_HEAD:
            self.cut("pipeline")
        self._flow.full = left > 0
        if left:
            self._flow.pause_reading()
        elif self._unread:
            self._unread, self._at = b"", 0
            if self._timer is None and (self.cycle is None or self.cycle.response_complete):  # type: ignore[redundant-expr]  # at first
                self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._head += len(name) + len(value)
        if len(self.headers) > MAX_HEADERS or self._head + len(self.url) > MAX_HEAD:
            raise ValueError("the head is too long")  # the parser stops, uvicorn responds with 400

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = 0
        self.scope[MARK_IDLE] = self._mark_idle  # type: ignore[literal-required]  # our own key
        if client := self.transport.get_extra_info(CLIENT):
            self.scope["extensions"] = {CLIENT: client}

    def on_headers_complete(self) -> None:
        self._head_complete()
        self._body = next((int(value) for name, value in self.headers if name == b"content-length"), 0)
        self.port.connections.busy(self)
        super().on_headers_complete()
        if self.transport.get_extra_info(STALE):
            self.cycle.keep_alive = False  # the next request needs a new handshake

    def on_body(self, body: bytes) -> None:
        self._size = 0
        self._body = max(self._body - len(body), 0)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._size = self._body = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self.cycle.more_body and not self.pipeline:
            self.transport.close()
        super().on_response_complete()
        if self.cycle.response_complete:
            self.port.connections.idle(self)
        self._flow.full = False
        self._parse()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._flow.pause_reading()
        seconds = max(MIN_RATE_WINDOW, self.transport.get_write_buffer_size() / MIN_RATE)
        self._stalled = self.loop.call_later(seconds, self.cut, "slow")

    def resume_writing(self) -> None:
        self._cancel_stall_timer()
        super().resume_writing()
        self._flow.resume_reading()

    def _cancel_stall_timer(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(HEAD_TIMEOUT, self.cut, "head")

    def _head_complete(self) -> None:
        self._size = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _connection(endpoint: Endpoint, port: _Port, **options: Any) -> asyncio.Protocol:
    protocol = _Protocol(**options)
    protocol.port = port
    return TlsTransport(protocol, endpoint.tls, port.refused) if endpoint.tls else protocol


class _Server(uvicorn.Server):
    def __init__(self, endpoint: Endpoint, grace: int, limits: Limits) -> None:
        super().__init__(
            uvicorn.Config(
                _answering_when_cancelled(Throttle(endpoint.app, endpoint.kind, endpoint.observe, known=endpoint.known)),
                access_log=False,  # its lines contain paths, and with them ids and tokens
                backlog=endpoint.backlog,
                http=partial(_connection, endpoint, _Port(endpoint, limits)),  # type: ignore[arg-type]  # uvicorn calls it
                interface="asgi3",
                lifespan="off",
                log_config=None,
                log_level=logging.ERROR,  # peers cause its warnings with invalid requests, as often as they like
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=grace,
                timeout_keep_alive=KEEP_ALIVE,
                workers=1,  # otherwise uvicorn reads WEB_CONCURRENCY
                ws="none",
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The process handles signals, because it has several servers.
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.server_state.tasks:
            # They were cancelled: let them send their response.
            await asyncio.wait(self.server_state.tasks, timeout=1)


def _answering_when_cancelled(app: ASGIApp) -> ASGIApp:
    """Wrap an app: respond to a cancelled request with 503, without a traceback. Only a stopping server cancels requests."""

    async def outermost(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            with suppress(RuntimeError):  # the response has begun: the connection will be closed
                await _STOPPING(scope, receive, send)

    return outermost


_STOPPING = Response(status_code=503, headers={"Connection": "close", "Retry-After": "5"})
