"""Rounds that do not wait for the slowest participant."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedround import events
from fedround.aggregator.ledger import Ledger, Upload
from fedround.common.books import Admit, Answer, Call, Close, Closed, Newest, Open, Outcome, Revoke, Verdict
from fedround.common.wire import HeartbeatState
from fedround.coordinator.attempt import LATE, REVOKE_AGAIN
from fedround.coordinator.plan import UPLOAD_GRACE, Plan
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.status import status
from fedround.errors import Busy, Late, NotAdmitted, UnknownAttempt
from support.table import Table

PLAN = Plan(rounds=0, min_clients=2, round_timeout=60, heartbeat_timeout=1000, quorum=2)


def participant(table: Table, id: str) -> dict[str, int]:
    (shown,) = [p for p in table.status()["participants"] if p["id"] == id[:8]]
    return {name: shown[name] for name in ("selected_rounds", "counted_rounds", "failures")}


# The numbers


@pytest.mark.parametrize(
    ("quorum", "selected", "enough"),
    [
        (0.8, 10, 8),
        (0.8, 9, 8),
        (0.8, 1, 1),
        (0.7, 10, 7),
        (1e-9, 10, 1),
        (1, 10, 10),
        (2, 10, 2),
        (10, 10, 10),
        (11, 10, 10),
        (None, 10, None),
    ],
)
def test_a_quorum_is_a_share_of_the_selected_or_a_number(quorum: float | None, selected: int, enough: int | None) -> None:
    assert Plan(quorum=quorum).effective_quorum(10, selected) == enough


def test_a_quorum_is_never_below_what_every_round_requires() -> None:
    plan = Plan(min_clients=6, participants_ratio=0.5, quorum=0.1)
    assert (plan.required, plan.effective_quorum(10, 5)) == (3, 3)
    assert plan.effective_quorum(10, 2) == 3, "where too few were selected, others come first"


def test_a_quorum_that_min_clients_makes_ineffective_is_a_warning_once() -> None:
    table = Table(Plan(rounds=0, min_clients=10, quorum=0.8), 10)
    for _ in range(3):
        play_all(table)
    assert table.facts(events.QuorumRaised) == [events.QuorumRaised(1, asked=8, selected=10, min_clients=10)]
    effective = Table(Plan(rounds=0, min_clients=8, quorum=0.8), 10)
    for _ in range(3):
        play_all(effective)
    assert effective.facts(events.QuorumRaised) == []


@pytest.mark.parametrize(
    ("ratio", "overselect", "present", "selected", "enough"),
    [
        (0.5, 0.0, 10, 5, None),
        (0.5, 0.3, 10, 7, 5),
        (0.5, 0.2, 10, 6, 5),
        (0.5, 10.0, 10, 10, 5),
        (1.0, 0.3, 10, 10, 10),
        (0.1, 0.01, 3, 2, 1),
    ],
)
def test_an_overselection_is_added_to_the_ratio_and_the_quorum_is_the_number_without_it(
    ratio: float, overselect: float, present: int, selected: int, enough: int | None
) -> None:
    table = Table(Plan(min_clients=present, participants_ratio=ratio, overselect=overselect), present)
    assert table.rounds.attempt is not None
    assert (len(table.open().admissions), table.rounds.attempt.quorum) == (selected, enough)


def test_with_both_the_quorum_is_a_share_of_all_that_were_selected() -> None:
    assert Plan(participants_ratio=0.5, overselect=0.6, quorum=0.5).effective_quorum(10, 8) == 4


def test_with_fewer_selected_than_wanted_all_of_them_are_the_quorum() -> None:
    assert Plan(participants_ratio=0.5, overselect=0.3).effective_quorum(10, 4) == 4


# The end of a round


def test_a_round_closes_without_those_that_are_slower_than_the_quorum() -> None:
    table = Table(PLAN, present=2, extended=True)
    slow = table.join("slow", extended=True)
    one, two = table.ids
    play_all(table)
    table.open()
    table.enter(one)
    table.later(0)
    assert table.rests()
    table.enter(two)
    assert table.rounds.next_deadline() == table.now
    table.later(0)
    assert table.state(slow) is HeartbeatState.ROUND, "until the books have answered"
    assert table.due(Revoke).patience == 0
    assert table.revoke(Verdict.REVOKED) == slow
    assert table.state(slow) is HeartbeatState.STAND_BY
    assert table.due(Close).ids == (one, two)
    table.close()
    facts = table.rounds.take_facts()
    assert [(f.id, f.reason) for f in facts if isinstance(f, events.Revoked)] == [(slow, LATE)]
    assert [(f.dropped, f.late, len(f.ids)) for f in facts if isinstance(f, events.RoundCompleted)] == [(0, 0, 2), (0, 1, 2)]
    assert [fact for fact in facts if isinstance(fact, events.SatOut)] == []
    assert participant(table, slow) == {"selected_rounds": 1, "counted_rounds": 0, "failures": 0}
    assert participant(table, one) == {"selected_rounds": 2, "counted_rounds": 2, "failures": 0}
    assert [past["late"] for past in table.status()["last_rounds"]] == [0, 1]


def play_all(table: Table) -> None:
    """A round of those that were there at its beginning."""
    table.play()


def three(plan: Plan = PLAN) -> tuple[Table, list[str]]:
    """A table with three participants, whose quorum of two is counted: the third is slow."""
    table = Table(plan, present=2, extended=True)
    table.ids.append(table.join("slow", extended=True))
    table.play(*table.ids[:2])
    table.open()
    table.enter(*table.ids[:2])
    return table, table.ids


def test_the_others_have_the_grace_and_who_delivers_within_it_counts() -> None:
    table, ids = three(replace(PLAN, quorum_grace=5.0))
    assert table.rounds.next_deadline() == table.now + 5
    table.later(4.9)
    assert table.rests()
    table.enter(ids[2])
    assert table.due(Close).ids == tuple(ids)
    table.close()
    assert participant(table, ids[2]) == {"selected_rounds": 1, "counted_rounds": 1, "failures": 0}


def test_after_the_grace_the_round_closes() -> None:
    table, ids = three(replace(PLAN, quorum_grace=5.0))
    table.later(5)
    assert table.revoke(Verdict.REVOKED) == ids[2]
    table.close()


def test_a_grace_does_not_begin_anew_with_the_next_update() -> None:
    table = Table(replace(PLAN, min_clients=4, participants_ratio=0.5, overselect=1.0, quorum_grace=5.0), present=4)
    assert len(table.open().admissions) == 4
    one, two, three, four = table.ids
    table.enter(one, two)
    table.later(4)
    table.enter(three)
    assert table.rounds.next_deadline() == table.now + 1
    table.later(1)
    assert table.revoke(Verdict.REVOKED) == four


def test_a_grace_does_not_prolong_the_time_out_of_a_round_whose_end_is_a_failure() -> None:
    table, ids = three(replace(PLAN, quorum_grace=100.0))
    table.later(60)
    assert table.due(Revoke).patience == UPLOAD_GRACE
    table.revoke(Verdict.REVOKED)
    assert [fact.reason for fact in table.facts(events.Revoked)] == ["deadline"]
    assert participant(table, ids[2])["failures"] == 1


def test_an_update_that_was_counted_when_the_grace_ended_counts() -> None:
    table, ids = three()
    table.later(0)
    assert table.revoke(Verdict.COUNTED) == ids[2]
    assert table.rests()
    table.later(30)
    assert table.rests(), "its entry is on the way"
    table.enter(ids[2])
    assert table.due(Close).ids == tuple(ids)
    table.close()
    assert table.facts(events.Revoked) == []


def test_one_that_is_known_to_be_counted_is_not_revoked_when_the_quorum_is() -> None:
    table = Table(replace(PLAN, min_clients=1, quorum=2), present=1, extended=True)
    table.ids += [table.join("one", extended=True), table.join("two", extended=True)]
    table.play(table.ids[0])
    table.open()
    table.leave(table.ids[2])
    table.revoke(Verdict.COUNTED)
    table.enter(*table.ids[:2])
    table.later(0)
    assert table.rests()
    table.enter(table.ids[2])
    table.due(Close)


def test_an_update_that_is_arriving_after_its_deadline_is_not_waited_for_beyond_the_grace() -> None:
    table = Table(replace(PLAN, quorum_grace=2.5), present=2, extended=True)
    table.ids.append(table.join("slow", extended=True))
    play_all_but(table, table.ids[2])
    table.open()
    one, two, slow = table.ids
    table.later(60, *table.ids)
    assert {table.revoke(Verdict.RECEIVING) for _ in range(3)} == {one, two, slow}
    table.enter(one, two)
    patience = []
    for _ in range(4):
        table.later(table.rounds.next_deadline() - table.now)
        patience.append(table.due(Revoke).patience)
        table.revoke(Verdict.RECEIVING if patience[-1] else Verdict.REVOKED)
        if not patience[-1]:
            break
    assert patience == [2.5 - REVOKE_AGAIN, 2.5 - 2 * REVOKE_AGAIN, 0]
    assert [fact.reason for fact in table.facts(events.Revoked)] == ["deadline"], "which was before the quorum"
    table.close()


def play_all_but(table: Table, slow: str) -> None:
    table.play(*(id for id in table.ids if id != slow))


def test_without_a_grace_one_that_is_being_revoked_is_cut_when_the_quorum_is_counted() -> None:
    table = Table(PLAN, present=2, extended=True)
    table.ids.append(table.join("leaves", extended=True))
    play_all_but(table, table.ids[2])
    table.open()
    table.leave(table.ids[2])
    assert table.due(Revoke).patience == UPLOAD_GRACE
    table.revoke(Verdict.RECEIVING)
    assert table.rests()
    table.enter(*table.ids[:2])
    assert table.due(Revoke).patience == 0
    table.revoke(Verdict.REVOKED)
    table.close()


def test_a_departure_in_the_grace_is_a_departure_and_does_not_prolong_it() -> None:
    table, ids = three(replace(PLAN, quorum_grace=5.0))
    table.leave(ids[2], "out of memory")
    assert table.due(Revoke).patience == 5
    table.revoke(Verdict.REVOKED)
    assert [fact.reason for fact in table.facts(events.Revoked)] == ["failed"]
    table.close()


def test_a_refused_update_of_a_late_participant_is_a_failure() -> None:
    table, ids = three()
    table.later(0)
    table.enter(ids[2], outcome=Outcome.REFUSED)
    table.close()
    assert participant(table, ids[2])["failures"] == 1


def test_while_the_coordinator_was_suspended_no_grace_passed() -> None:
    table, ids = three(replace(PLAN, quorum_grace=5.0))
    table.now += 100
    table.rounds.suspended(table.now, 100)
    table.later(4.9)
    assert table.rests()
    table.later(0.1)
    assert table.revoke(Verdict.REVOKED) == ids[2]
    assert [fact.reason for fact in table.facts(events.Revoked)] == [LATE]


def test_a_participant_that_leaves_before_the_quorum_is_replaced_and_after_it_is_not() -> None:
    table = Table(replace(PLAN, min_clients=4, participants_ratio=0.5, quorum_grace=5.0), present=5)
    first = {a.id for a in table.open().admissions}
    assert len(first) == 2
    table.leave(first.pop())
    table.revoke(Verdict.REVOKED)
    (again,) = (a.id for a in table.due(Admit).admissions)
    table.admit()
    table.enter(*first, again)
    assert table.due(Close).ids == (*first, again)


def test_a_quorum_that_cannot_be_reached_any_more_delays_nothing() -> None:
    table = Table(replace(PLAN, quorum=3), present=2)
    table.ids.append(table.join())
    play_all_but(table, table.ids[2])
    table.open()
    table.leave(table.ids[2])
    table.revoke(Verdict.REVOKED)
    table.enter(*table.ids[:2])
    table.close()


def test_how_often_a_participant_was_counted_is_remembered_over_a_restart() -> None:
    table, ids = three()
    table.later(0)
    table.revoke(Verdict.REVOKED)
    table.close()
    table.rounds = Rounds(PLAN, Random(1), table.now, table.rounds.memory)
    assert participant(table, ids[0]) == {"selected_rounds": 2, "counted_rounds": 2, "failures": 0}
    assert participant(table, ids[2]) == {"selected_rounds": 1, "counted_rounds": 0, "failures": 0}


def test_the_status_shows_the_quorum_of_the_attempt() -> None:
    table, _ = three()
    shown = table.status()
    assert (shown["required"], shown["quorum"]) == (2, 2)
    assert status(Rounds(PLAN, Random(1)), 0)["quorum"] is None


# Any behaviour, with the aggregator's real ledger


@dataclass
class Silo:
    """Does what `deed` says `after` so many seconds in each round that selects it, and takes so many more for its upload."""

    deed: str
    after: int
    takes: int
    id: str = ""
    token: str | None = None
    told: float = 0.0
    receipt: Upload | None = None

    def act(self, rounds: Rounds, ledger: Ledger, now: float) -> None:
        """Do what is due: once a second."""
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
"""Seconds from a selection to the end of a part, at most."""


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
def test_whatever_participants_do_a_quorum_ends_the_round_and_the_ledger_says_who_is_in_it(
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
    """What has to hold, second by second."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.quorum: tuple[str, float, frozenset[str]] | None = None
        """The attempt whose quorum was counted, when, and who had a part in it then."""
        self.selected: dict[str, float] = {}
        """When the last participant of an attempt was selected."""

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
