"""An aggregator's ledger with the sums that its service keeps, and a check of each model."""

import math
from collections.abc import Container
from dataclasses import replace

import numpy as np

from fedround.aggregator.ledger import Ledger, Upload
from fedround.aggregator.strategies import WeightedAverage
from fedround.common.books import Admit, Answer, Call, Close, Closed, Newest, Open, Page, Revoke
from fedround.tensors.weights import Spec

ULP_TOLERANCE = 2


class Accounts:
    """The ledger and the sums that an aggregator's service would keep with it."""

    def __init__(self, *, durable: bool) -> None:
        self.durable = durable
        self.lives = 0
        self.now = 0.0
        self.generation = 0
        self.last: tuple[str, tuple[str, ...]] | None = None
        """The attempt that was closed last, and whose updates it counted."""
        self.ledger = Ledger("life-0")
        self.sum: WeightedAverage | None = None
        self.folded: dict[str, list[tuple[str, int, float]]] = {}
        self.asked: dict[str, set[str]] = {}
        self.answered: dict[int, set[str]] = {}
        """The ids that got 200 for their uploads, by round."""
        self.closed: dict[str, tuple[str, ...]] = {}
        self.rounds: list[int] = []
        """The rounds that have a model, in order."""
        self.counted_tokens: set[str] = set()

    def lose(self) -> None:
        self.lives += 1
        self.ledger.lose(f"life-{self.lives}")
        self.sum = None

    def roll_back(self, number: int) -> None:
        self.lose()
        self.generation += 1
        self.ledger.newest = Newest(number, 1)
        self.rounds = [other for other in self.rounds if other <= number]
        self.answered = {other: told for other, told in self.answered.items() if other <= number}
        self.last = None

    def restart(self) -> None:
        self.lives += 1
        self.generation = self.generation if self.durable else 0
        self.ledger = Ledger(f"life-{self.lives}", self.ledger.newest if self.durable else None)
        # An old call may open the same attempt again. It begins empty. Without a disk, this also happens to a closed attempt.
        self.folded = {a: entries for a, entries in self.folded.items() if self.durable and a in self.closed}
        self.counted_tokens.clear()
        self.sum = None

    def page(self, incarnation: str, after: int) -> Page:
        """Return a page of the ledger. The call acknowledges entries, and the uploads of these get their responses."""
        page = replace(self.ledger.page(incarnation, after), generation=self.generation)
        self.answer(unless={entry.id for entry in page.entries})
        return page

    def answer(self, unless: Container[str] = ()) -> None:
        if self.ledger.attempt is not None:
            counted = [id for id, _, _ in self.folded.get(self.ledger.attempt.id, [])]
            self.answered.setdefault(self.ledger.attempt.round, set()).update(id for id in counted if id not in unless)

    def fold(self, receipt: Upload, samples: int, value: float) -> None:
        attempt = self.ledger.attempt
        assert attempt is not None
        self.sum = self.sum or WeightedAverage(Spec(np.dtype("<f8"), (1,)))
        self.sum.fold(samples, [np.array([value])])
        self.ledger.count(receipt, samples, {})
        self.counted_tokens.add(receipt.permission.token)
        self.folded.setdefault(attempt.id, []).append((receipt.id, samples, value))

    def carry_out(self, call: Call) -> Answer:
        match call:
            case Open() | Admit():
                self.asked.setdefault(call.attempt, set()).update(admission.id for admission in call.admissions)
        match call:
            case Open():
                if self.ledger.open(call.attempt, call.round, call.admissions, call.forget):
                    self.sum = None
                return None
            case Admit():
                self.ledger.admit(call.attempt, call.admissions)
                return None
            case Revoke():
                return self.ledger.revoke(call.attempt, call.id, call.patience, self.now)
            case Close():
                already = self.ledger.attempt is not None and self.ledger.attempt.closed
                if (difference := self.ledger.close(call.attempt, call.ids)) is not None:
                    return difference
                if not already:
                    assert self.ledger.attempt is not None
                    self.check_result(call.attempt, tuple(self.ledger.attempt.counted))
                    self.rounds.append(self.ledger.attempt.round)
                    self.ledger.newest = Newest(self.ledger.attempt.round, 1)
                return Closed(1)

    def check_result(self, attempt: str, ids: tuple[str, ...]) -> None:
        entries = self.folded[attempt]
        assert attempt not in self.closed or not self.durable
        assert tuple(id for id, _, _ in entries) == ids
        assert self.sum is not None
        self.closed[attempt] = ids
        self.last = attempt, ids
        weights = [samples for _, samples, _ in entries]
        if not any(weights):
            weights = [1] * len(entries)
        exact = math.fsum(weight * value for weight, (_, _, value) in zip(weights, entries, strict=True)) / sum(weights)
        assert abs(self.sum.result()[0] - exact) <= ULP_TOLERANCE * math.ulp(exact)
