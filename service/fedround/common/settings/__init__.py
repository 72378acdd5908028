"""The settings of the three services. One definition each makes the variable, the flag, its help and its row in the reference.

They are plain frozen values: only `sources.load` knows where they come from. No import reads the environment.
"""

from fedround.common.settings.aggregator import AggregatorSettings
from fedround.common.settings.base import Row, Settings
from fedround.common.settings.coordinator import CoordinatorSettings
from fedround.common.settings.participant import AfterFinish, Isolation, ParticipantSettings, Push, flower_app
from fedround.common.settings.platform import PlatformSettings
from fedround.common.settings.types import LOCAL_SERIES, is_loopback, parse_duration, parse_size, reveal

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
    "is_loopback",
    "parse_duration",
    "parse_size",
    "reveal",
]
