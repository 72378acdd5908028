"""Steps that run to completion even if their caller is cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Steps:
    """The running steps. For one event loop."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def to_its_end(self, step: Coroutine[Any, Any, T]) -> T:
        """Run `step` to completion, even if the caller is cancelled."""
        return await asyncio.shield(self.start(step))

    def start(self, step: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start `step` in the background."""
        task = asyncio.create_task(step)
        self._running.add(task)  # the event loop has only weak references to tasks
        task.add_done_callback(self._running.discard)
        return task
