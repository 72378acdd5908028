"""The spool: it receives the bodies of uploads, small ones in memory and large ones in unnamed files. It does not parse them."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from fedround.common.wire import MIN_RATE, MIN_RATE_WINDOW
from fedround.errors import ConfigurationError, SpoolFull, TooLarge, TooSlow

IN_MEMORY = 1 << 20
"""Maximum bytes of a body that stays in memory. Larger bodies are written to a file in batches of this size."""
BLOCK = 4096
"""Block size of a disk, in bytes."""


@dataclass(frozen=True, slots=True)
class Received:
    """A completely received body. Its owner must call `discard`."""

    source: bytearray | FileIO
    size: int

    def discard(self) -> None:
        """Release the memory or the file."""
        if isinstance(self.source, FileIO):
            _close(self.source)


class Spool:
    """The spool of an aggregator.

    Args:
        directory: Directory for files; None: the system's directory for temporary files.
        max_size: Maximum bytes of a body.
        min_rate: Minimum bytes per second of an upload, on average over each `window`.
        window: The length of a window, in seconds.
    """

    def __init__(
        self, directory: Path | None, *, max_size: int, min_rate: float = MIN_RATE, window: float = MIN_RATE_WINDOW
    ) -> None:
        self._directory = directory
        self._max_size = max_size
        self._min_rate = min_rate
        self._window = window

    def check(self) -> None:
        """Check that the directory is writable. Raises `ConfigurationError`."""
        try:
            check_writable(self._directory)
        except OSError as error:
            raise ConfigurationError(f"AGGREGATOR_SPOOL_DIR: cannot create a file there: {error}") from error

    async def receive(self, chunks: AsyncIterator[bytes], length: int | None = None, *, most: int | None = None) -> Received:
        """Receive a body. After an error, no file remains.

        Args:
            chunks: The body.
            length: The announced size in bytes; None: unknown.
            most: Maximum size in bytes, in addition to that of the spool.

        Raises:
            TooLarge, TooSlow, SpoolFull: The body was not received.
            Exception: Reading `chunks` failed.
        """
        self._check_body(length or 0, most)
        batch = await self._batch(chunks, 0, most)
        if len(batch) <= IN_MEMORY:
            return Received(batch, len(batch))
        file = await asyncio.to_thread(self.create)
        size = 0
        try:
            while batch:
                await asyncio.to_thread(write, file, memoryview(batch))
                size += len(batch)
                batch = await self._batch(chunks, size, most)
        except BaseException:
            _close(file)
            raise
        return Received(file, size)

    async def _batch(self, chunks: AsyncIterator[bytes], before: int, most: int | None) -> bytearray:
        """Read the next bytes: just more than `IN_MEMORY`, or all that remain. `before`: the number of bytes read before."""
        batch, milestone = bytearray(), 0.0
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(self._window) as limit:
                async for chunk in chunks:
                    batch += chunk
                    self._check_body(before + len(batch), most)
                    if len(batch) > IN_MEMORY:
                        break
                    if len(batch) >= milestone:
                        milestone = len(batch) + self._min_rate * self._window
                        limit.reschedule(clock() + self._window)
        except TimeoutError:
            raise TooSlow(f"less than {self._min_rate:g} bytes per second over {self._window:g} s") from None
        return batch

    def _check_body(self, size: int, most: int | None) -> None:
        self.check_size(size)
        if most is not None and size > most:
            raise TooLarge(f"more than {most} bytes, the largest update that this training's model allows")

    def check_size(self, size: int, of: str = "") -> None:
        """Check a size in bytes. `of` begins the message. Raises `TooLarge`."""
        if size > self._max_size:
            raise TooLarge(f"{of}more than {self._max_size} bytes (AGGREGATOR_MAX_MODEL_SIZE)")

    def create(self) -> FileIO:
        """Create an unnamed file. Raises `SpoolFull`."""
        with _full_when_failing():
            return _nameless(self._directory)


def check_writable(directory: Path | None) -> None:
    """Check that a file can be created and written, as a full disk still accepts empty files. Raises `OSError`."""
    with _nameless(directory) as file:
        file.write(bytes(BLOCK))


def _nameless(directory: Path | None) -> FileIO:
    return tempfile.TemporaryFile(buffering=0, prefix="fedround-", dir=directory)


def write(file: FileIO, data: memoryview) -> None:
    """Write all bytes of `data`. Raises `SpoolFull`."""
    with _full_when_failing():
        while data:
            data = data[file.write(data) :]


def _close(file: FileIO) -> None:
    # Not on the event loop, because freeing the pages of a large file takes a while.
    asyncio.get_running_loop().run_in_executor(None, file.close)


@contextmanager
def _full_when_failing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SpoolFull(f"cannot write the update to the spool directory: {error.strerror}") from error
