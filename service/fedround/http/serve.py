"""Serving: uvicorn's servers in one event loop, what each connection may do. The only file that imports uvicorn."""

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
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from fedround.common.wire import MIN_RATE, MIN_RATE_WINDOW
from fedround.errors import ConfigurationError
from fedround.events import ConnectionCut, ConnectionsChanged, Observer, Observers
from fedround.http.budgets import Connections, Limits, PortKind, Wanted, network, share_out
from fedround.http.throttle import GIVES_WAY, Known, Throttle, nobody
from fedround.http.tls import CLIENT, Context
from fedround.http.tls_transport import HANDSHAKE, STALE, TlsTransport

LOG = logging.getLogger(__name__)

KEEP_ALIVE = 75
"""Seconds for which an idle connection is kept."""
HEAD_TIMEOUT = 30
"""Seconds within which the head of a request has to be whole, from the connection's beginning or from its first byte."""
MAX_HEAD = 32 << 10
"""Bytes that may come without being body, or the end of a head."""
MAX_HEADERS = 100
"""Header fields of one request, its trailers included."""
AHEAD = 4
"""Pipelined requests that wait for their turn on one connection. Reading pauses until there is room for another."""
END_OF_HEAD = b"\r\n\r\n"
GRACE = 5
"""Seconds that running requests have to end when a server stops."""
STALL = 60
"""Seconds after which a peer that takes nothing of an answer is cut off: it would keep a whole model in memory."""
BACKLOG = 2048
REFUSALS_EVERY = 60.0
"""Seconds between two log lines with the same reason for refused connections of a port."""
BACKLOG_OPS = 100
"""Of a port for operators. asyncio, which serves those of a participant, accepts as many at once before it counts them."""


@dataclass
class Endpoint:
    """An app and where it is served. `setting` is the variable that holds the port, for messages; port 0 is any free one.

    `last`: it is served until all others have ended, for operators who want to see them end. `kind` names the port in metrics.
    `limits`: how many connections it keeps, and how many from one address; 0 stands for what follows from the descriptors.
    `tls`: what it serves TLS with. `known`: for which participant a request is (see `throttle`).
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
    known: Known = nobody

    @property
    def backlog(self) -> int:
        return BACKLOG_OPS if self.kind == "ops" else BACKLOG

    def bind(self) -> socket.socket:
        """Take the port; from now on `port` is the real one, and who connects waits. Raises `ConfigurationError`."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            both = self.host == "::" and socket.has_dualstack_ipv6()  # IPv4 too
            bound = socket.create_server((self.host, self.port), family=family, backlog=self.backlog, dualstack_ipv6=both)
        except OSError as error:
            # The number's text: behind it, Python repeats the address.
            told = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            reason = f"cannot listen on {self.host}: {told}"
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                reason += "; choose another port, or 0 for any free one"
            raise ConfigurationError(f"{self.setting}={self.port}: {reason}") from error
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections have it from the socket that accepts them
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALL * 1000)
        self.port = bound.getsockname()[1]
        return bound


@asynccontextmanager
async def serving(*endpoints: Endpoint, grace: int = GRACE) -> AsyncIterator[None]:
    """Serve within the block. All ports are taken before the first request is served; raises `ConfigurationError` if one cannot be.

    At the end idle connections are closed, and running requests have `grace` seconds before they are answered with 503.
    """
    async with AsyncExitStack() as stack:
        sockets = [stack.enter_context(endpoint.bind()) for endpoint in endpoints]
        limits = share_out(_descriptors(), [Wanted(each.kind, *each.limits) for each in endpoints])
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
    """What all connections of a port share: its budget, and who is told of them."""

    def __init__(self, endpoint: Endpoint, limits: Limits) -> None:
        self.connections = Connections["_Protocol"](limits)
        self._endpoint = endpoint
        self._silent_until: dict[str, float] = {}

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
        """Log why the port does not talk with a client, each reason once a minute."""
        now = time.monotonic()
        if now >= self._silent_until.get(reason, now):
            self._silent_until[reason] = now + REFUSALS_EVERY
            LOG.warning("%s: refused a connection: %s", self._endpoint.setting, reason)

    def was_cut(self, reason: str) -> None:
        self._endpoint.observe(ConnectionCut(self._endpoint.kind, reason))

    def _changed(self) -> None:
        self._endpoint.observe(ConnectionsChanged(self._endpoint.kind, len(self.connections)))


class _Flow(FlowControl):
    """uvicorn's, in which every request that waits for its body resumes reading: not while enough has been read ahead.

    Nor from a peer that reads nothing: even TLS alone has answers to what such a peer sends.
    """

    full = False

    def resume_reading(self) -> None:
        if not self.full and not self.write_paused:
            super().resume_reading()


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds on the size, the time and the number of what a peer sends.

    - A peer that sends headers, trailers or chunk sizes without an end is cut off.
    - A peer that has no request under way must finish the head of its next request within `HEAD_TIMEOUT`. A peer that has sent
      nothing since the last answer is idle: uvicorn closes its connection after `KEEP_ALIVE`.
    - A peer that takes an answer more slowly than the minimum rate of uploads is cut off: it would keep a model in memory.
    - A peer that pipelines waits. uvicorn makes a task's worth of objects of every head that it parses, and one read may carry
      thousands of heads. So the parser gets one head at a time, and none while `AHEAD` requests wait. More than `MAX_HEAD` bytes
      that wait behind those are not kept: the connection is cut.
    - A connection ends with the answer to a request whose body nobody has read to its end.
    - The port closes connections for newcomers as `budgets` has it.
    """

    port: _Port
    _size = 0
    """Of what has come since the last end of a head, or piece of a body."""
    _head = 0
    """Of the header fields of the newest request."""
    _body = 0
    """Bytes that the body of the newest request still lacks, if it has announced its length."""
    _unread = b""
    """What has come and was not parsed, from `_at` on."""
    _at = 0
    _running: RequestResponseCycle | None = None
    _timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.flow = self._flow = _Flow(transport)
        self._await_head()
        self.port.opened(self, network(self.client[0] if self.client else ""))

    def cut(self, reason: str) -> None:
        """Close the connection at once. What was not sent yet is lost."""
        self.port.was_cut(reason)
        self._hang_up()
        self.transport.abort()

    def _hang_up(self) -> None:
        """Tell the request that runs: uvicorn tells the newest one, which may wait behind it."""
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
            self._running = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _gives_way(self) -> None:
        self.port.connections.idle(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._hang_up()
        self._head_is_whole()
        self._is_taken()
        self._unset_keepalive_if_required()  # uvicorn leaves it after a reset, and it would hold all this for another 75 s
        for cycle, _ in self.pipeline:
            cycle.on_response = _nothing  # they never run, and would live until the garbage is collected
        self.pipeline.clear()
        if self.scope is not None:
            self.scope.pop(GIVES_WAY, None)  # type: ignore[misc]  # a key of ours
        self._unread = b""
        super().connection_lost(exc)
        self.port.closed(self)

    def data_received(self, data: bytes) -> None:
        if self.scope is None and self.scheme == "http" and data[0] == HANDSHAKE:  # its first bytes
            self.port.refused("a client speaks TLS, and this port does not")
            self.send_400_response("this port does not speak TLS: use http://")
            return
        self._unread, self._at = self._unread[self._at :] + data, 0
        self._parse()

    def _parse(self) -> None:
        """Parse what has come, in pieces that end where a head may end, for as long as another request has room."""
        while self._at < len(self._unread) and len(self.pipeline) < AHEAD and not self.transport.is_closing():
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
        self.scope[GIVES_WAY] = self._gives_way  # type: ignore[literal-required]  # a key of ours
        if client := self.transport.get_extra_info(CLIENT):
            self.scope["extensions"] = {CLIENT: client}

    def on_headers_complete(self) -> None:
        self._head_is_whole()
        self._body = next((int(value) for name, value in self.headers if name == b"content-length"), 0)
        self.port.connections.busy(self)
        super().on_headers_complete()
        if self.transport.get_extra_info(STALE):
            self.cycle.keep_alive = False  # this request is answered, and the next one comes with a handshake

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
        self._is_taken()
        super().resume_writing()
        self._flow.resume_reading()

    def _is_taken(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(HEAD_TIMEOUT, self.cut, "head")

    def _head_is_whole(self) -> None:
        self._size = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _nothing() -> None: ...


def _connection(endpoint: Endpoint, port: _Port, **options: Any) -> asyncio.Protocol:
    protocol = _Protocol(**options)
    protocol.port = port
    return TlsTransport(protocol, endpoint.tls, port.refused) if endpoint.tls else protocol


class _Server(uvicorn.Server):
    def __init__(self, endpoint: Endpoint, grace: int, limits: Limits) -> None:
        super().__init__(
            uvicorn.Config(
                _answering_when_cancelled(Throttle(endpoint.app, endpoint.kind, endpoint.observe, known=endpoint.known)),
                access_log=False,  # its lines hold the paths, and with them ids and tokens
                backlog=endpoint.backlog,
                http=partial(_connection, endpoint, _Port(endpoint, limits)),  # type: ignore[arg-type]  # uvicorn calls it
                interface="asgi3",
                lifespan="off",
                log_config=None,
                log_level=logging.ERROR,  # its warnings are of peers that send nonsense, as often as they like
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=grace,
                timeout_keep_alive=KEEP_ALIVE,
                workers=1,  # or it reads WEB_CONCURRENCY, which is meant for others
                ws="none",
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The signals belong to the process, which has several servers.
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.server_state.tasks:
            # They were cancelled: here they get their turn to say so.
            await asyncio.wait(self.server_state.tasks, timeout=1)


def _answering_when_cancelled(app: ASGIApp) -> ASGIApp:
    """Nobody but the stopping server cancels a request: its peer is told to come again, and uvicorn logs no traceback."""

    async def outermost(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            with suppress(RuntimeError):  # the answer has begun already: the connection will be closed on it
                await send(_STOPPING)
                await send({"type": "http.response.body"})

    return outermost


_STOPPING: Message = {
    "type": "http.response.start",
    "status": 503,
    "headers": [(b"content-length", b"0"), (b"connection", b"close"), (b"retry-after", b"5")],
}
