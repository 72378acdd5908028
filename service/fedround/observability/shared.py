"""Renderings that all who ask share: a crowd of operators' pages, or of strangers, costs no more than a few of them."""

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from fedround.http.budgets import Buckets

T = TypeVar("T")

RATE, BURST = 4.0, 8.0
"""Renderings a second, and at once. Beyond that the last one is given again: it is a quarter of a second old at most."""


class Shared(Generic[T]):
    """What `render` returns, made at most `RATE` times a second. `clock` gives monotonic seconds."""

    def __init__(self, render: Callable[[], T], clock: Callable[[], float] = time.monotonic) -> None:
        self._render = render
        self._clock = clock
        self._bucket = Buckets[None](RATE, BURST, most=1)
        self._last: list[T] = []

    def __call__(self) -> T:
        """Return a rendering that is a quarter of a second old at most."""
        if self._bucket.take(None, self._clock()) or not self._last:
            self._last[:] = [self._render()]
        return self._last[0]
