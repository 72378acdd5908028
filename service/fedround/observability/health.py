"""The health of a service: why it is not ready, and whether its event loop makes progress. No I/O; safe from two threads."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

BEAT = 1.0
"""Seconds between two signs of life of an event loop."""
PATIENCE = 15.0
"""Seconds for which an event loop may be blocked before the service counts as not alive."""


STOPPING = "the process is stopping"


class Health:
    """Ready while no topic has a fault; alive while each call of `beat` comes within the time that the previous one announced.

    A topic names one condition of readiness (`coordinator`, `data directory`).
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._faults: dict[str, str] = {}
        self._fresh_until: dict[str, float] = {}
        self._beat_due = math.inf
        self.stopping = False

    def fault(self, topic: str, reason: str) -> None:
        """Make the service not ready because of `reason`, until `fine` is called for the topic."""
        self._faults[topic] = reason
        self._fresh_until.pop(topic, None)

    def fine(self, topic: str, *, within: float = math.inf) -> None:
        """Clear the topic's fault. It becomes one again if `fine` is not called within `within` seconds."""
        self._fresh_until[topic] = self._clock() + within
        self._faults.pop(topic, None)

    def beat(self, *, within: float) -> None:
        """Note that the loop makes progress, and will again within `within` seconds."""
        self._beat_due = self._clock() + within

    @property
    def alive(self) -> bool:
        return self._clock() <= self._beat_due

    def stop(self) -> None:
        """Make the service not ready for good."""
        self.stopping = True
        self.fault("process", STOPPING)

    @property
    def reasons(self) -> list[str]:
        """Why the service is not ready; empty if it is ready."""
        now = self._clock()
        stale = [f"no news of the {topic}" for topic, until in self._fresh_until.copy().items() if until < now]
        return [*self._faults.copy().values(), *stale]


@asynccontextmanager
async def tended(health: Health, *chores: Coroutine[object, object, object]) -> AsyncIterator[None]:
    """Run the chores and report the event loop's progress within the block. At its end the service is not ready any more."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(chore) for chore in (_keep_beating(health), *chores)]
        try:
            yield
        finally:
            health.stop()
            for task in running:
                task.cancel()


async def _keep_beating(health: Health) -> None:
    while True:
        health.beat(within=PATIENCE)
        await asyncio.sleep(BEAT)
