"""What a training is to reach: which model is the best, and when it may stop. Part of the coordinator's core: no I/O, no clock."""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import ge, gt, le, lt

from fedround.events import Evaluated, ServerEvaluated

COMPARISONS = {">=": ge, "<=": le, ">": gt, "<": lt}


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop when a metric of the global model compares so with a value."""

    metric: str
    comparison: str
    value: float

    def reached(self, metrics: Mapping[str, float]) -> bool:
        return self.metric in metrics and COMPARISONS[self.comparison](metrics[self.metric], self.value)

    def __str__(self) -> str:
        return f"{self.metric} {self.comparison} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Goal:
    """`metric` of evaluations says which model is the best: that with the `largest` value, or with the smallest."""

    metric: str = ""
    largest: bool = True
    patience: int = 0
    """Stop after so many evaluated models in a row that are not better than the best; 0: never."""
    stop: Stop | None = None

    @property
    def metrics(self) -> dict[str, str]:
        """The metrics that it needs, by the setting that names them."""
        named = {"COORDINATOR_BEST_BY": self.metric, "COORDINATOR_STOP_WHEN": self.stop.metric if self.stop else ""}
        return {setting: metric for setting, metric in named.items() if metric}

    @property
    def stops(self) -> bool:
        return self.patience > 0 or self.stop is not None


@dataclass(frozen=True, slots=True)
class Best:
    """The best model of a run so far."""

    round: int
    value: float
    worse: int = 0
    """Evaluated models since then."""


SERVER = "server_"
"""Prefix of the metrics of the aggregator's evaluations, as goals name them."""


def comparable(fact: Evaluated | ServerEvaluated) -> dict[str, float]:
    """Return the metrics by the names that goals use. A participant's metric cannot pass for one of the aggregator."""
    if isinstance(fact, ServerEvaluated):
        return {SERVER + name: value for name, value in fact.figures}
    return {name: value for name, value in fact.figures if not name.startswith(SERVER)}


def judged(goal: Goal, best: Best | None, fact: Evaluated | ServerEvaluated) -> tuple[Best | None, str]:
    """Return the best model, now that one more was evaluated, and why training is to stop; empty: it goes on.

    Of equal models the first is the best.
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
        reason = reason or f"no better {goal.metric} in {best.worse} evaluations than {best.value:g} in round {best.round}"
    return best, reason
