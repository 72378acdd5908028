"""The file of the state that survives a restart: see `plan.Memory`."""

import math
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

from fedround.common import durable
from fedround.common.books import valid_metrics
from fedround.common.durable import Disk
from fedround.coordinator.goal import Best
from fedround.coordinator.history import Past
from fedround.coordinator.plan import Memory
from fedround.coordinator.run import Run
from fedround.coordinator.seats import Known
from fedround.errors import DataDamaged

NAME = "rounds.json"


def load(disk: Disk) -> Memory:
    """Return the state on disk, or an empty state if there is none. Raises `DataDamaged`."""
    document: Any = durable.load(disk, NAME)
    if document is None:
        durable.check_new(disk, NAME)
        return Memory()
    try:
        # Files of the first versions lack the history, the generation and the run.
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
            _text(document.get("best_by", "")),
        )
    except (AttributeError, TypeError, KeyError) as error:
        raise DataDamaged(NAME, f"a field is missing, unknown or invalid: {error}") from error


def save(disk: Disk, memory: Memory) -> None:
    """Write the state to disk. Raises `OSError`."""
    lists = {"participants": _plain(memory.participants), "history": _plain(memory.history)}
    run: dict[str, Any] = {"run": memory.run and asdict(memory.run), "final": memory.final, "stopped": memory.stopped}
    run |= {"best": memory.best and asdict(memory.best), "awaited": memory.awaited, "evaluated": memory.evaluated}
    run["best_by"] = memory.best_by
    durable.save(disk, NAME, {"round": memory.round, "generation": memory.generation or 0, **run, **lists})


def _plain(entries: Iterable[Known | Past]) -> list[dict[str, Any]]:
    # Not `asdict`: it would copy each value, and there may be thousands of entries in each round.
    return [{field.name: getattr(entry, field.name) for field in fields(entry)} for entry in entries]


def _run(data: dict[str, Any] | None) -> Run | None:
    if data is None:  # a file of the first versions
        return None
    run = Run(**data)
    _whole(run.first)
    started: Any = run.started
    if not all(isinstance(text, str) for text in (run.id, run.name)) or type(started) not in (int, float):
        raise TypeError("a run has fields of the wrong type")
    return run


def _best(data: dict[str, Any] | None) -> Best | None:
    if data is None:
        return None
    best = Best(**data)
    if type(best.value) not in (int, float) or not math.isfinite(best.value):
        raise TypeError("the best model's value is not a finite number")
    _whole(best.round), _whole(best.worse)
    return best


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is not a string")
    return value


def _known(data: dict[str, Any]) -> Known:
    known = Known(**data)
    if not all(isinstance(text, str) for text in (known.id, known.name, known.owner)):
        raise TypeError("a participant's id, name or owner is not a string")
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
        raise TypeError("a round's duration is not a finite number")
    if any(valid_metrics(values) != values for values in (past.figures, past.weights, past.evaluation, past.server)):
        raise TypeError("a round's values are not finite numbers")
    return past


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= durable.LARGEST:
        raise TypeError(f"{value!r:.40} is not an integer from 0 to {durable.LARGEST}")
    return value
