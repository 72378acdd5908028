"""A bell: wakes coroutines that wait for a condition, whenever it may have become true."""

import asyncio
from collections.abc import Callable
from contextlib import suppress


class Bell:
    """Wakes those who wait at this moment."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Until `condition` is true after a ring, or is so already; for `seconds` at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    await self._event.wait()
