"""A proxy in front of a server on this machine, with faults on the way."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Self

PIECE = 64 << 10
_RESET = struct.pack("ii", 1, 0)


class Link:
    """A link that passes everything on. A subclass defines how, in `passing`."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: set[socket.socket] = set()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # A close alone would still accept connections while a thread waits in `accept`.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def passing(self, piece: bytes) -> Iterator[bytes]:
        """Yield what to pass on for a piece, on the thread of its direction. Raises `OSError` to cut the connection."""
        yield piece

    def cut(self) -> None:
        """Reset all connections."""
        for end in self._ends.copy():
            _reset(end)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target)
        except OSError:
            _reset(client)
            client.close()
            return
        ends = (client, server)
        self._ends.update(ends)
        back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
        back.start()
        self._pump(client, server)
        back.join()
        self._ends.difference_update(ends)
        for end in ends:
            end.close()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while piece := source.recv(PIECE):
                for part in self.passing(piece):
                    target.sendall(part)
        except OSError:
            _reset(source)
            _reset(target)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _reset(end: socket.socket) -> None:
    # A linger time of 0 turns the close into a reset. The shutdown before it wakes a thread in `recv`.
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        end.shutdown(socket.SHUT_RDWR)


class Proxy(Link):
    """A link that responds itself if `answer` is set, and counts the responses; otherwise it passes everything on."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.answer: bytes | None = None
        self.answered = 0

    def _connect(self, client: socket.socket) -> None:
        if self.answer is None:
            super()._connect(client)
            return
        with client, suppress(OSError):
            client.recv(PIECE)
            client.sendall(self.answer)
            self.answered += 1


class Gate(Link):
    """A slow link, as both ends see it: it passes a POST only after `open`. `held` is set when the first one has arrived."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.held = threading.Event()
        self.open = threading.Event()

    def __exit__(self, *exception: object) -> None:
        self.open.set()
        super().__exit__(*exception)

    def passing(self, piece: bytes) -> Iterator[bytes]:
        if piece.startswith(b"POST "):
            self.held.set()
            self.open.wait()
        yield piece


class SlowLink(Link):
    """A link that passes the head of a POST, and the rest `seconds` later."""

    def __init__(self, port: int, seconds: float) -> None:
        super().__init__(port)
        self.seconds = seconds

    def passing(self, piece: bytes) -> Iterator[bytes]:
        if piece.startswith(b"POST "):
            head, end, piece = piece.partition(b"\r\n\r\n")
            yield head + end
            threading.Event().wait(self.seconds)
        yield piece
