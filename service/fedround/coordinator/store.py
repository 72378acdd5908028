"""What a coordinator keeps: the round, who is known by which id, and the last rounds. Not the attempt: a restart begins another."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from fedround import durable
from fedround.coordinator.history import Past
from fedround.coordinator.plan import Memory
from fedround.coordinator.seats import Known
from fedround.durable import Disk
from fedround.errors import DataDamaged

NAME = "rounds.json"


def load(disk: Disk) -> Memory:
    """What was kept; of nothing, where there is nothing. Raises `DataDamaged`."""
    document: Any = durable.load(disk, NAME)
    if document is None:
        return Memory()
    try:
        return Memory(
            document["round"],
            tuple(Known(**known) for known in document["participants"]),
            tuple(Past(**past) for past in document.get("history", ())),  # files of the first versions have none
        )
    except (TypeError, KeyError) as error:
        raise DataDamaged(NAME, f"it lacks something: {error}") from error


def save(disk: Disk, memory: Memory) -> None:
    """Keep it. Raises `OSError`."""
    lists = {"participants": _plain(memory.participants), "history": _plain(memory.history)}
    durable.save(disk, NAME, {"round": memory.round, **lists})


def _plain(entries: Iterable[Known | Past]) -> list[dict[str, Any]]:
    # Of thousands, in every round: `asdict` would copy each value.
    return [{field.name: getattr(entry, field.name) for field in fields(entry)} for entry in entries]
