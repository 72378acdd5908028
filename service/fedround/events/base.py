"""The base class of all facts, and the observers that receive them."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fact:
    """The base class of all facts."""


class Observer(Protocol):
    """A function that receives every fact, on the thread that emits it. It must not block."""

    def __call__(self, fact: Fact, /) -> None: ...


class Observers:
    """Several observers as one. If one raises, `Observers` logs it and calls the others: no observer can break a round."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def __call__(self, fact: Fact) -> None:
        for observer in self._observers:
            try:
                observer(fact)
            except Exception:
                LOG.exception("an observer failed on %s", type(fact).__name__)
