"""Participants that leave or restart during a round, and the revocations that follow."""

import pytest

from fedround import events
from fedround.common.books import Admit, Close, Open, Revoke, Verdict
from fedround.common.wire import HeartbeatState
from fedround.coordinator.attempt import REVOKE_AGAIN
from fedround.coordinator.failed_attempts import PAUSE
from fedround.coordinator.plan import Plan
from fedround.coordinator.presence import PROBE
from support.table import Table


def test_a_selected_participant_that_leaves_is_revoked_before_the_round_ends() -> None:
    table = Table(Plan(participants_ratio=0.5, min_clients=3), present=3)
    table.open()
    assert table.rounds.attempt is not None
    stays, leaves = list(table.rounds.attempt.members)
    table.enter(stays)
    assert table.rests()
    assert table.leave(leaves)
    assert table.rounds.start_training(leaves) is None
    assert table.revoke(Verdict.REVOKED) == leaves
    assert table.facts(events.Revoked) == [events.Revoked(0, leaves, "left", f"silo-{table.ids.index(leaves)}", phase="selected")]
    call = table.due(Close)
    assert call.ids == (stays,)


def test_an_update_that_was_counted_before_its_revocation_counts() -> None:
    table = Table(Plan(participants_ratio=0.5, min_clients=2), present=2)
    (id,) = (a.id for a in table.open().admissions)
    table.leave(id)
    table.revoke(Verdict.COUNTED)
    assert table.rests()
    table.enter(id)
    call = table.due(Close)
    assert call.ids == (id,)


def test_a_ledger_entry_settles_a_pending_revocation() -> None:
    table = Table(Plan(), present=1)
    table.open()
    table.leave(table.ids[0])
    call = table.due(Revoke)
    table.enter(table.ids[0])
    table.rounds.answered(table.now, call, Verdict.COUNTED)
    table.close()


def test_the_revocation_of_an_update_that_is_arriving_is_repeated() -> None:
    table = Table(Plan(round_timeout=60, heartbeat_timeout=1000, min_clients=1), present=1)
    table.open()
    table.later(60)
    table.revoke(Verdict.RECEIVING)
    assert table.state(table.ids[0]) is HeartbeatState.ROUND
    assert table.rests()
    assert table.rounds.next_deadline() == table.now + REVOKE_AGAIN
    table.later(REVOKE_AGAIN)
    assert table.revoke(Verdict.REVOKED) == table.ids[0]


def chosen(table: Table) -> set[str]:
    call = table.rounds.pending(table.now)
    return {admission.id for admission in call.admissions} if isinstance(call, Open | Admit) else set()


@pytest.mark.parametrize("delivered", [True, False])
@pytest.mark.parametrize("left", [True, False])
def test_a_participant_that_restarts_does_not_deliver_twice_in_a_round(delivered: bool, left: bool) -> None:
    table = Table(Plan(min_clients=3, heartbeat_timeout=10), present=3, extended=True)
    table.open()
    killed, gone, stays = table.ids
    if delivered:
        table.enter(killed)
        if left:
            table.leave(killed)
    again = table.join("silo-0", extended=True)
    table.leave(gone)
    assert table.revoke(Verdict.REVOKED) == gone
    other = table.join("silo-1", extended=True)
    assert chosen(table) == {other}, "whose former life has nothing to deliver any more"
    table.admit()
    assert table.state(again) is HeartbeatState.STAND_BY
    table.enter(stays, other)
    table.later(PROBE, stays, other, again)
    assert killed not in table.rounds.present
    if delivered:
        table.due(Close)
    else:
        assert table.revoke(Verdict.REVOKED) == killed
        assert chosen(table) == {again}


def test_a_participant_that_restarts_is_selected_in_the_next_attempt_if_nobody_else_is_there() -> None:
    table = Table(Plan(min_clients=2, heartbeat_timeout=10), present=2, extended=True)
    table.open()
    killed, gone = table.ids
    table.enter(killed)
    again = table.join("silo-0", extended=True)
    table.leave(gone)
    table.revoke(Verdict.REVOKED)
    assert len(table.facts(events.AttemptDropped)) == 1
    table.later(PAUSE)
    assert {admission.id for admission in table.open().admissions} == {killed, again}


def test_two_live_participants_with_one_name_both_deliver() -> None:
    table = Table(Plan(min_clients=2, heartbeat_timeout=10))
    first, second = (table.join("a-laptop", extended=True) for _ in range(2))
    assert {admission.id for admission in table.open().admissions} == {first, second}
    table.enter(first)
    third = table.join("a-laptop", extended=True)
    table.later(9.0, first, second, third)
    table.later(1.0, first, second, third)
    table.leave(second)
    table.revoke(Verdict.REVOKED)
    assert chosen(table) == {third}


def test_a_participant_that_leaves_during_its_admission_is_revoked() -> None:
    table = Table(Plan(), present=1)
    call = table.due(Open)
    table.leave(table.ids[0])
    assert table.rounds.next_deadline() > table.now
    table.rounds.answered(table.now, call, None)
    assert table.facts(events.Selected) == []
    assert table.revoke(Verdict.REVOKED) == table.ids[0]


def test_a_revocation_that_is_answered_twice_counts_once() -> None:
    table = Table(Plan(participants_ratio=0.5, min_clients=2), present=3)
    table.open()
    assert table.rounds.attempt is not None
    table.leave(next(iter(table.rounds.attempt.members)))
    call = table.due(Revoke)
    table.rounds.answered(table.now, call, Verdict.REVOKED)
    table.rounds.answered(table.now, call, Verdict.REVOKED)
    assert len(table.facts(events.Revoked)) == 1


def test_an_update_of_a_participant_that_left_counts() -> None:
    table = Table(Plan(), present=1)
    table.open()
    table.leave(table.ids[0])
    table.enter(*table.ids)
    table.close()
    assert table.past().counted == len(table.ids)


def test_the_aggregator_is_told_once_which_participants_left() -> None:
    table = Table(Plan(rounds=4), present=2)
    gone, stays = table.ids
    table.play(gone)
    table.open()
    table.leave(gone)
    table.leave(table.join("was never chosen"))
    table.revoke(Verdict.REVOKED)
    table.enter(stays)
    table.close()
    assert table.open().forget == (gone,)
    table.enter(stays)
    table.close()
    assert table.open().forget == ()
