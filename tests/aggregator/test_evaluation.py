"""Evaluation at the aggregator: which models it evaluates, and functions that misbehave."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedround
from fedround.aggregator.codecs import Model, model_of
from fedround.aggregator.evaluation import MOST_WAITING, REMEMBERED, Candidate, Schedule
from fedround.aggregator.evaluator import Evaluator
from fedround.aggregator.store import ModelStore
from fedround.common.books import ServerEvaluation
from fedround.common.durable import Directory
from fedround.common.evaluation import read
from fedround.events import EvaluationFailed, EvaluationSkipped, Fact, ModelEvaluated


def candidate(round: int | None, run: str = "run") -> Candidate:
    return Candidate(round, run, None)


def end(schedule: Schedule, *, failed: bool = False) -> bool:
    assert schedule.running is not None
    return schedule.ended(ServerEvaluation(schedule.running.round, schedule.running.run, metrics={"m": 1.0}), failed=failed)


def test_the_newest_waiting_model_is_evaluated_next() -> None:
    schedule = Schedule()
    assert schedule.begin() is None
    assert [schedule.submit(candidate(0)), schedule.begin()] == [[], candidate(0)]
    assert schedule.submit(candidate(1)) == []
    assert schedule.submit(candidate(2)) == [candidate(1)]
    assert schedule.begin() is None, "one at a time"
    assert schedule.rounds == {0, 2}
    assert end(schedule)
    assert schedule.begin() == candidate(2)


def test_the_final_model_of_a_run_is_not_replaced_by_models_of_the_next_run() -> None:
    schedule = Schedule()
    for round, run in ((0, "a"), (1, "a"), (None, "b"), (2, "b")):
        schedule.submit(candidate(round, run))
        schedule.begin()
    assert schedule.waiting == [candidate(1, "a"), candidate(2, "b")]
    assert schedule.submit(candidate(3, "c")) == [candidate(1, "a")]
    assert len(schedule.waiting) == MOST_WAITING


def test_after_a_rollback_evaluations_of_removed_models_do_not_count() -> None:
    schedule = Schedule()
    for round in (1, 4):
        schedule.submit(candidate(round))
        schedule.begin()
        end(schedule)
    schedule.submit(candidate(5))
    schedule.begin()
    schedule.submit(candidate(6))
    schedule.roll_back(3)
    assert (schedule.waiting, [result.round for result in schedule.results]) == ([], [1])
    schedule.submit(candidate(5, "again"))
    assert not end(schedule)
    assert schedule.begin() == candidate(5, "again")
    schedule.roll_back(5)
    assert end(schedule)


def test_an_evaluated_model_is_not_evaluated_again() -> None:
    schedule = Schedule()
    schedule.submit(candidate(1))
    schedule.begin()
    schedule.submit(candidate(1))
    assert schedule.waiting == []
    end(schedule)
    schedule.submit(candidate(1))
    assert schedule.waiting == []
    schedule.submit(candidate(None))
    assert schedule.waiting == [candidate(None)]
    assert schedule.rounds == {1}


def test_consecutive_failures_and_waiting_models_are_counted() -> None:
    schedule = Schedule()
    seen = []
    for round, failed in enumerate([False, True, True, False]):
        schedule.submit(candidate(round))
        schedule.begin()
        before = schedule.behind
        end(schedule, failed=failed)
        seen.append((before, schedule.failures, schedule.behind))
    assert seen == [(1, 0, 0), (1, 1, 1), (2, 2, 2), (3, 0, 0)]
    for round in range(4, 8):  # while that of round 4 does not end
        schedule.submit(candidate(round))
        schedule.begin()
    assert schedule.behind == 4
    end(schedule)
    assert schedule.behind == 3, "those of rounds 5 to 7"
    schedule.begin()
    end(schedule)
    assert schedule.behind == 0


def test_after_a_rollback_the_count_of_models_restarts() -> None:
    schedule = Schedule()
    for round in range(3):
        schedule.submit(candidate(round))
        schedule.begin()
    schedule.roll_back(-1)
    assert schedule.behind == 0
    schedule.submit(candidate(0))
    assert not end(schedule)
    assert (schedule.behind, schedule.begin()) == (1, candidate(0))


@given(st.lists(st.sampled_from(["submit", "begin", "end", "run", "roll back"]), max_size=60))
def test_whatever_happens_few_models_wait_and_the_newest_is_evaluated(steps: list[str]) -> None:
    schedule, round, run = Schedule(), -1, 0
    for step in steps:
        match step:
            case "submit":
                round += 1
                schedule.submit(candidate(round, f"run {run}"))
            case "begin":
                schedule.begin()
            case "end" if schedule.running:
                end(schedule)
            case "run":
                run += 1
            case "roll back":
                round = max(round - 2, -1)
                schedule.roll_back(round)
        assert len(schedule.rounds) <= 1 + MOST_WAITING + REMEMBERED
    schedule.submit(candidate(round + 1, f"run {run}"))
    for _ in range(1 + MOST_WAITING):
        if schedule.running or schedule.begin():
            end(schedule)
    assert schedule.results[-1].round == round + 1
    assert (schedule.behind, schedule.failures) == (0, 0)


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (fedround.Evaluation(3, a=1), (3, {"a": 1.0}, [])),
        ((3, {"a": np.float32(1)}), (3, {"a": 1.0}, [])),
        ({"a": 1, "b": float("nan"), "c": 10**400}, (0, {"a": 1.0}, ["b", "c"])),
    ],
)
def test_a_function_may_return_a_count_and_metrics(returned: Any, found: Any) -> None:
    assert read(returned) == found
    assert repr(fedround.Evaluation(3, a=1)) == "Evaluation(3, a=1)"


WRONG: list[tuple[Any, str]] = [
    (5, "it returned int"),
    ("text", "it returned str"),
    ((1, 2, 3), "it returned tuple"),
    ((1, 2), "its metrics are int, not a mapping"),
    ({}, "it returned no metric"),
    ({"a": float("inf")}, "no metric is finite"),
    ({"a": "x"}, "a must be a number, not 'x'"),
    ({"a": None}, "a must be a number, not None"),
    ({1: 1}, "1 is not a valid name of a metric"),
    ({"": 1}, "'' is not a valid name of a metric"),
    ({"x" * 65: 1}, "is not a valid name of a metric"),
    ({"\n": 1}, "is not a valid name of a metric"),
    ({f"{n}": n for n in range(21)}, "at most 20 names"),
    ((-1, {"a": 1}), "samples must be from 0 to 4294967295, not -1"),
    ((1.5, {"a": 1}), "float"),
]


@pytest.mark.parametrize(("returned", "problem"), WRONG)
def test_an_invalid_result_of_a_function_is_a_failure(returned: Any, problem: str) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        read(returned)


def model(round: int | None, *weights: float) -> Model:
    return model_of(round, {"a": np.array(weights)})


def evaluated(function: Callable[[Any], Any], *models: Model) -> tuple[list[Fact], list[ServerEvaluation]]:
    """Evaluate models one after another. Return all facts and results."""

    async def main() -> tuple[list[Fact], list[ServerEvaluation]]:
        facts, results, done = list[Fact](), list[ServerEvaluation](), asyncio.Event()
        evaluator = Evaluator(function, "my:function", facts.append)
        evaluator.on_result = done.set
        for one in models:
            evaluator.submit(one, "run")
            await done.wait()
            done.clear()
            results.append(evaluator.schedule.results[-1])
        return facts, results

    return asyncio.run(main())


def test_a_function_gets_read_only_weights_on_one_thread() -> None:
    threads = set[int]()

    def first(weights: Any) -> fedround.Evaluation:
        threads.add(threading.get_ident())
        with pytest.raises(ValueError, match="read-only"):
            weights["a"][0] = 7
        return fedround.Evaluation(9, first=weights["a"][0], last=float("nan"))

    facts, results = evaluated(first, model(None, 1.0), model(0, 2.0))
    assert results == [ServerEvaluation(None, "run", 9, {"first": 1.0}), ServerEvaluation(0, "run", 9, {"first": 2.0})]
    assert [fact.dropped for fact in facts if isinstance(fact, ModelEvaluated)] == [("last",)] * 2
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def raises(error: BaseException) -> Callable[[Any], Any]:
    def function(weights: Any) -> Any:
        raise error

    return function


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (raises(ValueError("no data")), "ValueError: no data"),
        (raises(SystemExit(0)), "SystemExit: 0"),
        (lambda weights: 5, "TypeError: it returned int; return fedround.Evaluation(samples, accuracy=...)"),
    ],
)
def test_a_failure_names_the_function_and_the_round(
    function: Callable[[Any], Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    facts, results = evaluated(function, model(3, 1.0), model(4, 1.0))
    assert results == [ServerEvaluation(round, "run", reason=reason) for round in (3, 4)]
    assert [(fact.function, fact.round, fact.reason) for fact in facts if isinstance(fact, EvaluationFailed)] == [
        ("my:function", 3, reason),
        ("my:function", 4, reason),
    ]
    assert f"AGGREGATOR_EVALUATE=my:function: evaluation of the model of round 4 failed: {reason}" in caplog.text
    assert sum(bool(record.exc_info) for record in caplog.records) == ("Error: no" in reason or "Exit" in reason)


def test_a_function_may_skip_a_model() -> None:
    facts, results = evaluated(lambda weights: None, model(3, 1.0))
    assert results == [ServerEvaluation(3, "run", reason="the function returned None")]
    assert facts == [EvaluationSkipped(3)]


def test_a_model_is_freed_after_its_evaluation() -> None:
    array = np.ones(3)
    alive = weakref.ref(array)
    one = [model_of(0, array)]
    del array
    evaluated(lambda weights: {"sum": weights.sum()}, one[0])
    evaluated(lambda weights: 5, one.pop())
    gc.collect()
    assert alive() is None


def test_a_model_that_may_be_the_best_is_kept_longer(tmp_path: Any) -> None:
    store = ModelStore(Directory(tmp_path), keep=1)
    store.protected = frozenset({0, 1})
    for round in range(4):
        store.save(round, [b"x"])
    assert store.rounds == [0, 1, 3]
    store.protected = frozenset()
    store.save(4, [b"x"])
    assert store.rounds == [4]
