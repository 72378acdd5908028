"""Receives the body of an upload: a small one in memory, a large one in a file without a name. It looks at nothing in it."""

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
"""Bytes up to which a body stays in memory, and beyond which they are written out together."""
BLOCK = 4096
"""Bytes of which a disk has at least one free if it has any."""


@dataclass(frozen=True, slots=True)
class Received:
    """A body that has arrived whole. Whoever was given it calls `discard`."""

    source: bytearray | FileIO
    size: int

    def discard(self) -> None:
        if isinstance(self.source, FileIO):
            _close(self.source)


class Spool:
    """Where bodies wait until they are whole.

    `max_size` is in bytes. An upload has to bring `window` seconds' worth of `min_rate` bytes per second within every `window`.
    """

    def __init__(
        self, directory: Path | None, *, max_size: int, min_rate: float = MIN_RATE, window: float = MIN_RATE_WINDOW
    ) -> None:
        self._directory = directory
        self._max_size = max_size
        self._min_rate = min_rate
        self._window = window

    def check(self) -> None:
        """Raises `ConfigurationError` where no file can be made."""
        try:
            check_writable(self._directory)
        except OSError as error:
            raise ConfigurationError(f"AGGREGATOR_SPOOL_DIR: no file can be made there: {error}") from error

    async def receive(self, chunks: AsyncIterator[bytes], length: int | None = None, *, most: int | None = None) -> Received:
        """Read `chunks` to their end. `length` is what the peer announced, `most` the largest body that can be of use, in bytes.

        Raises `TooLarge`, `TooSlow`, `SpoolFull`, and what reading `chunks` raises; nothing is left behind then.
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
        """The next bytes, just more than `IN_MEMORY`, or all that are left; `before` them so many have come."""
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
            raise TooLarge(f"more than the {most} bytes that an update of this training's model can have")

    def check_size(self, size: int, of: str = "") -> None:
        """Raises `TooLarge`."""
        if size > self._max_size:
            raise TooLarge(f"{of}more than {self._max_size} bytes (AGGREGATOR_MAX_MODEL_SIZE)")

    def create(self) -> FileIO:
        """A file without a name. Raises `SpoolFull`."""
        with _full_when_failing():
            return _nameless(self._directory)


def check_writable(directory: Path | None) -> None:
    """Raises `OSError` where no file can be made, or nothing be written into it: a full disk still takes empty ones."""
    with _nameless(directory) as file:
        file.write(bytes(BLOCK))


def _nameless(directory: Path | None) -> FileIO:
    return tempfile.TemporaryFile(buffering=0, prefix="fedround-", dir=directory)


def write(file: FileIO, data: memoryview) -> None:
    """All of `data`, which are bytes. Raises `SpoolFull`."""
    with _full_when_failing():
        while data:
            data = data[file.write(data) :]


def _close(file: FileIO) -> None:
    # To free the pages of a large file takes a while, and nobody waits for it.
    asyncio.get_running_loop().run_in_executor(None, file.close)


@contextmanager
def _full_when_failing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SpoolFull(f"the update cannot be kept until it is whole: {error.strerror}") from error
