"""What a coordinator keeps: the round, who is known by which id, and the last rounds. Not the attempt: a restart begins another."""

import math
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

from fedround.common import durable
from fedround.common.books import figures
from fedround.common.durable import Disk
from fedround.coordinator.goal import Best
from fedround.coordinator.history import Past
from fedround.coordinator.plan import Memory
from fedround.coordinator.run import Run
from fedround.coordinator.seats import Known
from fedround.errors import DataDamaged

NAME = "rounds.json"


def load(disk: Disk) -> Memory:
    """What was kept; of nothing, where there is nothing. Raises `DataDamaged`."""
    document: Any = durable.load(disk, NAME)
    if document is None:
        durable.check_own(disk, NAME)
        return Memory()
    try:
        # Files of the first versions have neither a history nor a generation nor a run.
        return Memory(
            _whole(document["round"]),
            tuple(map(_known, document["participants"])),
            tuple(map(_past, document.get("history", ()))),
            _whole(document.get("generation", 0)),
            _run(document.get("run")),
            document.get("final", False) is True,
            _best(document.get("best")),
            _text(document.get("stopped", "")),
            document.get("awaited", False) is True,
            _whole(document.get("evaluated", -1) + 1) - 1,
        )
    except (AttributeError, TypeError, KeyError) as error:
        raise DataDamaged(NAME, f"it lacks something, or has something that does not belong there: {error}") from error


def save(disk: Disk, memory: Memory) -> None:
    """Keep it. Raises `OSError`."""
    lists = {"participants": _plain(memory.participants), "history": _plain(memory.history)}
    run: dict[str, Any] = {"run": memory.run and asdict(memory.run), "final": memory.final, "stopped": memory.stopped}
    run |= {"best": memory.best and asdict(memory.best), "awaited": memory.awaited, "evaluated": memory.evaluated}
    durable.save(disk, NAME, {"round": memory.round, "generation": memory.generation or 0, **run, **lists})


def _plain(entries: Iterable[Known | Past]) -> list[dict[str, Any]]:
    # Of thousands, in every round: `asdict` would copy each value.
    return [{field.name: getattr(entry, field.name) for field in fields(entry)} for entry in entries]


def _run(data: dict[str, Any] | None) -> Run | None:
    if data is None:  # a file of the first versions
        return None
    run = Run(**data)
    _whole(run.first)
    started: Any = run.started
    if not all(isinstance(text, str) for text in (run.id, run.name)) or type(started) not in (int, float):
        raise TypeError("a run that is none")
    return run


def _best(data: dict[str, Any] | None) -> Best | None:
    if data is None:
        return None
    best = Best(**data)
    if type(best.value) not in (int, float) or not math.isfinite(best.value):
        raise TypeError("a best model whose value is no finite number")
    _whole(best.round), _whole(best.worse)
    return best


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text that is none")
    return value


def _known(data: dict[str, Any]) -> Known:
    known = Known(**data)
    if not all(isinstance(text, str) for text in (known.id, known.name, known.owner)):
        raise TypeError("a participant with a text that is none")
    for number in (known.ordinal, known.counted, known.owed, known.shard):
        if number is not None:
            _whole(number)
    for number in (known.selected_rounds, known.counted_rounds, known.shards):
        _whole(number)
    return known


def _past(data: dict[str, Any]) -> Past:
    past = Past(**data)
    for number in (past.round, past.counted, past.dropped, past.samples, past.parameters, past.rollbacks, past.late):
        _whole(number)
    if type(past.seconds) not in (int, float) or not math.isfinite(past.seconds):
        raise TypeError("a round with a duration that is none")
    if any(figures(values) != values for values in (past.figures, past.weights, past.evaluation, past.server)):
        raise TypeError("a round with values that are no finite numbers")
    return past


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= durable.LARGEST:
        raise TypeError("a number that is no whole number, or is too large")
    return value
