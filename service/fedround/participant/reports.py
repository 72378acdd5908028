"""Facts of a round as messages: the worker encodes them, and the supervisor checks and decodes them."""

import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from fedround import events
from fedround.events import Fact
from fedround.participant.channel import BadMessage
from fedround.tensors.statistics import DECADES, FEW, Change, Statistics

PHASES = ("decode", "evaluate", "train", "encode", "check")
"""Phases of a round that run in the worker."""
MAX_NAME = 100
"""Maximum characters of the name of an error's class."""
MAX_AGO = 86400.0
"""Maximum age of a fact, in seconds."""


def encode(fact: Fact) -> Mapping[str, object] | None:
    """Return the message for a fact that happens now; None if the fact stays in the worker."""
    match fact:
        case events.PhaseBegan(_, phase):
            return {"fact": "began", "phase": phase, "at": time.monotonic()}
        case events.PhaseEnded(_, phase, seconds, error):
            return {"fact": "ended", "phase": phase, "at": time.monotonic(), "seconds": seconds, "error": error[:MAX_NAME]}
        case events.WeightsMeasured(_, source, size, statistics):
            return {"fact": "weights", "source": source, "size": size, "statistics": asdict(statistics)}
        case events.UpdateMeasured(_, samples, change):
            return {"fact": "update", "samples": samples, "change": None if change is None else asdict(change)}
    return None


def decode(round: int, encoded: object, now: float) -> Fact:
    """Return the fact of `round` in a message. `now`: monotonic seconds. Raises `BadMessage` if it is not a fact."""
    match encoded:
        case {"fact": "began", "phase": str(phase), "at": float(at)} if phase in PHASES:
            return events.PhaseBegan(round, phase, _ago(at, now))
        case {"fact": "ended", "phase": str(phase), "at": float(at), "seconds": float(seconds), "error": str(error)} if (
            phase in PHASES and len(error) <= MAX_NAME
        ):
            return events.PhaseEnded(round, phase, seconds, error, _ago(at, now))
        case {"fact": "weights", "source": "global" | "local" as source, "size": int(size), "statistics": dict(found)}:
            return events.WeightsMeasured(round, source, size, _statistics(found))
        case {"fact": "update", "samples": int(samples), "change": None}:
            return events.UpdateMeasured(round, samples, None)
        case {
            "fact": "update",
            "samples": int(samples),
            "change": {"l2_norm": float(norm), "cosine_similarity": float() | None as cosine},
        }:
            return events.UpdateMeasured(round, samples, Change(norm, cosine))
    raise BadMessage(f"not a fact: {str(encoded)[:100]}")


def _ago(at: float, now: float) -> float:
    """Return the age of a time. All processes of a machine share one monotonic clock."""
    ago = now - at
    return ago if 0 <= ago <= MAX_AGO else 0.0


def _statistics(found: Mapping[str, Any]) -> Statistics:
    numbers: dict[str, Any] = {name: value for name, value in found.items() if isinstance(value, int | float)}
    lists: dict[str, Any] = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
    known = {field.name for field in fields(Statistics)}
    right = {"decades": len(DECADES), "values": min(FEW, len(lists.get("values", ())))}
    if (
        numbers.keys() | lists.keys() != known
        or {name: len(value) for name, value in lists.items()} != right
        or not all(isinstance(value, int | float) for values in lists.values() for value in values)
    ):
        raise BadMessage("invalid statistics")
    return Statistics(**numbers, **lists)
