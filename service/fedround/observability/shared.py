"""Renderings that all requests share: many open pages or unauthenticated clients cost no more than a few."""

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from fedround.http.budgets import Buckets

T = TypeVar("T")

RATE, BURST = 4.0, 8.0
"""Maximum renderings per second, and in a burst. Further requests get the last rendering."""


class Shared(Generic[T]):
    """The result of `render`, called at most `RATE` times a second. `clock` returns monotonic seconds."""

    def __init__(self, render: Callable[[], T], clock: Callable[[], float] = time.monotonic) -> None:
        self._render = render
        self._clock = clock
        self._bucket = Buckets[None](RATE, BURST, max_keys=1)
        self._last: list[T] = []

    def __call__(self) -> T:
        """Return a rendering that is at most a quarter of a second old."""
        if self._bucket.take(None, self._clock()) or not self._last:
            self._last[:] = [self._render()]
        return self._last[0]
