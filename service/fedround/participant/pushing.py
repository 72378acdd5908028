"""What a participant pushes through its coordinator, and what of it may leave the silo. See `PARTICIPANT_PUSH_ALLOW`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from fnmatch import fnmatchcase

from fedround.common.settings import LOCAL_SERIES, ParticipantSettings, Push, reveal
from fedround.http.client import CoordinatorClient
from fedround.http.exchange import Options
from fedround.http.transport import tls as client_tls
from fedround.observability.relay import Relay

TIMEOUT = 5.0
"""Seconds for the coordinator's answer."""


class Allowed:
    """Patterns of the names of metrics, and of the instrumentation scopes of spans.

    Series of the local model need a pattern of their own, which ends in `{source="local"}`.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._local = [pattern.removesuffix(LOCAL_SERIES) for pattern in patterns if pattern.endswith(LOCAL_SERIES)]
        self._others = [pattern for pattern in patterns if not pattern.endswith(LOCAL_SERIES)]

    def series(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether a series may leave."""
        patterns = self._local if labels.get("source") == "local" else self._others
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    def scope(self, name: str) -> bool:
        """Whether the spans of a scope may leave."""
        return any(fnmatchcase(name, pattern) for pattern in self._others)


@contextmanager
def relaying(settings: ParticipantSettings) -> Iterator[Relay | None]:
    """A connection to the coordinator for telemetry alone, where the settings want it. Raises `ConfigurationError`."""
    if settings.push is not Push.COORDINATOR:
        yield None
        return
    tls = client_tls(settings.tls_ca_file, settings.tls_cert_file, settings.tls_key_file)
    options = Options(token=reveal(settings.token), tls=tls, timeout=TIMEOUT)
    with closing(CoordinatorClient(settings.coordinator_url, **options)) as coordinator:
        allowed = Allowed(settings.push_allow)
        yield Relay(coordinator.push, allowed.series, allowed.scope)
