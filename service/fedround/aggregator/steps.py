"""Steps that run as a whole, whoever is cancelled meanwhile."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Steps:
    """The steps that are running. For one event loop."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def to_its_end(self, step: Coroutine[Any, Any, T]) -> T:
        """Run `step` as a whole, even if the caller is cancelled meanwhile."""
        return await asyncio.shield(self.start(step))

    def start(self, step: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start `step`, for which nobody waits."""
        task = asyncio.create_task(step)
        self._running.add(task)  # the event loop itself would let it be collected as garbage
        task.add_done_callback(self._running.discard)
        return task
