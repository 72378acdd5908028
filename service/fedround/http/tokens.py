"""Who is let in: a client with the token that all share, or with one of those in a file, which says whose each of them is."""

import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from fedround.common.settings import PlatformSettings, is_loopback, reveal
from fedround.common.wire import parse_name
from fedround.errors import ConfigurationError

LOG = logging.getLogger(__name__)

MAX_FILE = 16 << 20
"""Bytes of a file of tokens."""
SETTLED = 1.0
"""Seconds without a change after which a file counts as finished although its last line has no newline."""
TICK = 0.1
"""Seconds within which a second change of a file may leave its time stamps as they are."""


class Admitting(Protocol):
    """Knows tokens."""

    @property
    def needed(self) -> bool:
        """Whether clients need a token."""
        ...

    def owner(self, given: str) -> str | None:
        """The name of the token's owner, "" where it has none; None for a token that is not known."""
        ...


_LINE = re.compile(r"(\S+)[ \t]+([!-~]+)")

_Stamp = tuple[int, int, int, int]


class Tokens:
    """Tokens by whom they belong to. Compared are digests under a key of this process: the time it takes tells nothing of a token.

    The file has `NAME TOKEN` on each line; blank lines and lines that begin with # do not count. A name may have several tokens.
    The file is read again when it has changed, as a whole or not at all: see `_content`. What cannot be used then is logged once,
    the former tokens hold, and a failed read is repeated at the next request.

    Args:
        shared: The token of all.
        file: The file.
        never: A token that no participant may have: the operators'.

    Raises:
        ConfigurationError: The file cannot be read, or a line is wrong. No message repeats a token.
    """

    def __init__(self, shared: str | None = None, file: Path | None = None, *, never: str | None = None) -> None:
        self._key = secrets.token_bytes(32)
        self._shared: Mapping[bytes, str] = {} if shared is None else {self._digest(shared): ""}
        self._never = None if never is None else self._digest(never)
        self._file = file
        self._seen: _Stamp | None = None
        """Of what was read and settled; None: read the file again at the next request."""
        self._complaint = ""
        self._names: Mapping[bytes, str] = self._shared
        if file is not None:
            self._read(file)

    @property
    def needed(self) -> bool:
        """Whether clients need a token."""
        return self._file is not None or bool(self._shared)

    def owner(self, given: str) -> str | None:
        """The name of the participant whose token that is; "" for the shared one, None for none of them."""
        if self._file is not None:
            self._look(self._file)
        return self._names.get(self._digest(given))

    def _digest(self, token: str) -> bytes:
        return hmac.digest(self._key, token.encode(), "sha256")

    def _look(self, file: Path) -> None:
        """Read the file again if it has changed."""
        before = self._names
        try:
            if self._seen is None or _stamp(file.stat()) != self._seen:
                self._read(file)
        except (OSError, ConfigurationError) as error:
            complaint = str(error) if isinstance(error, ConfigurationError) else _unreadable(file, error)
            if complaint != self._complaint:
                LOG.error("%s; the former tokens hold", complaint)
            self._complaint = complaint
        else:
            self._complaint = ""
            if self._names != before:
                LOG.info("%s has changed: there are %d tokens", file, len(self._names))

    def _read(self, file: Path) -> None:
        """Replace what is known by what the file says. Raises `ConfigurationError`, and changes no name then."""
        try:
            found, content = _content(file)
        except OSError as error:
            raise ConfigurationError(_unreadable(file, error)) from error
        age = _age(found)
        # What a later change could hide behind the same stamp is read again; so is what may be half of a file.
        whole = content.endswith(b"\n") or age > SETTLED
        self._seen = _stamp(found) if whole and age > TICK else None
        names = self._parsed(file, content)
        if whole:
            self._names = names

    def _parsed(self, file: Path, content: bytes) -> Mapping[bytes, str]:
        names = dict(self._shared)
        # Notepad begins a file with a mark; other ends of lines than these two are characters that no token has.
        for number, line in enumerate(content.decode("utf-8-sig", errors="replace").split("\n"), 1):
            line = line.strip(" \t\r")
            if not line or line.startswith("#"):
                continue
            match = _LINE.fullmatch(line)
            if match is None or parse_name(match[1]) is None:
                raise ConfigurationError(f"{file}, line {number}: write a participant's name, a blank, and its token")
            name, digest = match[1], self._digest(match[2])
            if digest == self._never:
                raise ConfigurationError(f"{file}, line {number}: the token of {name} is the operators' token")
            if names.setdefault(digest, name) != name:
                raise ConfigurationError(f"{file}, line {number}: the token of {name} is somebody else's, too")
        return names


def _content(file: Path) -> tuple[os.stat_result, bytes]:
    """The state and the content of a file that did not change in between. Raises `OSError` or `ConfigurationError`."""
    # A pipe in its place shall block nobody.
    with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as opened:
        before = os.fstat(opened.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise ConfigurationError(f"the file of tokens {file} is not a regular file")
        content = opened.read(MAX_FILE + 1)
        if len(content) > MAX_FILE:
            raise ConfigurationError(f"the file of tokens {file} has more than {MAX_FILE} bytes")
        if _stamp(before) != _stamp(os.fstat(opened.fileno())) or len(content) != before.st_size:
            raise ConfigurationError(f"the file of tokens {file} is being written")
    return before, content


def _stamp(found: os.stat_result) -> _Stamp:
    # Kubernetes replaces the file of a Secret by way of a link: another inode, perhaps of the same size and second.
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _age(found: os.stat_result) -> float:
    """Seconds since the last change. A clock that was set back, or that of a file server, must not make it new for ever."""
    return abs(time.time() - found.st_ctime)


def _unreadable(file: Path, error: OSError) -> str:
    return f"the file of tokens {file} cannot be read: {error.strerror}"


OPEN = Tokens()
"""Everybody is let in."""


def guard(settings: PlatformSettings) -> Tokens:
    """The tokens that a service's settings name. Warns where other machines need none."""
    tokens = Tokens(reveal(settings.token), settings.tokens_file, never=reveal(settings.ops_token))
    if not (tokens.needed or is_loopback(settings.bind)):
        name = settings.prefix
        LOG.warning("whoever reaches the %s may take part: set %s_TOKEN or %s_TOKENS_FILE", name.lower(), name, name)
    return tokens
