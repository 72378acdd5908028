"""The internal secret: what the coordinator sends to the aggregator's internal port, and where it comes from.

It is set, or it is in a file. The first service that finds no such file makes it, in one step: two services that start at the same
time read the same secret. By default the file is in a directory that only this user can read. Both services look at the file again
with each request, so either of them may be restarted, and the file replaced, in any order.
"""

import hmac
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from fedround.common.settings import AggregatorSettings, CoordinatorSettings, is_loopback, reveal
from fedround.errors import ConfigurationError

LOG = logging.getLogger(__name__)

NAME = "internal-secret"
SHORTEST = 16
"""Characters that a secret in a file has at least."""
LONGEST = 1024
VARIABLE = "FEDROUND_INTERNAL_SECRET"

Secret = Callable[[], str | None]
"""Gives the secret as it is now; None where none is sent."""


class SecretFile:
    """A secret in a file, made if there is none.

    Args:
        path: The file.
        private: Whether the file, and its directory, must belong to this user and be closed to all others, and be no link. Else it
            may be root's, as a secret that Docker or Kubernetes mounts.

    Raises:
        ConfigurationError: The file cannot be made or read, others could write it, or what is in it is no secret.
    """

    def __init__(self, path: Path, *, private: bool) -> None:
        self._path = path
        self._private = private
        if private:
            _make_private(path.parent)
        with suppress(FileExistsError):
            _make(path)
        self._stamp, self._value = self._read()

    def __call__(self) -> str:
        """The secret. A file that cannot be used any more is logged once, and the former secret holds."""
        try:
            found = self._path.stat(follow_symlinks=not self._private)
            if _stamp(found) != self._stamp:
                self._stamp = _stamp(found)
                self._stamp, self._value = self._read()
        except FileNotFoundError:
            pass  # something tidied up: the next service that starts makes another one
        except (OSError, ConfigurationError) as error:
            LOG.warning("%s; the former secret holds", error)
        return self._value

    def _read(self) -> tuple[tuple[int, ...], str]:
        follow = 0 if not self._private else os.O_NOFOLLOW
        try:
            with open(self._path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK | follow)) as file:
                found = os.fstat(file.fileno())
                content = file.read(LONGEST + 1)
        except OSError as error:
            raise self._error(f"it cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode):
            raise self._error("it is not a regular file")
        if found.st_uid != os.getuid() and (self._private or found.st_uid != 0):
            raise self._error("it belongs to another user")
        if found.st_mode & (0o077 if self._private else 0o022):
            raise self._error("other users have access to it: chmod 600")
        text = content.strip().decode(errors="replace")
        if not SHORTEST <= len(text) <= LONGEST or not all("!" <= character <= "~" for character in text):
            raise self._error(f"it has to hold {SHORTEST} or more visible ASCII characters, and nothing else")
        return _stamp(found), text

    def _error(self, why: str) -> ConfigurationError:
        return ConfigurationError(f"the internal secret in {self._path}: {why}; or set {VARIABLE}, the same for both services")


class SecretHolder:
    """Lets in a client that has the secret: `Tokens` for the internal port."""

    needed = True

    def __init__(self, secret: Secret) -> None:
        self._secret = secret

    def owner(self, given: str) -> str | None:
        """Return "" for the secret, else None."""
        return "" if hmac.compare_digest(given.encode(), (self._secret() or "").encode()) else None


def of_aggregator(settings: AggregatorSettings) -> Secret:
    """The secret that the internal port requires. Raises `ConfigurationError`."""
    return _set(settings) or SecretFile(_default(), private=True)


def of_coordinator(settings: CoordinatorSettings) -> Secret:
    """The secret that the coordinator sends. One that only this machine knows is sent to no other. Raises `ConfigurationError`."""
    if (found := _set(settings)) is not None:
        return found
    if not is_loopback(urlsplit(settings.aggregator_internal_url).hostname or ""):
        return lambda: None
    return SecretFile(_default(), private=True)


def _set(settings: AggregatorSettings | CoordinatorSettings) -> Secret | None:
    if (value := reveal(settings.internal_secret)) is not None:
        return lambda: value
    return SecretFile(settings.internal_secret_file, private=False) if settings.internal_secret_file else None


def _default() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    try:
        place = Path(runtime, "fedround") if runtime else Path(tempfile.gettempdir(), f"fedround-{os.getuid()}")
    except OSError as error:
        raise ConfigurationError(
            f"there is no directory for the internal secret: set {VARIABLE}, the same for both services"
        ) from error
    return place / NAME


def _make_private(directory: Path) -> None:
    """Make the directory if there is none. Raises `ConfigurationError` unless it is this user's alone."""
    try:
        with suppress(FileExistsError):
            directory.mkdir(0o700)
        found = directory.lstat()
    except OSError as error:
        raise ConfigurationError(
            f"{directory}, for the internal secret, cannot be made: {error.strerror}; set {VARIABLE}"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigurationError(
            f"{directory}, for the internal secret, is not a directory of this user alone: remove it, or set {VARIABLE}"
        )


def _make(path: Path) -> None:
    """Make the file with a new secret, whole from its first moment on. Raises `FileExistsError` or `ConfigurationError`."""
    if os.path.lexists(path):
        raise FileExistsError
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        try:
            with open(draft, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(secrets.token_urlsafe(32) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)  # fails where there is one by now
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError:
        raise
    except OSError as error:
        raise ConfigurationError(f"the internal secret cannot be kept in {path}: {error.strerror}; set {VARIABLE}") from error
    LOG.info("made the internal secret in %s", path)


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
