"""A disk in memory that can die at any of its steps, and what is found on it then; and one that is full."""

import errno
import math
import os
import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count

from fedround.common.durable import Buffer, remove_incomplete


class Died(Exception):
    """The process ended here."""


class MemoryDisk:
    """A `fedround.common.durable.Disk`. It dies after so many `steps`; everything that changes it is one step, or several."""

    def __init__(self, files: dict[str, bytes] | None = None, *, steps: float = math.inf) -> None:
        self.files = dict(files or {})
        """As the process sees them."""
        self.flushed = dict(self.files)
        """What survives in any case."""
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
        """What may be there after the end: nothing but what was flushed, or all that was written."""
        return [self.flushed, self.files]

    def _step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise Died


def crashes(before: MemoryDisk, act: Callable[[MemoryDisk], object], *, more_than: int) -> Iterator[tuple[bool, MemoryDisk]]:
    """Let `act` die at its first step, at its second, and so on, until it does not, after `more_than` steps.

    Yields whether it died, and each disk that a restarted process may find, tidied up as it does.
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
    """One with `room` for so many bytes."""

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
    """To the process it is as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
