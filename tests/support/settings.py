"""Settings loaded from a test's variables and flags, as a service does it."""

from collections.abc import Mapping

import pytest

from fedround.common.settings import ParticipantSettings, Settings
from fedround.common.sources import load
from fedround.errors import ConfigurationError

NEEDED = {"PARTICIPANT_COORDINATOR_URL": "http://coordinator:8081", "PARTICIPANT_CLASS": "package.module:Class"}


SECRET = "correct-horse-battery"


def participant(environ: Mapping[str, str] | None = None, flags: Mapping[str, str] | None = None) -> ParticipantSettings:
    return load(ParticipantSettings, NEEDED | dict(environ or {}), flags or {})[0]


def problems(cls: type[Settings], environ: Mapping[str, str], flags: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigurationError) as raised:
        load(cls, environ, flags or {})
    return str(raised.value)
