"""`xain_sdk.participant` of 0.8: its errors, and `run_participant`."""

import logging
import sys
from typing import Any

from fedround import events
from fedround.common.wire import UPDATE
from fedround.errors import DeserializationError, ParticipantError, SerializationError, TrainingError
from fedround.events import Fact
from fedround.participant import run
from fedround.participant.abc import ParticipantABC

__all__ = [
    "DeserializationError",
    "ParticipantABC",
    "ParticipantError",
    "SerializationError",
    "TrainingError",
    "run_participant",
]

LOG = logging.getLogger("http")


def run_participant(participant: ParticipantABC[Any, Any], coordinator_url: str, heartbeat_period: float = 1) -> None:
    """Train for the coordinator at `coordinator_url` until training is complete.

    An `InterruptedError` from the participant's methods or a signal handler ends the program with exit code 0, as in 0.8.
    """
    try:
        run.run_participant(participant, coordinator_url, heartbeat_period, observers=[_log])
    except (InterruptedError, ParticipantError) as error:
        if not any(isinstance(one, InterruptedError) for one in (error, error.__cause__)):
            raise
        LOG.warning("exiting: interrupt signal caught")
        sys.exit(0)


def _log(fact: Fact) -> None:
    """Log the lines of 0.8."""
    match fact:
        case events.StateChanged(state="waiting"):
            LOG.info("waiting for being selected")
        case events.PhaseBegan(phase="download"):
            LOG.info("downloading global weights from the aggregator")
        case events.ExchangeEnded(method="GET", path=path, status=200, received=received) if path == UPDATE:
            LOG.info("retrieved training data (length: %d bytes)", received)
