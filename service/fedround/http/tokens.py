"""Bearer tokens: one that all participants share, or individual ones from a file with their owners' names."""

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

from fedround.common import files
from fedround.common.settings import PlatformSettings, reveal
from fedround.common.wire import NAME_RULE, parse_name
from fedround.errors import ConfigurationError
from fedround.http.hosts import is_loopback

LOG = logging.getLogger(__name__)

MAX_FILE = 16 << 20
"""Maximum size of a tokens file in bytes."""
SETTLED = 1.0
"""Seconds since the last change after which a file counts as complete, even if its last line has no newline."""
TICK = 0.1
"""Seconds within which a second change of a file may leave its time stamps as they are."""


class TokenCheck(Protocol):
    """An object that checks bearer tokens."""

    @property
    def required(self) -> bool:
        """Whether clients need a token."""
        ...

    def owner(self, given: str) -> str | None:
        """Return the name of the token's owner, "" if it has none, or None for an unknown token."""
        ...


_LINE = re.compile(r"(\S+)[ \t]+([!-~]+)")


class Tokens:
    """Bearer tokens and their owners. It compares keyed digests, so that its timing reveals nothing about a token.

    The file has `NAME TOKEN` on each line. Blank lines and lines that begin with # are ignored. A name may have several tokens.
    The file is reloaded when it changes, completely or not at all. If it is invalid then, the error is logged once, the previous
    tokens stay active, and the next request reads it again.

    Args:
        shared: Token that all participants share.
        file: The tokens file.
        never: The operators' token, which no participant may have.

    Raises:
        ConfigurationError: The file cannot be read, or a line is invalid. No message contains a token.
    """

    def __init__(self, shared: str | None = None, file: Path | None = None, *, never: str | None = None) -> None:
        self._key = secrets.token_bytes(32)
        self._shared: Mapping[bytes, str] = {} if shared is None else {self._digest(shared): ""}
        self._never = None if never is None else self._digest(never)
        self._file = file
        self._seen: files.Stamp | None = None
        """Stamp of the complete file that was read. None: read the file again at the next request."""
        self._logged_error = ""
        self._names: Mapping[bytes, str] = self._shared
        if file is not None:
            self._read(file)

    @property
    def required(self) -> bool:
        """Whether clients need a token."""
        return self._file is not None or bool(self._shared)

    def owner(self, given: str) -> str | None:
        """Return the name of the token's owner, "" for the shared token, or None for an unknown token."""
        if self._file is not None:
            self._reload(self._file)
        return self._names.get(self._digest(given))

    def _digest(self, token: str) -> bytes:
        return hmac.digest(self._key, token.encode(), "sha256")

    def _reload(self, file: Path) -> None:
        """Read the file again if it has changed."""
        before = self._names
        try:
            if self._seen is None or files.stamp(file.stat()) != self._seen:
                self._read(file)
        except (OSError, ConfigurationError) as error:
            text = str(error) if isinstance(error, ConfigurationError) else _unreadable(file, error)
            if text != self._logged_error:
                LOG.error("%s; the previous tokens stay active", text)
            self._logged_error = text
        else:
            self._logged_error = ""
            if self._names != before:
                LOG.info("reloaded %s: %d tokens", file, len(self._names))

    def _read(self, file: Path) -> None:
        """Replace the tokens by those of the file. Raises `ConfigurationError`, and then changes nothing."""
        try:
            found, content = _content(file)
        except OSError as error:
            raise ConfigurationError(_unreadable(file, error)) from error
        age = _age(found)
        # Read the file again if a later change could leave the stamp as it is, or if the file may be incomplete.
        whole = content.endswith(b"\n") or age > SETTLED
        self._seen = files.stamp(found) if whole and age > TICK else None
        names = self._parsed(file, content)
        if whole:
            self._names = names

    def _parsed(self, file: Path, content: bytes) -> Mapping[bytes, str]:
        names = dict(self._shared)
        # Notepad begins a file with a byte order mark.
        for number, line in enumerate(content.decode("utf-8-sig", errors="replace").split("\n"), 1):
            line = line.strip(" \t\r")
            if not line or line.startswith("#"):
                continue
            match = _LINE.fullmatch(line)
            if match is None:
                raise ConfigurationError(f"{file}, line {number}: write a participant's name, a space, and its token")
            if parse_name(match[1]) is None:
                raise ConfigurationError(f"{file}, line {number}: {NAME_RULE}")
            name, digest = match[1], self._digest(match[2])
            if digest == self._never:
                raise ConfigurationError(f"{file}, line {number}: the token of {name} is the operators' token")
            if names.setdefault(digest, name) != name:
                raise ConfigurationError(f"{file}, line {number}: the token of {name} also belongs to another participant")
        return names


def _content(file: Path) -> tuple[os.stat_result, bytes]:
    """Return the state and the content of a file that did not change meanwhile. Raises `OSError` or `ConfigurationError`."""
    with files.opened(file) as opened:
        before = os.fstat(opened.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise ConfigurationError(f"the tokens file {file} is not a regular file")
        content = opened.read(MAX_FILE + 1)
        if len(content) > MAX_FILE:
            raise ConfigurationError(f"the tokens file {file} has more than {MAX_FILE} bytes")
        if files.stamp(before) != files.stamp(os.fstat(opened.fileno())) or len(content) != before.st_size:
            raise ConfigurationError(f"the tokens file {file} is being written")
    return before, content


def _age(found: os.stat_result) -> float:
    """Return the seconds since the last change. With a wrong clock, a file must not count as new forever."""
    return abs(time.time() - found.st_ctime)


def _unreadable(file: Path, error: OSError) -> str:
    return f"the tokens file {file} cannot be read: {error.strerror}"


NO_TOKENS = Tokens()
"""The tokens of a port where no client needs one."""


def tokens_of(settings: PlatformSettings) -> Tokens:
    """Return the tokens of a service's settings. Warn if clients on other machines need none."""
    tokens = Tokens(reveal(settings.token), settings.tokens_file, never=reveal(settings.ops_token))
    if not (tokens.required or is_loopback(settings.bind)):
        name = settings.prefix
        LOG.warning("any client that reaches the %s may take part: set %s_TOKEN or %s_TOKENS_FILE", name.lower(), name, name)
    return tokens
