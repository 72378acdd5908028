"""Rounds on a 0.8 platform: updates that it does not confirm, and rounds that the participant forfeits."""

import pytest

from fedround.common.wire import HeartbeatState
from fedround.events import PhaseEnded, Registered
from fedround.participant import moves as m
from fedround.participant.work import MAX_CONFIRMS
from support.lifecycle import (
    FINISH,
    ID,
    REJECT,
    ROUND,
    STAND_BY,
    TOKEN,
    URL,
    Participant,
    confirming,
    of,
    old_training,
    old_waiting,
    uploading,
    waiting,
)


def test_an_upload_without_an_outcome_is_unconfirmed() -> None:
    participant = confirming()
    assert participant.state == "confirming"
    assert participant.outcomes == []
    assert participant.asked == m.Heartbeat(ID, wait=0.0)


@pytest.mark.parametrize(
    ("state", "number", "counted", "outcome"),
    [
        (ROUND, 4, None, "completed"),
        (FINISH, None, None, "completed"),
        (STAND_BY, None, None, "unconfirmed"),
        (STAND_BY, None, 3, "completed"),
        (STAND_BY, None, 2, "unconfirmed"),
        (ROUND, 2, None, "unconfirmed"),
        (REJECT, None, None, "unconfirmed"),
    ],
)
def test_the_next_heartbeat_decides_whether_an_update_counted(
    state: HeartbeatState, number: int | None, counted: int | None, outcome: str
) -> None:
    participant = confirming(3)
    participant.hear(state, number, counted=counted)
    assert participant.outcomes == [outcome]
    assert PhaseEnded(3, "confirm", 0.0) in participant.facts


def test_the_same_round_right_after_an_upload_does_not_mean_that_it_was_lost() -> None:
    participant = confirming(3)
    while participant.now < 1013.5:
        participant.hear(ROUND, 3)
        assert participant.state == "confirming"
        participant.wait()
    assert not isinstance(participant.transfer, m.StartTraining)


def repeats(participant: Participant, number: int) -> int:
    """Return how many times the update is sent again before the round fails."""
    count = 0
    while participant.state != "registering":
        for command in participant.wait():
            match command:
                case m.Heartbeat():
                    participant.hear(ROUND, number)
                case m.StartTraining():
                    assert participant.accept() == [m.Upload(participant.at_hand)]
                    participant.upload(None)
                    count += 1
    return count


def test_an_unconfirmed_update_is_sent_three_times_more_before_the_round_fails() -> None:
    participant = confirming(3)
    assert repeats(participant, 3) == 3
    assert participant.now == pytest.approx(1060)
    assert participant.outcomes == ["failed"]
    participant.join("b")
    assert Registered("b", "round_failed") in participant.facts


def test_an_upload_that_may_have_arrived_is_not_repeated_immediately() -> None:
    participant = uploading(etag=None)
    participant.lose()
    assert participant.state == "confirming"


@pytest.mark.parametrize(("retry_after", "sent", "delay"), [(0.5, True, 0.5), (None, False, 0.1)])
def test_an_upload_that_cannot_have_arrived_is_retried(retry_after: float | None, sent: bool, delay: float) -> None:
    participant = uploading(etag=None)
    participant.lose("busy", retry_after, sent=sent)
    assert participant.state == "training"
    assert participant.core.next_deadline() == pytest.approx(participant.now + delay)
    assert participant.wait() == [m.Upload(participant.at_hand)]


def test_a_refused_request_after_an_upload_leaves_the_update_unconfirmed() -> None:
    participant = confirming()
    while not isinstance(participant.transfer, m.StartTraining):
        participant.hear(ROUND, 0)
        participant.wait()
    participant.deny()
    assert participant.outcomes == ["unconfirmed"]
    assert participant.state == "waiting"


def test_invalid_tokens_do_not_use_up_the_repeats_of_an_unconfirmed_update() -> None:
    participant = uploading(etag=None)
    for _ in range(MAX_CONFIRMS):
        participant.refuse(408)
        participant.wait()
        participant.accept()
    participant.upload(None)
    assert repeats(participant, 0) == MAX_CONFIRMS
    assert participant.outcomes == ["failed"]


def test_after_a_failure_it_trains_again_with_the_same_id() -> None:
    participant = old_training(3)
    assert participant.fail() == []
    assert (participant.state, participant.core.round, participant.outcomes) == ("training", 3, ["failed"])
    began = participant.now
    while of(m.StartTraining, participant.wait()) == []:
        participant.hear(ROUND, 3)
    assert participant.now == began + 1
    assert participant.accept() == [m.Download(participant.at_hand, None)]
    assert participant.download(None) == [m.Train(participant.at_hand)]
    participant.train()
    participant.upload(None)
    participant.hear(ROUND, 3)
    participant.hear(ROUND, 4)
    assert participant.outcomes == ["failed", "completed"]


def test_after_too_many_failures_the_round_is_forfeited() -> None:
    participant = old_training(policy=m.Policy(max_failures=1))
    assert participant.fail() == [
        m.Forfeit(participant.at_hand),
        m.Leave(ID, immediately=False, reason="it broke"),
        m.Exit(m.Reason.FAILED),
    ]


def test_the_delay_after_a_failure_ends_with_the_round() -> None:
    participant = old_training()
    participant.fail()
    participant.hear(STAND_BY)
    assert participant.state == "waiting"
    assert participant.outcomes == ["failed"]


@pytest.mark.parametrize("within", [0.0, 8.0])
def test_asked_to_stop_after_a_failure_it_forfeits_the_round(within: float) -> None:
    participant = old_training()
    participant.fail()
    forfeit, *others = participant.stop(within)
    assert isinstance(forfeit, m.Forfeit)
    assert (forfeit.request.url, forfeit.request.token) == (URL, TOKEN)
    assert others == [m.Leave(ID, immediately=False), m.Exit(m.Reason.STOPPED)]


def test_a_round_that_cannot_end_in_time_is_forfeited() -> None:
    participant = old_training()
    participant.stop(0.5)
    assert participant.wait() == [
        m.Cancel(),
        m.Forfeit(participant.at_hand),
        m.Leave(ID, immediately=False),
        m.Exit(m.Reason.STOPPED),
    ]


def test_a_round_is_forfeited_when_the_coordinator_stays_unreachable() -> None:
    participant = old_training(policy=m.Policy(give_up_after=5.0))
    commands: list[m.Command] = []
    while participant.core.exited is None:
        commands = participant.wait()
        if of(m.Heartbeat, commands):
            participant.tell(m.HeartbeatFailed(ID, "unreachable"))
    assert commands == [m.Cancel(), m.Forfeit(participant.at_hand), m.Exit(m.Reason.GAVE_UP)]


def test_an_update_that_may_have_arrived_is_not_forfeited() -> None:
    participant = old_training()
    participant.train()
    participant.lose()
    participant.stop(0.5)
    while participant.core.exited is None:
        commands = participant.wait()
        if of(m.Heartbeat, commands) and participant.core.exited is None:
            participant.hear(ROUND, 0)
    assert of(m.Forfeit, commands) == []
    assert participant.outcomes == ["unconfirmed"]


def test_asked_to_stop_before_acceptance_it_accepts_the_round_and_forfeits_it() -> None:
    participant = waiting()
    participant.hear(ROUND, 0)
    assert participant.stop() == [m.Hurry()]
    assert participant.accept() == [m.Forfeit(participant.accepted), m.Leave(ID, immediately=False), m.Exit(m.Reason.STOPPED)]
    assert participant.outcomes == ["abandoned"]


def test_asked_to_stop_it_leaves_when_its_start_training_is_refused() -> None:
    participant = waiting()
    participant.hear(ROUND, 0)
    participant.stop()
    commands = participant.deny()
    assert commands == [m.Leave(ID, immediately=False), m.Exit(m.Reason.STOPPED)]


def test_after_an_upload_a_stopping_participant_sends_heartbeats_until_its_time_is_up() -> None:
    participant = old_waiting(3)
    assert participant.stop() == [m.Hurry()]
    began = participant.now
    while participant.core.exited is None:
        assert participant.now < began + 8
        participant.hear(STAND_BY)
        participant.wait()
    assert participant.now == began + 8
    assert participant.core.exited is m.Reason.STOPPED


def test_an_upload_whose_response_comes_after_its_round_is_followed_by_heartbeats() -> None:
    participant = old_training(3)
    participant.train()
    participant.stop()
    participant.hear(STAND_BY)
    assert participant.upload(None) == []
    assert participant.hear(STAND_BY) == []
    assert participant.core.exited is None


def test_a_stopping_participant_forfeits_the_next_round() -> None:
    participant = old_waiting(3)
    participant.stop()
    assert participant.hear(ROUND, 4) == [m.Discard(), m.StartTraining(participant.at_hand)]
    assert participant.accept() == [m.Forfeit(participant.accepted), m.Leave(ID, immediately=False), m.Exit(m.Reason.STOPPED)]


def test_a_stopping_participant_delivers_the_same_round_again() -> None:
    participant = old_waiting(3)
    participant.stop()
    participant.hear(ROUND, 3)
    assert participant.accept() == [m.Upload(participant.at_hand)]


@pytest.mark.parametrize("state", [FINISH, REJECT])
def test_finish_and_reject_end_the_wait_of_a_stopping_participant(state: HeartbeatState) -> None:
    participant = old_waiting(3)
    participant.stop()
    participant.hear(state)
    assert participant.core.exited is not None
