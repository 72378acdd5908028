"""Types of settings for a training: its run, its round configuration, its goal, and the options of a class."""

import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from fedround.common.wire import MAX_METRIC_NAME

MOST_CONFIGURED, MOST_CONFIG_BYTES = 50, 4096
"""Maximum number of names, and of bytes of JSON, in the round configuration."""
MOST_NESTED = 32
"""Maximum depth of a JSON object."""
_OBJECT = """write one as '{"epochs": 3}', in a shell between single quotes"""


def _json_object(value: object) -> object:
    try:
        value = json.loads(value, object_pairs_hook=_unique) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is not valid JSON: {error}; {_OBJECT}") from None
    if not isinstance(value, dict):
        raise ValueError(f"this is not a JSON object; {_OBJECT}")
    if _depth(value) > MOST_NESTED:
        raise ValueError(f"this is nested more than {MOST_NESTED} levels deep; {_OBJECT}")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in an object")
    return found


def _depth(value: object) -> int:
    """Return the depth of nested objects and lists, at most `MOST_NESTED` + 1."""
    level, depth = [value], 0
    while depth <= MOST_NESTED and (level := [each for each in level if isinstance(each, dict | list)]):
        depth += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth


def _round_config(value: object) -> object:
    found = _json_object(value)
    assert isinstance(found, dict)  # noqa: S101 it raises for all else
    if len(found) > MOST_CONFIGURED or len(json.dumps(found)) > MOST_CONFIG_BYTES:
        raise ValueError(f"there are more than {MOST_CONFIGURED} names, or more than {MOST_CONFIG_BYTES} bytes")
    return {name: _configured(name, each) for name, each in found.items()}


def _configured(name: str, value: object) -> object:
    """Return a number, a text or a boolean, or a schedule: values by the first round in which they apply."""
    if not (0 < len(name) <= MAX_METRIC_NAME and name.isprintable()):
        raise ValueError(f"a name has 1 to {MAX_METRIC_NAME} printable characters")
    schedule = value if isinstance(value, Mapping) else {"0": value}
    whole = all(re.fullmatch(r"\d{1,9}", str(begin)) for begin in schedule)
    scalars = all(isinstance(each, str | int) or (isinstance(each, float) and math.isfinite(each)) for each in schedule.values())
    if schedule and whole and scalars and len(set(map(int, schedule))) == len(schedule):
        return {int(begin): each for begin, each in value.items()} if isinstance(value, Mapping) else value
    raise ValueError(
        f"{name}: write a number, a text, true or false; or a schedule by rounds of the run, such as "
        '{"learning_rate": {"0": 0.1, "20": 0.01}}'
    )


def _best_by(value: object) -> object:
    """Return the metric, and whether its largest value is the best."""
    if not isinstance(value, str):
        return value
    metric, _, end = value.rpartition(":")
    if not metric or end not in ("max", "min"):
        raise ValueError("write a metric and :max or :min, for example accuracy:max or loss:min")
    return metric, end == "max"


def _stop_when(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([^<>]*[^\s<>=])\s*(>=|<=|>|<)\s*([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)\s*", value)
    if match is None or math.isinf(float(match[3])):
        raise ValueError("write a metric, a comparison and a number, such as 'accuracy >= 0.95'")
    return match[1], match[2], float(match[3])


def _run_name(value: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9._-]{1,63}", value) is None:
        raise ValueError("a run's name has 1 to 63 of the characters a-z, A-Z, 0-9, '.', '_' and '-'")
    return value


def _quorum(value: float | None) -> float | None:
    if value is not None and value > 1 and not value.is_integer():
        raise ValueError("write a share such as 0.8, 1 for all, or a whole number from 2 on")
    return value


Quorum = Annotated[float | None, AfterValidator(_quorum), Field(title="share|number")]
Options = Annotated[dict[str, Any], BeforeValidator(_json_object), Field(title="json")]
RoundConfig = Annotated[dict[str, Any], BeforeValidator(_round_config), Field(title="json")]
BestBy = Annotated[tuple[str, bool] | None, BeforeValidator(_best_by), Field(title="metric:max|min")]
StopWhen = Annotated[tuple[str, str, float] | None, BeforeValidator(_stop_when), Field(title="comparison")]
RunName = Annotated[str, AfterValidator(_run_name)]
