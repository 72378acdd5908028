"""Tasks that run to completion even if their caller is cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Tasks:
    """The running tasks. For one event loop."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def shield(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` to completion, even if the caller is cancelled."""
        return await asyncio.shield(self.start(coroutine))

    def start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start `coroutine` in the background."""
        task = asyncio.create_task(coroutine)
        self._running.add(task)  # the event loop has only weak references to tasks
        task.add_done_callback(self._running.discard)
        return task
