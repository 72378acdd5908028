"""A participant's connection for pushing traces and metrics to its coordinator, which relays them to a collector."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedround.errors import ExchangeError

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Relay:
    """A participant's connection for telemetry to its coordinator.

    Args:
        post: Sends a message to a path. Raises `ExchangeError`.
        allow: Returns whether a series may leave the silo, by its metric's name and its labels.
        allow_scope: Returns whether the spans of an instrumentation scope may leave the silo.
    """

    post: Callable[[str, bytes], None]
    allow: Callable[[str, Mapping[str, str]], bool]
    allow_scope: Callable[[str], bool]

    def sender(self) -> Callable[[str, bytes], bool]:
        """Return a function that sends the messages of one signal. It logs the start and the end of an outage, and never raises."""
        failing = False

        def send(path: str, body: bytes) -> bool:
            nonlocal failing
            try:
                self.post(path, body)
            except ExchangeError as error:
                if not failing:
                    LOG.warning("cannot push to the coordinator; retrying: %s", error)
                failing = True
                return False
            if failing:
                LOG.info("pushing to the coordinator again: %s", path)
            failing = False
            return True

        return send
