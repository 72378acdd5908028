"""The phases of a round, for observers and for the coordinator, which gets them with heartbeats."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from fedround import events
from fedround.events import Fact, Observer

_REPORTED = {"download": "downloading", "evaluate": "evaluating", "upload": "uploading", "confirm": "uploading"}
"""Names of phases in heartbeats. All other phases are `training`."""


@contextmanager
def phase(observe: Observer, round: int, name: str) -> Iterator[None]:
    """Report the block to observers as a phase of a round."""
    observe(events.PhaseBegan(round, name))
    began, error = time.monotonic(), ""
    try:
        yield
    except BaseException as failure:
        error = type(failure).__name__
        raise
    finally:
        observe(events.PhaseEnded(round, name, time.monotonic() - began, error))


class CurrentPhase:
    """An observer with the phase that heartbeats report: one of `wire.PHASES`, empty outside of rounds."""

    name = ""

    def __call__(self, fact: Fact) -> None:
        """Update the phase from `fact`."""
        match fact:
            case events.PhaseBegan(_, name):
                self.name = _REPORTED.get(name, "training")
            case events.PhaseEnded(error=error) if error:
                self.name = "retrying"
            case events.RoundJoined() | events.RoundEnded():
                self.name = ""
