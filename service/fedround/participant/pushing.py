"""Telemetry through the coordinator, limited to what `PARTICIPANT_PUSH_ALLOW` lets leave the silo."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from fnmatch import fnmatchcase

from fedround.common.settings import LOCAL_SERIES, ParticipantSettings, Push, reveal
from fedround.http.client import CoordinatorClient
from fedround.http.exchange import Options
from fedround.http.transport import tls as client_tls
from fedround.observability.relay import Relay

TIMEOUT = 5.0
"""Seconds to wait for the coordinator's response."""


class Allowed:
    """Name patterns of metrics, and of instrumentation scopes of spans.

    Series of the local model need a separate pattern, which ends in `{source="local"}`.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._local = [pattern.removesuffix(LOCAL_SERIES) for pattern in patterns if pattern.endswith(LOCAL_SERIES)]
        self._others = [pattern for pattern in patterns if not pattern.endswith(LOCAL_SERIES)]

    def series(self, name: str, labels: Mapping[str, str]) -> bool:
        """Return whether a series may leave the silo."""
        patterns = self._local if labels.get("source") == "local" else self._others
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    def scope(self, name: str) -> bool:
        """Return whether the spans of a scope may leave the silo."""
        return any(fnmatchcase(name, pattern) for pattern in self._others)


@contextmanager
def relaying(settings: ParticipantSettings) -> Iterator[Relay | None]:
    """Open a separate connection to the coordinator for telemetry, if the settings ask for it. Raises `ConfigurationError`."""
    if settings.push is not Push.COORDINATOR:
        yield None
        return
    tls = client_tls(settings.tls_ca_file, settings.tls_cert_file, settings.tls_key_file)
    options = Options(token=reveal(settings.token), tls=tls, timeout=TIMEOUT)
    with closing(CoordinatorClient(settings.coordinator_url, **options)) as coordinator:
        allowed = Allowed(settings.push_allow)
        yield Relay(coordinator.push, allowed.series, allowed.scope)
