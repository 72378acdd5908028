"""Long polls: heartbeats to which the coordinator responds when there is news. For one event loop."""

import asyncio
from collections.abc import Awaitable, Callable


class LongPolls:
    """The open long polls, at most one for each id. `longest`: maximum seconds for which one may stay open."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._held: dict[str, asyncio.Timeout] = {}

    def __contains__(self, id: str) -> bool:
        return id in self._held

    def allowed(self, wait: float) -> float:
        """Return for how many of the requested `wait` seconds a long poll may stay open."""
        return min(wait, self._longest)

    async def hold(self, id: str, wait: float, hung_up: Callable[[], Awaitable[object]]) -> bool:
        """Wait for `release`, but at most `wait` seconds. Return False if the participant disconnected first."""
        # There may be thousands, so each has only one timer: `release` sets it to now.
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
        """End the long poll of an id, if there is one."""
        held = self._held.pop(id, None)
        if held is not None and not held.expired():
            held.reschedule(0.0)

    def release_all(self) -> None:
        """End all long polls."""
        for id in tuple(self._held):
            self.release(id)

    def close(self) -> None:
        """End all long polls, and allow no more."""
        self._longest = 0.0
        self.release_all()
