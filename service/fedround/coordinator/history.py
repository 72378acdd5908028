"""The last completed rounds, for display: no decision depends on them. Part of the coordinator's core: no I/O, no clock."""

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedround.common.books import Measured
from fedround.common.wire import MAX_METRICS
from fedround.events import Evaluated, RoundCompleted, ServerEvaluated

MOST = 50
"""Maximum number of rounds in the history."""


@dataclass(frozen=True, slots=True)
class Past:
    """A completed round: see `events.RoundCompleted`."""

    round: int
    seconds: float
    counted: int
    dropped: int
    samples: int
    parameters: int
    figures: Mapping[str, float]
    """Sample-weighted means of the metrics of training. The field has its old name on disk and in `/status`."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Statistics of the weights of its model, once they are known."""
    rollbacks: int = 0
    """Number of rollbacks to the model of this round."""
    evaluation: Mapping[str, float] = field(default_factory=dict)
    """Sample-weighted means of the participants' evaluations of its model."""
    server: Mapping[str, float] = field(default_factory=dict)
    """The aggregator's evaluation of its model."""
    late: int = 0
    """Number of members that the quorum was counted without. They are not in `dropped`."""


class History:
    """The last rounds, oldest first. `before`: the rounds from before a restart."""

    def __init__(self, before: Iterable[Past] = ()) -> None:
        self._rounds = deque(before, maxlen=MOST)

    def __iter__(self) -> Iterator[Past]:
        return iter(self._rounds)

    def completed(self, fact: RoundCompleted) -> None:
        """Add a round. Beyond `MOST` rounds, remove the oldest."""
        self._rounds.append(
            Past(
                fact.round,
                fact.seconds,
                len(fact.ids),
                fact.dropped,
                fact.samples,
                fact.parameters,
                dict(fact.metrics),
                late=fact.late,
            )
        )

    def rolled_back(self, newest: int) -> None:
        """Remove the rounds after `newest`, and count a rollback to that round."""
        remaining = [past for past in self._rounds if past.round <= newest]
        self._rounds.clear()
        self._rounds.extend(replace(past, rollbacks=past.rollbacks + (past.round == newest)) for past in remaining)

    def evaluated(self, fact: Evaluated) -> None:
        """Add the participants' evaluation of a model, which they report in the round after its own."""
        self._amend(fact.round, evaluation=dict(fact.metrics))

    def evaluated_by_server(self, fact: ServerEvaluated) -> None:
        """Add the aggregator's evaluation of a model, which may end at any time after its round."""
        self._amend(fact.round, server=dict(fact.metrics))

    def lacks_server(self, round: int | None) -> bool:
        """Return whether the history has the round, but not the aggregator's evaluation of its model."""
        return any(past.round == round and not past.server for past in self._rounds)

    def _amend(self, round: int | None, **known: Any) -> None:
        for index, past in enumerate(self._rounds):
            if past.round == round:
                self._rounds[index] = replace(past, **known)

    def measured(self, models: Iterable[Measured]) -> None:
        """Add the statistics of models. Ignore those that are known, or whose round is no longer in the history."""
        for model in models:
            for index, past in enumerate(self._rounds):
                if past.round == model.round and not past.weights:
                    self._rounds[index] = replace(past, weights=model.summary)


def weighted_means(entries: Sequence[tuple[int, Mapping[str, float]]]) -> tuple[tuple[str, float], ...]:
    """Return the sample-weighted mean of each metric over the entries that have it; the plain mean if all sample counts are 0.

    Args:
        entries: The number of samples and the metrics of each entry.

    Returns:
        At most `MAX_METRICS` metrics, the most frequent first: a client that invents names cannot displace common metrics.
    """
    names = Counter(name for _, metrics in entries for name in metrics)
    means = []
    for name, _ in names.most_common(MAX_METRICS):
        reported = [(samples, metrics[name]) for samples, metrics in entries if name in metrics]
        if not any(samples for samples, _ in reported):
            reported = [(1, value) for _, value in reported]
        total = sum(samples for samples, _ in reported)
        means.append((name, math.fsum(samples * value for samples, value in reported) / total))
    return tuple(means)
