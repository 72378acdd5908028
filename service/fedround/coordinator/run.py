"""Runs and their configuration. Part of the coordinator's core: no I/O, no clock."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedround.common.wire import Scalar

Value = Scalar | Mapping[int, Scalar]
Config = Mapping[str, Value]
"""The round configuration: each value applies to all rounds, or is a schedule of values by the round from which each applies."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run. Its rounds continue the numbers of the run before, so that a number identifies one model."""

    id: str
    name: str
    first: int = 0
    """The number of its first round."""
    started: float = 0.0
    """Unix time."""


def config_of(config: Config, round: int) -> dict[str, Scalar]:
    """Return the configuration of a round, which counts from the run's first. A schedule has no value before its first round."""
    found: dict[str, Scalar] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            begun = [begin for begin in value if begin <= round]
            if begun:
                found[name] = value[max(begun)]
        else:
            found[name] = value
    return found
