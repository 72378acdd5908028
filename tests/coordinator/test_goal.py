"""Which model is the best, and when training stops."""

import pytest

from fedround.coordinator.goal import Best, Goal, Stop, judge
from fedround.events import Evaluated


def evaluation(round: int | None, **metrics: float) -> Evaluated:
    return Evaluated(round, 1, tuple(metrics.items()), (), ())


def follow(goal: Goal, *values: float | None) -> tuple[Best | None, list[str]]:
    best, reasons = None, list[str]()
    for round, value in enumerate(values):
        best, reason = judge(goal, best, evaluation(round, **({} if value is None else {"a": value})))
        reasons.append(reason)
    return best, reasons


@pytest.mark.parametrize(
    ("largest", "values", "best"),
    [
        (True, (1, 3, 2), Best(1, 3, 1)),
        (False, (1, 3, 2), Best(0, 1, 2)),
        (True, (2, 2, 2), Best(0, 2, 2)),  # of equal ones the first
        (True, (1, None, 3), Best(2, 3)),
        (True, (None, None), None),
    ],
)
def test_the_best_model_has_the_best_value(largest: bool, values: tuple[float | None, ...], best: Best | None) -> None:
    found, reasons = follow(Goal("a", largest), *values)
    assert found == best
    assert not any(reasons)


def test_patience_ends_after_evaluations_without_improvement() -> None:
    _, reasons = follow(Goal("a", patience=2), 1, 0, 2, 1, 2)
    assert reasons == ["", "", "", "", "no better a than 2 (round 2) in 2 evaluations"]


@pytest.mark.parametrize(
    ("comparison", "value", "stops"), [(">=", 3, True), (">", 3, False), ("<=", 3, True), ("<", 3, False), (">=", 3.1, False)]
)
def test_a_comparison_stops_training(comparison: str, value: float, stops: bool) -> None:
    goal = Goal(stop=Stop("a", comparison, value))
    assert goal.stops
    best, (reason,) = follow(goal, 3)
    assert best is None
    assert reason == (f"a {comparison} {value:g}: 3 in round 0" if stops else "")


def test_the_initial_model_cannot_be_the_best_of_a_run() -> None:
    best, reason = judge(Goal("a", stop=Stop("a", ">", 0)), None, evaluation(None, a=1))
    assert best is None
    assert reason == "a > 0: 1 in round None"
    assert not Goal("a").stops
