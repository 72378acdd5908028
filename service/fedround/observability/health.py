"""The health of a service: why it is not ready, and whether its event loop makes progress. No I/O; safe from two threads."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

BEAT = 1.0
"""Seconds between two calls of `beat` by an event loop."""
MAX_BLOCKED = 15.0
"""Seconds for which an event loop may be blocked before the service is not alive."""


STOPPING = "the process is stopping"


class Health:
    """The readiness and the liveness of a service.

    The service is ready while no topic has a fault. A topic names one condition of readiness, such as `data directory`. The service
    is alive while each call of `beat` comes within the time that the previous call announced.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._faults: dict[str, str] = {}
        self._fresh_until: dict[str, float] = {}
        self._beat_due = math.inf
        self.stopping = False

    def fault(self, topic: str, reason: str) -> None:
        """Make the service not ready because of `reason`, until `clear` is called for the topic."""
        self._faults[topic] = reason
        self._fresh_until.pop(topic, None)

    def clear(self, topic: str, *, within: float = math.inf) -> None:
        """Clear the fault of a topic. If `clear` is not called again within `within` seconds, that is a fault."""
        self._fresh_until[topic] = self._clock() + within
        self._faults.pop(topic, None)

    def beat(self, *, within: float) -> None:
        """Report that the main loop makes progress, and will report it again within `within` seconds."""
        self._beat_due = self._clock() + within

    @property
    def alive(self) -> bool:
        """Whether the main loop makes progress."""
        return self._clock() <= self._beat_due

    def stop(self) -> None:
        """Make the service not ready until the process ends."""
        self.stopping = True
        self.fault("process", STOPPING)

    @property
    def reasons(self) -> list[str]:
        """Why the service is not ready; empty if it is ready."""
        now = self._clock()
        stale = [f"no news of the {topic}" for topic, until in self._fresh_until.copy().items() if until < now]
        return [*self._faults.copy().values(), *stale]


@asynccontextmanager
async def running(health: Health, *background: Coroutine[object, object, object]) -> AsyncIterator[None]:
    """Run the `background` coroutines and report progress within the block. At its end, cancel them and call `health.stop`."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in (_keep_beating(health), *background)]
        try:
            yield
        finally:
            health.stop()
            for task in tasks:
                task.cancel()


async def _keep_beating(health: Health) -> None:
    while True:
        health.beat(within=MAX_BLOCKED)
        await asyncio.sleep(BEAT)
