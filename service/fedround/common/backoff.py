"""Exponential backoff with jitter, as a pure generator: no clock, no sleep, randomness as an argument."""

from collections.abc import Callable, Iterator


def delays(random: Callable[[], float], *, first: float, most: float, spread: float = 1.0) -> Iterator[float]:
    """Yield delays in seconds, without end. Their ceiling doubles from `first` to `most`.

    Args:
        random: Returns numbers in [0, 1), as `random.Random(seed).random` does.
        first: Ceiling of the first delay, in seconds.
        most: Maximum delay, in seconds.
        spread: Random share of a delay, 0 to 1. 1 is full jitter: clients that failed together do not retry together.
    """
    ceiling = min(first, most)
    while True:
        yield ceiling * (1.0 - spread * random())
        ceiling = min(2 * ceiling, most)
