"""Who is let in: whoever bears the token that all share, or one of those in a file, which says who has which."""

import hmac
import logging
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from fedround.errors import ConfigurationError
from fedround.settings import PlatformSettings, is_loopback, reveal
from fedround.wire import parse_name

LOG = logging.getLogger(__name__)

_Stamp = tuple[int, int, int]


class Tokens:
    """Tokens by whom they belong to. Compared are digests under a key of this process: the time it takes tells nothing of a token.

    The file has a `NAME TOKEN` on each line; blank lines and those that begin with # do not count. When it changes it is read
    again; what cannot be read then is logged, and what was known goes on.

    Raises:
        ConfigurationError: the file cannot be read, or a line is not right. No message repeats a token.
    """

    def __init__(self, shared: str | None = None, file: Path | None = None) -> None:
        self._key = secrets.token_bytes(32)
        self._shared: Mapping[bytes, str] = {} if shared is None else {self._digest(shared): ""}
        self._file = file
        self._seen: _Stamp | None = None
        self._names = self._shared
        if file is not None:
            self._seen = _stamp(file)
            self._read(file)

    @property
    def needed(self) -> bool:
        """Whether anybody has to bear one."""
        return self._file is not None or bool(self._shared)

    def owner(self, given: str) -> str | None:
        """The name of the participant whose token that is; "" for the shared one, None for none of them."""
        if self._file is not None:
            self._look(self._file)
        return self._names.get(self._digest(given))

    def _digest(self, token: str) -> bytes:
        return hmac.digest(self._key, token.encode(), "sha256")

    def _look(self, file: Path) -> None:
        """Read the file again if it is another one now."""
        seen = _stamp(file)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._read(file)
        except ConfigurationError as error:
            LOG.error("%s; the former tokens hold", error)
        else:
            LOG.info("%s has changed: there are %d tokens", file, len(self._names))

    def _read(self, file: Path) -> None:
        names = dict(self._shared)
        try:
            text = file.read_bytes().decode(errors="replace")
        except OSError as error:
            raise ConfigurationError(f"the file of tokens {file} cannot be read: {error.strerror}") from error
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            match line.split():
                case [name, token] if parse_name(name) is not None and re.fullmatch("[!-~]+", token):
                    if names.setdefault(self._digest(token), name) != name:
                        raise ConfigurationError(f"{file}, line {number}: the token of {name} is somebody else's, too")
                case _:
                    raise ConfigurationError(f"{file}, line {number}: write a participant's name, a blank, and its token")
        self._names = names


def _stamp(file: Path) -> _Stamp | None:
    # Kubernetes replaces the file of a Secret by way of a link: another inode, perhaps of the same size and second.
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


OPEN = Tokens()
"""Everybody is let in."""


def guard(settings: PlatformSettings) -> Tokens:
    """The tokens that a service's settings name. Warns where other machines need none."""
    tokens = Tokens(reveal(settings.token), settings.tokens_file)
    if not (tokens.needed or is_loopback(settings.bind)):
        name = settings.prefix
        LOG.warning("whoever reaches the %s may take part: set %s_TOKEN or %s_TOKENS_FILE", name.lower(), name, name)
    return tokens
