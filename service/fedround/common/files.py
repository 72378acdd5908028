"""Files that operators may replace while a service runs, such as secrets and certificates."""

import os
from pathlib import Path
from typing import BinaryIO

Stamp = tuple[int, ...]
"""A value that differs after a change of the file."""


def opened(path: Path, flags: int = 0) -> BinaryIO:
    """Open a file for reading. If it is a pipe, this does not block."""
    return open(path, "rb", opener=lambda name, mode: os.open(name, mode | os.O_NONBLOCK | flags))


def stamp(found: os.stat_result) -> Stamp:
    """Return the stamp of a file."""
    # Kubernetes replaces a Secret's file through a symbolic link: the inode changes, size and time perhaps not.
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
