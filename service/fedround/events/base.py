"""The base of all events, and the observers that receive them."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fact:
    """The base of all facts."""


class Observer(Protocol):
    """Receives every fact on the thread where it happened, and must not block."""

    def __call__(self, fact: Fact, /) -> None: ...


class Observers:
    """Several observers as one. An exception of one is logged, and the others still get the fact: no observer can break a round."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def __call__(self, fact: Fact) -> None:
        for observer in self._observers:
            try:
                observer(fact)
            except Exception:
                LOG.exception("an observer failed on %s", type(fact).__name__)
