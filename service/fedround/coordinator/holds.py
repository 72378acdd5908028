"""Heartbeats whose answer the coordinator holds until there is news. For one event loop."""

import asyncio
from collections.abc import Awaitable, Callable


class Holds:
    """The held heartbeats, at most one for each id. `longest`: the longest hold in seconds."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._held: dict[str, asyncio.Timeout] = {}

    def __contains__(self, id: str) -> bool:
        return id in self._held

    def allowed(self, wait: float) -> float:
        """Return for how many of `wait` seconds a heartbeat may be held."""
        return min(wait, self._longest)

    async def hold(self, id: str, wait: float, hung_up: Callable[[], Awaitable[object]]) -> bool:
        """Wait until `release`, for up to `wait` seconds. Return False if the participant hung up first."""
        # One object and one timer for each of thousands: releasing a hold sets its time-out to now.
        held = self._held[id] = asyncio.timeout(wait)
        try:
            async with held:
                await hung_up()
            return False
        except TimeoutError:
            return True
        finally:
            if self._held.get(id) is held:
                del self._held[id]

    def release(self, id: str) -> None:
        """End the hold of an id, if there is one."""
        held = self._held.pop(id, None)
        if held is not None and not held.expired():
            held.reschedule(0.0)

    def release_all(self) -> None:
        """End every hold."""
        for id in tuple(self._held):
            self.release(id)

    def close(self) -> None:
        """End every hold, and allow no more."""
        self._longest = 0.0
        self.release_all()
