"""SIGTERM and SIGINT, handled on a separate thread even while the main thread is busy. Forked processes get default handlers."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
MAX_SIGNALS = 2
"""Signals that are handled: the first one drains, the second one stops immediately. Another one ends the process."""

_CHILDS: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
"""Handlers in a process that the training code forks: Python's defaults."""
_open: list[socket.socket] = []
"""Open sockets of `signals`."""
_mask = threading.local()
"""A thread's previous signal mask, while it forks."""


@contextmanager
def signals(on_signal: Callable[[], None]) -> Iterator[None]:
    """Call `on_signal` for each SIGTERM and SIGINT on a separate thread, even while the main thread runs C code.

    The third signal ends the process.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        caught = 0
        while number := reader.recv(1):
            if number[0] in SIGNALS:
                caught += 1
                if caught > MAX_SIGNALS:
                    os._exit(128 + number[0])
                on_signal()

    watcher = threading.Thread(target=watch, name="fedround-signals", daemon=True)
    watcher.start()
    _open.extend((reader, writer))
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    former = {number: signal.signal(number, _ignore) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        _open.clear()
        writer.close()
        watcher.join()
        reader.close()


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the watcher reads the byte in the socket. Python only writes it if there is a Python handler."""


def _before_fork() -> None:
    """Block signals, so that one for the child waits until the child has its handlers."""
    if _open:
        _mask.former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _after_fork() -> None:
    if (former := getattr(_mask, "former", None)) is not None:
        _mask.former = None
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _in_child() -> None:
    """Restore default handlers, so that a signal to the child does not count as one to the participant."""
    if _open:
        signal.set_wakeup_fd(-1)
        for number, handler in _CHILDS.items():
            if signal.getsignal(number) is _ignore:
                signal.signal(number, handler)
        for one in _open:
            one.close()
        _open.clear()
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)
