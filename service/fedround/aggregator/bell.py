"""A bell: wakes the coroutines that wait for a condition when it may have become true."""

import asyncio
from collections.abc import Callable
from contextlib import suppress


class Bell:
    """Wakes all coroutines that are waiting."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until `condition` is true, for at most `seconds`. It is checked now and after each ring."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    await self._event.wait()
