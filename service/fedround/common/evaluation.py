"""Evaluations that users' code returns for global models: the class, and the checks. No I/O."""

import json
import math
from collections.abc import Mapping
from operator import index
from typing import Any, SupportsFloat, SupportsIndex

from fedround.common.wire import MAX_METRIC_NAME, MAX_METRICS, MAX_METRICS_BYTES
from fedround.tensors.statistics import LARGEST

MAX_SAMPLES = 2**32 - 1
HOW = "return fedround.Evaluation(samples, accuracy=...)"
"""Advice for errors about an invalid evaluation."""


class Evaluation:
    """The result of `evaluate`: metrics of a global model, measured on some data.

    Args:
        samples: Number of samples that `evaluate` used: the weight of these metrics in the mean over participants.
        metrics: Metrics by name, as in `Evaluation(200, accuracy=0.9, loss=0.3)`.
    """

    def __init__(self, samples: int, **metrics: SupportsFloat) -> None:
        self.samples, self.metrics = samples, metrics

    def __repr__(self) -> str:
        return f"Evaluation({self.samples}, {', '.join(f'{name}={value}' for name, value in self.metrics.items())})"


def parts(returned: Any) -> tuple[Any, Any]:
    """Return the samples and the metrics of an `Evaluation` or a pair. Raises `TypeError`."""
    if isinstance(returned, Evaluation):
        return returned.samples, returned.metrics
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise TypeError(f"it returned {type(returned).__name__}")
    samples, metrics = returned
    if not isinstance(metrics, Mapping):
        raise TypeError(f"its metrics are {type(metrics).__name__}, not a mapping")
    return samples, metrics


def number(name: Any, value: SupportsFloat) -> float:
    """Return the value of a metric. Raises `ValueError` if it is not a number, or its name is invalid."""
    try:
        found = float(value)
    except OverflowError:  # an integer with more than 308 digits
        found = math.inf
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, not {value!r}") from None
    if not isinstance(name, str) or not 0 < len(name) <= MAX_METRIC_NAME or not name.isprintable():
        raise ValueError(f"{name!r} is not a valid name of a metric: use 1 to {MAX_METRIC_NAME} printable characters")
    return found


def encoded(samples: SupportsIndex, metrics: Mapping[str, float]) -> str:
    """Return the value of the `Fedround-Evaluation` header. Raises `TypeError` or `ValueError` for an invalid evaluation."""
    count = index(samples)
    text = json.dumps({"samples": count, "metrics": dict(metrics)}, separators=(",", ":"))
    if not 0 <= count <= MAX_SAMPLES:
        raise ValueError(f"samples must be from 0 to {MAX_SAMPLES}, not {count}")
    if len(metrics) > MAX_METRICS or len(text) > MAX_METRICS_BYTES:
        raise ValueError(f"an evaluation has at most {MAX_METRICS} names and {MAX_METRICS_BYTES} bytes")
    return text


def read(returned: Any) -> tuple[int, dict[str, float], list[str]]:
    """Return the samples, the finite metrics, and the names of the metrics that are not finite.

    Args:
        returned: The result of users' code: an `Evaluation`, a pair of samples and metrics, or only metrics (0 samples).

    Raises:
        TypeError, ValueError: The result has another type, is too large, or has no finite metric.
    """
    samples, metrics = (0, returned) if isinstance(returned, Mapping) else parts(returned)
    numbers = {name: number(name, value) for name, value in metrics.items()}
    finite = {name: value for name, value in numbers.items() if abs(value) <= LARGEST}
    encoded(samples, finite)
    if not finite:
        raise ValueError("no metric is finite" if numbers else "it returned no metric")
    return index(samples), finite, [name for name in numbers if name not in finite]
