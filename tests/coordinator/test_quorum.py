"""Rounds that do not wait for the slowest participant."""

from dataclasses import replace
from random import Random

import pytest

from fedround import events
from fedround.common.books import Admit, Close, Outcome, Revoke, Verdict
from fedround.common.wire import HeartbeatState
from fedround.coordinator.attempt import LATE, REVOKE_AGAIN
from fedround.coordinator.plan import UPLOAD_GRACE, Plan
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.status import status
from support.table import Table

PLAN = Plan(rounds=0, min_clients=2, round_timeout=60, heartbeat_timeout=1000, quorum=2)


def participant(table: Table, id: str) -> dict[str, int]:
    (shown,) = [p for p in table.status()["participants"] if p["id"] == id[:8]]
    return {name: shown[name] for name in ("selected_rounds", "counted_rounds", "failures")}


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


def test_a_quorum_is_never_below_the_minimum_of_every_round() -> None:
    plan = Plan(min_clients=6, participants_ratio=0.5, quorum=0.1)
    assert (plan.required, plan.effective_quorum(10, 5)) == (3, 3)
    assert plan.effective_quorum(10, 2) == 3, "where too few were selected, others come first"


def test_a_quorum_below_min_clients_is_one_warning() -> None:
    table = Table(Plan(rounds=0, min_clients=10, quorum=0.8), 10)
    for _ in range(3):
        table.play()
    assert table.facts(events.QuorumRaised) == [events.QuorumRaised(1, asked=8, selected=10, min_clients=10)]
    effective = Table(Plan(rounds=0, min_clients=8, quorum=0.8), 10)
    for _ in range(3):
        effective.play()
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
def test_overselection_adds_participants_and_the_quorum_is_the_number_without_it(
    ratio: float, overselect: float, present: int, selected: int, enough: int | None
) -> None:
    table = Table(Plan(min_clients=present, participants_ratio=ratio, overselect=overselect), present)
    assert table.rounds.attempt is not None
    assert (len(table.open().admissions), table.rounds.attempt.quorum) == (selected, enough)


@pytest.mark.parametrize(("overselect", "quorum", "selected", "enough"), [(0.6, 0.5, 8, 4), (0.3, None, 4, 4)])
def test_with_overselection_the_quorum_depends_on_the_number_that_is_selected(
    overselect: float, quorum: float | None, selected: int, enough: int
) -> None:
    assert Plan(participants_ratio=0.5, overselect=overselect, quorum=quorum).effective_quorum(10, selected) == enough


def test_a_round_closes_without_participants_slower_than_the_quorum() -> None:
    table = Table(PLAN, present=2, extended=True)
    slow = table.join("slow", extended=True)
    one, two = table.ids
    table.play()
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


def three(plan: Plan = PLAN) -> tuple[Table, list[str]]:
    """A table with three participants. The quorum of two is counted, and the third participant is slow."""
    table = Table(plan, present=2, extended=True)
    table.ids.append(table.join("slow", extended=True))
    table.play(*table.ids[:2])
    table.open()
    table.enter(*table.ids[:2])
    return table, table.ids


def test_an_update_within_the_grace_counts() -> None:
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


def test_the_next_update_does_not_restart_the_grace() -> None:
    table = Table(replace(PLAN, min_clients=4, participants_ratio=0.5, overselect=1.0, quorum_grace=5.0), present=4)
    assert len(table.open().admissions) == 4
    one, two, three, four = table.ids
    table.enter(one, two)
    table.later(4)
    table.enter(three)
    assert table.rounds.next_deadline() == table.now + 1
    table.later(1)
    assert table.revoke(Verdict.REVOKED) == four


def test_the_grace_does_not_extend_the_round_time_out_which_is_a_failure() -> None:
    table, ids = three(replace(PLAN, quorum_grace=100.0))
    table.later(60)
    assert table.due(Revoke).patience == UPLOAD_GRACE
    table.revoke(Verdict.REVOKED)
    assert [fact.reason for fact in table.facts(events.Revoked)] == ["deadline"]
    assert participant(table, ids[2])["failures"] == 1


def test_an_update_that_was_counted_as_the_grace_ended_counts() -> None:
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


def test_a_participant_with_a_counted_update_is_not_revoked_at_the_quorum() -> None:
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


def test_an_update_that_arrives_after_its_deadline_has_only_the_grace() -> None:
    table = Table(replace(PLAN, quorum_grace=2.5), present=2, extended=True)
    table.ids.append(table.join("slow", extended=True))
    table.play(*table.ids[:2])
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


def test_without_a_grace_a_revoked_upload_is_cut_off_at_the_quorum() -> None:
    table = Table(PLAN, present=2, extended=True)
    table.ids.append(table.join("leaves", extended=True))
    table.play(*table.ids[:2])
    table.open()
    table.leave(table.ids[2])
    assert table.due(Revoke).patience == UPLOAD_GRACE
    table.revoke(Verdict.RECEIVING)
    assert table.rests()
    table.enter(*table.ids[:2])
    assert table.due(Revoke).patience == 0
    table.revoke(Verdict.REVOKED)
    table.close()


def test_a_participant_that_leaves_in_the_grace_does_not_extend_it() -> None:
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


def test_a_suspension_of_the_coordinator_extends_the_grace() -> None:
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


def test_a_quorum_that_can_no_longer_be_reached_delays_nothing() -> None:
    table = Table(replace(PLAN, quorum=3), present=2)
    table.ids.append(table.join())
    table.play(*table.ids[:2])
    table.open()
    table.leave(table.ids[2])
    table.revoke(Verdict.REVOKED)
    table.enter(*table.ids[:2])
    table.close()


def test_the_counts_of_a_participant_survive_a_restart() -> None:
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
