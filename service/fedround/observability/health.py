"""What a service tells its ops port about itself: why it is not ready, and that its loop turns. No I/O; safe from two threads."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

BEAT = 1.0
"""Seconds between two beats of an event loop."""
PATIENCE = 15.0
"""Seconds for which it may stand still and is alive all the same."""


class Health:
    """Ready when no topic has a fault; alive while `beat` comes as often as it said.

    A topic is a short word for one condition of being ready (`coordinator`, `data directory`).
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._faults: dict[str, str] = {}
        self._fresh_until: dict[str, float] = {}
        self._beat_due = math.inf
        self.stopping = False

    def fault(self, topic: str, reason: str) -> None:
        """Not ready, because of `reason`, until the topic is `fine`."""
        self._faults[topic] = reason
        self._fresh_until.pop(topic, None)

    def fine(self, topic: str, *, within: float = math.inf) -> None:
        """No fault here; if nothing more is heard of the topic for `within` seconds, that is one."""
        self._fresh_until[topic] = self._clock() + within
        self._faults.pop(topic, None)

    def beat(self, *, within: float) -> None:
        """The loop turns, and will again within so many seconds."""
        self._beat_due = self._clock() + within

    @property
    def alive(self) -> bool:
        return self._clock() <= self._beat_due

    def stop(self) -> None:
        """Not ready any more, whatever is fine."""
        self.stopping = True
        self.fault("process", "it stops")

    @property
    def reasons(self) -> list[str]:
        """Why the service is not ready; empty when it is."""
        now = self._clock()
        stale = [f"no news of the {topic}" for topic, until in self._fresh_until.copy().items() if until < now]
        return [*self._faults.copy().values(), *stale]


@asynccontextmanager
async def tended(health: Health, *chores: Coroutine[object, object, object]) -> AsyncIterator[None]:
    """Within the block: do the chores, and beat with the event loop. From its end on: not ready, and the chores are cancelled."""
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
