import math
from random import Random

import pytest

from fedround import events
from fedround.common.books import Admit, Close, Difference, Entry, Measured, Newest, Open, Outcome, Page, Revoke, Verdict
from fedround.common.wire import MAX_METRICS, HeartbeatState
from fedround.coordinator.attempt import REVOKE_AGAIN
from fedround.coordinator.failed_attempts import PAUSE
from fedround.coordinator.history import MOST
from fedround.coordinator.plan import Memory, Plan
from fedround.coordinator.presence import MOST_MISSING, PROBE
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.seats import Known
from fedround.coordinator.status import status
from fedround.errors import IllegalMove
from support.table import LIFE, Table


def test_nobody_is_selected_before_enough_are_present() -> None:
    table = Table(Plan(min_clients=2), present=1)
    assert table.rests()
    assert status(table.rounds, table.now)["state"] == "waiting for participants: 1 of 2"
    table.join()
    table.due(Open)


def test_the_books_are_not_called_before_their_ledger_was_read() -> None:
    table = Table(Plan(), present=1, life="")
    assert table.rests()
    assert status(table.rounds, table.now)["state"] == "waiting for the aggregator"
    table.rounds.recorded(table.now, Page(LIFE, ()))
    table.due(Open)


def test_a_round_is_visible_only_when_the_books_have_admitted_its_tokens() -> None:
    table = Table(Plan(), present=1)
    (id,) = table.ids
    assert table.state(id) is HeartbeatState.STAND_BY
    assert table.rounds.start_training(id) is None
    call = table.open()
    answer = table.rounds.heartbeat(table.now, id)
    assert (answer.state, answer.round, answer.token) == (HeartbeatState.ROUND, 0, call.admissions[0].token)
    assert table.rounds.start_training(id) == call.admissions[0].token == table.rounds.start_training(id)


def test_the_share_that_is_selected_is_the_ratio_of_those_present() -> None:
    table = Table(Plan(participants_ratio=0.3, min_clients=10), present=10)
    assert len(table.open().admissions) == 3
    assert table.rounds.plan.required == 3


def test_a_late_comer_waits_for_the_next_round() -> None:
    table = Table(Plan(), present=1)
    table.open()
    late = table.join()
    assert table.state(late) is HeartbeatState.STAND_BY
    table.enter(table.ids[0])
    table.close()
    assert {a.id for a in table.open().admissions} == {late, table.ids[0]}


def test_a_round_ends_when_all_have_delivered() -> None:
    table = Table(Plan(rounds=2, min_clients=2), present=2)
    one, two = table.ids
    table.open()
    table.enter(one, samples=3, figures={"loss": 1.0})
    assert table.state(one) is HeartbeatState.STAND_BY
    assert table.rounds.heartbeat(table.now, one).counted == 0
    assert table.rests()
    table.enter(two, samples=1, figures={"loss": 3.0})
    table.now += 4
    table.close()
    (completed,) = table.facts(events.RoundCompleted)
    assert (completed.round, completed.samples, completed.parameters, completed.seconds) == (0, 4, 5, 4)
    assert completed.metrics == (("loss", 1.5),)
    assert table.rounds.round == 1


def test_figures_of_updates_without_samples_are_plain_means() -> None:
    table = Table(Plan(min_clients=3), present=3)
    table.open()
    table.enter(table.ids[0], samples=0, figures={"loss": 1.0})
    table.enter(table.ids[1], samples=0, figures={"loss": 2.0})
    table.enter(table.ids[2], samples=0)
    table.close()
    assert table.past().figures == {"loss": 1.5}


def test_of_the_figures_of_a_round_those_remain_that_most_have_reported() -> None:
    table = Table(Plan(min_clients=3), present=3)
    call = table.open()
    reports = [{f"mine {n}": 0.0 for n in range(200)}, {"loss": 1.0, "rmse": 2.0}, {"loss": 2.0, "rmse": 3.0}]
    entries = tuple(
        Entry(seq, call.attempt, id, Outcome.COUNTED, 1, report)
        for seq, (id, report) in enumerate(zip(table.ids, reports, strict=True), start=1)
    )
    table.rounds.recorded(table.now, Page(LIFE, entries))
    table.close()
    figures = table.past().figures
    assert (len(figures), figures["loss"], figures["rmse"]) == (MAX_METRICS, 1.5, 2.5)


def test_the_largest_figures_of_the_largest_updates_have_a_mean() -> None:
    table = Table(Plan(min_clients=3), present=3)
    table.open()
    for id in table.ids:
        table.enter(id, samples=2**32 - 1, figures={"loss": 1e290})
    table.close()
    assert table.past().figures["loss"] == pytest.approx(1e290)


def test_after_the_last_round_everybody_is_told_to_finish_and_nobody_joins() -> None:
    table = Table(Plan(rounds=1), present=1)
    table.open()
    table.enter(*table.ids)
    table.close()
    assert table.facts(events.TrainingCompleted) == [events.TrainingCompleted(1)]
    assert table.state(table.ids[0]) is HeartbeatState.FINISH
    assert table.state("a-stranger") is HeartbeatState.FINISH
    assert table.rounds.join(table.now, "late") is None
    assert table.rests()
    assert status(table.rounds, table.now)["state"] == "complete"
    table.later(1000)
    assert table.rounds.next_deadline() == math.inf


def test_a_training_without_an_end_goes_on() -> None:
    table = Table(Plan(rounds=0), present=1)
    for number in range(20):
        assert table.open().round == number
        table.enter(*table.ids)
        table.close()
    assert not table.rounds.complete


def test_strangers_are_rejected_and_have_nothing_to_leave() -> None:
    table = Table(Plan(), present=1)
    assert table.state("a-stranger") is HeartbeatState.REJECT
    assert table.rounds.start_training("a-stranger") is None
    assert not table.rounds.leave(table.now, "a-stranger")


def test_who_is_silent_is_gone_and_who_is_heard_stays() -> None:
    table = Table(Plan(min_clients=9, heartbeat_timeout=15), present=2)
    alive, silent = table.ids
    assert table.rounds.next_deadline() == table.now + 15
    table.later(10, alive)
    table.later(5)
    assert table.facts(events.ParticipantGone) == [events.ParticipantGone(silent, "silo-1", "silent")]
    assert table.state(silent) is HeartbeatState.REJECT
    assert table.state(alive) is HeartbeatState.STAND_BY


def test_nobody_is_taken_for_silent_because_the_coordinator_stood_still() -> None:
    table = Table(Plan(min_clients=9, heartbeat_timeout=15), present=2)
    table.now += 60
    table.rounds.suspended(table.now, 59)
    table.later(0)
    alive, silent = table.ids
    assert table.facts(events.ParticipantGone) == []
    table.later(14, alive)
    table.later(1)
    assert table.facts(events.ParticipantGone) == [events.ParticipantGone(silent, "silo-1", "silent")]


def test_the_deadline_is_later_by_the_time_for_which_the_coordinator_stood_still() -> None:
    table = Table(Plan(heartbeat_timeout=1000, round_timeout=60), present=1)
    table.open()
    table.later(10)
    table.now += 100
    table.rounds.suspended(table.now, 100)
    table.later(49.5)
    assert table.rounds.pending(table.now) is None
    table.later(0.5)
    assert table.revoke(Verdict.REVOKED) == table.ids[0]


def test_who_left_is_not_missed_later() -> None:
    table = Table(Plan(min_clients=9), present=2)
    table.rounds.leave(table.now, table.ids[0])
    table.later(1000)
    assert [f.reason for f in table.facts(events.ParticipantGone)] == ["left", "silent"]


def test_somebody_selected_who_leaves_is_revoked_before_the_round_ends_without_it() -> None:
    table = Table(Plan(participants_ratio=0.5, min_clients=3), present=3)
    table.open()
    assert table.rounds.attempt is not None
    stays, leaves = list(table.rounds.attempt.members)
    table.enter(stays)
    assert table.rests()
    assert table.rounds.leave(table.now, leaves)
    assert table.rounds.start_training(leaves) is None
    assert table.revoke(Verdict.REVOKED) == leaves
    assert table.facts(events.Revoked) == [events.Revoked(0, leaves, "left", f"silo-{table.ids.index(leaves)}", phase="selected")]
    call = table.due(Close)
    assert call.ids == (stays,)


def test_an_update_that_was_counted_before_its_revocation_counts() -> None:
    table = Table(Plan(participants_ratio=0.5, min_clients=2), present=2)
    (id,) = (a.id for a in table.open().admissions)
    table.rounds.leave(table.now, id)
    table.revoke(Verdict.COUNTED)
    assert table.rests()
    table.enter(id)
    call = table.due(Close)
    assert call.ids == (id,)


def test_an_entry_settles_a_revocation_that_is_still_on_its_way() -> None:
    table = Table(Plan(), present=1)
    table.open()
    table.rounds.leave(table.now, table.ids[0])
    call = table.due(Revoke)
    table.enter(table.ids[0])
    table.rounds.answered(table.now, call, Verdict.COUNTED)
    table.close()


def test_an_update_that_is_arriving_is_asked_for_again_a_little_later() -> None:
    table = Table(Plan(round_timeout=60, heartbeat_timeout=1000, min_clients=1), present=1)
    table.open()
    table.later(60)
    table.revoke(Verdict.RECEIVING)
    assert table.state(table.ids[0]) is HeartbeatState.ROUND
    assert table.rests()
    assert table.rounds.next_deadline() == table.now + REVOKE_AGAIN
    table.later(REVOKE_AGAIN)
    assert table.revoke(Verdict.REVOKED) == table.ids[0]


def test_others_are_chosen_when_too_few_are_left() -> None:
    table = Table(Plan(participants_ratio=0.5, min_clients=4), present=5)
    first = {a.id for a in table.open().admissions}
    assert len(first) == 2
    table.rounds.leave(table.now, next(iter(first)))
    table.revoke(Verdict.REVOKED)
    call = table.due(Admit)
    (chosen,) = {a.id for a in call.admissions}
    assert chosen not in first
    assert table.state(chosen) is HeartbeatState.STAND_BY
    table.rounds.answered(table.now, call, None)
    assert table.state(chosen) is HeartbeatState.ROUND


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
            table.rounds.leave(table.now, killed)
    again = table.join("silo-0", extended=True)
    table.rounds.leave(table.now, gone)
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
    table.rounds.leave(table.now, gone)
    table.revoke(Verdict.REVOKED)
    assert len(table.facts(events.AttemptDropped)) == 1
    table.later(PAUSE)
    assert {admission.id for admission in table.open().admissions} == {killed, again}


def test_two_of_one_name_who_are_both_heard_of_both_deliver() -> None:
    table = Table(Plan(min_clients=2, heartbeat_timeout=10))
    first, second = (table.join("a-laptop", extended=True) for _ in range(2))
    assert {admission.id for admission in table.open().admissions} == {first, second}
    table.enter(first)
    third = table.join("a-laptop", extended=True)
    table.later(9.0, first, second, third)
    table.later(1.0, first, second, third)
    table.rounds.leave(table.now, second)
    table.revoke(Verdict.REVOKED)
    assert chosen(table) == {third}


def test_somebody_who_leaves_while_the_books_admit_it_is_revoked() -> None:
    table = Table(Plan(), present=1)
    call = table.due(Open)
    table.rounds.leave(table.now, table.ids[0])
    assert table.rounds.next_deadline() > table.now
    table.rounds.answered(table.now, call, None)
    assert table.facts(events.Selected) == []
    assert table.revoke(Verdict.REVOKED) == table.ids[0]


def test_an_open_round_goes_on_below_the_minimum_and_waits_only_to_choose() -> None:
    table = Table(Plan(min_clients=3), present=3)
    table.open()
    one, two, three = table.ids
    table.enter(one)
    table.rounds.leave(table.now, three)
    table.revoke(Verdict.REVOKED)
    table.enter(two)
    assert table.rests()
    assert status(table.rounds, table.now)["state"] == "waiting for participants: 2 of 3"
    four = table.join()
    call = table.due(Admit)
    table.rounds.answered(table.now, call, None)
    table.enter(four)
    table.close()


def test_at_the_deadline_the_round_ends_with_those_who_delivered() -> None:
    table = Table(Plan(participants_ratio=0.5, min_clients=3, round_timeout=60, heartbeat_timeout=1000), present=3)
    fast, slow = (a.id for a in table.open().admissions)
    table.enter(fast)
    table.later(59)
    assert table.rests()
    assert table.rounds.next_deadline() == table.now + 1
    table.later(1)
    assert table.revoke(Verdict.REVOKED) == slow
    assert table.state(slow) is HeartbeatState.STAND_BY
    table.close()


def test_a_round_that_nobody_delivers_in_time_is_tried_anew_with_a_warning() -> None:
    table = Table(Plan(round_timeout=60, heartbeat_timeout=1000), present=1)
    first = table.open().attempt
    table.later(60)
    table.revoke(Verdict.REVOKED)
    (dropped,) = table.facts(events.AttemptDropped)
    assert "COORDINATOR_ROUND_TIMEOUT shorter than training" in dropped.reason
    assert table.rounds.next_deadline() == table.now + PAUSE
    assert status(table.rounds, table.now)["attempt"] is None
    table.later(PAUSE)
    again = table.open()
    assert again.attempt != first
    assert again.round == 0


def test_a_participant_that_joins_between_two_attempts_does_not_shorten_the_pause() -> None:
    table = Table(Plan(), present=1)
    table.open()
    table.enter(table.ids[0], outcome=Outcome.REFUSED)
    table.join()
    assert table.rests()


def test_a_refused_update_leaves_the_round_to_the_others() -> None:
    table = Table(Plan(participants_ratio=0.5, min_clients=3), present=3)
    bad, good = (a.id for a in table.open().admissions)
    table.enter(bad, outcome=Outcome.REFUSED)
    assert table.state(bad) is HeartbeatState.STAND_BY
    table.enter(good)
    table.close()
    assert table.rounds.round == 1


def test_a_round_in_which_every_update_is_refused_is_tried_anew() -> None:
    table = Table(Plan(), present=1)
    table.open()
    table.enter(table.ids[0], outcome=Outcome.REFUSED)
    (dropped,) = table.facts(events.AttemptDropped)
    assert "refused" in dropped.reason


def test_an_attempt_that_the_books_lost_begins_anew_when_their_ledger_is_read() -> None:
    table = Table(Plan(), present=1)
    first = table.open()
    table.rounds.lost(first.attempt)
    assert table.rests()
    table.rounds.recorded(table.now, Page("second-life", ()))
    table.later(PAUSE)
    second = table.open()
    assert second.attempt != first.attempt
    assert second.round == first.round
    table.rounds.lost(first.attempt)
    assert table.rounds.attempt is not None
    assert table.rounds.attempt.id == second.attempt


def test_books_of_another_life_have_lost_the_attempt() -> None:
    table = Table(Plan(min_clients=2), present=2)
    first = table.open()
    table.enter(table.ids[0])
    table.rounds.recorded(table.now, Page("second-life", ()))
    assert table.rounds.after == 0
    table.later(PAUSE)
    assert table.open().attempt != first.attempt


def test_books_of_another_life_before_any_attempt_change_nothing() -> None:
    table = Table(Plan(min_clients=2), present=1)
    table.rounds.recorded(table.now, Page("second-life", ()))
    assert table.facts(events.AttemptDropped) == []


def test_a_round_whose_model_the_books_of_another_life_have_is_completed() -> None:
    table = Table(Plan(rounds=1), present=1)
    attempt = table.open().attempt
    table.enter(*table.ids, samples=3)
    table.rounds.take_facts()
    table.rounds.recorded(table.now, Page("second-life", (), Newest(0, parameters=5)))
    completed, over = table.rounds.take_facts()
    assert isinstance(completed, events.RoundCompleted)
    assert (completed.attempt, completed.samples, completed.parameters) == (attempt, 3, 5)
    assert over == events.TrainingCompleted(1)
    assert table.state(table.ids[0]) is HeartbeatState.FINISH


@pytest.mark.parametrize(("newest", "lost"), [(None, True), (1, True), (2, False), (3, False)])
def test_it_is_told_when_the_books_do_not_have_the_model_of_the_last_round(newest: int | None, lost: bool) -> None:
    core = Rounds(Plan(rounds=3), Random(1), memory=Memory(3))
    core.recorded(0, Page(LIFE, (), None if newest is None else Newest(newest, parameters=5)))
    told = [fact for fact in core.take_facts() if isinstance(fact, events.ModelsLost)]
    assert told == ([events.ModelsLost(2, newest)] if lost else [])


def known(*ids: str, owed: int) -> tuple[Known, ...]:
    return tuple(Known(id, id, n, extended=True, counted=owed - 1, owed=owed) for n, id in enumerate(ids))


@pytest.mark.parametrize(("newest", "rounds", "complete"), [(6, 10, False), (6, 7, True), (9, 0, False)])
def test_a_coordinator_that_comes_back_goes_on_behind_the_newest_model(newest: int, rounds: int, complete: bool) -> None:
    core = Rounds(Plan(rounds=rounds), Random(1), memory=Memory(4, known("anna", owed=4)))
    core.recorded(0, Page(LIFE, (), Newest(newest, parameters=5)))
    assert (core.round, core.complete) == (newest + 1, complete)
    assert ([type(fact) for fact in core.take_facts()] == [events.TrainingCompleted]) is complete
    call = core.pending(0)
    assert call is None if complete else isinstance(call, Open) and call.round == newest + 1


def test_who_may_have_delivered_before_a_restart_is_asked_again_before_others() -> None:
    ids = [f"silo-{n}" for n in range(20)]
    memory = Memory(4, known(*ids[:3], owed=4) + known(*ids[3:], owed=3))
    core = Rounds(Plan(participants_ratio=0.1, min_clients=20), Random(1), memory=memory)
    core.recorded(0, Page(LIFE, ()))
    call = core.pending(0)
    assert isinstance(call, Open)
    assert {admission.id for admission in call.admissions} == set(ids[:3])
    assert {p.id for p in core.memory.participants if p.owed == 4} == set(ids[:3])


def test_who_has_a_part_in_the_round_is_remembered_to_have_it_whether_it_delivered_or_not() -> None:
    table = Table(Plan(participants_ratio=0.5, min_clients=4), present=4)
    table.open()
    assert table.rounds.attempt is not None
    members = set(table.rounds.attempt.members)
    table.enter(min(members))
    assert {p.id for p in table.rounds.memory.participants if p.owed == 0} == members
    assert len(members) == 2


def test_the_grace_after_a_restart_is_over_with_the_first_word() -> None:
    core = Rounds(Plan(min_clients=99, heartbeat_timeout=15), Random(1), memory=Memory(0, known("heard", "silent", owed=0)))
    core.heartbeat(1, "heard", idle=True)
    assert core.next_deadline() == 16
    core.tick(16)
    assert [p.id for p in core.present] == ["silent"]
    core.heartbeat(20, "silent", idle=True)
    core.heartbeat(22, "silent", idle=True)
    core.tick(36)
    assert [p.id for p in core.present] == ["silent"]
    core.tick(37)
    assert [p.id for p in core.present] == []


def test_who_had_a_part_in_a_lost_attempt_is_asked_again_before_others_unless_it_lost_the_part_before() -> None:
    table = Table(Plan(participants_ratio=0.1, min_clients=20), present=20)
    refused, member = (admission.id for admission in table.open().admissions)
    table.enter(refused, outcome=Outcome.REFUSED)
    call = table.due(Admit)
    table.rounds.answered(table.now, call, None)
    # Both who have a part now may have been told that their updates were counted, though no entry was read.
    table.rounds.recorded(table.now, Page("second-life", ()))
    table.later(PAUSE)
    members = {member, call.admissions[0].id}
    assert {admission.id for admission in table.open().admissions} == members
    assert {p.id for p in table.rounds.memory.participants if p.owed == 0} == members


def test_a_difference_in_the_books_drops_the_attempt() -> None:
    table = Table(Plan(), present=1)
    table.open()
    table.enter(*table.ids)
    call = table.due(Close)
    table.rounds.answered(table.now, call, Difference(frozenset(table.ids), frozenset()))
    assert len(table.facts(events.AttemptDropped)) == 1


def test_an_answer_for_an_attempt_that_is_over_changes_nothing() -> None:
    table = Table(Plan(), present=1)
    first = table.open()
    table.rounds.lost(first.attempt)
    table.rounds.recorded(table.now, Page("second-life", ()))
    table.later(PAUSE)
    table.rounds.answered(table.now, first, None)
    assert table.rounds.attempt is not None
    assert not table.rounds.attempt.opened


def test_an_answer_of_the_wrong_kind_is_an_illegal_move_that_changes_nothing() -> None:
    table = Table(Plan(), present=1)
    call = table.due(Open)
    with pytest.raises(IllegalMove, match="Verdict is not possible in Open"):
        table.rounds.answered(table.now, call, Verdict.REVOKED)
    assert table.rounds.pending(table.now) == call


def test_a_revocation_answered_twice_counts_once() -> None:
    table = Table(Plan(participants_ratio=0.5, min_clients=2), present=3)
    table.open()
    assert table.rounds.attempt is not None
    table.rounds.leave(table.now, next(iter(table.rounds.attempt.members)))
    call = table.due(Revoke)
    table.rounds.answered(table.now, call, Verdict.REVOKED)
    table.rounds.answered(table.now, call, Verdict.REVOKED)
    assert len(table.facts(events.Revoked)) == 1


def test_entries_are_read_once_and_only_for_the_open_attempt() -> None:
    table = Table(Plan(min_clients=2), present=2)
    attempt = table.open().attempt
    entry = Entry(1, attempt, table.ids[0], Outcome.COUNTED, 1)
    for _ in range(2):
        table.rounds.recorded(table.now, Page(LIFE, (entry,)))
    table.rounds.recorded(table.now, Page(LIFE, (Entry(2, "another", table.ids[1], Outcome.COUNTED, 1),)))
    table.rounds.recorded(table.now, Page(LIFE, (Entry(3, attempt, "a-stranger", Outcome.COUNTED, 1),)))
    assert len(table.facts(events.UpdateCounted)) == 1
    assert table.rounds.after == 3


def test_an_update_of_somebody_who_is_gone_counts() -> None:
    table = Table(Plan(), present=1)
    table.open()
    table.rounds.leave(table.now, table.ids[0])
    table.enter(*table.ids)
    table.close()
    assert table.past().counted == len(table.ids)


def test_the_books_are_told_once_whom_to_forget() -> None:
    table = Table(Plan(rounds=4), present=2)
    gone, stays = table.ids
    table.open()
    table.enter(gone)
    table.close()
    table.open()
    table.rounds.leave(table.now, gone)
    table.rounds.leave(table.now, table.join("was never chosen"))
    table.revoke(Verdict.REVOKED)
    table.enter(stays)
    table.close()
    assert table.open().forget == (gone,)
    table.enter(stays)
    table.close()
    assert table.open().forget == ()


def test_who_fell_silent_is_missed_until_it_is_back_or_an_hour_is_over() -> None:
    table = Table(Plan(min_clients=99), present=3)

    def missing() -> dict[str, float]:
        return {gone["name"]: gone["seconds"] for gone in status(table.rounds, table.now)["missing"]}

    stays, leaves, _ = table.ids
    table.rounds.leave(table.now, leaves)
    assert (len(table.rounds.present), status(table.rounds, table.now)["joined"]) == (2, 3)
    table.later(20, stays)
    table.later(10, stays)
    assert missing() == {"silo-2": 10}
    table.join("silo-2")
    assert missing() == {}
    table.later(20, stays)
    for _ in range(370):
        table.later(10, stays)
    assert missing() == {}
    assert set(table.rounds.present.missing(table.now - 1000)) == {"silo-2"}


def test_who_was_killed_and_is_back_at_once_is_not_missed_when_its_former_id_falls_silent() -> None:
    table = Table(Plan(min_clients=99), present=1)
    table.later(5)
    back = table.join("silo-0")
    table.later(14, back)
    assert [gone.reason for gone in table.facts(events.ParticipantGone)] == ["silent"]
    assert status(table.rounds, table.now)["missing"] == []
    table.rounds.leave(table.now, back)
    assert status(table.rounds, table.now)["missing"] == []


def test_the_missing_are_bounded() -> None:
    table = Table(Plan(min_clients=9999, shared_seats=9999))
    for number in range(MOST_MISSING + 1):
        table.join(f"silo-{number}")
    table.later(20)
    assert len(table.rounds.present.missing(table.now)) == MOST_MISSING


def test_who_was_told_to_finish_is_not_missed() -> None:
    table = Table(Plan(rounds=1), present=1)
    table.open()
    table.enter(*table.ids)
    table.close()
    assert table.state(table.ids[0]) is HeartbeatState.FINISH
    table.later(20)
    assert [gone.reason for gone in table.facts(events.ParticipantGone)] == ["left"]
    assert status(table.rounds, table.now)["missing"] == []


def test_while_the_aggregator_does_not_answer_the_state_says_so() -> None:
    table = Table(Plan(), present=1)
    table.open()
    assert status(table.rounds, table.now)["state"] == "training"
    assert status(table.rounds, table.now, reachable=False)["state"] == "waiting for the aggregator"


def test_a_round_tells_how_many_were_counted_and_how_many_lost_it() -> None:
    table = Table(Plan(min_clients=3, participants_ratio=0.8), present=3)
    gone, *stay = table.ids
    table.open()
    table.rounds.leave(table.now, gone)
    table.revoke(Verdict.REVOKED)
    table.enter(*stay)
    table.close()
    (done,) = status(table.rounds, table.now)["last_rounds"]
    assert (done["counted"], done["dropped"]) == (2, 1)


def test_the_last_rounds_are_remembered_over_a_restart_with_what_their_models_are_like() -> None:
    table = Table(Plan(rounds=0), present=1)
    for number in range(MOST + 2):
        table.open()
        table.enter(*table.ids, figures={"loss": 1 / (number + 1)})
        table.close()
        # A page may come late, and tells of several; of a round that is forgotten, or not over, there is nothing to tell.
        measured = tuple(Measured(n, {"mean": float(n)}) for n in (number - 1, number, number + 1))
        table.rounds.recorded(table.now, Page(LIFE, (), measured=measured))
    back = Rounds(Plan(rounds=0), Random(1), memory=table.rounds.memory)
    before, after = (status(rounds, 0)["last_rounds"] for rounds in (table.rounds, back))
    assert after == before
    assert [past["round"] for past in after] == list(range(2, MOST + 2))
    assert [past["weights"]["mean"] for past in after] == [past["round"] for past in after]
    assert after[-1]["figures"] == {"loss": 1 / (MOST + 2)}


def test_an_ordinal_is_the_lowest_free_one_or_the_one_held_before() -> None:
    table = Table(Plan(min_clients=99), present=3)
    ordinals = {p.id: p.ordinal for p in table.rounds.present}
    assert list(ordinals.values()) == [0, 1, 2]
    table.rounds.leave(table.now, table.ids[1])
    assert table.rounds.present.get(table.join(extended=True, ordinal=0)).ordinal == 1  # type: ignore[union-attr]  # just joined
    assert table.rounds.present.get(table.join(extended=True, ordinal=7)).ordinal == 7  # type: ignore[union-attr]  # just joined
    assert table.rounds.present.get(table.join()).ordinal == 3  # type: ignore[union-attr]  # just joined


def test_the_status_shows_who_takes_part_without_whole_ids() -> None:
    table = Table(Plan(participants_ratio=0.5, min_clients=2), present=2)
    table.open()
    table.now += 1.5
    shown = status(table.rounds, table.now)
    assert shown["state"] == "training"
    assert {p["state"] for p in shown["participants"]} == {"selected", "waiting"}
    assert {p["seconds_since_contact"] for p in shown["participants"]} == {1.5}
    assert not any(id in str(shown) for id in table.ids)
    assert table.rounds.attempt is not None
    (id,) = table.rounds.attempt.members
    table.enter(id, figures={"loss": 0.5})
    table.close()
    assert status(table.rounds, table.now)["last_rounds"][0]["figures"] == {"loss": 0.5}


def rolled_back(table: Table, newest: int, generation: int) -> None:
    table.rounds.recorded(table.now, Page(f"generation-{generation}", (), Newest(newest, 5), generation=generation))


def after_rounds(count: int, plan: Plan) -> Table:
    """A table where so many rounds are completed, and the next one is open unless that was the last."""
    table = Table(plan, present=1)
    for _ in range(count):
        table.open()
        table.enter(*table.ids)
        table.close()
    return table


def test_after_a_rollback_the_round_behind_the_newest_model_is_next() -> None:
    table = after_rounds(5, Plan(rounds=8))
    (id,) = table.ids
    attempt = table.open().attempt
    table.rounds.take_facts()
    rolled_back(table, 2, 1)
    assert table.facts(events.RolledBack) == [events.RolledBack(5, 2)]
    assert table.rounds.round == 3
    answer = table.rounds.heartbeat(table.now, id)
    assert (answer.state, answer.counted) == (HeartbeatState.STAND_BY, 2)
    assert [past["round"] for past in status(table.rounds, table.now)["last_rounds"]] == [0, 1, 2]
    assert [past.get("rollbacks") for past in status(table.rounds, table.now)["last_rounds"]] == [None, None, 1]
    call = table.due(Open)
    assert (call.round, call.attempt != attempt) == (3, True)


def test_a_rollback_makes_a_complete_training_go_on() -> None:
    table = after_rounds(3, Plan(rounds=3))
    (id,) = table.ids
    assert table.state(id) is HeartbeatState.FINISH
    assert table.rounds.join(table.now, "late") is None
    rolled_back(table, 0, 1)
    assert table.state(id) is HeartbeatState.STAND_BY
    assert table.open().round == 1


def test_a_rollback_to_the_newest_model_voids_the_open_attempt_alone() -> None:
    table = after_rounds(2, Plan())
    (id,) = table.ids
    table.open()
    rolled_back(table, 1, 1)
    assert (table.rounds.round, table.rounds.memory.participants[0].owed) == (2, 2)
    assert table.rounds.heartbeat(table.now, id).counted == 1
    rolled_back(table, 0, 2)
    assert table.rounds.memory.participants[0].owed == 1


def test_a_rollback_while_the_coordinator_was_away_is_seen_by_the_generation() -> None:
    memory = after_rounds(5, Plan()).rounds.memory
    assert memory.generation == 0
    back = Rounds(Plan(), Random(1), 0.0, memory)
    back.recorded(0.0, Page("life", (), Newest(2, 5), generation=1))
    assert (back.round, back.memory.generation) == (3, 1)
    assert [type(fact) for fact in back.take_facts()] == [events.RolledBack]
    assert [past.round for past in back.history] == [0, 1, 2]


@pytest.mark.parametrize("generation", [0, 3])
def test_a_coordinator_that_remembers_nothing_goes_on_from_the_newest_model(generation: int) -> None:
    fresh = Rounds(Plan(), Random(1))
    fresh.recorded(0.0, Page("life", (), Newest(4, 5), generation=generation))
    assert (fresh.round, fresh.take_facts()) == (5, [])


def test_models_of_an_earlier_generation_are_lost_ones_and_no_rollback() -> None:
    table = after_rounds(3, Plan())
    rolled_back(table, 1, 2)
    table.rounds.take_facts()
    table.rounds.recorded(table.now, Page("restored", (), Newest(0, 5), generation=1))
    assert table.facts(events.ModelsLost) == [events.ModelsLost(1, 0)]
    assert table.rounds.round == 2
