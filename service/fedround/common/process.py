"""The process of a service: its event loop, its signals, its tuning. The only file that imports uvloop."""

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
    """SIGTERM and SIGINT set the event; the second of them ends the process at once. For the main thread, within a running loop."""
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
    """Run `main` on an event loop made for serving, in a process tuned for it."""
    import uvloop  # a participant, which serves its operators alone, does without

    with closing(main):  # it may be asked to stop before `main` has begun
        tune()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)


def leave(code: int = 0) -> Never:
    """End the process now: for users' code that is still at work. An interpreter that ends beneath a library may crash."""
    logging.shutdown()
    os._exit(code)


def tune() -> None:
    """Settle the process for serving, after the imports.

    glibc gives buffers back to the kernel each time, and receiving pays page faults for them again and again: keep those of a
    few MB, but not what is as large as a model, nor much of what is free.
    glibc gives each thread a heap of its own, and what one thread frees is of no use to another: the sums of many small tensors
    would be kept once for each thread that has made some. One heap for all.
    Each connection takes a descriptor: take as many as the system gives.
    A full garbage collection over thousands of connections stalls all of them: what is there now is never looked at again, and
    full collections become rare.
    """
    with suppress(AttributeError, OSError):  # another C library than glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 4 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 16 << 20)
        libc.mallopt(M_ARENA_MAX, 1)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS refuses what its kernel has no room for
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
"""The numbers of <malloc.h>."""
