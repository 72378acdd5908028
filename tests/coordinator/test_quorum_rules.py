"""Quorums with participants that behave at random, and with the aggregator's real ledger."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedround import events
from fedround.aggregator.ledger import Ledger, Upload
from fedround.common.books import Admit, Answer, Call, Close, Closed, Newest, Open, Revoke
from fedround.coordinator.attempt import LATE
from fedround.coordinator.plan import UPLOAD_GRACE, Plan
from fedround.coordinator.rounds import Rounds
from fedround.errors import Busy, Late, NotAdmitted, UnknownAttempt

PLAN = Plan(rounds=0, min_clients=2, round_timeout=60, heartbeat_timeout=1000, quorum=2)


@dataclass
class Silo:
    """A silo that does `deed` this many seconds `after` it is selected. Its upload takes further seconds."""

    deed: str
    after: int
    takes: int
    id: str = ""
    token: str | None = None
    told: float = 0.0
    receipt: Upload | None = None

    def act(self, rounds: Rounds, ledger: Ledger, now: float) -> None:
        """Act, once a second."""
        if self.deed == "falls silent" and self.token is not None and now >= self.told + self.after:
            return
        try:
            answer = rounds.heartbeat(now, self.id)
        except Busy:
            return
        if answer.token is None or answer.token != self.token:
            self.abort(ledger)
            self.token, self.told = answer.token, now
        if self.token is None or now < self.told + self.after:
            return
        if self.deed in ("leaves", "fails"):
            self.abort(ledger)
            rounds.leave(now, self.id, "it failed" if self.deed == "fails" else "")
        elif self.deed == "delivers" or self.deed == "delivers nonsense":
            self.upload(ledger, now)

    def upload(self, ledger: Ledger, now: float) -> None:
        try:
            if self.receipt is None:
                self.receipt = ledger.begin(self.id, self.token or "", now=now, length=self.takes + 1)
            else:
                ledger.receive(self.receipt, 1)
            if now < self.told + self.after + self.takes or not ledger.countable(self.receipt):
                return
        except (Late, NotAdmitted):
            self.abort(ledger)
            return
        if self.deed == "delivers":
            ledger.count(self.receipt, 1, {})
        else:
            ledger.refuse(self.receipt)
        self.receipt = None

    def abort(self, ledger: Ledger) -> None:
        if self.receipt is not None:
            ledger.abort(self.receipt)
            self.receipt = None


def carry_out(ledger: Ledger, call: Call, now: float) -> Answer:
    match call:
        case Open():
            ledger.open(call.attempt, call.round, call.admissions, call.forget)
        case Admit():
            ledger.admit(call.attempt, call.admissions)
        case Revoke():
            return ledger.revoke(call.attempt, call.id, call.patience, now)
        case Close():
            difference = ledger.close(call.attempt, call.ids)
            ledger.newest = Newest(call_round(ledger), 1)
            return difference or Closed(1)
    return None


def call_round(ledger: Ledger) -> int:
    assert ledger.attempt is not None
    return ledger.attempt.round


silos = st.lists(
    st.builds(
        Silo,
        deed=st.sampled_from(["delivers", "delivers", "delivers", "delivers nonsense", "hangs", "leaves", "fails", "falls silent"]),
        after=st.integers(0, 70),
        takes=st.sampled_from([0, 1, 3, 20]),
    ),
    min_size=1,
    max_size=8,
)


plans = st.builds(
    Plan,
    rounds=st.just(0),
    participants_ratio=st.sampled_from([0.3, 0.5, 1.0]),
    min_clients=st.integers(1, 4),
    round_timeout=st.just(60.0),
    heartbeat_timeout=st.just(15.0),
    quorum=st.none() | st.sampled_from([0.25, 0.5, 0.8, 1.0, 2.0, 3.0, 100.0]),
    quorum_grace=st.sampled_from([0.0, 1.0, 5.0, 100.0]),
    overselect=st.sampled_from([0.0, 0.0, 0.3, 1.0, 10.0]),
)


EXAMPLES = 1000 if os.environ.get("CI") else 100


LONGEST = 60.0 + UPLOAD_GRACE
"""Maximum seconds from a selection until the participant has no part in the round."""


@pytest.mark.timeout(300)
@settings(max_examples=EXAMPLES, deadline=None)
@given(plan=plans, silos=silos, seed=st.integers(0, 2**16))
@example(
    plan=replace(PLAN, heartbeat_timeout=15, quorum=0.6),
    silos=[Silo("delivers", 1, 0), Silo("delivers", 1, 0), Silo("hangs", 0, 0)],
    seed=0,
)
@example(  # two are still uploading at the deadline when the first of them completes the quorum
    plan=replace(PLAN, min_clients=3, participants_ratio=0.7, heartbeat_timeout=15),
    silos=[Silo("delivers", 1, 0), Silo("delivers", 58, 5), Silo("delivers", 58, 20)],
    seed=0,
)
def test_whatever_participants_do_a_quorum_ends_the_round_in_agreement_with_the_ledger(
    plan: Plan, silos: Sequence[Silo], seed: int
) -> None:
    rounds, ledger, now = Rounds(plan, Random(seed)), Ledger("life"), 0.0
    here = [replace(silo) for silo in silos]
    for n, silo in enumerate(here):
        joined = rounds.join(now, f"silo-{n}", extended=True)
        assert joined is not None
        silo.id = joined.id
    watch = Watch(plan)
    for second in range(200):
        now = float(second)
        for silo in here:
            silo.act(rounds, ledger, now)
        rounds.recorded(now, ledger.page(rounds.incarnation, rounds.after))
        rounds.tick(now)
        while (call := rounds.pending(now)) is not None:
            before = None if rounds.attempt is None else set(rounds.attempt.members)
            try:
                answer = carry_out(ledger, call, now)
            except UnknownAttempt:
                rounds.lost(call.attempt)
                break
            rounds.answered(now, call, answer)
            watch.called(call, answer, ledger, before)
            rounds.recorded(now, ledger.page(rounds.incarnation, rounds.after))
            rounds.tick(now)
        watch.after_a_second(now, rounds, ledger)


class Watch:
    """The invariants, checked each second."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.quorum: tuple[str, float, frozenset[str]] | None = None
        """The attempt with a counted quorum, the time of that, and its members then."""
        self.selected: dict[str, float] = {}
        """Time of the last selection, by attempt."""

    def called(self, call: Call, answer: Answer, ledger: Ledger, before: set[str] | None) -> None:
        if isinstance(call, Close):
            assert isinstance(answer, Closed)
            assert ledger.attempt is not None
            assert tuple(ledger.attempt.counted) == call.ids
            assert len(call.ids) >= self.plan.required
        if isinstance(call, Open | Admit) and self.quorum is not None:
            assert call.attempt != self.quorum[0], "nobody is selected after the quorum"

    def after_a_second(self, now: float, rounds: Rounds, ledger: Ledger) -> None:
        facts, attempt = rounds.take_facts(), rounds.attempt
        for fact in facts:
            if isinstance(fact, events.Revoked):
                assert fact.reason != LATE or self.plan.quorum is not None or self.plan.overselect
        assert LATE not in {record.reason for record in rounds.reliability}
        assert not any(fact.reason == LATE for fact in facts if isinstance(fact, events.SatOut))
        if attempt is None:
            return
        if any(isinstance(fact, events.Selected) for fact in facts):
            self.selected[attempt.id] = now
        assert now - self.selected.get(attempt.id, now) <= LONGEST + 1 or not attempt.outstanding
        counted = ledger.attempt.counted if ledger.attempt is not None and ledger.attempt.id == attempt.id else {}
        if attempt.quorum is None or len(counted) < attempt.quorum:
            return
        assert attempt.quorum >= self.plan.required
        if self.quorum is None or self.quorum[0] != attempt.id:
            self.quorum = attempt.id, now, frozenset(attempt.members)
        _, since, members = self.quorum
        assert members == attempt.members.keys()
        assert now < since + self.plan.quorum_grace, "the grace is over: the round is closed in the same second"
