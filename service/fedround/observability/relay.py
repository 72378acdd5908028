"""How a participant pushes traces and metrics through its coordinator: what it sends, and by which connection."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedround.errors import ExchangeError

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Relay:
    """A participant's way to its coordinator.

    Args:
        post: Sends a message to a path. Raises `ExchangeError`.
        allow: Whether a series may leave the silo: by the name of its metric and its labels.
        allow_scope: Whether the spans of an instrumentation scope may.
    """

    post: Callable[[str, bytes], None]
    allow: Callable[[str, Mapping[str, str]], bool]
    allow_scope: Callable[[str], bool]

    def sender(self) -> Callable[[str, bytes], bool]:
        """Return `post` for one signal: it logs when an outage begins and when it ends, and raises nothing."""
        failing = False

        def send(path: str, body: bytes) -> bool:
            nonlocal failing
            try:
                self.post(path, body)
            except ExchangeError as error:
                if not failing:
                    LOG.warning("cannot push to the coordinator, and tries again: %s", error)
                failing = True
                return False
            if failing:
                LOG.info("pushes to the coordinator again: %s", path)
            failing = False
            return True

        return send
