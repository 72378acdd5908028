"""The phases of a round, as its observers are told of them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from fedround import events
from fedround.events import Observer


@contextmanager
def phase(observe: Observer, round: int, name: str) -> Iterator[None]:
    """Tell observers of a phase of a round."""
    observe(events.PhaseBegan(round, name))
    began, error = time.monotonic(), ""
    try:
        yield
    except BaseException as failure:
        error = type(failure).__name__
        raise
    finally:
        observe(events.PhaseEnded(round, name, time.monotonic() - began, error))
