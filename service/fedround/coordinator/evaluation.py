"""Evaluations of global models: which participants evaluate, and what they find. Part of the coordinator's core: no I/O, no clock.

Participants evaluate the model that an attempt begins with, before they train on it. After the last round of a run an attempt
without training evaluates the final model.
"""

import math
from collections.abc import Iterable
from random import Random

from fedround.coordinator.attempt import Attempt
from fedround.coordinator.history import weighted_means
from fedround.coordinator.seats import Participant
from fedround.events import Contribution, Evaluated


def draw(rng: Random, ratio: float, seats: Iterable[Participant]) -> list[Participant]:
    """Return the share `ratio` of those that can evaluate models, rounded up."""
    able = [seat for seat in seats if seat.evaluates]
    return rng.sample(able, math.ceil(ratio * len(able) - 1e-9))


def evaluated(attempt: Attempt) -> Evaluated | None:
    """Say how its model was evaluated; None where nobody did."""
    members = attempt.counted.values()
    found = [(member, member.entry.evaluation) for member in members if member.entry and member.entry.evaluation]
    if not found:
        return None
    evaluations = [evaluation for _, evaluation in found]
    values: dict[str, list[float]] = {}
    for evaluation in evaluations:
        for name, value in evaluation.metrics.items():
            values.setdefault(name, []).append(value)
    means = weighted_means([(evaluation.samples, evaluation.metrics) for evaluation in evaluations])
    return Evaluated(
        round=evaluations[0].round,
        samples=sum(evaluation.samples for evaluation in evaluations),
        figures=means,
        lowest=tuple((name, min(values[name])) for name, _ in means),
        highest=tuple((name, max(values[name])) for name, _ in means),
        members=tuple(Contribution(m.name, evaluation.samples, m.seconds, evaluation.metrics) for m, evaluation in found),
    )
