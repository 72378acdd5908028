"""The rounds of a participant: its requests, its kept update, refusals, rounds that end too early."""

import pytest

from fedround.common import wire
from fedround.common.wire import HeartbeatState, UpdateOutcome
from fedround.events import Retrying, RoundJoined
from fedround.participant import moves as m
from fedround.participant.work import MAX_DEAD_TOKENS, SETTLE
from support.lifecycle import FINISH, ID, REJECT, ROUND, STAND_BY, TOKEN, URL, delivered, of, training, uploading, waiting


def test_a_round_on_a_fedround_platform_takes_three_requests() -> None:
    participant = waiting()
    [download] = participant.order(3)
    order = participant.at_hand
    assert download == m.Download(order, etag=None)
    assert (order.round, order.url, order.token) == (3, URL, TOKEN)
    assert participant.download() == [m.Train(order)]
    assert participant.train() == [m.Upload(order)]
    assert participant.upload() == [m.Heartbeat(ID, wait=15.0)]
    assert participant.outcomes == ["completed"]
    assert RoundJoined(3, repeated=False, traceparent=None) in participant.facts


def test_a_request_without_a_token_is_accepted_by_start_training() -> None:
    participant = waiting()
    [ask] = participant.hear(ROUND, 3)
    assert ask == m.StartTraining(participant.at_hand)
    assert participant.accept(traceparent="trace") == [m.Download(participant.at_hand, None)]
    assert RoundJoined(3, repeated=False, traceparent="trace") in participant.facts


def test_a_request_names_the_trace_that_it_belongs_or_links_to() -> None:
    participant = waiting()
    participant.order(3, tracelink="trace")
    assert RoundJoined(3, repeated=False, traceparent=None, tracelink="trace") in participant.facts
    other = waiting()
    other.hear(ROUND, 3)
    other.accept(tracelink="trace")
    assert RoundJoined(3, repeated=False, traceparent=None, tracelink="trace") in other.facts


def test_after_a_refused_start_training_it_waits_again() -> None:
    participant = waiting()
    participant.hear(ROUND, 3)
    participant.deny()
    assert participant.state == "waiting"
    assert participant.outcomes == []


def test_start_training_is_repeated_after_404() -> None:
    participant = waiting()
    participant.hear(ROUND, 3)
    participant.refuse(404)
    assert participant.state == "training"
    assert participant.wait() == [m.StartTraining(participant.at_hand)]


def test_heartbeats_continue_once_a_period_while_training() -> None:
    participant = training()
    for _ in range(3):
        assert participant.wait() == [m.Heartbeat(ID, wait=0.0)]
        participant.hear(ROUND, 0)
        assert participant.core.next_deadline() == participant.now + 1
    assert participant.state == "training"


def test_after_a_training_request_the_next_heartbeat_waits_for_a_period() -> None:
    participant = waiting()
    participant.now += 10
    assert of(m.Heartbeat, participant.order()) == []
    assert participant.core.next_deadline() == participant.now + 1


def test_a_failed_transfer_is_retried_and_repeated_confirms_the_update() -> None:
    participant = uploading()
    participant.lose()
    assert Retrying("/{id}/{token}", "unreachable", 0.1) in participant.facts
    assert participant.wait() == [m.Upload(participant.at_hand)]
    participant.upload(UpdateOutcome.REPEATED)
    assert participant.outcomes == ["completed"]


def test_an_outdated_heartbeat_does_not_change_the_round() -> None:
    participant = uploading()
    participant.wait()
    assert participant.upload() == []
    assert participant.hear(ROUND, 0) == [m.Heartbeat(ID, wait=15.0)]
    assert participant.state == "waiting"


def test_an_outdated_heartbeat_can_still_reject_or_finish() -> None:
    for state, then in ((REJECT, "registering"), (FINISH, "finished")):
        participant = uploading()
        participant.wait()
        participant.upload()
        participant.hear(state)
        assert participant.state == then


@pytest.mark.parametrize(
    ("etag", "modified", "commands"), [('"0"', False, [m.Upload]), ('"0"', True, [m.Upload]), ('"1"', True, [m.Discard, m.Train])]
)
def test_a_kept_update_is_sent_again_while_the_global_model_is_the_same(
    etag: str, modified: bool, commands: list[type[m.Command]]
) -> None:
    participant = delivered(3)
    assert participant.order(3) == [m.Download(participant.at_hand, etag='"0"')]
    assert [type(command) for command in participant.download(etag, modified=modified)] == commands
    assert RoundJoined(3, repeated=True, traceparent=None) in participant.facts


def test_without_etags_the_model_counts_as_unchanged() -> None:
    participant = delivered(3, etag=None)
    assert participant.order(3) == [m.Upload(participant.at_hand)]


def test_a_kept_update_of_another_shard_is_discarded_before_the_download() -> None:
    shards = [wire.Run("an id", "default", shard=(index, 8)) for index in range(2)]
    participant = waiting()
    participant.order(3, run=shards[0])
    participant.download()
    participant.train()
    participant.upload()
    assert participant.order(3, token="b-token", run=shards[0]) == [m.Download(participant.at_hand, '"0"')]
    participant.refuse(404)  # the attempt is lost
    participant.wait()
    commands = participant.accept("c-token", run=shards[1])
    assert commands == [m.Discard(), m.Download(participant.at_hand, None)]
    assert of(m.Train, participant.download()) == [m.Train(participant.at_hand)]
    participant.train()
    assert participant.order(3, token="d-token", run=shards[1]) == []
    participant.upload()
    participant.order(3, token="d-token", run=shards[0])
    assert participant.transfer == m.Download(participant.at_hand, None)


def test_a_kept_update_is_discarded_after_a_rejection_and_when_a_later_round_begins() -> None:
    assert delivered(3).hear(REJECT) == [m.Discard(), m.Register()]
    participant = delivered(3)
    assert participant.order(4) == [m.Discard(), m.Download(participant.at_hand, None)]


@pytest.mark.parametrize(
    ("state", "counted", "outcome"),
    [(STAND_BY, None, "unconfirmed"), (STAND_BY, 2, "unconfirmed"), (STAND_BY, 3, "completed"), (FINISH, None, "completed")],
)
def test_the_end_of_the_round_decides_about_an_upload_without_a_response(
    state: HeartbeatState, counted: int | None, outcome: str
) -> None:
    participant = uploading(3)
    assert participant.wait() == [m.Heartbeat(ID, wait=0.0)]
    participant.lose()
    participant.hear(state, counted=counted)
    assert participant.outcomes == [outcome]


def test_a_repeated_upload_that_is_too_late_did_not_count() -> None:
    participant = uploading(3)
    participant.lose()
    participant.wait()
    participant.refuse(409)
    assert participant.outcomes == ["abandoned"]


def test_409_ends_the_round_and_keeps_the_update() -> None:
    participant = uploading(3)
    assert participant.refuse(409) == []
    assert participant.outcomes == ["abandoned"]
    assert participant.order(3) == [m.Download(participant.at_hand, '"0"')]


@pytest.mark.parametrize("status", [413, 415, 422])
def test_a_rejected_update_is_discarded(status: int) -> None:
    participant = uploading()
    assert participant.refuse(status) == [m.Discard()]
    assert participant.outcomes == ["refused"]
    assert participant.state == "waiting"


@pytest.mark.parametrize("status", [401, 404, 405, 408])
def test_an_invalid_token_is_replaced_and_the_kept_update_sent(status: int) -> None:
    participant = uploading(3)
    participant.refuse(status)
    assert participant.wait() == [m.StartTraining(participant.at_hand)]
    participant.accept("b-token")
    assert participant.transfer == m.Download(participant.at_hand, '"0"')
    assert participant.download(modified=False) == [m.Upload(participant.at_hand)]


def test_a_round_fails_after_many_invalid_tokens() -> None:
    participant = waiting()
    participant.order()
    while participant.state == "training":
        participant.refuse(405)
        if participant.state == "training":
            while not of(m.StartTraining, participant.wait()):
                participant.hear(ROUND, 0)
            participant.accept()
    assert participant.outcomes == ["failed"]
    assert participant.at_hand.serial == MAX_DEAD_TOKENS + 1
    assert 1005 < participant.now < 1015


def test_stand_by_cancels_the_training() -> None:
    participant = training()
    assert participant.hear(STAND_BY) == [m.Cancel()]
    assert participant.outcomes == ["abandoned"]
    assert participant.state == "waiting"
    assert participant.train() == [m.Discard()]


def test_the_next_round_starts_when_user_code_has_returned() -> None:
    participant = training(3)
    assert participant.order(4) == [m.Cancel()]
    assert participant.state == "training"
    assert participant.core.round == 4
    assert participant.core.next_deadline() == participant.now + 1, "no busy waiting for user code"
    assert participant.train() == [m.Discard(), m.Download(participant.at_hand, None)]


PATIENT = m.Policy(cancel_timeout=10.0)


def test_user_code_that_ignores_a_cancellation_is_killed_once_and_the_next_round_starts() -> None:
    participant = training(3, policy=PATIENT)
    participant.order(4)
    cancelled = participant.now
    killed: list[m.Command] = []
    while participant.now < cancelled + 20:
        killed += of(m.Kill, participant.wait())
        assert not killed or participant.now >= cancelled + 10
        if isinstance(participant.asked, m.Heartbeat):
            participant.order(4)
    assert killed == [m.Kill()]
    assert participant.fail("killed") == [m.Discard(), m.Download(participant.at_hand, None)]
    assert participant.outcomes == ["abandoned"]


def test_user_code_that_returns_after_a_cancellation_is_not_killed() -> None:
    participant = training(policy=PATIENT)
    participant.hear(STAND_BY)
    participant.train()
    assert of(m.Kill, participant.tell(m.TimerFired(), after=100)) == []


def test_user_code_that_is_not_cancelled_may_train_forever() -> None:
    participant = training(policy=PATIENT)
    assert of(m.Kill, participant.tell(m.TimerFired(), after=100_000)) == []


def test_stand_by_during_an_upload_waits_for_its_response() -> None:
    participant = uploading()
    assert participant.hear(STAND_BY) == []
    participant.hear(STAND_BY)
    participant.upload()
    assert participant.outcomes == ["completed"]


def test_an_upload_whose_round_is_over_is_cancelled_after_some_seconds() -> None:
    participant = uploading()
    participant.hear(ROUND, 1)
    began = participant.now
    cancelled = False
    while not cancelled:
        cancelled = bool(of(m.Cancel, participant.wait()))
        if participant.asked:
            participant.hear(ROUND, 1)
    assert participant.now == began + SETTLE
    assert participant.outcomes == ["abandoned"]


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        (m.TransferFailed(m.TrainingRequest(1, ID, 0), "busy", 1.0), "abandoned"),
        (m.TransferFailed(m.TrainingRequest(1, ID, 0), "unreachable"), "unconfirmed"),
        (m.TransferRefused(m.TrainingRequest(1, ID, 0), 404), "abandoned"),
        (m.TransferRefused(m.TrainingRequest(1, ID, 0), 422), "refused"),
        (m.UploadAnswered(m.TrainingRequest(1, ID, 0), None), "unconfirmed"),
        (m.UploadAnswered(m.TrainingRequest(1, ID, 0), UpdateOutcome.COUNTED), "completed"),
    ],
)
@pytest.mark.parametrize("etag", ['"0"', None])
def test_the_response_decides_about_an_upload_whose_round_is_over(etag: str | None, event: m.Event, outcome: str) -> None:
    participant = uploading(etag=etag)
    participant.hear(STAND_BY)
    participant.tell(event)
    assert participant.outcomes == [outcome]
    assert participant.state == "waiting"


def test_an_upload_that_waits_for_a_retry_is_abandoned_with_its_round() -> None:
    participant = uploading()
    participant.lose("busy", 30.0)
    assert participant.hear(STAND_BY) == []
    assert participant.outcomes == ["abandoned"]
