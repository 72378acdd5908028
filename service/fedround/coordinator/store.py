"""What a coordinator keeps: the round, and who is known by which id. The attempt is not kept: a restart begins another."""

from dataclasses import asdict
from typing import Any

from fedround import durable
from fedround.coordinator.presence import Known
from fedround.coordinator.rounds import Memory
from fedround.durable import Disk
from fedround.errors import DataDamaged

NAME = "rounds.json"


def load(disk: Disk) -> Memory:
    """What was kept; of nothing, where there is nothing. Raises `DataDamaged`."""
    document: Any = durable.load(disk, NAME)
    if document is None:
        return Memory()
    try:
        return Memory(document["round"], tuple(Known(**known) for known in document["participants"]))
    except (TypeError, KeyError) as error:
        raise DataDamaged(NAME, f"it lacks something: {error}") from error


def save(disk: Disk, memory: Memory) -> None:
    """Keep it. Raises `OSError`."""
    durable.save(disk, NAME, {"round": memory.round, "participants": [asdict(known) for known in memory.participants]})
