"""Exponential backoff with jitter. No clock, no sleep; randomness is an argument."""

from collections.abc import Callable, Iterator


def delays(random: Callable[[], float], *, first: float, most: float, spread: float = 1.0) -> Iterator[float]:
    """Yield delays in seconds, without end. Their maximum doubles from `first` to `most`.

    Args:
        random: Returns numbers in [0, 1), as `random.Random(seed).random` does.
        first: Maximum of the first delay, in seconds.
        most: Maximum of all delays, in seconds.
        spread: Random share of a delay, 0 to 1. At 1, full jitter, clients that failed together retry at different times.
    """
    ceiling = min(first, most)
    while True:
        yield ceiling * (1.0 - spread * random())
        ceiling = min(2 * ceiling, most)
