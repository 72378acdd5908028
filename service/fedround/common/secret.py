"""The internal secret, which the coordinator sends to the aggregator's internal port.

The secret comes from a setting or a file. A service that finds no file creates it atomically, so two services that start at the
same time read the same secret. By default the file is in a directory that only this user can read. Both services check the file
for changes at each request, so operators can restart them and replace the file in any order.
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

from fedround.common import files
from fedround.common.settings import AggregatorSettings, CoordinatorSettings, reveal
from fedround.errors import ConfigurationError
from fedround.http.hosts import is_loopback

LOG = logging.getLogger(__name__)

NAME = "internal-secret"
SHORTEST = 16
LONGEST = 1024
"""Minimum and maximum number of characters of a secret in a file."""
VARIABLE = "FEDROUND_INTERNAL_SECRET"

Secret = Callable[[], str | None]
"""Returns the current secret; None: the coordinator sends none."""


class SecretFile:
    """A secret in a file. If the file is missing, this creates it with a new secret.

    Args:
        path: The file.
        private: Whether the file and its directory must belong to this user, deny access to others, and not be links. If not, the
            file may also belong to root, like a secret that Docker or Kubernetes mounts.

    Raises:
        ConfigurationError: The file cannot be created or read, other users can write it, or its content is not a valid secret.
    """

    def __init__(self, path: Path, *, private: bool) -> None:
        self._path = path
        self._private = private
        if private:
            _create_directory(path.parent)
        with suppress(FileExistsError):
            _create(path)
        self._stamp, self._value = self._read()

    def __call__(self) -> str:
        """Return the secret. If the file has changed and is invalid, log that once, and return the previous secret."""
        try:
            found = self._path.stat(follow_symlinks=not self._private)
            if files.stamp(found) != self._stamp:
                self._stamp = files.stamp(found)
                self._stamp, self._value = self._read()
        except FileNotFoundError:
            pass  # an operator deleted it: the next service that starts creates another one
        except (OSError, ConfigurationError) as error:
            LOG.warning("%s; the previous secret stays active", error)
        return self._value

    def _read(self) -> tuple[files.Stamp, str]:
        try:
            with files.opened(self._path, os.O_NOFOLLOW if self._private else 0) as file:
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
            raise self._error(f"it must contain {SHORTEST} or more visible ASCII characters, and nothing else")
        return files.stamp(found), text

    def _error(self, why: str) -> ConfigurationError:
        return ConfigurationError(f"the internal secret in {self._path}: {why}; or set {VARIABLE}, the same for both services")


class SecretHolder:
    """The internal port's check of the secret, with the interface of `http.tokens.Tokens`."""

    required = True

    def __init__(self, secret: Secret) -> None:
        self._secret = secret

    def owner(self, given: str) -> str | None:
        """Return "" if `given` is the secret, else None."""
        return "" if hmac.compare_digest(given.encode(), (self._secret() or "").encode()) else None


def of_aggregator(settings: AggregatorSettings) -> Secret:
    """Return the secret that the internal port requires. Raises `ConfigurationError`."""
    return _configured(settings) or SecretFile(_default_path(), private=True)


def of_coordinator(settings: CoordinatorSettings) -> Secret:
    """Return the secret that the coordinator sends. The default one never leaves this machine. Raises `ConfigurationError`."""
    if (found := _configured(settings)) is not None:
        return found
    if not is_loopback(urlsplit(settings.aggregator_internal_url).hostname or ""):
        return lambda: None
    return SecretFile(_default_path(), private=True)


def _configured(settings: AggregatorSettings | CoordinatorSettings) -> Secret | None:
    if (value := reveal(settings.internal_secret)) is not None:
        return lambda: value
    return SecretFile(settings.internal_secret_file, private=False) if settings.internal_secret_file else None


def _default_path() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    try:
        directory = Path(runtime, "fedround") if runtime else Path(tempfile.gettempdir(), f"fedround-{os.getuid()}")
    except OSError as error:
        raise ConfigurationError(
            f"there is no directory for the internal secret: set {VARIABLE}, the same for both services"
        ) from error
    return directory / NAME


def _create_directory(directory: Path) -> None:
    """Create a private directory if it is missing. Raises `ConfigurationError` if it is not private to this user."""
    try:
        with suppress(FileExistsError):
            directory.mkdir(0o700)
        found = directory.lstat()
    except OSError as error:
        raise ConfigurationError(
            f"cannot create the directory {directory} for the internal secret: {error.strerror}; set {VARIABLE}"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigurationError(
            f"{directory}, for the internal secret, must be a private directory of this user: remove it, or set {VARIABLE}"
        )


def _create(path: Path) -> None:
    """Create a file with a new secret, atomically. Raises `FileExistsError` or `ConfigurationError`."""
    if os.path.lexists(path):
        raise FileExistsError
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        try:
            with open(draft, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(secrets.token_urlsafe(32) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)  # fails if the file exists by now
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError:
        raise
    except OSError as error:
        raise ConfigurationError(f"cannot write the internal secret to {path}: {error.strerror}; set {VARIABLE}") from error
    LOG.info("created the internal secret in %s", path)
