"""Deadlines of whole exchanges, for httpcore's connections. The only file that imports httpcore.

A time-out of httpx limits one read or one write. A head that arrives byte by byte, or an endless series of `103 Early Hints`, never
exceeds it. So here each read and write gets the time that is left until the deadline of its thread's exchange.
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
"""Bytes per write. httpcore restarts the time-out of a write whenever the socket takes a byte."""


class Deadline:
    """The deadline of the current step of an exchange. Each step has `seconds`.

    The steps are: connect and send the head, send the body, receive the head, receive the body. The deadline of a body moves on
    as long as the body keeps the minimum rate.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self.next_step()

    def next_step(self) -> None:
        """Start the deadline of the next step."""
        self._until = self._clock() + self._seconds
        self._moved = 0

    def moved(self, count: int) -> None:
        """Record that `count` bytes of a body were sent or received."""
        self._moved += count
        if self._moved >= MIN_RATE * self._seconds:
            self.next_step()

    def left(self, limit: float | None = None) -> float:
        """Return the seconds that are left, at most `limit`."""
        left = self._until - self._clock()
        return left if limit is None else min(left, limit)


class _Running(threading.local):
    deadline: Deadline | None = None


_running = _Running()


@contextmanager
def within(seconds: float) -> Iterator[Deadline]:
    """Limit each step of this thread's exchange to `seconds`."""
    deadline = _running.deadline = Deadline(seconds)
    try:
        yield deadline
    finally:
        _running.deadline = None


def moved(count: int) -> None:
    """Call `Deadline.moved` for this thread's exchange."""
    if _running.deadline is not None:
        _running.deadline.moved(count)


def next_step() -> None:
    """Call `Deadline.next_step` for this thread's exchange."""
    if _running.deadline is not None:
        _running.deadline.next_step()


def _left(timeout: float | None, error: type[httpcore.TimeoutException]) -> float | None:
    if _running.deadline is None:
        return timeout
    left = _running.deadline.left(timeout)
    if left <= 0:
        raise error("timed out: the exchange takes too long")
    return left


class Backend(httpcore.NetworkBackend):
    """httpcore's backend, with streams that respect the deadline."""

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
