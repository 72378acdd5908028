"""Which participants are present, and which are missing."""

from fedround import events
from fedround.common.wire import HeartbeatState
from fedround.coordinator.plan import Plan
from fedround.coordinator.presence import MOST_MISSING
from support.table import Table


def test_a_participant_without_heartbeats_times_out() -> None:
    table = Table(Plan(min_clients=9, heartbeat_timeout=15), present=2)
    alive, silent = table.ids
    assert table.rounds.next_deadline() == table.now + 15
    table.later(10, alive)
    table.later(5)
    assert table.facts(events.ParticipantGone) == [events.ParticipantGone(silent, "silo-1", "silent")]
    assert table.state(silent) is HeartbeatState.REJECT
    assert table.state(alive) is HeartbeatState.STAND_BY


def test_no_participant_times_out_because_the_coordinator_was_suspended() -> None:
    table = Table(Plan(min_clients=9, heartbeat_timeout=15), present=2)
    table.now += 60
    table.rounds.suspended(table.now, 59)
    table.later(0)
    alive, silent = table.ids
    assert table.facts(events.ParticipantGone) == []
    table.later(14, alive)
    table.later(1)
    assert table.facts(events.ParticipantGone) == [events.ParticipantGone(silent, "silo-1", "silent")]


def test_a_participant_that_left_does_not_time_out_later() -> None:
    table = Table(Plan(min_clients=9), present=2)
    table.leave(table.ids[0])
    table.later(1000)
    assert [f.reason for f in table.facts(events.ParticipantGone)] == ["left", "silent"]


def test_a_timed_out_participant_is_missing_until_it_is_back_or_for_an_hour() -> None:
    table = Table(Plan(min_clients=99), present=3)

    def missing() -> dict[str, float]:
        return {gone["name"]: gone["seconds"] for gone in table.status()["missing"]}

    stays, leaves, _ = table.ids
    table.leave(leaves)
    assert (len(table.rounds.present), table.status()["joined"]) == (2, 3)
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


def test_a_restarted_participant_is_not_missing_when_its_former_id_times_out() -> None:
    table = Table(Plan(min_clients=99), present=1)
    table.later(5)
    back = table.join("silo-0")
    table.later(14, back)
    assert [gone.reason for gone in table.facts(events.ParticipantGone)] == ["silent"]
    assert table.status()["missing"] == []
    table.leave(back)
    assert table.status()["missing"] == []


def test_the_number_of_missing_participants_is_bounded() -> None:
    table = Table(Plan(min_clients=9999, shared_seats=9999))
    for number in range(MOST_MISSING + 1):
        table.join(f"silo-{number}")
    table.later(20)
    assert len(table.rounds.present.missing(table.now)) == MOST_MISSING


def test_a_finished_participant_is_not_missing() -> None:
    table = Table(Plan(rounds=1), present=1)
    table.play()
    assert table.state(table.ids[0]) is HeartbeatState.FINISH
    table.later(20)
    assert [gone.reason for gone in table.facts(events.ParticipantGone)] == ["left"]
    assert table.status()["missing"] == []


def test_an_ordinal_is_the_lowest_free_or_the_former_one() -> None:
    table = Table(Plan(min_clients=99), present=3)
    ordinals = {p.id: p.ordinal for p in table.rounds.present}
    assert list(ordinals.values()) == [0, 1, 2]
    table.leave(table.ids[1])
    assert table.rounds.present.get(table.join(extended=True, ordinal=0)).ordinal == 1  # type: ignore[union-attr]  # just joined
    assert table.rounds.present.get(table.join(extended=True, ordinal=7)).ordinal == 7  # type: ignore[union-attr]  # just joined
    assert table.rounds.present.get(table.join()).ordinal == 3  # type: ignore[union-attr]  # just joined
