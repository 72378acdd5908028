"""Evaluation functions for an aggregator, as users write them."""

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fedround

GATE = "EXAMINER_GATE"
"""The variable with a path. Evaluations begin to return when a file exists there."""


def first(weights: Any) -> fedround.Evaluation:
    """Return the first weight, and its distance from 3."""
    assert not weights.flags.writeable
    return fedround.Evaluation(4, weight=weights[0], peak=-abs(weights[0] - 3))


def gated(weights: Any) -> Mapping[str, float]:
    while not Path(os.environ[GATE]).exists():
        time.sleep(0.01)
    return {"weight": weights[0]}


def failing(weights: Any) -> Any:
    raise ValueError(f"no test set for {weights[0]}")


def hanging(weights: Any) -> Any:
    threading.Event().wait()


def two(weights: Any, data: Any) -> None:
    """A function with one argument too many."""


async def later(weights: Any) -> None:
    """A coroutine function, which a thread cannot call."""
