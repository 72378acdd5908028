"""Runs, and their round configuration. Part of the coordinator's core: no I/O, no clock."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedround.common.wire import Scalar

Value = Scalar | Mapping[int, Scalar]
Config = Mapping[str, Value]
"""The round configuration. Each value applies to all rounds, or is a schedule: values by the first round of each."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run. Its round numbers continue those of the previous run, so that a number identifies one model."""

    id: str
    name: str
    first: int = 0
    """The number of its first round."""
    started: float = 0.0
    """When it started, in Unix time."""


def config_of(config: Config, round: int) -> dict[str, Scalar]:
    """Return the configuration of a round, counted from the run's first. A schedule has no value before its first round."""
    found: dict[str, Scalar] = {}
    for name, value in config.items():
        if not isinstance(value, Mapping):
            found[name] = value
        elif begun := [begin for begin in value if begin <= round]:
            found[name] = value[max(begun)]
    return found
