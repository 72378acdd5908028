"""Files that survive `kill -9`: replaced atomically, in a directory that one process locks.

`replace` writes a file under another name, flushes it to the disk, renames it, and flushes the directory. So a restarted process
finds the old file or the new one. The first line of a document has a version and a checksum: a damaged document is an error, and
never an empty state.
"""

import fcntl
import json
import logging
import os
import re
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from fedround.errors import ConfigurationError, DataDamaged, DataDirectoryHeld

LOG = logging.getLogger(__name__)

VERSION = 1
"""Version of the format of documents."""
LOCK = "lock"
PART = ".part"
"""Suffix of incomplete files, which a restarted process removes."""
LARGEST = 10**15
"""Maximum of whole numbers in a document: rounds, sizes, counts."""
PATIENCE = 30.0
"""Maximum seconds to wait until another process unlocks the directory."""

Buffer = bytes | memoryview


class Disk(Protocol):
    """A directory. Its methods raise `OSError`."""

    def read(self, name: str) -> memoryview:
        """Return the content of a file, as a writable view. Raises `FileNotFoundError`."""
        ...

    def write(self, name: str, parts: Iterable[Buffer]) -> None:
        """Create a file and flush it to the disk."""
        ...

    def rename(self, old: str, new: str) -> None: ...

    def flush(self) -> None:
        """Flush the directory itself, with the names of its files."""
        ...

    def remove(self, name: str) -> None: ...

    def names(self) -> list[str]: ...


class Directory:
    """A `Disk` on a file system. New files have `mode`, by default private: they contain models, and ids that authorize."""

    def __init__(self, path: Path, *, mode: int = 0o600) -> None:
        self.path = path
        self._mode = mode

    def read(self, name: str) -> memoryview:
        with (self.path / name).open("rb", buffering=0) as file:
            buffer = memoryview(bytearray(os.fstat(file.fileno()).st_size))
            left = buffer
            while left and (got := file.readinto(left)):
                left = left[got:]
        return buffer

    def write(self, name: str, parts: Iterable[Buffer]) -> None:
        with open(self.path / name, "wb", buffering=0, opener=partial(os.open, mode=self._mode)) as file:
            for part in parts:
                left = memoryview(part)
                while left:
                    left = left[file.write(left) :]
            os.fsync(file.fileno())

    def rename(self, old: str, new: str) -> None:
        (self.path / old).replace(self.path / new)

    def flush(self) -> None:
        directory = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def remove(self, name: str) -> None:
        (self.path / name).unlink()

    def names(self) -> list[str]:
        return [path.name for path in self.path.iterdir()]


def replace(disk: Disk, name: str, parts: Iterable[Buffer]) -> None:
    """Replace a file atomically. After this returns, the content survives a crash. Raises `OSError`."""
    try:
        disk.write(name + PART, parts)
        disk.rename(name + PART, name)
    except OSError:
        with suppress(OSError):
            disk.remove(name + PART)  # free its space, as the disk may be full
        raise
    disk.flush()


def checksum(parts: Iterable[Buffer]) -> str:
    """Return the CRC-32 of a content as 8 hexadecimal digits."""
    found = 0
    for part in parts:
        found = zlib.crc32(part, found)
    return f"{found:08x}"


def save(disk: Disk, name: str, document: Any) -> None:
    """Write a JSON document atomically. Raises `OSError`."""
    body = json.dumps(document, separators=(",", ":")).encode()
    replace(disk, name, [f"fedround {VERSION} {checksum([body])}\n".encode(), body])


def load(disk: Disk, name: str) -> Any:
    """Return the saved document, or None if there is none. Raises `DataDamaged`."""
    try:
        head, _, body = bytes(disk.read(name)).partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataDamaged(name, f"it cannot be read: {error.strerror}") from error
    match head.split():
        case [b"fedround", version, expected] if version == str(VERSION).encode():
            if checksum([body]).encode() != expected:
                raise DataDamaged(name, "its checksum is wrong")
            try:
                return json.loads(body)
            except (ValueError, RecursionError) as error:
                raise DataDamaged(name, f"it is not JSON: {error}") from error
        case [b"fedround", version, _]:
            found = version.decode(errors="replace")
            raise DataDamaged(name, f"it has format version {found}, but this fedround reads version {VERSION}")
    raise DataDamaged(name, "it is not a file of fedround")


def check_new(disk: Disk, name: str, files: "re.Pattern[str]" = re.compile("$^")) -> None:
    """Check that a directory without the document `name` is new, rather than damaged or of another service.

    Args:
        disk: The directory.
        name: The document that is missing.
        files: A pattern for the files that the document would list.

    Raises:
        DataDamaged: Such a file exists, or a document of another service.
    """
    names = disk.names()
    if any(files.fullmatch(other) for other in names):
        raise DataDamaged(name, "it is missing, but the files that it lists exist")
    if others := sorted({"models.json", "rounds.json"}.intersection(names) - {name}):
        raise DataDamaged(name, f"it is missing, and {others[0]} of another service exists; each service needs its own directory")


def remove_incomplete(disk: Disk) -> None:
    """Remove incomplete files."""
    for name in disk.names():
        if name.endswith(PART):
            disk.remove(name)


@contextmanager
def locked(path: Path | None, setting: str, *, within: float = PATIENCE) -> Iterator[Directory | None]:
    """Lock a directory for this process within the block. Create it if it is missing.

    Args:
        path: The directory; None: state does not persist, and the block gets None.
        setting: The variable that names the directory, for messages.
        within: Maximum seconds to wait for another process.

    Raises:
        DataDirectoryHeld: Another process still locks the directory.
        ConfigurationError: The directory cannot be created, written or locked.
    """
    if path is None:
        LOG.info("%s is not set: no state persists across restarts", setting)
        yield None
        return
    directory = Directory(path)
    with ExitStack() as stack:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = stack.enter_context(open(path / LOCK, "ab", opener=partial(os.open, mode=0o600)))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                taken = f"{setting}={path} is held by another process"
                LOG.info("waiting: %s", taken)
                if not _lock(lock, within):
                    raise DataDirectoryHeld(f"{taken}; one directory belongs to one service") from None
            remove_incomplete(directory)
        except OSError as error:
            raise ConfigurationError(f"{setting}={path} cannot be used: {error.strerror}") from error
        yield directory


def _lock(file: BinaryIO, within: float) -> bool:
    """Lock a file. Return whether that succeeded in time."""
    locked = threading.Event()

    def wait() -> None:
        with suppress(ValueError, OSError):  # the caller timed out and closed the file
            fcntl.flock(file, fcntl.LOCK_EX)
            locked.set()

    # `flock` has no time-out, so a daemon thread waits.
    threading.Thread(target=wait, name="fedround-lock", daemon=True).start()
    return locked.wait(within)
