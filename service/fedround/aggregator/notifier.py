"""A notifier: it wakes the coroutines that wait for a condition when the condition may be true."""

import asyncio
from collections.abc import Callable
from contextlib import suppress


class Notifier:
    """The coroutines that wait for a condition. For one event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake all coroutines that wait, so that each checks its condition."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until `condition` is true, for at most `seconds`. Check it now and after each `notify`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    await self._event.wait()
