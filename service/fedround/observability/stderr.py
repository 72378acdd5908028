"""The handler that writes log lines to standard error. It drops lines if they are not read: no service waits for that."""

import logging
import os
import select
import stat
import time
from contextlib import suppress

PATIENCE = 1.0
"""Maximum seconds to wait until standard error accepts a line."""
SHARE = 0.1
"""Maximum share of its time for which a service waits, if the reader is slow for long."""
PIECE = 4096
"""Bytes that a pipe accepts if it accepts any (`PIPE_BUF`)."""


class Handler(logging.Handler):
    """A handler that writes lines to the descriptor `fd`, and waits for a slow reader up to `PATIENCE` and `SHARE`.

    It drops lines that are not accepted, and logs their number before the next one. A line that was begun is completed later.
    """

    def __init__(self, fd: int, encoding: str = "utf-8") -> None:
        super().__init__()
        self._standard, self._fd = fd, _without_waiting(fd)
        self._encoding = encoding
        self._rest = b""
        """The rest of a line that was begun."""
        self._dropped = 0
        self._patience, self._since = PATIENCE, time.monotonic()

    def close(self) -> None:
        """Close the descriptor that this handler opened."""
        self._check()
        own, self._fd = self._fd, self._standard  # a thread may still log
        if own != self._standard:
            os.close(own)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line of a record, or drop it."""
        try:
            self._check()
            self._write_rest()
            if self._dropped:
                text = f"{self._dropped} log lines were dropped: standard error was not read in time"
                self._write(logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None))
                self._dropped = 0
            self._write(record)
        except BlockingIOError:
            self._dropped += 1
        except Exception:  # noqa: BLE001 as in every handler
            self.handleError(record)

    def _check(self) -> None:
        """Use `fd` if it was redirected, or if training code has closed our descriptor, which may be another file by now."""
        try:
            same = os.path.sameopenfile(self._fd, self._standard)
        except OSError:
            same = False
        self._fd = self._fd if same else self._standard

    def _write(self, record: logging.LogRecord) -> None:
        line = f"{self.format(record)}\n".encode(self._encoding, "backslashreplace")
        self._wait()
        self._rest = line
        with suppress(BlockingIOError):
            self._write_rest()

    def _write_rest(self) -> None:
        while self._rest:
            self._wait()
            self._rest = self._rest[os.write(self._fd, self._rest[:PIECE]) :]

    def _wait(self) -> None:
        """Wait until the descriptor accepts bytes. Raises `BlockingIOError` if it does not."""
        now = time.monotonic()
        self._patience = min(self._patience + (now - self._since) * SHARE, PATIENCE)
        _, writable, _ = select.select([], [self._fd], [], self._patience)
        self._since = time.monotonic()
        self._patience = max(self._patience - (self._since - now), 0.0)
        if not writable:
            raise BlockingIOError


def _without_waiting(fd: int) -> int:
    """Return a descriptor of the same pipe or terminal that never blocks; for other files, and if there can be none, `fd`.

    A terminal is writable if it accepts one byte. A pipe may have another writer, which fills it first. `fd` itself must stay as it
    is: other processes share it.
    """
    if stat.S_ISFIFO(os.fstat(fd).st_mode) or os.isatty(fd):
        with suppress(OSError):  # another user's terminal, or a system without /proc
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    return fd
