"""A disk in memory that fails at any step and shows what remains, and a disk that is full."""

import errno
import math
import os
import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count

from fedround.common.durable import Buffer, remove_incomplete


class Died(Exception):
    """The process ended at this step."""


class MemoryDisk:
    """A `fedround.common.durable.Disk`. It dies after so many `steps`; everything that changes it is one step, or several."""

    def __init__(self, files: dict[str, bytes] | None = None, *, steps: float = math.inf) -> None:
        self.files = dict(files or {})
        """The files that the process sees."""
        self.flushed = dict(self.files)
        """The files that survive in any case."""
        self.steps = steps

    def read(self, name: str) -> memoryview:
        if name not in self.files:
            raise FileNotFoundError(name)
        return memoryview(bytearray(self.files[name]))

    def write(self, name: str, parts: Iterable[Buffer]) -> None:
        self._step()
        self.files[name] = b""
        for part in parts:
            half = len(part) // 2
            self._step()
            self.files[name] += bytes(part[:half])
            self._step()
            self.files[name] += bytes(part[half:])
        self._step()

    def rename(self, old: str, new: str) -> None:
        self._step()
        self.files[new] = self.files.pop(old)

    def flush(self) -> None:
        self._step()
        self.flushed = dict(self.files)

    def remove(self, name: str) -> None:
        self._step()
        if name not in self.files:
            raise FileNotFoundError(name)
        del self.files[name]

    def names(self) -> list[str]:
        return list(self.files)

    def found(self) -> list[dict[str, bytes]]:
        """Return the files that may remain after the end: only what was flushed, or everything that was written."""
        return [self.flushed, self.files]

    def _step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise Died


def crashes(before: MemoryDisk, act: Callable[[MemoryDisk], object], *, more_than: int) -> Iterator[tuple[bool, MemoryDisk]]:
    """Let `act` die at its first step, then at its second, and so on, until it completes after more than `more_than` steps.

    Yield whether it died, and each disk that a restarted process may find, after the cleanup of that process.
    """
    for steps in count():
        disk, died = MemoryDisk(before.files, steps=steps), False
        try:
            act(disk)
        except Died:
            died = True
        for found in disk.found():
            after = MemoryDisk(found)
            remove_incomplete(after)
            yield died, after
        if not died:
            assert steps > more_than
            return


class SmallDisk(MemoryDisk):
    """A disk with `room` for this many bytes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    @property
    def used(self) -> int:
        return sum(map(len, self.files.values()))

    def write(self, name: str, parts: Iterable[Buffer]) -> None:
        self.files[name] = b""
        for part in parts:
            free = max(0, self.room - self.used)
            self.files[name] += bytes(part[:free])
            if free < len(part):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Act as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
