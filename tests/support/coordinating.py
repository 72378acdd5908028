"""A running coordinator, and books without HTTP and without sums."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Any, TypeVar

from fedround.aggregator.ledger import Ledger
from fedround.common.books import Admission, Books, Closed, Difference, Open, Page, Verdict
from fedround.coordinator.plan import Memory, Plan
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.service import CoordinatorService
from fedround.errors import Unreachable
from fedround.events import Fact

AGGREGATOR_URL = "http://aggregator:8082"

F = TypeVar("F", bound=Fact)


class MemoryBooks:
    """The real ledger. It can be unreachable, and it can lose everything."""

    def __init__(self) -> None:
        self.core = Ledger("first life")
        self.told: dict[str, Any] = {}
        """Fields of pages that do not come from the ledger."""
        self._failures = 0
        self._news = asyncio.Event()

    async def open(self, call: Open) -> None:
        self._answer()
        self.core.open(call.attempt, call.round, call.admissions, call.forget)

    async def admit(self, attempt: str, admissions: Sequence[Admission]) -> None:
        self._answer()
        self.core.admit(attempt, admissions)

    async def revoke(self, attempt: str, id: str, patience: float = 0.0) -> Verdict:
        self._answer()
        return self.core.revoke(attempt, id, patience)

    async def close(self, attempt: str, ids: Sequence[str]) -> Closed | Difference:
        self._answer()
        return self.core.close(attempt, ids) or Closed(parameters=5)

    async def ledger(self, incarnation: str, after: int, best: int | None = None) -> Page:
        while True:
            self._answer()
            page = self.core.page(incarnation, after)
            if page.entries or page.incarnation != incarnation:
                return replace(page, **self.told)
            self._news.clear()
            await self._news.wait()

    def deliver(self, id: str, token: str | None, samples: int = 1, **figures: float) -> None:
        """Do what an aggregator does with a valid upload."""
        receipt = self.core.begin(id, token or "")
        if self.core.countable(receipt):
            self.core.count(receipt, samples, figures)
        self._news.set()

    def fail(self, times: int) -> None:
        """Be unreachable for this many calls."""
        self._failures = times
        self._news.set()

    def ring(self) -> None:
        """Wake the calls that wait for the ledger."""
        self._news.set()

    def restart(self) -> None:
        self.core.lose("second life")
        self._news.set()

    def _answer(self) -> None:
        if self._failures:
            self._failures -= 1
            raise Unreachable("connection refused")


class Recorder:
    """An observer that records facts, and can wait for future ones."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self._news = asyncio.Event()

    def __call__(self, fact: Fact) -> None:
        self.facts.append(fact)
        self._news.set()

    def all(self, kind: type[F]) -> list[F]:
        return [fact for fact in self.facts if isinstance(fact, kind)]

    async def until(self, kind: type[F], count: int = 1) -> F:
        """Return fact number `count` of this kind, counted from 1."""
        while len(self.all(kind)) < count:
            self._news.clear()
            await self._news.wait()
        return self.all(kind)[count - 1]


@dataclass(frozen=True)
class Coordinating:
    service: CoordinatorService
    recorder: Recorder
    work: asyncio.Task[None]


@asynccontextmanager
async def coordinating(
    plan: Plan,
    books: Books,
    keep: Callable[[Memory], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Coordinating]:
    recorder, rounds = Recorder(), Rounds(plan, Random(1))
    service = CoordinatorService(rounds, books, aggregator_url=AGGREGATOR_URL, observer=recorder, save=keep, clock=clock)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        work = tasks.create_task(service.run())
        yield Coordinating(service, recorder, work)
        work.cancel()
