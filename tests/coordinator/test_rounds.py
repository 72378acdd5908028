"""The coordinator's rounds: the selection, the end of a round, and attempts that it retries."""

import math

import pytest

from fedround import events
from fedround.common.books import Admit, Close, Difference, Entry, Open, Outcome, Page, Verdict
from fedround.common.wire import MAX_METRICS, HeartbeatState
from fedround.coordinator.failed_attempts import PAUSE
from fedround.coordinator.plan import Plan
from fedround.coordinator.status import status
from fedround.errors import IllegalMove
from support.table import LIFE, Table


def test_no_participant_is_selected_before_enough_are_present() -> None:
    table = Table(Plan(min_clients=2), present=1)
    assert table.rests()
    assert table.status()["state"] == "waiting for participants: 1 of 2"
    table.join()
    table.due(Open)


def test_the_aggregator_is_not_called_before_its_ledger_was_read() -> None:
    table = Table(Plan(), present=1, life="")
    assert table.rests()
    assert table.status()["state"] == "waiting for the aggregator"
    table.rounds.recorded(table.now, Page(LIFE, ()))
    table.due(Open)


def test_a_participant_sees_its_round_once_the_aggregator_admitted_its_token() -> None:
    table = Table(Plan(), present=1)
    (id,) = table.ids
    assert table.state(id) is HeartbeatState.STAND_BY
    assert table.rounds.start_training(id) is None
    call = table.open()
    answer = table.rounds.heartbeat(table.now, id)
    assert (answer.state, answer.round, answer.token) == (HeartbeatState.ROUND, 0, call.admissions[0].token)
    assert table.rounds.start_training(id) == call.admissions[0].token == table.rounds.start_training(id)


def test_the_selected_share_is_the_ratio_of_the_present_participants() -> None:
    table = Table(Plan(participants_ratio=0.3, min_clients=10), present=10)
    assert len(table.open().admissions) == 3
    assert table.rounds.plan.required == 3


def test_a_participant_that_joins_late_waits_for_the_next_round() -> None:
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


@pytest.mark.parametrize(
    ("samples", "losses", "mean"),
    [((3, 1), (1.0, 3.0), 1.5), ((0, 0, 0), (1.0, 2.0, None), 1.5), ((2**32 - 1,) * 3, (1e290,) * 3, 1e290)],
)
def test_a_metric_of_a_round_is_the_mean_weighted_by_samples(
    samples: tuple[int, ...], losses: tuple[float | None, ...], mean: float
) -> None:
    table = Table(Plan(min_clients=len(samples)), present=len(samples))
    table.open()
    for id, count, loss in zip(table.ids, samples, losses, strict=True):
        table.enter(id, samples=count, figures={} if loss is None else {"loss": loss})
    table.close()
    assert table.past().figures == {"loss": pytest.approx(mean)}


def test_a_round_keeps_the_metrics_that_most_participants_reported() -> None:
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


def test_after_the_last_round_participants_finish_and_registrations_are_refused() -> None:
    table = Table(Plan(rounds=1), present=1)
    table.play()
    assert table.facts(events.TrainingCompleted) == [events.TrainingCompleted(1)]
    assert table.state(table.ids[0]) is HeartbeatState.FINISH
    assert table.state("a-stranger") is HeartbeatState.FINISH
    assert table.rounds.join(table.now, "late") is None
    assert table.rests()
    assert table.status()["state"] == "complete"
    table.later(1000)
    assert table.rounds.next_deadline() == math.inf


def test_with_rounds_0_the_training_never_ends() -> None:
    table = Table(Plan(rounds=0), present=1)
    for number in range(20):
        assert table.open().round == number
        table.enter(*table.ids)
        table.close()
    assert not table.rounds.complete


def test_an_unknown_id_is_rejected_and_cannot_leave() -> None:
    table = Table(Plan(), present=1)
    assert table.state("a-stranger") is HeartbeatState.REJECT
    assert table.rounds.start_training("a-stranger") is None
    assert not table.leave("a-stranger")


def test_a_suspension_of_the_coordinator_extends_the_deadline() -> None:
    table = Table(Plan(heartbeat_timeout=1000, round_timeout=60), present=1)
    table.open()
    table.later(10)
    table.now += 100
    table.rounds.suspended(table.now, 100)
    table.later(49.5)
    assert table.rounds.pending(table.now) is None
    table.later(0.5)
    assert table.revoke(Verdict.REVOKED) == table.ids[0]


def test_other_participants_are_selected_when_too_few_are_left() -> None:
    table = Table(Plan(participants_ratio=0.5, min_clients=4), present=5)
    first = {a.id for a in table.open().admissions}
    assert len(first) == 2
    table.leave(next(iter(first)))
    table.revoke(Verdict.REVOKED)
    call = table.due(Admit)
    (chosen,) = {a.id for a in call.admissions}
    assert chosen not in first
    assert table.state(chosen) is HeartbeatState.STAND_BY
    table.rounds.answered(table.now, call, None)
    assert table.state(chosen) is HeartbeatState.ROUND


def test_an_open_round_continues_below_the_minimum_but_selects_no_others() -> None:
    table = Table(Plan(min_clients=3), present=3)
    table.open()
    one, two, three = table.ids
    table.enter(one)
    table.leave(three)
    table.revoke(Verdict.REVOKED)
    table.enter(two)
    assert table.rests()
    assert table.status()["state"] == "waiting for participants: 2 of 3"
    four = table.join()
    call = table.due(Admit)
    table.rounds.answered(table.now, call, None)
    table.enter(four)
    table.close()


def test_at_the_deadline_the_round_ends_with_the_delivered_updates() -> None:
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


def test_a_round_without_an_update_in_time_is_retried_with_a_warning() -> None:
    table = Table(Plan(round_timeout=60, heartbeat_timeout=1000), present=1)
    first = table.open().attempt
    table.later(60)
    table.revoke(Verdict.REVOKED)
    (dropped,) = table.facts(events.AttemptDropped)
    assert "COORDINATOR_ROUND_TIMEOUT shorter than training" in dropped.reason
    assert table.rounds.next_deadline() == table.now + PAUSE
    assert table.status()["attempt"] is None
    table.later(PAUSE)
    again = table.open()
    assert again.attempt != first
    assert again.round == 0


def test_a_new_participant_does_not_shorten_the_delay_between_attempts() -> None:
    table = Table(Plan(), present=1)
    table.open()
    table.enter(table.ids[0], outcome=Outcome.REFUSED)
    table.join()
    assert table.rests()


def test_the_round_continues_without_a_refused_update() -> None:
    table = Table(Plan(participants_ratio=0.5, min_clients=3), present=3)
    bad, good = (a.id for a in table.open().admissions)
    table.enter(bad, outcome=Outcome.REFUSED)
    assert table.state(bad) is HeartbeatState.STAND_BY
    table.enter(good)
    table.close()
    assert table.rounds.round == 1


def test_a_round_whose_updates_are_all_refused_is_retried() -> None:
    table = Table(Plan(), present=1)
    table.open()
    table.enter(table.ids[0], outcome=Outcome.REFUSED)
    (dropped,) = table.facts(events.AttemptDropped)
    assert "refused" in dropped.reason


def test_a_difference_in_the_ledger_drops_the_attempt() -> None:
    table = Table(Plan(), present=1)
    table.open()
    table.enter(*table.ids)
    call = table.due(Close)
    table.rounds.answered(table.now, call, Difference(frozenset(table.ids), frozenset()))
    assert len(table.facts(events.AttemptDropped)) == 1


def test_a_response_for_an_attempt_that_is_over_changes_nothing() -> None:
    table = Table(Plan(), present=1)
    first = table.open()
    table.rounds.lost(first.attempt)
    table.restart_aggregator()
    table.later(PAUSE)
    table.rounds.answered(table.now, first, None)
    assert table.rounds.attempt is not None
    assert not table.rounds.attempt.opened


def test_a_response_of_the_wrong_kind_raises_and_changes_nothing() -> None:
    table = Table(Plan(), present=1)
    call = table.due(Open)
    with pytest.raises(IllegalMove, match="Verdict is not possible in Open"):
        table.rounds.answered(table.now, call, Verdict.REVOKED)
    assert table.rounds.pending(table.now) == call


def test_ledger_entries_count_once_and_only_for_the_open_attempt() -> None:
    table = Table(Plan(min_clients=2), present=2)
    attempt = table.open().attempt
    entry = Entry(1, attempt, table.ids[0], Outcome.COUNTED, 1)
    for _ in range(2):
        table.rounds.recorded(table.now, Page(LIFE, (entry,)))
    table.rounds.recorded(table.now, Page(LIFE, (Entry(2, "another", table.ids[1], Outcome.COUNTED, 1),)))
    table.rounds.recorded(table.now, Page(LIFE, (Entry(3, attempt, "a-stranger", Outcome.COUNTED, 1),)))
    assert len(table.facts(events.UpdateCounted)) == 1
    assert table.rounds.after == 3


def test_the_state_shows_that_the_aggregator_is_unreachable() -> None:
    table = Table(Plan(), present=1)
    table.open()
    assert table.status()["state"] == "training"
    assert status(table.rounds, table.now, reachable=False)["state"] == "waiting for the aggregator"


def test_a_round_shows_how_many_were_counted_and_dropped() -> None:
    table = Table(Plan(min_clients=3, participants_ratio=0.8), present=3)
    gone, *stay = table.ids
    table.open()
    table.leave(gone)
    table.revoke(Verdict.REVOKED)
    table.enter(*stay)
    table.close()
    (done,) = table.status()["last_rounds"]
    assert (done["counted"], done["dropped"]) == (2, 1)


def test_the_status_shows_participants_without_whole_ids() -> None:
    table = Table(Plan(participants_ratio=0.5, min_clients=2), present=2)
    table.open()
    table.now += 1.5
    shown = table.status()
    assert (shown["state"], shown["attempt_seconds"]) == ("training", 1.5)
    assert {p["state"] for p in shown["participants"]} == {"selected", "waiting"}
    assert {p["seconds_since_contact"] for p in shown["participants"]} == {1.5}
    assert not any(id in str(shown) for id in table.ids)
    assert table.rounds.attempt is not None
    (id,) = table.rounds.attempt.members
    table.enter(id, figures={"loss": 0.5})
    table.close()
    assert table.status()["last_rounds"][0]["figures"] == {"loss": 0.5}
