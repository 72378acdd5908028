"""TLS between a socket's transport and a server's protocol: `TlsTransport`.

asyncio's TLS starts the protocol after the handshake, sends no alert if that fails, and cannot respond to a client that speaks
plain HTTP. Here the protocol has its connection from the start, so its limits and time-outs apply to handshakes too.
"""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from typing import Any

from fedround.common.wire import DRAIN_SECONDS, SPEAKS_TLS, Problem
from fedround.http.tls import CLIENT, Client, Context

HANDSHAKE = 0x16
"""The first byte of a TLS connection (RFC 8446, section 5.1)."""
PIECE = 256 << 10
MAX_SILENT = 32 << 10
"""Maximum number of bytes without application data after a handshake. A record has up to 16 KiB and arrives in parts."""
STEP = 64 << 10
"""Maximum number of received bytes that are decrypted before the limit above is checked."""
OVERHEAD = 64
"""Bytes of records that one byte of application data allows."""
STALE = "fedround.stale"
"""Key of the transport's extra info: whether the certificate files were replaced since the handshake."""

_BODY = Problem(400, "Bad Request", SPEAKS_TLS).encode()
_PLAIN_RESPONSE = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: "
    + f"{Problem.media_type}\r\nContent-Length: {len(_BODY)}\r\n\r\n".encode()
    + _BODY
)


class _State(Enum):
    NEW = auto()
    HANDSHAKE = auto()
    OPEN = auto()
    CLOSED = auto()
    """The peer still reads the reason. Its input is discarded."""


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """TLS between two parties: it is the protocol of a socket's transport, and the transport of the protocol `app`.

    `refused` is called with the reason if a handshake fails or does not begin.
    """

    def __init__(self, app: asyncio.Protocol, context: Context, refused: Callable[[str], None]) -> None:
        super().__init__()
        self._app: Any = app
        self._context = context
        self._refused = refused
        self._state = _State.NEW
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._client = Client(None)
        self._silent = 0
        """Received bytes without application data: see `MAX_SILENT`."""

    # The protocol of the transport below

    def connection_made(self, transport: Any) -> None:
        self._raw = transport
        self._app.connection_made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = _State.CLOSED
        self._app.connection_lost(exc)
        self._app = asyncio.Protocol()  # breaks a reference cycle, which would stay in memory until a garbage collection

    def data_received(self, data: bytes) -> None:
        if self._state is _State.CLOSED:
            return
        if self._state is _State.NEW and not self._begin(data):
            return
        for start in range(0, len(data), STEP):
            self._decrypt(data[start : start + STEP])

    def eof_received(self) -> None:
        if self._state is _State.OPEN:
            self._app.eof_received()

    def pause_writing(self) -> None:
        self._app.pause_writing()

    def resume_writing(self) -> None:
        self._app.resume_writing()

    def _decrypt(self, data: bytes) -> None:
        if self._state is _State.CLOSED:
            return
        self._incoming.write(data)
        if self._state is _State.HANDSHAKE:
            if not self._shake_hands():
                return
        else:
            self._silent += len(data)
        self._read()
        if self._silent > MAX_SILENT:  # key updates, each of which costs us more than the peer
            self._state = _State.CLOSED
            self._refused("a client sends TLS records without data")
            self._raw.abort()

    def _begin(self, data: bytes) -> bool:
        if data[0] == HANDSHAKE:
            self._made_with = self._context.current()
            self._tls = self._made_with.wrap_bio(self._incoming, self._outgoing, server_side=True)
            self._state = _State.HANDSHAKE
            return True
        self._raw.write(_PLAIN_RESPONSE)
        self._refuse("a client does not speak TLS")
        return False

    def _shake_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            self._flush()  # an alert
            why = getattr(error, "verify_message", "") or (error.reason or "error").lower().replace("_", " ")
            self._refuse(f"TLS handshake failed: {why}")
            return False
        self._flush()
        self._state = _State.OPEN
        if certificate := self._tls.getpeercert():
            self._client = Client.of(certificate)
        return True

    def _refuse(self, reason: str) -> None:
        """Close after the peer had time to read the reason. Closing with unread input would reset the connection."""
        self._state = _State.CLOSED
        self._refused(reason)
        if self._raw.can_write_eof():
            self._raw.write_eof()
        asyncio.get_running_loop().call_later(DRAIN_SECONDS, self._raw.abort)

    def _read(self) -> None:
        pieces = []
        ended = False
        try:
            while piece := self._tls.read(PIECE):
                pieces.append(piece)
            ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            ended = True
        self._flush()  # the response to a key update
        if pieces:
            plain = b"".join(pieces)
            self._silent = max(self._silent - OVERHEAD * len(plain), 0)
            self._app.data_received(plain)
        if ended:
            self._app.eof_received()
            self.close()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._raw.write(self._outgoing.read())

    # The transport of the protocol above

    def write(self, data: Any) -> None:
        if self._state is not _State.OPEN or self._raw.is_closing():
            return
        rest = memoryview(data).cast("B")
        try:
            while rest:
                rest = rest[self._tls.write(rest) :]
        except ssl.SSLError:
            self._raw.abort()
            return
        self._flush()

    def close(self) -> None:
        if self._state is _State.OPEN:
            self._state = _State.CLOSED
            with suppress(ssl.SSLError):
                self._tls.unwrap()
            self._flush()
        self._raw.close()

    def abort(self) -> None:
        self._raw.abort()

    def is_closing(self) -> bool:
        return bool(self._raw.is_closing())

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        self._raw.resume_reading()

    def is_reading(self) -> bool:
        return bool(self._raw.is_reading())

    def get_write_buffer_size(self) -> int:
        return int(self._raw.get_write_buffer_size())

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._raw.set_write_buffer_limits(high, low)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._app = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._app  # type: ignore[no-any-return]  # set_protocol and __init__ take a protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "sslcontext":
            return self._context
        if name == STALE:
            return self._context.current() is not self._made_with
        if name == CLIENT and self._context.names_clients:
            return self._client
        return self._raw.get_extra_info(name, default)
