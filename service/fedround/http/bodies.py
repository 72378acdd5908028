"""Bodies of requests and responses: updates that are sent in slices, and transfers that another thread can abort."""

from collections.abc import Iterable, Iterator, Sequence
from threading import Event
from typing import Protocol

from fedround.errors import Aborted
from fedround.http import deadlines

SLICE = 256 << 10
"""Bytes of an update to copy at a time."""


class Sink(Protocol):
    """A destination for the bytes of a model, in order. It is closed if the transfer fails."""

    def write(self, chunk: bytes, /) -> object: ...

    def close(self) -> None: ...


class Piece(Protocol):
    """Bytes of an update in a file: a slice reads them."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


def abortable(aborted: Event, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the chunks, and count their bytes for the deadline. Raises `Aborted` as soon as `aborted` is set."""
    for chunk in chunks:
        if aborted.is_set():
            raise Aborted("the transfer was aborted: it is no longer needed")
        yield chunk
        deadlines.moved(len(chunk))


class Slices:
    """The body of a request, made of several buffers. It counts the bytes sent."""

    def __init__(self, buffers: Sequence[bytes | memoryview | Piece], aborted: Event) -> None:
        self._pieces = [piece for piece in map(_piece, buffers) if len(piece)]
        self._aborted = aborted
        self.size = sum(map(len, self._pieces))
        self.sent = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in abortable(self._aborted, self._copies()):
            yield chunk
            self.sent += len(chunk)
        deadlines.next_step()

    def close(self) -> None:
        """Release the buffers: httpx's requests and responses form a cycle that lives until garbage collection."""
        for piece in self._pieces:
            if isinstance(piece, memoryview):
                piece.release()
        self._pieces = []

    def _copies(self) -> Iterator[bytes]:
        for piece in self._pieces:
            for start in range(0, len(piece), SLICE):
                yield bytes(piece[start : start + SLICE])


def _piece(buffer: bytes | memoryview | Piece) -> memoryview | Piece:
    return memoryview(buffer).cast("B") if isinstance(buffer, bytes | memoryview) else buffer
