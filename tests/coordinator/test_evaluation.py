"""Evaluations in the coordinator's core with a real ledger: training ends in any case, and each metric has its own model."""

from dataclasses import replace
from itertools import cycle
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from fedround.aggregator.ledger import Ledger
from fedround.common.books import Newest, Page, ServerEvaluation
from fedround.coordinator.goal import Best, Goal, Stop, judge
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.status import status
from fedround.events import Evaluated, FinalNotEvaluated, ServerEvaluated, TrainingCompleted
from support.training import PLAN, Training

STEPS = st.lists(
    st.tuples(st.sampled_from(["deliver", "leave", "wait", "lose", "restart", "evaluate"]), st.integers(0, 2)), max_size=30
)


@settings(deadline=None)
@given(STEPS, st.sampled_from([0, 1, 2]), st.sampled_from([0.5, 1.0]), st.integers(0, 99))
def test_whatever_happens_training_ends_and_each_metric_is_that_of_its_model(
    steps: list[tuple[str, int]], every: int, ratio: float, seed: int
) -> None:
    training = Training(replace(PLAN, evaluate_every=every, evaluate_ratio=ratio), seed)
    for step, n in steps:
        getattr(training, step)(n)
    training.end()
    assert training.ledger.newest == Newest(1, 1)
    for fact in training.evaluated:
        assert dict(fact.metrics) == {"value": -1.0 if fact.round is None else float(fact.round)}
        assert every > 0
    assert any(isinstance(fact, TrainingCompleted) for fact in training.facts)


def test_without_faults_all_capable_participants_evaluate_the_final_model() -> None:
    training = Training(replace(PLAN, min_clients=3))
    training.end()
    assert [(fact.round, len(fact.members)) for fact in training.evaluated] == [(None, 2), (0, 2), (1, 2)]
    assert training.completed == TrainingCompleted(2)


def test_the_final_evaluation_does_not_wait_for_the_slowest_beyond_the_quorum() -> None:
    training = Training(replace(PLAN, quorum=0.5, quorum_grace=5.0, round_timeout=3600.0, heartbeat_timeout=3600.0))
    for n in cycle(range(3)):
        if not training.train:
            break
        training.tick()
        training.deliver(n)
    training.deliver(0)
    training.tick(4.0)
    training.work()
    assert not training.rounds.complete
    training.tick(2.0)
    training.work()
    assert training.rounds.complete
    assert [(fact.round, len(fact.members)) for fact in training.evaluated][-1] == (1, 1)
    assert not list(training.rounds.reliability), "to be late is no failure"


def test_a_reached_goal_ends_the_run_with_a_reason() -> None:
    plan = replace(PLAN, rounds=9, goal=Goal("value", patience=5, stop=Stop("value", ">=", 1)))
    training = Training(plan)
    training.end()
    assert training.completed == TrainingCompleted(3, "value >= 1: 1 in round 1")
    best = training.rounds.ending.best
    assert best is not None
    assert (best.round, best.value) == (2, 2), "the final model was evaluated, too"
    assert training.rounds.memory.stopped == "value >= 1: 1 in round 1"
    training.restart(0)
    assert training.rounds.complete
    assert not Rounds(replace(plan, goal=Goal()), Random(0), 0.0, training.rounds.memory).complete


def test_a_run_with_more_rounds_trains_them_before_the_final_evaluation() -> None:
    training = Training(PLAN)
    while training.train:
        training.tick()
        training.all_deliver()
    assert training.rounds.memory.final
    training.plan = replace(PLAN, rounds=4)
    training.restart(0)
    training.end()
    assert training.ledger.newest == Newest(3, 1)
    assert training.evaluated[-1].round == 3


SERVER = replace(PLAN, evaluate_timeout=50, goal=Goal("server_value", patience=3))


@settings(deadline=None)
@given(STEPS, st.booleans(), st.integers(0, 99))
def test_whenever_the_aggregator_evaluates_training_ends_and_each_model_is_judged_once(
    steps: list[tuple[str, int]], answers: bool, seed: int
) -> None:
    training = Training(SERVER, seed, "my:function")
    for step, n in steps:
        getattr(training, step)(n)
    for _ in range(200):
        if training.rounds.complete:
            break
        training.tick()
        training.all_deliver()
        if answers:
            training.evaluate(1)
    assert training.rounds.complete, "no end waits for ever"
    assert training.ledger.newest == Newest(1, 1)
    assert not training.completed.reason
    for fact in training.by_server:
        assert fact.round is not None
        assert dict(fact.metrics) == {"value": fact.round + 100.0}
    rounds = [fact.round for fact in training.by_server]
    assert len(set(rounds)) == len(rounds)
    gave_up = [at for at, fact in enumerate(training.facts) if isinstance(fact, FinalNotEvaluated)]
    final = [at for at, fact in enumerate(training.facts) if isinstance(fact, ServerEvaluated) and fact.round == 1]
    assert all(earlier < later for earlier in gave_up for later in final), "what comes later is shown, what came counts"
    if training.rounds.ending.best is not None:
        assert training.rounds.ending.best.value == training.rounds.ending.best.round + 100.0
    # What comes after the end is shown, too.
    training.evaluate(1)
    assert training.rounds.complete


def trained(training: Training, rounds: int) -> None:
    """Train rounds while the aggregator's function evaluates the first model. The last round ends when its updates arrive."""
    for n in [0, 1, 2] * 2 * rounds:
        if training.ledger.newest is None or training.ledger.newest.round < rounds - 1:
            training.deliver(n)


def test_the_evaluation_of_the_aggregator_stops_a_run_after_the_open_round() -> None:
    plan = replace(SERVER, rounds=99, goal=Goal(stop=Stop("server_value", ">=", 100)))
    training = Training(plan, function="my:function")
    trained(training, 4)
    training.beat(0)
    attempt = training.rounds.attempt
    assert attempt is not None
    assert attempt.round == 4
    training.evaluate(1)
    assert training.rounds.attempt is attempt, "what is trained is not thrown away"
    assert not training.rounds.complete
    memory = training.rounds.memory
    assert (memory.stopped, memory.final, memory.awaited) == ("server_value >= 100: 100 in round 0", True, True)
    training.all_deliver()
    for n in (0, 1):
        training.deliver(n)
    assert not training.rounds.complete, "the final model is not evaluated by the aggregator"
    training.evaluate(1)
    assert training.completed == TrainingCompleted(5, "server_value >= 100: 100 in round 0")
    assert training.by_server[-1].round == 4


def test_a_run_that_is_about_to_stop_starts_no_attempt() -> None:
    plan = replace(SERVER, rounds=99, goal=Goal(stop=Stop("server_value", ">=", 100)))
    for restart in (False, True):
        training = Training(plan, function="my:function")
        trained(training, 2)
        training.evaluate(1)
        if restart:
            training.restart(0)
        for n in range(3):
            training.leave(n)
        for _ in range(2):
            training.tick()
            training.evaluate(1)
        assert training.completed.rounds == 2
        assert training.by_server[-1].round == 1


def test_the_end_waits_for_the_evaluation_up_to_the_time_out_and_shows_a_late_result() -> None:
    training = Training(SERVER, function="my:function")
    trained(training, 2)
    for n in range(2):
        training.deliver(n)
    assert not training.rounds.complete
    assert training.rounds.next_deadline() <= training.now + 50
    training.rounds.suspended(training.now, 30.0)
    for _ in range(79):
        training.tick()
        for n in range(3):
            training.beat(n)
        assert not training.rounds.complete
    training.tick(2.0)
    training.work()
    assert training.facts[-2:] == [FinalNotEvaluated(1, 50), TrainingCompleted(2)]
    memory = training.rounds.memory
    assert memory == replace(memory, awaited=False)
    for _ in range(2):
        training.evaluate(1)
    assert [fact.round for fact in training.by_server] == [0, 1]
    assert [dict(past.server) for past in training.rounds.history] == [{"value": 100.0}, {"value": 101.0}]
    assert training.rounds.ending.best is not None
    assert training.rounds.ending.best.round == 1


def test_the_end_does_not_wait_for_an_aggregator_without_a_function() -> None:
    training = Training(SERVER, function="my:function")
    trained(training, 2)
    for n in range(2):
        training.deliver(n)
    assert "waiting for the aggregator's" in status(training.rounds, training.now)["state"]
    training.function = ""
    training.work()
    assert training.rounds.complete
    assert training.completed == TrainingCompleted(2)


def test_a_failed_evaluation_may_succeed_after_a_restart_of_the_aggregator() -> None:
    training = Training(SERVER, function="my:function")
    trained(training, 1)
    training.evaluate(0)
    assert (training.rounds.ending.server.problem, training.rounds.ending.server.evaluated) == ("it failed", 0)
    training.lose(0)
    training.evaluate(1)
    assert [fact.round for fact in training.by_server] == [0]
    assert training.rounds.ending.server.problem == ""


def test_the_initial_model_of_a_run_is_evaluated_once_for_that_run() -> None:
    training = Training(SERVER)
    page = Page(training.rounds.incarnation, (), evaluator="my:function")
    for run in ("another", "default", "default"):
        training.rounds.recorded(0.0, replace(page, evaluations=(ServerEvaluation(None, run, 1, {"value": 1.0}),)))
    facts = [fact for fact in training.rounds.take_facts() if isinstance(fact, ServerEvaluated)]
    assert facts == [ServerEvaluated(None, 1, (("value", 1.0),))]
    assert training.rounds.ending.best is None


def test_metrics_of_participants_do_not_count_as_those_of_the_aggregator() -> None:
    goal = Goal("server_value", stop=Stop("server_value", ">", 0))
    fact = Evaluated(3, 1, (("server_value", 1.0),), (), ())
    assert judge(goal, None, fact) == (None, "")
    assert judge(goal, None, ServerEvaluated(3, 1, (("value", 1.0),))) == (Best(3, 1.0), "server_value > 0: 1 in round 3")


def test_rolled_back_rounds_are_evaluated_again() -> None:
    training = Training(replace(SERVER, rounds=5), function="my:function")
    trained(training, 3)
    for _ in range(2):
        training.evaluate(1)
    assert training.rounds.ending.server.evaluated == 2
    training.ledger = Ledger("after the rollback", Newest(0, 1))
    training.schedule.roll_back(0)
    training.rounds.recorded(training.now, replace(training.ledger.page("", 0), generation=1, evaluator="my:function"))
    assert training.rounds.ending.server.evaluated == 0
    assert training.rounds.ending.best is None, "it was the model of round 2"
