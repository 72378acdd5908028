"""The phases of a round: observers get them as facts, the coordinator with each heartbeat."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from fedround import events
from fedround.events import Fact, Observer

_REPORTED = {"download": "downloading", "evaluate": "evaluating", "upload": "uploading", "confirm": "uploading"}
"""What a heartbeat calls a phase; the others are part of training."""


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


class Doing:
    """An observer that knows what heartbeats report: one of `wire.PHASES`, empty outside of rounds."""

    now = ""

    def __call__(self, fact: Fact) -> None:
        """Take note of `fact`."""
        match fact:
            case events.PhaseBegan(_, name):
                self.now = _REPORTED.get(name, "training")
            case events.PhaseEnded(error=error) if error:
                self.now = "retrying"
            case events.OrderAccepted() | events.RoundEnded():
                self.now = ""
