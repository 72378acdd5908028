"""The process of a service: its event loop, signals and tuning. Only this file imports uvloop."""

import asyncio
import ctypes
import gc
import os
import resource
import signal
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager, suppress
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def capture_signals() -> Iterator[asyncio.Event]:
    """Yield an event that SIGTERM or SIGINT sets. A second signal ends the process immediately.

    Call this on the main thread, while the event loop runs.
    """
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
    import uvloop  # here, because a participant does not need it

    with closing(main):  # a signal may end the loop before `main` starts
        tune()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)


def tune() -> None:
    """Tune the process for serving. Call it after the imports.

    - glibc returns freed buffers to the kernel, so that each new one costs page faults. Let it reuse buffers of a few MB, but
      neither buffers of a model's size nor much memory.
    - glibc gives each thread a heap, and no thread reuses the freed memory of another. Aggregates of many small tensors would take
      memory once per thread. Use one heap for all threads.
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
