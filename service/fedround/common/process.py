"""The process of a service: event loop, signals, tuning. The only file that imports uvloop."""

import asyncio
import ctypes
import gc
import logging
import os
import resource
import signal
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager, suppress
from types import FrameType
from typing import Never, TypeVar

T = TypeVar("T")


@contextmanager
def capture_signals() -> Iterator[asyncio.Event]:
    """Set the event on SIGTERM or SIGINT. A second signal ends the process immediately. Main thread only, in a running loop."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    caught = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal caught
        if caught:
            os._exit(128 + number)
        caught = True
        loop.call_soon_threadsafe(stop.set)

    former = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def run(main: Coroutine[object, object, T]) -> T:
    """Run `main` on uvloop, in a process tuned for serving."""
    import uvloop  # a participant, which serves only its ops port, does not need it

    with closing(main):  # a signal may end the loop before `main` starts
        tune()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)


def leave(code: int = 0) -> Never:
    """End the process immediately, while users' code still runs. A regular shutdown under a running library may crash."""
    logging.shutdown()
    os._exit(code)


def tune() -> None:
    """Tune the process for serving. Call it after the imports.

    - By default, glibc returns buffers to the kernel, and each receive pays page faults for new ones. Keep buffers of a few MB, but
      neither those as large as a model nor much free memory.
    - By default, glibc gives each thread a heap, and threads cannot reuse each other's freed memory. Aggregates of many small
      tensors would be kept once per thread. Use one heap for all threads.
    - Each connection needs a file descriptor. Raise the limit to the maximum.
    - A full garbage collection over thousands of connections stalls all of them. Exclude existing objects, and make full
      collections rare.
    """
    with suppress(AttributeError, OSError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 4 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 16 << 20)
        libc.mallopt(M_ARENA_MAX, 1)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS refuses more than its kernel supports
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
"""Constants of <malloc.h>."""
