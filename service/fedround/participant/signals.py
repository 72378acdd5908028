"""SIGTERM and SIGINT on another thread than the main one, whatever that is busy with. Processes that it forks have neither."""

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
"""The first asks to stop, the second at once; one more does not ask."""

_CHILDS: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
"""The handlers of a process that the participant's own code forks: those that Python gives a program."""
_open: list[socket.socket] = []
"""The sockets of `signals`, while it is at work."""
_mask = threading.local()
"""The signals that a thread has blocked, while it forks."""


@contextmanager
def signals(on_signal: Callable[[], None]) -> Iterator[None]:
    """Call `on_signal` for each SIGTERM and SIGINT, on another thread, even while the main thread sits in somebody's C code.

    The third one ends the process: whoever sends it has seen that two were not enough.
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
    """The byte in the socket says it all. A handler of Python's there must be, or no byte is written."""


def _before_fork() -> None:
    """A signal that comes to the child too early waits until the child's own handlers are in place."""
    if _open:
        _mask.former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _after_fork() -> None:
    if (former := getattr(_mask, "former", None)) is not None:
        _mask.former = None
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _in_child() -> None:
    """Otherwise a signal to the child would count as one to the participant."""
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
