"""The goal of a run: the metric of the best model, and the conditions to stop early. A part of the core: no I/O, no clock."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from operator import ge, gt, le, lt

from fedround.events import Evaluated, ServerEvaluated

COMPARISONS = {">=": ge, "<=": le, ">": gt, "<": lt}


@dataclass(frozen=True, slots=True)
class Stop:
    """A condition on a metric of the global model. The run stops when the condition is met."""

    metric: str
    comparison: str
    value: float

    def reached(self, metrics: Mapping[str, float]) -> bool:
        """Return whether these metrics meet the condition."""
        return self.metric in metrics and COMPARISONS[self.comparison](metrics[self.metric], self.value)

    def __str__(self) -> str:
        return f"{self.metric} {self.comparison} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Goal:
    """The best model is the one with the largest `metric`, or with the smallest if `largest` is false."""

    metric: str = ""
    largest: bool = True
    patience: int = 0
    """Stop after this many consecutive evaluated models without a better one; 0: never."""
    stop: Stop | None = None

    @property
    def metrics(self) -> dict[str, str]:
        """The metrics that the goal needs, by the setting that names them."""
        named = {"COORDINATOR_BEST_BY": self.metric, "COORDINATOR_STOP_WHEN": self.stop.metric if self.stop else ""}
        return {setting: metric for setting, metric in named.items() if metric}

    @property
    def by(self) -> str:
        """What selects the best model, such as `accuracy:max`; empty: nothing does."""
        return self.metric and f"{self.metric}:{'max' if self.largest else 'min'}"

    def stands(self, reason: str, by: str) -> bool:
        """Return whether this goal still stops a run that `judge` has stopped for `reason`, maybe with another goal.

        `by` selected the best model then; empty: that is unknown.
        """
        waited = re.fullmatch(r"no better (.+) than .+ in (\d+) evaluations", reason)
        impatient = waited is not None and waited[1] == self.metric and by in ("", self.by) and 0 < self.patience <= int(waited[2])
        return impatient or (self.stop is not None and reason.startswith(f"{self.stop}: "))

    @property
    def stops(self) -> bool:
        """Whether the goal may stop the run early."""
        return self.patience > 0 or self.stop is not None


@dataclass(frozen=True, slots=True)
class Best:
    """The best model of a run so far."""

    round: int
    value: float
    worse: int = 0
    """Number of models that were evaluated since then."""


SERVER = "server_"
"""Prefix of the metrics of the aggregator's evaluations in goals."""


def comparable(fact: Evaluated | ServerEvaluated) -> dict[str, float]:
    """Return the metrics of an evaluation by the names that goals use. Ignore participants' metrics with the prefix `SERVER`."""
    if isinstance(fact, ServerEvaluated):
        return {SERVER + name: value for name, value in fact.metrics}
    return {name: value for name, value in fact.metrics if not name.startswith(SERVER)}


def judge(goal: Goal, best: Best | None, fact: Evaluated | ServerEvaluated) -> tuple[Best | None, str]:
    """Return the best model after one more evaluation, and why the run must stop; empty: it continues.

    Of equal models, the first is the best.
    """
    metrics, reason = comparable(fact), ""
    if goal.stop is not None and goal.stop.reached(metrics):
        reason = f"{goal.stop}: {metrics[goal.stop.metric]:g} in round {fact.round}"
    if goal.metric not in metrics or fact.round is None:
        return best, reason
    value = metrics[goal.metric]
    if best is None or (value > best.value if goal.largest else value < best.value):
        return Best(fact.round, value), reason
    best = Best(best.round, best.value, best.worse + 1)
    if goal.patience and best.worse >= goal.patience:
        reason = reason or f"no better {goal.metric} than {best.value:g} (round {best.round}) in {best.worse} evaluations"
    return best, reason
