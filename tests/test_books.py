"""The cores of coordinator and aggregator together, with every event interleaved at random."""

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedround.aggregator.ledger import MOST_AT_ONCE, Upload
from fedround.common.books import Admit, Call, Open
from fedround.common.wire import HeartbeatState
from fedround.coordinator.attempt import State
from fedround.coordinator.plan import Memory, Plan
from fedround.coordinator.rounds import Rounds
from fedround.errors import Busy, Late, NotAdmitted, UnknownAttempt
from fedround.events import RoundCompleted
from support.accounts import Accounts

finite = st.floats(-1e6, 1e6)


@dataclass
class Silo:
    name: str
    owner: str = ""
    """Its proved identity."""
    extended: bool = True
    id: str | None = None
    token: str | None = None
    """The token that it received last. It uses this token until it is refused."""
    used: str | None = None
    """The token it used last."""
    uploads: list[Upload] = field(default_factory=list)


class Federation(RuleBasedStateMachine):
    """Any sequence of steps. At the end all behave, and a round must end."""

    @initialize(
        ratio=st.sampled_from([0.5, 1.0]),
        min_clients=st.integers(1, 3),
        seed=st.integers(0, 2**16),
        durable=st.booleans(),
        quorum=st.sampled_from([None, None, 0.5, 2.0]),
        grace=st.sampled_from([0.0, 3.0]),
        overselect=st.sampled_from([0.0, 0.0, 0.5]),
    )
    def begin(
        self, ratio: float, min_clients: int, seed: int, durable: bool, quorum: float | None, grace: float, overselect: float
    ) -> None:
        self.plan = Plan(
            rounds=0,
            participants_ratio=ratio,
            min_clients=min_clients,
            round_timeout=60,
            quorum=quorum,
            quorum_grace=grace,
            overselect=overselect,
        )
        self.rng = Random(seed)
        self.now = 0.0
        self.aggregator = Accounts(durable=durable)
        self.rounds = Rounds(self.plan, self.rng)
        self.memory = Memory()
        """The state on the coordinator's disk."""
        self.completed: list[RoundCompleted] = []
        # A participant of 0.8, one with a name, and two that prove their identity.
        self.silos = [
            Silo("silo-0", extended=False),
            Silo("silo-1"),
            Silo("silo-2", "anna"),
            Silo("silo-3", "bert", extended=False),
        ]
        self.identities: dict[str, str] = {}
        """Of the ids of participants that are recognised: whose they are."""
        self.sent: list[Call] = []
        for n in range(len(self.silos)):
            self.join(n)
            self.heartbeat(n)
        self.read_the_ledger(lost=False)

    silo = st.integers(0, 3)

    # Events at participants

    @rule(n=silo)
    def join(self, n: int) -> None:
        """Restart a participant: its old upload may still arrive, but the old process sends no heartbeat."""
        silo = self.silos[n]
        participant = self.rounds.join(self.now, silo.name, extended=silo.extended, owner=silo.owner)
        assert participant is not None
        self.silos[n] = replace(silo, id=participant.id, token=None, used=None)
        if silo.owner or silo.extended:
            self.identities[participant.id] = silo.owner or silo.name

    @rule(n=silo)
    def a_stranger_registers_under_its_name(self, n: int) -> None:
        self.rounds.join(self.now, self.silos[n].name, extended=self.silos[n].extended)

    @rule(n=silo)
    def heartbeat(self, n: int) -> None:
        silo = self.silos[n]
        if silo.id is None:
            return
        try:
            answer = self.rounds.heartbeat(self.now, silo.id)
        except Busy:
            return
        if answer.state is HeartbeatState.ROUND:
            silo.token = answer.token
        elif answer.state is HeartbeatState.REJECT:
            self.silos[n] = replace(silo, id=None, token=None, used=None)

    @rule(n=silo, failure=st.sampled_from(["", "RuntimeError in train_round"]))
    def leave(self, n: int, failure: str) -> None:
        if (id := self.silos[n].id) is not None:
            self.rounds.leave(self.now, id, failure)

    @rule(n=silo)
    def begin_upload(self, n: int) -> None:
        silo = self.silos[n]
        if silo.id is None or silo.token is None:
            return
        try:
            silo.uploads.append(self.aggregator.ledger.begin(silo.id, silo.token, silo.owner, now=self.now, length=1000))
            silo.used = silo.token
        except (Late, NotAdmitted):
            silo.token = None
        except Busy:
            pass  # it has sent so many requests that it must wait

    @rule(n=silo)
    def deliver_again_what_was_counted(self, n: int) -> None:
        """xain-sdk 0.8.0 may do this at any time, and exits if it is refused."""
        silo = self.silos[n]
        if silo.id is None or silo.used is None:
            return
        counted = silo.id in self.rounds.present and silo.used in self.aggregator.counted_tokens
        if counted and len(silo.uploads) < MOST_AT_ONCE:
            receipt = self.aggregator.ledger.begin(silo.id, silo.used, silo.owner)
            assert receipt.repeated
            self.aggregator.ledger.abort(receipt)

    @rule(n=silo, samples=st.sampled_from([0, 1, 3, 2**32 - 1]), value=finite)
    def end_upload(self, n: int, samples: int, value: float) -> None:
        for receipt in self.take_uploads(n):
            try:
                countable = self.aggregator.ledger.countable(receipt)
            except Late:
                countable = False
            if countable:
                self.aggregator.fold(receipt, samples, value)
            else:
                self.aggregator.ledger.abort(receipt)

    @rule(n=silo, size=st.sampled_from([1, 500, 999]))
    def a_piece_of_an_upload_comes(self, n: int, size: int) -> None:
        for receipt in tuple(self.silos[n].uploads):
            try:
                self.aggregator.ledger.receive(receipt, size)
            except Late:
                self.aggregator.ledger.abort(receipt)
                self.silos[n].uploads.remove(receipt)

    @rule(n=silo)
    def cut_upload(self, n: int) -> None:
        for receipt in self.take_uploads(n):
            self.aggregator.ledger.abort(receipt)

    @rule(n=silo)
    def upload_nonsense(self, n: int) -> None:
        for receipt in self.take_uploads(n):
            self.aggregator.ledger.refuse(receipt)

    def take_uploads(self, n: int) -> list[Upload]:
        uploads, self.silos[n].uploads = self.silos[n].uploads, []
        return uploads

    # Events between coordinator and aggregator

    @rule(fate=st.sampled_from(["answered", "answered", "request lost", "answer lost"]))
    def call_the_aggregator(self, fate: str) -> None:
        call = self.rounds.pending(self.now)
        if call is None or fate == "request lost":
            return
        if isinstance(call, Open | Admit):
            self.write_down()
        self.sent.append(call)
        try:
            answer = self.aggregator.carry_out(call)
        except UnknownAttempt:
            self.rounds.lost(call.attempt)
            return
        if fate == "answered":
            self.rounds.answered(self.now, call, answer)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def an_old_call_arrives_once_more(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.sent))
        with suppress(UnknownAttempt):
            self.aggregator.carry_out(call)

    @rule(lost=st.booleans())
    def read_the_ledger(self, lost: bool) -> None:
        page = self.aggregator.page(self.rounds.incarnation, self.rounds.after)
        if not lost:
            self.rounds.recorded(self.now, page)

    @rule()
    def patience_runs_out(self) -> None:
        """Uploads with a counted update get a response, even if the coordinator does not know about them."""
        self.aggregator.answer()

    @rule()
    def lose_the_sum(self) -> None:
        for n in range(len(self.silos)):
            self.cut_upload(n)
        self.aggregator.lose()

    @precondition(lambda self: self.aggregator.durable and self.aggregator.rounds)
    @rule(data=st.data(), known=st.booleans())
    def roll_back(self, data: st.DataObject, known: bool) -> None:
        number = data.draw(st.sampled_from(self.aggregator.rounds))
        for n in range(len(self.silos)):
            self.cut_upload(n)
        self.aggregator.roll_back(number)
        if known:
            self.read_the_ledger(lost=False)
            assert self.rounds.round == number + 1

    @rule()
    def restart_the_aggregator(self) -> None:
        for n in range(len(self.silos)):
            self.cut_upload(n)
        self.aggregator.restart()

    @rule()
    def write_down(self) -> None:
        self.memory = self.rounds.memory

    @rule()
    def restart_the_coordinator(self) -> None:
        self.rounds = Rounds(self.plan, self.rng, self.now, self.memory if self.aggregator.durable else Memory())

    @rule(n=silo, value=finite, fate=st.sampled_from(["known", "unknown", "aggregator dies", "coordinator dies"]))
    def one_delivers(self, n: int, value: float, fate: str) -> None:
        """All steps of a round at once: otherwise few sequences would reach a second round."""
        if self.silos[n].id is None:
            self.join(n)
        self.heartbeat(n)
        for _ in range(2):
            self.read_the_ledger(lost=False)
            self.call_the_aggregator("answered")
        self.heartbeat(n)
        self.begin_upload(n)
        self.end_upload(n, 1, value)
        if fate == "known":
            self.read_the_ledger(lost=False)
        else:
            self.patience_runs_out()
        if fate == "aggregator dies":
            self.restart_the_aggregator()
        elif fate == "coordinator dies":
            self.restart_the_coordinator()

    @rule(n=silo, seconds=st.sampled_from([0.0, 1.0, 4.0]), gone=st.booleans())
    def one_delivers_and_restarts_and_the_others_fail(self, n: int, seconds: float, gone: bool) -> None:
        """Then its new life is the only one left to select, and would be counted twice."""
        self.one_delivers(n, 1.0, "known")
        if gone:
            self.leave(n, "")
        self.join(n)
        self.heartbeat(n)
        for other in range(len(self.silos)):
            if other != n:
                self.heartbeat(other)
                self.begin_upload(other)
                self.upload_nonsense(other)
        self.read_the_ledger(lost=False)
        self.time_passes(seconds)
        self.heartbeat(n)
        for _ in range(4):
            self.call_the_aggregator("answered")
        self.heartbeat(n)
        self.begin_upload(n)
        self.end_upload(n, 1, 1.0)

    @rule()
    def all_behave_for_a_second(self) -> None:
        for n in range(len(self.silos)):
            if self.silos[n].id is None:
                self.join(n)
            self.heartbeat(n)
            self.begin_upload(n)
            self.end_upload(n, 1, 1.0)
        for _ in range(5):
            self.read_the_ledger(lost=False)
            self.call_the_aggregator("answered")
        self.time_passes(1.0)

    @rule(seconds=st.sampled_from([1.0, 5.0, 16.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.aggregator.now = self.now
        self.rounds.tick(self.now)

    # Invariants

    @invariant()
    def a_round_with_a_model_is_never_trained_again(self) -> None:
        if self.aggregator.durable:
            assert self.aggregator.rounds == list(range(len(self.aggregator.rounds)))

    @invariant()
    def an_update_answered_with_200_is_in_the_model_or_was_requested_again(self) -> None:
        if self.aggregator.durable and self.aggregator.last:
            attempt, ids = self.aggregator.last
            told = self.aggregator.answered.get(self.aggregator.rounds[-1], set())
            assert {id for id in told if id in self.rounds.present} <= set(ids) | self.aggregator.asked[attempt]

    @invariant()
    def an_update_counts_at_most_once(self) -> None:
        for entries in self.aggregator.folded.values():
            ids = [id for id, _, _ in entries]
            assert len(ids) == len(set(ids))

    @invariant()
    def an_identity_counts_at_most_once_in_a_round(self) -> None:
        for entries in self.aggregator.folded.values():
            identities = [self.identities[id] for id, _, _ in entries if id in self.identities]
            assert len(identities) == len(set(identities))

    @invariant()
    def an_identity_has_one_seat(self) -> None:
        owners = [participant.owner for participant in self.rounds.present if participant.owner]
        assert len(owners) == len(set(owners))

    @invariant()
    def a_completed_round_is_what_the_aggregator_closed(self) -> None:
        self.completed += [fact for fact in self.rounds.take_facts() if isinstance(fact, RoundCompleted)]
        for completed in self.completed:
            assert frozenset(self.aggregator.closed[completed.attempt]) == frozenset(completed.ids)
            assert len(completed.ids) >= self.plan.required

    @invariant()
    def no_participant_is_selected_after_the_quorum(self) -> None:
        attempt = self.rounds.attempt
        if attempt is not None and attempt.quorum is not None and len(attempt.counted) >= attempt.quorum:
            assert not attempt.by_state[State.CHOSEN]

    @invariant()
    def a_late_participant_has_not_failed(self) -> None:
        assert "late" not in {record.reason for record in self.rounds.reliability}

    def teardown(self) -> None:
        if hasattr(self, "rounds"):
            for n in range(len(self.silos)):
                self.cut_upload(n)
                self.join(n)
            self.read_the_ledger(lost=False)
            before = self.rounds.round
            for _ in range(int(self.plan.round_timeout + self.plan.heartbeat_timeout) + 10):
                self.all_behave_for_a_second()
            assert self.rounds.round > before
            assert {silo.id for silo in self.silos} <= {p.id for p in self.rounds.present}


# In CI: 200,000 steps in total.
EXAMPLES = 2000 if os.environ.get("CI") else 200


Federation.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=100, deadline=None)


test_any_interleaving_of_coordinator_aggregator_and_participants = pytest.mark.timeout(900)(Federation.TestCase)
