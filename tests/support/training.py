"""A coordinator's core with a real ledger. The test plays participants and an aggregator that evaluate."""

from dataclasses import replace
from random import Random

from fedround.aggregator.evaluation import Candidate, Schedule
from fedround.aggregator.ledger import Ledger
from fedround.common.books import Admit, Answer, Call, Close, Closed, Evaluation, Newest, Open, Revoke, ServerEvaluation
from fedround.common.wire import HeartbeatState
from fedround.coordinator.plan import Memory, Plan
from fedround.coordinator.rounds import Rounds
from fedround.errors import Late, NotAdmitted, UnknownAttempt
from fedround.events import Evaluated, Fact, ServerEvaluated, TrainingCompleted


class Training:
    """Two rounds with three participants. Participant 2 cannot evaluate. The value of the model of round k is k.

    `function`: the aggregator's function. Its value is k + 100. It fails for models without a number.
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
        """Send a heartbeat of a participant. Register it first if the coordinator does not know it."""
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
        """Upload the requested update, with an evaluation if requested."""
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

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.rounds.tick(self.now)

    def all_deliver(self) -> None:
        for n in range(3):
            self.deliver(n)

    def wait(self, n: int) -> None:
        """Let time pass while only one participant sends heartbeats."""
        for _ in range(8):
            self.tick(10.0)
            self.beat(n)

    def evaluate(self, n: int) -> None:
        """End an evaluation by the aggregator. For 0 it fails."""
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
        """Kill the aggregator, and restart it with its newest model."""
        self.lives += 1
        self.schedule = Schedule()
        self.submit()
        self.ledger = Ledger(f"life-{self.lives}", self.ledger.newest)
        if self.rounds.attempt is not None:
            self.rounds.lost(self.rounds.attempt.id)
        self.work()

    def restart(self, _: int) -> None:
        """Kill the coordinator, and restart it with its saved state."""
        memory: Memory = self.rounds.memory
        self.facts += self.rounds.take_facts()
        self.lives += 1
        self.rounds = Rounds(self.plan, Random(f"{self.seed} {self.lives}"), self.now, memory)
        self.work()

    def work(self) -> None:
        """Make the calls that are due, and read the ledger."""
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
        """Complete the run without further faults."""
        for _ in range(200):
            if self.rounds.complete:
                return
            self.tick()
            self.all_deliver()
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
