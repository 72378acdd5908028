"""Evaluations in the coordinator's core with a real ledger: whatever happens, training ends, and no metric has another's model."""

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from fedround.aggregator.evaluation import Candidate, Schedule
from fedround.aggregator.ledger import Ledger
from fedround.common.books import Admit, Answer, Call, Close, Closed, Evaluation, Newest, Open, Page, Revoke, ServerEvaluation
from fedround.common.wire import HeartbeatState
from fedround.coordinator.goal import Best, Goal, Stop, judge
from fedround.coordinator.plan import Memory, Plan
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.status import status
from fedround.errors import Late, NotAdmitted, UnknownAttempt
from fedround.events import Evaluated, Fact, FinalNotEvaluated, ServerEvaluated, TrainingCompleted

STEPS = st.lists(
    st.tuples(st.sampled_from(["deliver", "leave", "wait", "lose", "restart", "evaluate"]), st.integers(0, 2)), max_size=30
)


class Training:
    """Two rounds with three participants, of which number 2 cannot evaluate. The model of round k is evaluated with the value k.

    `function`: that of the aggregator, which finds the value k + 100, and fails where it has no number to say so.
    """

    def __init__(self, plan: Plan, seed: int = 0, function: str = "") -> None:
        self.plan, self.seed, self.lives = plan, seed, 0
        self.function, self.schedule = function, Schedule()
        self.rounds = Rounds(plan, Random(seed))
        self.ledger = Ledger("life-0")
        self.train = True
        self.now = 0.0
        self.facts: list[Fact] = []
        self.ids: list[str | None] = [None] * 3
        self.tokens: dict[str, str] = {}
        for n in range(3):
            self.beat(n)

    def beat(self, n: int) -> None:
        """A heartbeat of a participant, which registers where it is not known."""
        id = self.ids[n]
        if id is None:
            seat = self.rounds.join(self.now, f"silo-{n}", extended=True, evaluates=n < 2)
            self.ids[n] = id = seat.id if seat else None
        if id is not None:
            answer = self.rounds.heartbeat(self.now, id, idle=True)
            if answer.state is HeartbeatState.REJECT:
                self.ids[n] = None
            if answer.token is not None:
                self.tokens[id] = answer.token
        self.work()

    def deliver(self, n: int) -> None:
        """Deliver what is asked for: with an evaluation where that is asked for."""
        self.beat(n)
        id, attempt = self.ids[n], self.rounds.attempt
        if id is None or id not in self.tokens or attempt is None or self.ledger.attempt is None:
            return
        try:
            receipt = self.ledger.begin(id, self.tokens[id])
            if receipt.repeated or not self.ledger.countable(receipt):
                self.ledger.abort(receipt)
                return
        except (Late, NotAdmitted):
            return
        newest = self.ledger.newest.round if self.ledger.newest else None
        asked = id in attempt.members and attempt.members[id].evaluates
        assert not asked or n < 2, "who cannot evaluate is not asked"
        assert self.train or asked
        evaluation = Evaluation(newest, 1, {"value": -1.0 if newest is None else float(newest)}) if asked else None
        self.ledger.count(receipt, 1, {}, evaluation)
        self.work()

    def leave(self, n: int) -> None:
        if (id := self.ids[n]) is not None:
            self.rounds.leave(self.now, id)
            self.ids[n] = None
        self.work()

    def wait(self, n: int) -> None:
        """Time passes in which only one participant sends heartbeats."""
        for _ in range(8):
            self.now += 10.0
            self.rounds.tick(self.now)
            self.beat(n)

    def evaluate(self, n: int) -> None:
        """The aggregator's function is done with a model: for 0 it fails."""
        if self.schedule.running or self.schedule.begin():
            self.end_evaluation(n)
        self.work()

    def end_evaluation(self, n: int) -> None:
        assert self.schedule.running is not None
        round = self.schedule.running.round
        metrics = {"value": round + 100.0} if n and round is not None else {}
        self.schedule.ended(ServerEvaluation(round, "default", n, metrics, "" if metrics else "it failed"))

    def submit(self) -> None:
        if self.function and self.ledger.newest is not None:
            self.schedule.submit(Candidate(self.ledger.newest.round, "default", None))
            self.schedule.begin()

    def lose(self, _: int) -> None:
        """The aggregator is killed, and back with its newest model."""
        self.lives += 1
        self.schedule = Schedule()
        self.submit()
        self.ledger = Ledger(f"life-{self.lives}", self.ledger.newest)
        if self.rounds.attempt is not None:
            self.rounds.lost(self.rounds.attempt.id)
        self.work()

    def restart(self, _: int) -> None:
        """The coordinator is killed, and back with what it kept."""
        memory: Memory = self.rounds.memory
        self.facts += self.rounds.take_facts()
        self.lives += 1
        self.rounds = Rounds(self.plan, Random(f"{self.seed} {self.lives}"), self.now, memory)
        self.work()

    def work(self) -> None:
        """Carry out what is due, and read the ledger."""
        for _ in range(50):
            page = self.ledger.page(self.rounds.incarnation, self.rounds.after)
            page = replace(page, evaluator=self.function, evaluations=tuple(self.schedule.results))
            self.rounds.recorded(self.now, page)
            self.facts += self.rounds.take_facts()
            if (call := self.rounds.pending(self.now)) is None:
                return
            try:
                self.rounds.answered(self.now, call, self.carry_out(call))
            except UnknownAttempt:
                self.rounds.lost(call.attempt)
        raise AssertionError("there is always something to do")

    def carry_out(self, call: Call) -> Answer:
        match call:
            case Open():
                self.ledger.open(call.attempt, call.round, call.admissions, call.forget)
                self.train = call.train
            case Admit():
                self.ledger.admit(call.attempt, call.admissions)
            case Revoke():
                return self.ledger.revoke(call.attempt, call.id, call.patience, self.now)
            case Close():
                if (difference := self.ledger.close(call.attempt, call.ids)) is not None:
                    return difference
                if self.train and self.ledger.attempt is not None and self.ledger.attempt.counted:
                    self.ledger.newest = Newest(self.ledger.attempt.round, 1)
                    self.submit()
                return Closed(1)
        return None

    def end(self) -> None:
        """From now on everybody behaves."""
        for _ in range(200):
            if self.rounds.complete:
                return
            self.now += 1.0
            self.rounds.tick(self.now)
            for n in range(3):
                self.deliver(n)
        raise AssertionError("training did not end")

    @property
    def by_server(self) -> list[ServerEvaluated]:
        return [fact for fact in self.facts if isinstance(fact, ServerEvaluated)]

    @property
    def completed(self) -> TrainingCompleted:
        (fact,) = (fact for fact in self.facts if isinstance(fact, TrainingCompleted))
        return fact

    @property
    def evaluated(self) -> list[Evaluated]:
        return [fact for fact in self.facts if isinstance(fact, Evaluated)]


PLAN = Plan(rounds=2, min_clients=1, round_timeout=30, heartbeat_timeout=15)


@settings(deadline=None)
@given(STEPS, st.sampled_from([0, 1, 2]), st.sampled_from([0.5, 1.0]), st.integers(0, 99))
def test_training_ends_and_each_metric_is_that_of_its_model(
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


def test_without_faults_the_final_model_is_evaluated_by_all_that_can() -> None:
    training = Training(replace(PLAN, min_clients=3))
    training.end()
    assert [(fact.round, len(fact.members)) for fact in training.evaluated] == [(None, 2), (0, 2), (1, 2)]
    assert training.completed == TrainingCompleted(2)


def test_a_goal_that_is_reached_ends_the_run_with_its_reason() -> None:
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


def test_a_run_that_gets_more_rounds_trains_them_before_its_final_model_is_evaluated() -> None:
    training = Training(PLAN)
    while training.train:
        training.now += 1.0
        training.rounds.tick(training.now)
        for n in range(3):
            training.deliver(n)
    assert training.rounds.memory.final
    training.plan = replace(PLAN, rounds=4)
    training.restart(0)
    training.end()
    assert training.ledger.newest == Newest(3, 1)
    assert training.evaluated[-1].round == 3


SERVER = replace(PLAN, evaluate_timeout=50, goal=Goal("server_value", patience=3))


@settings(deadline=None)
@given(STEPS, st.booleans(), st.integers(0, 99))
def test_training_ends_whenever_the_aggregator_evaluates_and_nothing_is_judged_twice(
    steps: list[tuple[str, int]], answers: bool, seed: int
) -> None:
    training = Training(SERVER, seed, "my:function")
    for step, n in steps:
        getattr(training, step)(n)
    for _ in range(200):
        if training.rounds.complete:
            break
        training.now += 1.0
        training.rounds.tick(training.now)
        for n in range(3):
            training.deliver(n)
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
    """Train rounds, in which the aggregator's function is at work on the first model. The last one ends with what is delivered."""
    for n in [0, 1, 2] * 2 * rounds:
        if training.ledger.newest is None or training.ledger.newest.round < rounds - 1:
            training.deliver(n)


def test_the_aggregators_evaluation_stops_a_run_after_the_round_that_is_open() -> None:
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
    for n in (0, 1, 2):
        training.deliver(n)
    for n in (0, 1):
        training.deliver(n)
    assert not training.rounds.complete, "the final model is not evaluated by the aggregator"
    training.evaluate(1)
    assert training.completed == TrainingCompleted(5, "server_value >= 100: 100 in round 0")
    assert training.by_server[-1].round == 4


def test_a_run_that_is_to_stop_begins_no_other_attempt() -> None:
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
            training.now += 1.0
            training.rounds.tick(training.now)
            training.evaluate(1)
        assert training.completed.rounds == 2
        assert training.by_server[-1].round == 1


def test_the_end_waits_no_longer_than_the_time_out_and_a_late_result_is_still_shown() -> None:
    training = Training(SERVER, function="my:function")
    trained(training, 2)
    for n in range(2):
        training.deliver(n)
    assert not training.rounds.complete
    assert training.rounds.next_deadline() <= training.now + 50
    training.rounds.suspended(training.now, 30.0)
    for _ in range(79):
        training.now += 1.0
        training.rounds.tick(training.now)
        for n in range(3):
            training.beat(n)
        assert not training.rounds.complete
    training.now += 2.0
    training.rounds.tick(training.now)
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


def test_an_aggregator_without_a_function_is_not_waited_for() -> None:
    training = Training(SERVER, function="my:function")
    trained(training, 2)
    for n in range(2):
        training.deliver(n)
    assert "waiting for the aggregator's" in status(training.rounds, training.now)["state"]
    training.function = ""
    training.work()
    assert training.rounds.complete
    assert training.completed == TrainingCompleted(2)


def test_an_evaluation_that_failed_may_succeed_after_a_restart_of_the_aggregator() -> None:
    training = Training(SERVER, function="my:function")
    trained(training, 1)
    training.evaluate(0)
    assert (training.rounds.ending.server.problem, training.rounds.ending.server.evaluated) == ("it failed", 0)
    training.lose(0)
    training.evaluate(1)
    assert [fact.round for fact in training.by_server] == [0]
    assert training.rounds.ending.server.problem == ""


def test_the_model_that_a_run_began_with_is_evaluated_once_and_only_for_that_run() -> None:
    training = Training(SERVER)
    page = Page(training.rounds.incarnation, (), evaluator="my:function")
    for run in ("another", "default", "default"):
        training.rounds.recorded(0.0, replace(page, evaluations=(ServerEvaluation(None, run, 1, {"value": 1.0}),)))
    facts = [fact for fact in training.rounds.take_facts() if isinstance(fact, ServerEvaluated)]
    assert facts == [ServerEvaluated(None, 1, (("value", 1.0),))]
    assert training.rounds.ending.best is None


def test_participants_cannot_pass_for_the_aggregator() -> None:
    goal = Goal("server_value", stop=Stop("server_value", ">", 0))
    fact = Evaluated(3, 1, (("server_value", 1.0),), (), ())
    assert judge(goal, None, fact) == (None, "")
    assert judge(goal, None, ServerEvaluated(3, 1, (("value", 1.0),))) == (Best(3, 1.0), "server_value > 0: 1 in round 3")


def test_rounds_that_are_rolled_back_are_evaluated_anew() -> None:
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
