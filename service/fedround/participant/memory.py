"""Memory that supervisor and worker share: an unnamed file for each model and each update.

The supervisor writes and reads it as a file, and never maps it: a worker that is killed, or that shrinks the file, cannot crash it.
The worker maps a model. After training in place, the update is sent from the same memory.
"""

import fcntl
import mmap
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

STDERR = 2
_POPULATE = getattr(mmap, "MAP_POPULATE", 0)
_SEALS = hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")


class BadMemory(Exception):
    """A descriptor that is not shared memory, or a piece that exceeds its memory."""


class Memory:
    """Shared memory. Its descriptor `fd` is closed with the last reference to this object."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def create(cls) -> Self:
        """Create an empty memory, which grows as it is written."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("fedround", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    @property
    def size(self) -> int:
        """Size in bytes."""
        return os.fstat(self.fd).st_size

    def write(self, chunk: bytes | memoryview) -> None:
        """Append `chunk`."""
        left = memoryview(chunk).cast("B")
        while left:
            left = left[os.write(self.fd, left) :]

    def seal(self) -> None:
        """Prevent all processes from shrinking it, if the system supports that."""
        if _SEALS:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)

    def map(self) -> mmap.mmap:
        """Map its bytes, writable. All pages are mapped immediately: a fault for each takes longer than a copy."""
        return mmap.mmap(self.fd, self.size, flags=mmap.MAP_SHARED | _POPULATE)

    def piece(self, offset: int, length: int) -> "Piece":
        """Return some of its bytes. Raises `BadMemory` if it does not have them, or may lose them."""
        try:
            sealed = not _SEALS or fcntl.fcntl(self.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        except OSError:
            sealed = False
        if not sealed or not 0 <= offset <= offset + length <= self.size:
            raise BadMemory(f"{length} bytes at {offset} are not in the shared memory")
        return Piece(self, offset, length)

    def close(self) -> None:
        """Close the descriptor."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        with suppress(OSError):  # other code has closed all descriptors
            self.close()


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` bytes of a memory from `offset` on. A slice reads them. The memory stays open meanwhile."""

    memory: Memory
    offset: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> bytes:
        """Read bytes. Raises `OSError` if the memory has shrunk."""
        start, stop, _ = part.indices(self.length)
        data = os.pread(self.memory.fd, stop - start, self.offset + start)
        if len(data) < stop - start:
            raise OSError("the shared memory is shorter than it was")
        return data


def memories_of(fds: Iterable[int]) -> list[Memory]:
    """Return memories for received descriptors. None of them becomes stdin, stdout or stderr, which may be closed."""
    found = []
    for fd in fds:
        if fd <= STDERR:
            low, fd = fd, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
            os.close(low)
        found.append(Memory(fd))
    return found
