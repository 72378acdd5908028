"""The settings of the three services. The definition of a setting also makes its variable, its flag, its help and its docs.

Settings are frozen. `sources.load` reads them from their sources; nothing reads the environment at import.
"""

from fedround.common.settings.aggregator import AggregatorSettings
from fedround.common.settings.base import Row, Settings
from fedround.common.settings.coordinator import CoordinatorSettings
from fedround.common.settings.participant import AfterFinish, Isolation, ParticipantSettings, Push, flower_app
from fedround.common.settings.platform import PlatformSettings
from fedround.common.settings.types import LOCAL_SERIES, parse_duration, parse_size, reveal

__all__ = [
    "LOCAL_SERIES",
    "AfterFinish",
    "AggregatorSettings",
    "CoordinatorSettings",
    "Isolation",
    "ParticipantSettings",
    "PlatformSettings",
    "Push",
    "Row",
    "Settings",
    "flower_app",
    "parse_duration",
    "parse_size",
    "reveal",
]
