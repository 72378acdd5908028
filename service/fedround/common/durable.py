"""What must survive `kill -9`: files that are replaced as a whole, or not at all, in a directory that one process holds.

A file is written beside its place, flushed to the disk, renamed, and the directory is flushed: whoever comes back finds the old one
or the new one. A document has its version and checksum in its first line, so that damage is seen, and never mistaken for nothing.
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
LOCK = "lock"
PART = ".part"
"""The ending of what was being written: of no use to who comes back."""
LARGEST = 10**15
"""The largest whole number in a document: rounds, sizes, counts."""
PATIENCE = 30.0
"""Seconds for which one waits until another process lets go of the directory."""

Buffer = bytes | memoryview


class Disk(Protocol):
    """A directory. What it raises is an `OSError`."""

    def read(self, name: str) -> memoryview:
        """All of a file, writable; raises `FileNotFoundError`."""
        ...

    def write(self, name: str, parts: Iterable[Buffer]) -> None:
        """Make a file, and flush it to the disk."""
        ...

    def rename(self, old: str, new: str) -> None: ...

    def flush(self) -> None:
        """Flush the directory itself: what was made, renamed and removed."""
        ...

    def remove(self, name: str) -> None: ...

    def names(self) -> list[str]: ...


class Directory:
    """A `Disk` that is one. New files have `mode`, by default for this user alone: they hold models, and ids that let act."""

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
    """Write a file, all of it or nothing. When this returns it survives anything; raises `OSError`."""
    try:
        disk.write(name + PART, parts)
        disk.rename(name + PART, name)
    except OSError:
        with suppress(OSError):
            disk.remove(name + PART)  # on a full disk it would be in the way
        raise
    disk.flush()


def save(disk: Disk, name: str, document: Any) -> None:
    """Write a JSON document. Raises `OSError`."""
    body = json.dumps(document, separators=(",", ":")).encode()
    replace(disk, name, [f"fedround {VERSION} {zlib.crc32(body):08x}\n".encode(), body])


def load(disk: Disk, name: str) -> Any:
    """The document that was saved; None if there was none. Raises `DataDamaged`."""
    try:
        head, _, body = bytes(disk.read(name)).partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataDamaged(name, f"it cannot be read: {error.strerror}") from error
    match head.split():
        case [b"fedround", version, checksum] if version == str(VERSION).encode():
            if f"{zlib.crc32(body):08x}".encode() != checksum:
                raise DataDamaged(name, "its checksum is wrong")
            try:
                return json.loads(body)
            except (ValueError, RecursionError) as error:
                raise DataDamaged(name, f"it is no JSON document: {error}") from error
        case [b"fedround", version, _]:
            raise DataDamaged(
                name, f"it is of version {version.decode(errors='replace')}, and this is fedround for version {VERSION}"
            )
    raise DataDamaged(name, "it is none of ours")


def check_own(disk: Disk, name: str, files: "re.Pattern[str]" = re.compile("$^")) -> None:
    """Where the document `name` is missing: is this a new directory, or one that lacks it? Raises `DataDamaged`.

    `files` are those that the document would list.
    """
    names = disk.names()
    if any(files.fullmatch(other) for other in names):
        raise DataDamaged(name, "it is missing, but the files that it lists are there")
    if others := sorted({"models.json", "rounds.json"}.intersection(names) - {name}):
        raise DataDamaged(name, f"it is missing, and {others[0]} of another service is there; each service needs its own directory")


def tidy(disk: Disk) -> None:
    """Remove what was left half written."""
    for name in disk.names():
        if name.endswith(PART):
            disk.remove(name)


@contextmanager
def held(path: Path | None, setting: str, *, within: float = PATIENCE) -> Iterator[Directory | None]:
    """Hold the directory for this process, and make it if there is none. None where nobody wants one.

    Raises:
        DataDirectoryHeld: Another process has held it for longer than `within` seconds.
        ConfigurationError: It cannot be made, not be written, or not be held.
    """
    if path is None:
        LOG.info("%s is not set: nothing is kept over a restart", setting)
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
                if not _locked(lock, within):
                    raise DataDirectoryHeld(f"{taken}; one directory belongs to one service") from None
            tidy(directory)
        except OSError as error:
            raise ConfigurationError(f"{setting}={path} cannot be used: {error.strerror}") from error
        yield directory


def _locked(file: BinaryIO, within: float) -> bool:
    """Whether the file was locked in time."""
    got = threading.Event()

    def wait() -> None:
        with suppress(ValueError, OSError):  # given up meanwhile: the file is closed
            fcntl.flock(file, fcntl.LOCK_EX)
            got.set()

    # There is no flock with a time-out: a thread waits, and is left behind where that takes too long.
    threading.Thread(target=wait, name="fedround-lock", daemon=True).start()
    return got.wait(within)
