"""Deadlines of whole exchanges, for httpcore's connections. The only file that imports httpcore.

httpx's time-outs are those of one read or one write. A head that drips byte by byte, or an endless row of `103 Early Hints`, never
exceeds one. So each read and write here gets what is left of the deadline of the exchange that its thread carries out.
"""

import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore

from fedround.common.wire import MIN_RATE

PIECE = 64 << 10
"""Bytes that are written at a time: httpcore repeats a write, with its whole time-out, for as long as any byte is taken."""


class Deadline:
    """Each step of an exchange has `seconds`.

    Steps are: to connect and send a head, to send a body, to receive a head, to receive a body. A body at the minimum rate or above
    has `seconds` again and again.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self.next_step()

    def next_step(self) -> None:
        """The step is over: a body was sent, or the head of the answer is here."""
        self._until = self._clock() + self._seconds
        self._moved = 0

    def moved(self, count: int) -> None:
        """So many bytes of a body were sent or received."""
        self._moved += count
        if self._moved >= MIN_RATE * self._seconds:
            self.next_step()

    def left(self, most: float | None = None) -> float:
        """Seconds that are left, `most` at most."""
        left = self._until - self._clock()
        return left if most is None else min(left, most)


class _Running(threading.local):
    deadline: Deadline | None = None


_running = _Running()


@contextmanager
def within(seconds: float) -> Iterator[Deadline]:
    """Carry out an exchange on this thread, each step of which has so many seconds."""
    deadline = _running.deadline = Deadline(seconds)
    try:
        yield deadline
    finally:
        _running.deadline = None


def moved(count: int) -> None:
    """See `Deadline.moved`, of the exchange under way."""
    if _running.deadline is not None:
        _running.deadline.moved(count)


def next_step() -> None:
    """See `Deadline.next_step`, of the exchange under way."""
    if _running.deadline is not None:
        _running.deadline.next_step()


def _left(timeout: float | None, over: type[httpcore.TimeoutException]) -> float | None:
    if _running.deadline is None:
        return timeout
    left = _running.deadline.left(timeout)
    if left <= 0:
        raise over("timed out: the exchange takes too long")
    return left


class Backend(httpcore.NetworkBackend):
    """httpcore's own, with streams that keep the deadline."""

    def __init__(self) -> None:
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._backend.connect_tcp(host, port, left, local_address, socket_options))


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        rest = memoryview(buffer)
        while rest:
            self._stream.write(rest[:PIECE], _left(timeout, httpcore.WriteTimeout))  # type: ignore[arg-type]  # sent as it is
            rest = rest[PIECE:]

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _left(timeout, httpcore.ConnectTimeout)))

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
