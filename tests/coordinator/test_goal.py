"""Which model is the best, and when training stops."""

from random import Random

import pytest

from fedround.coordinator.goal import Best, Goal, Stop, judge
from fedround.coordinator.plan import Memory, Plan
from fedround.coordinator.rounds import Rounds
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


def restarted(goal: Goal, stopped: str, *, best_by: str = "a:max") -> Rounds:
    """A run of ten rounds that stopped after four, restarted with this goal."""
    return Rounds(Plan(rounds=10, goal=goal), Random(0), 0.0, Memory(4, best=Best(2, 3.0), stopped=stopped, best_by=best_by))


@pytest.mark.parametrize(
    ("goal", "stays"),
    [
        (Goal(stop=Stop("a", ">=", 3)), True),
        (Goal(stop=Stop("a", ">=", 5)), False),
        (Goal(stop=Stop("b", ">=", 3)), False),
        (Goal("a", patience=1), False),
        (Goal(), False),
    ],
)
def test_a_run_that_reached_a_condition_continues_with_another_one(goal: Goal, stays: bool) -> None:
    assert restarted(goal, "a >= 3: 3 in round 2").complete == stays


@pytest.mark.parametrize(
    ("goal", "stays"),
    [
        (Goal("a", patience=4), True),
        (Goal("a", patience=2), True),
        (Goal("a", patience=5), False),
        (Goal("b", patience=4), False),
        (Goal("a", largest=False, patience=4), False),
        (Goal("a"), False),
        (Goal(stop=Stop("a", ">=", 3)), False),
    ],
)
def test_a_run_without_improvement_continues_with_more_patience(goal: Goal, stays: bool) -> None:
    assert restarted(goal, "no better a than 3 (round 2) in 4 evaluations").complete == stays


@pytest.mark.parametrize(
    ("goal", "best_by", "kept"),
    [
        (Goal("a"), "a:max", True),
        (Goal("a"), "", True),  # from a former version
        (Goal(), "a:max", True),
        (Goal("a", largest=False), "a:max", False),
        (Goal("b"), "a:max", False),
    ],
)
def test_the_best_model_by_another_metric_is_forgotten(goal: Goal, best_by: str, kept: bool) -> None:
    rounds = restarted(goal, "", best_by=best_by)
    assert (rounds.ending.best is not None) == kept
    assert rounds.memory.best_by == (goal.by or best_by)
