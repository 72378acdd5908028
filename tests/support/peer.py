"""An HTTP peer on a loopback socket. It sends the bytes that a test has written, and records what it receives."""

import socket
import socketserver
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

PIECE = 64 << 10
"""Number of bytes to read and discard at a time."""


@dataclass(frozen=True)
class Request:
    line: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """A response. `data` may be a generator that waits.

    `read`: bytes of the request body to read first; None: all. `close`: hang up after it.
    """

    data: bytes | Iterable[bytes]
    read: int | None = None
    close: bool = False


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    """Return a response, as in `answer("200 OK", b"{}", Content_Type="text/html")`."""
    fields = {"Content-Length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def chunked(*chunks: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(
        b"%x\r\n%b\r\n" % (len(c), c) for c in (*chunks, b"")
    )


class Peer(socketserver.ThreadingTCPServer):
    """A peer that responds to each request with the next reply, and hangs up after the last one. Use it as a context manager.

    `hung_up` is set whenever the peer has closed a connection.
    """

    request_queue_size = 20

    allow_reuse_address = True

    def __init__(self, *replies: bytes | Reply, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Connection)
        self.replies = [reply if isinstance(reply, Reply) else Reply(reply) for reply in replies]
        self.requests: list[Request] = []
        self.connections: list[socket.socket] = []
        self.hung_up = threading.Event()
        self.address = f"127.0.0.1:{self.server_address[1]}"
        self.url = f"http://{self.address}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.005})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown()
        self._thread.join()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Connection(socketserver.StreamRequestHandler):
    server: Peer

    def handle(self) -> None:
        self.server.connections.append(self.connection)
        with suppress(OSError):  # the other side hung up, as some tests intend
            while self._exchange():
                pass

    def finish(self) -> None:
        super().finish()
        self.connection.close()
        self.server.hung_up.set()

    def _exchange(self) -> bool:
        head = list(iter(lambda: self.rfile.readline().decode().rstrip("\r\n"), ""))
        if not head or not self.server.replies:
            return False
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        reply = self.server.replies.pop(0)
        size = int(headers.get("content-length", 0))
        body = self.rfile.read(size if reply.read is None else reply.read)
        self.server.requests.append(Request(head[0], headers, body))
        for part in [reply.data] if isinstance(reply.data, bytes) else reply.data:
            self.connection.sendall(part)
        if reply.close:
            return False
        for start in range(len(body), size, PIECE):
            self.rfile.read(min(PIECE, size - start))
        return True
