"""Delays between attempts, as a pure generator: no clock and no sleep, and the randomness is passed in."""

from collections.abc import Callable, Iterator


def delays(random: Callable[[], float], *, first: float, most: float, spread: float = 1.0) -> Iterator[float]:
    """Yield delays whose ceiling doubles from `first` to `most`, for ever.

    Args:
        random: Gives numbers from 0 up to, but not including, 1, as `random.Random(seed).random` does.
        first: The ceiling of the first delay, in seconds.
        most: No delay is longer, in seconds.
        spread: Which part of a delay is left to chance, 0 to 1. 1 is full jitter: anything up to the ceiling, so that many who
            failed together do not come back together.
    """
    ceiling = min(first, most)
    while True:
        yield ceiling * (1.0 - spread * random())
        ceiling = min(2 * ceiling, most)
