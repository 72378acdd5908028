"""Evaluations in the coordinator's core with a real ledger: whatever happens, training ends, and no metric has another's model."""

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from fedround.aggregator.ledger import Ledger
from fedround.books import Admit, Answer, Call, Close, Closed, Evaluation, Newest, Open, Revoke
from fedround.coordinator.goal import Goal, Stop
from fedround.coordinator.plan import Memory, Plan
from fedround.coordinator.rounds import Rounds
from fedround.errors import Late, NotAdmitted, UnknownAttempt
from fedround.events import Evaluated, Fact, TrainingCompleted
from fedround.wire import HeartbeatState

STEPS = st.lists(st.tuples(st.sampled_from(["deliver", "leave", "wait", "lose", "restart"]), st.integers(0, 2)), max_size=30)


class Training:
    """Two rounds with three participants, of which number 2 cannot evaluate. The model of round k is evaluated with the value k."""

    def __init__(self, plan: Plan, seed: int = 0) -> None:
        self.plan, self.seed, self.lives = plan, seed, 0
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

    def lose(self, _: int) -> None:
        """The aggregator is killed, and back with its newest model."""
        self.lives += 1
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
            self.rounds.recorded(self.now, self.ledger.page(self.rounds.incarnation, self.rounds.after))
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
        assert dict(fact.figures) == {"value": -1.0 if fact.round is None else float(fact.round)}
        assert every > 0
    assert any(isinstance(fact, TrainingCompleted) for fact in training.facts)


def test_without_faults_the_final_model_is_evaluated_by_all_that_can() -> None:
    training = Training(replace(PLAN, min_clients=3))
    training.end()
    assert [(fact.round, len(fact.members)) for fact in training.evaluated] == [(None, 2), (0, 2), (1, 2)]
    (completed,) = (fact for fact in training.facts if isinstance(fact, TrainingCompleted))
    assert completed == TrainingCompleted(2)


def test_a_goal_that_is_reached_ends_the_run_with_its_reason() -> None:
    plan = replace(PLAN, rounds=9, goal=Goal("value", patience=5, stop=Stop("value", ">=", 1)))
    training = Training(plan)
    training.end()
    (completed,) = (fact for fact in training.facts if isinstance(fact, TrainingCompleted))
    assert completed == TrainingCompleted(3, "value >= 1: 1 in round 1")
    best = training.rounds.best
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
