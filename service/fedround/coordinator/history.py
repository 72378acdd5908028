"""The last completed rounds, for people: nothing follows from them. Part of the coordinator's core: no I/O, no clock."""

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedround.common.books import Measured
from fedround.common.wire import MAX_FIGURES
from fedround.events import Evaluated, RoundCompleted, ServerEvaluated

MOST = 50
"""Rounds that are remembered."""


@dataclass(frozen=True, slots=True)
class Past:
    """What is remembered of a completed round: see `events.RoundCompleted`. `weights`: what its model is like, once known."""

    round: int
    seconds: float
    counted: int
    dropped: int
    samples: int
    parameters: int
    figures: Mapping[str, float]
    weights: Mapping[str, float] = field(default_factory=dict)
    rollbacks: int = 0
    """How often training went back to the model of this round."""
    evaluation: Mapping[str, float] = field(default_factory=dict)
    """The sample-weighted means of how participants evaluated its model."""
    server: Mapping[str, float] = field(default_factory=dict)
    """How the aggregator's own function evaluated its model."""
    late: int = 0
    """How many lost the round because its quorum was counted without them. They are not in `dropped`."""


class History:
    """The rounds in their order. `before`: those of the life before."""

    def __init__(self, before: Iterable[Past] = ()) -> None:
        self._rounds = deque(before, maxlen=MOST)

    def __iter__(self) -> Iterator[Past]:
        return iter(self._rounds)

    def completed(self, fact: RoundCompleted) -> None:
        """Remember it, and forget the oldest."""
        self._rounds.append(
            Past(
                fact.round,
                fact.seconds,
                len(fact.ids),
                fact.dropped,
                fact.samples,
                fact.parameters,
                dict(fact.figures),
                late=fact.late,
            )
        )

    def rolled_back(self, newest: int) -> None:
        """Forget the rounds after `newest`, and note there that training went back to its model."""
        kept = [past for past in self._rounds if past.round <= newest]
        self._rounds.clear()
        self._rounds.extend(replace(past, rollbacks=past.rollbacks + (past.round == newest)) for past in kept)

    def evaluated(self, fact: Evaluated) -> None:
        """Participants evaluated a model: in the round after its own."""
        self._amend(fact.round, evaluation=dict(fact.figures))

    def evaluated_by_server(self, fact: ServerEvaluated) -> None:
        """The aggregator evaluated a model: at any time after its round."""
        self._amend(fact.round, server=dict(fact.figures))

    def lacks_server(self, round: int | None) -> bool:
        """Return whether it has the round, but no evaluation of its model by the aggregator."""
        return any(past.round == round and not past.server for past in self._rounds)

    def _amend(self, round: int | None, **known: Any) -> None:
        for index, past in enumerate(self._rounds):
            if past.round == round:
                self._rounds[index] = replace(past, **known)

    def measured(self, models: Iterable[Measured]) -> None:
        """The figures of a round's model arrive late, and more than once; they may be of a round that is not remembered."""
        for model in models:
            for index, past in enumerate(self._rounds):
                if past.round == model.round and not past.weights:
                    self._rounds[index] = replace(past, weights=model.figures)


def weighted_means(entries: Sequence[tuple[int, Mapping[str, float]]]) -> tuple[tuple[str, float], ...]:
    """Return the sample-weighted mean of each metric over those that reported it; the plain mean where all sample counts are 0.

    Args:
        entries: The samples and the metrics of each.

    Of the figures that most have reported: whoever makes up names does not hide those of the others.
    """
    names = Counter(name for _, metrics in entries for name in metrics)
    means = []
    for name, _ in names.most_common(MAX_FIGURES):
        reported = [(samples, metrics[name]) for samples, metrics in entries if name in metrics]
        if not any(samples for samples, _ in reported):
            reported = [(1, value) for _, value in reported]
        total = sum(samples for samples, _ in reported)
        means.append((name, math.fsum(samples * value for samples, value in reported) / total))
    return tuple(means)
