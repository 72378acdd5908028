"""The lifecycle, rule by rule; and whatever happens, what must never happen."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedround.common import wire
from fedround.common.wire import HeartbeatState, UpdateOutcome
from fedround.errors import IllegalMove
from fedround.events import (
    ContactLost,
    ContactMade,
    Fact,
    PhaseEnded,
    Registered,
    RegistrationRefused,
    Retrying,
    RoundEnded,
    RoundJoined,
    StateChanged,
)
from fedround.participant import moves as m
from fedround.participant.lane import Failures, Lane
from fedround.participant.lifecycle import ASK_FINISHED, LEAVE_TIMEOUT, Lifecycle
from fedround.participant.work import MAX_CONFIRMS, MAX_DEAD_TOKENS, SETTLE, Work

STAND_BY, ROUND, FINISH, REJECT = HeartbeatState
ID, TOKEN, URL = "an-id", "a-token", "http://aggregator"
COUNTED = UpdateOutcome.COUNTED
POLICY = m.Policy(heartbeat_period=1.0, long_poll=15.0, exit_after_finish=True)


class Participant:
    """A lifecycle, and a hand that answers what it asks."""

    def __init__(self, policy: m.Policy = POLICY) -> None:
        self.core = Lifecycle(policy, lambda: 0.0)
        self.now = 1000.0
        self.facts: list[Fact] = []
        self.asked: m.Register | m.Heartbeat | None = None
        self.transfer: m.Transfer | None = None
        self.training: m.TrainingRequest | None = None
        self.tell(m.TimerFired())

    def tell(self, event: m.Event, after: float = 0.0) -> list[m.Command]:
        self.now += after
        if isinstance(event, m.Registered | m.RegistrationRefused | m.RegistrationFailed | m.HeartbeatAnswered | m.HeartbeatFailed):
            self.asked = None
        commands = self.core.step(event, self.now)
        self.facts += self.core.take_facts()
        for command in commands:
            match command:
                case m.Register() | m.Heartbeat():
                    self.asked = command
                case m.StartTraining() | m.Download() | m.Upload():
                    self.transfer = command
                case m.Train(order):
                    self.training = order
        return list(commands)

    def wait(self) -> list[m.Command]:
        """Until something is due."""
        self.now = max(self.now, self.core.next_deadline())
        return self.tell(m.TimerFired())

    def join(self, id: str = ID) -> list[m.Command]:
        return self.tell(m.Registered(id))

    def hear(self, state: HeartbeatState, number: int | None = None, **more: object) -> list[m.Command]:
        """The answer to the heartbeat, when it is sent."""
        while not isinstance(self.asked, m.Heartbeat):
            self.wait()
        return self.tell(m.HeartbeatAnswered(self.asked.id, wire.Heartbeat(state, number, **more)))  # type: ignore[arg-type] # fields by name

    def order(self, number: int = 0) -> list[m.Command]:
        """An order that is complete."""
        return self.hear(ROUND, number, url=URL, token=TOKEN)

    @property
    def at_hand(self) -> m.TrainingRequest:
        assert self.transfer is not None
        return self.transfer.request

    def download(self, etag: str | None = '"0"', *, modified: bool = True) -> list[m.Command]:
        return self.tell(m.Downloaded(self.at_hand, etag, modified))

    def train(self) -> list[m.Command]:
        assert self.training is not None
        return self.tell(m.Trained(self.training))

    def upload(self, outcome: UpdateOutcome | None = COUNTED) -> list[m.Command]:
        return self.tell(m.UploadAnswered(self.at_hand, outcome))

    def refuse(self, status: int) -> list[m.Command]:
        return self.tell(m.TransferRefused(self.at_hand, status, "so"))

    @property
    def outcomes(self) -> list[str]:
        return [fact.outcome for fact in self.facts if isinstance(fact, RoundEnded)]

    @property
    def state(self) -> str:
        return self.core.state.value


def waiting(policy: m.Policy = POLICY) -> Participant:
    participant = Participant(policy)
    participant.join()
    return participant


def training(number: int = 0, etag: str | None = '"0"', policy: m.Policy = POLICY) -> Participant:
    participant = waiting(policy)
    participant.order(number)
    participant.download(etag)
    return participant


def uploading(number: int = 0, etag: str | None = '"0"', policy: m.Policy = POLICY) -> Participant:
    participant = training(number, etag, policy)
    participant.train()
    return participant


def confirming(number: int = 0) -> Participant:
    """Having delivered to a 0.8 platform."""
    participant = uploading(number, etag=None)
    participant.upload(None)
    return participant


def of(kind: type[m.Command], commands: list[m.Command]) -> list[m.Command]:
    return [command for command in commands if isinstance(command, kind)]


# Registering and waiting


def test_it_begins_by_registering() -> None:
    participant = Participant()
    assert participant.asked == m.Register()
    assert participant.state == "registering"
    assert participant.join() == [m.Heartbeat(ID, wait=15.0)]
    assert participant.facts == [
        StateChanged("registering", None, False),
        ContactMade(),
        Registered(ID, "start"),
        StateChanged("waiting", None, False),
    ]


def test_a_failed_registration_is_tried_again_for_ever_and_never_later_than_said() -> None:
    participant = Participant()
    for _ in range(50):
        participant.tell(m.RegistrationFailed("unreachable", None, "no such host"))
        assert participant.core.next_deadline() - participant.now <= 1.5
        assert participant.wait() == [m.Register()]
    assert participant.facts[1:3] == [ContactLost("no such host"), Retrying("/rendez_vous", "unreachable", 0.1)]


def test_a_busy_coordinator_says_itself_when_to_come_back_within_reason() -> None:
    participant = waiting()
    participant.tell(m.HeartbeatFailed(ID, "busy", 7.0))
    assert participant.core.next_deadline() == participant.now + 7
    participant.wait()
    participant.tell(m.HeartbeatFailed(ID, "busy", 1e9))
    assert participant.core.next_deadline() == participant.now + 60


def test_it_gives_up_when_it_was_told_to() -> None:
    participant = training(policy=m.Policy(give_up_after=5.0))
    while participant.core.exited is None:
        for command in participant.wait():
            if isinstance(command, m.Heartbeat):
                participant.tell(m.HeartbeatFailed(ID, "unreachable"))
    assert participant.core.exited is m.Reason.GAVE_UP
    assert participant.state == "stopped"
    assert participant.outcomes == ["abandoned"]
    assert 1005 <= participant.now <= 1008


def test_contact_made_again_ends_the_thought_of_giving_up() -> None:
    participant = waiting(m.Policy(give_up_after=5.0))
    participant.tell(m.HeartbeatFailed(ID, "unreachable"))
    participant.hear(STAND_BY)
    participant.tell(m.TimerFired(), after=100)
    assert participant.core.exited is None


def test_a_held_heartbeat_is_followed_by_the_next_at_once() -> None:
    participant = waiting()
    participant.now += 15
    assert participant.hear(STAND_BY) == [m.Heartbeat(ID, wait=15.0)]


def test_a_peer_that_does_not_hold_heartbeats_is_polled_once_a_period() -> None:
    participant = waiting()
    assert participant.hear(STAND_BY) == []
    assert participant.core.next_deadline() == participant.now + 1


def test_a_rejected_participant_registers_at_once_and_then_ever_more_seldom() -> None:
    participant = waiting()
    assert participant.hear(REJECT) == [m.Register()]
    pauses = []
    for _ in range(8):
        participant.join()
        participant.hear(REJECT)
        pauses.append(participant.core.next_deadline() - participant.now)
        participant.wait()
    assert pauses == [1, 2, 4, 8, 16, 20, 20, 20]
    assert Registered(ID, "rejected") in participant.facts


def test_a_participant_that_was_welcome_once_registers_at_once_again() -> None:
    participant = waiting()
    participant.hear(REJECT)
    participant.join("b")
    participant.hear(STAND_BY)
    assert participant.hear(REJECT) == [m.Register()]


# The round


def test_a_round_with_our_own_platform_takes_three_requests() -> None:
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


def test_an_order_without_a_token_is_asked_for_by_start_training() -> None:
    participant = waiting()
    [ask] = participant.hear(ROUND, 3)
    assert ask == m.StartTraining(participant.at_hand)
    assert participant.tell(m.StartTrainingAnswered(participant.at_hand, wire.StartTraining(URL, TOKEN, "trace"))) == [
        m.Download(participant.at_hand, None)
    ]
    assert RoundJoined(3, repeated=False, traceparent="trace") in participant.facts


def test_an_order_tells_to_which_trace_it_belongs_or_is_linked() -> None:
    participant = waiting()
    participant.hear(ROUND, 3, url=URL, token=TOKEN, tracelink="trace")
    assert RoundJoined(3, repeated=False, traceparent=None, tracelink="trace") in participant.facts
    other = waiting()
    other.hear(ROUND, 3)
    other.tell(m.StartTrainingAnswered(other.at_hand, wire.StartTraining(URL, TOKEN, None, "trace")))
    assert RoundJoined(3, repeated=False, traceparent=None, tracelink="trace") in other.facts


def test_a_refused_start_training_leads_back_to_waiting() -> None:
    participant = waiting()
    participant.hear(ROUND, 3)
    participant.tell(m.StartTrainingAnswered(participant.at_hand, wire.StartTraining(None, None)))
    assert participant.state == "waiting"
    assert participant.outcomes == []


def test_a_404_to_start_training_is_no_verdict() -> None:
    participant = waiting()
    participant.hear(ROUND, 3)
    participant.refuse(404)
    assert participant.state == "training"
    assert participant.wait() == [m.StartTraining(participant.at_hand)]


def test_heartbeats_go_on_once_a_period_while_training() -> None:
    participant = training()
    for _ in range(3):
        assert participant.wait() == [m.Heartbeat(ID, wait=0.0)]
        participant.hear(ROUND, 0)
        assert participant.core.next_deadline() == participant.now + 1
    assert participant.state == "training"


def test_an_order_that_ended_a_long_hold_is_not_followed_by_a_heartbeat_at_once() -> None:
    participant = waiting()
    participant.now += 10
    assert of(m.Heartbeat, participant.order()) == []
    assert participant.core.next_deadline() == participant.now + 1


def test_a_failed_transfer_is_tried_again_and_a_repeated_update_is_settled_too() -> None:
    participant = uploading()
    participant.tell(m.TransferFailed(participant.at_hand, "unreachable"))
    assert Retrying("/{id}/{token}", "unreachable", 0.1) in participant.facts
    assert participant.wait() == [m.Upload(participant.at_hand)]
    participant.upload(UpdateOutcome.REPEATED)
    assert participant.outcomes == ["completed"]


def test_what_an_outdated_heartbeat_says_of_the_round_is_not_believed() -> None:
    participant = uploading()
    participant.wait()
    assert participant.upload() == []
    assert participant.hear(ROUND, 0) == [m.Heartbeat(ID, wait=15.0)]
    assert participant.state == "waiting"


def test_what_an_outdated_heartbeat_says_of_the_participant_is_believed() -> None:
    for state, then in ((REJECT, "registering"), (FINISH, "finished")):
        participant = uploading()
        participant.wait()
        participant.upload()
        participant.hear(state)
        assert participant.state == then


# Orders for an update that is kept


def test_a_repeated_order_sends_the_kept_update_if_the_model_is_the_same() -> None:
    participant = uploading(3)
    participant.upload()
    assert participant.order(3) == [m.Download(participant.at_hand, etag='"0"')]
    assert participant.download(modified=False) == [m.Upload(participant.at_hand)]
    assert RoundJoined(3, repeated=True, traceparent=None) in participant.facts


def test_a_model_that_is_sent_again_unchanged_is_not_trained_again() -> None:
    participant = uploading(3)
    participant.upload()
    participant.order(3)
    assert participant.download('"0"') == [m.Upload(participant.at_hand)]


def test_another_model_for_the_same_round_is_trained_anew() -> None:
    participant = uploading(3)
    participant.upload()
    participant.order(3)
    assert participant.download('"1"') == [m.Discard(), m.Train(participant.at_hand)]


def test_a_peer_without_etags_is_believed_that_the_model_is_the_same() -> None:
    participant = uploading(3, etag=None)
    participant.upload(COUNTED)
    assert participant.order(3) == [m.Upload(participant.at_hand)]


def test_an_update_of_another_shard_is_thrown_away_before_the_model_is_fetched() -> None:
    shards = [wire.Run("an id", "default", shard=(index, 8)) for index in range(2)]
    participant = waiting()
    participant.hear(ROUND, 3, url=URL, token=TOKEN, run=shards[0])
    participant.download()
    participant.train()
    participant.upload()
    assert participant.hear(ROUND, 3, url=URL, token="b-token", run=shards[0]) == [m.Download(participant.at_hand, '"0"')]
    participant.refuse(404)  # the attempt is lost
    participant.wait()
    commands = participant.tell(m.StartTrainingAnswered(participant.at_hand, wire.StartTraining(URL, "c-token", run=shards[1])))
    assert commands == [m.Discard(), m.Download(participant.at_hand, None)]
    assert of(m.Train, participant.download()) == [m.Train(participant.at_hand)]
    participant.train()
    assert participant.hear(ROUND, 3, url=URL, token="d-token", run=shards[1]) == []
    participant.upload()
    participant.hear(ROUND, 3, url=URL, token="d-token", run=shards[0])
    assert participant.transfer == m.Download(participant.at_hand, None)


def test_a_later_round_throws_the_kept_update_away_before_its_model_is_fetched() -> None:
    participant = uploading(3)
    participant.upload()
    assert participant.order(4) == [m.Discard(), m.Download(participant.at_hand, None)]


def test_a_rejection_throws_the_kept_update_away() -> None:
    participant = uploading(3)
    participant.upload()
    assert participant.hear(REJECT) == [m.Discard(), m.Register()]


# 0.8 platforms


def test_an_answer_that_says_nothing_is_no_confirmation() -> None:
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
def test_what_the_next_news_says_of_an_unconfirmed_update(
    state: HeartbeatState, number: int | None, counted: int | None, outcome: str
) -> None:
    participant = confirming(3)
    participant.hear(state, number, counted=counted)
    assert participant.outcomes == [outcome]
    assert PhaseEnded(3, "confirm", 0.0) in participant.facts


def test_the_same_round_right_after_the_upload_is_a_race_and_not_a_loss() -> None:
    participant = confirming(3)
    while participant.now < 1013.5:
        participant.hear(ROUND, 3)
        assert participant.state == "confirming"
        participant.wait()
    assert not isinstance(participant.transfer, m.StartTraining)


def test_an_update_that_stays_unconfirmed_is_offered_three_times_more_and_then_the_round_has_failed() -> None:
    participant = confirming(3)
    uploads = 1
    while participant.state != "registering":
        for command in participant.wait():
            match command:
                case m.Heartbeat():
                    participant.hear(ROUND, 3)
                case m.StartTraining(order):
                    assert participant.tell(m.StartTrainingAnswered(order, wire.StartTraining(URL, TOKEN))) == [
                        m.Upload(participant.at_hand)
                    ]
                    participant.upload(None)
                    uploads += 1
    assert uploads == 4
    assert participant.now == pytest.approx(1060)
    assert participant.outcomes == ["failed"]
    participant.join("b")
    assert Registered("b", "round_failed") in participant.facts


def test_an_upload_that_a_0_8_peer_may_have_got_is_not_sent_again_right_away() -> None:
    participant = uploading(etag=None)
    participant.tell(m.TransferFailed(participant.at_hand, "unreachable"))
    assert participant.state == "confirming"


def test_an_upload_that_a_busy_peer_has_not_got_is_sent_again() -> None:
    participant = uploading(etag=None)
    participant.tell(m.TransferFailed(participant.at_hand, "busy", 0.5))
    assert participant.wait() == [m.Upload(participant.at_hand)]


def test_a_refused_order_for_an_update_that_was_sent_may_mean_that_it_counted() -> None:
    participant = confirming()
    while not isinstance(participant.transfer, m.StartTraining):
        participant.hear(ROUND, 0)
        participant.wait()
    participant.tell(m.StartTrainingAnswered(participant.at_hand, wire.StartTraining(None, None)))
    assert participant.outcomes == ["unconfirmed"]
    assert participant.state == "waiting"


# Refusals


@pytest.mark.parametrize(
    ("state", "counted", "outcome"),
    [(STAND_BY, None, "unconfirmed"), (STAND_BY, 2, "unconfirmed"), (STAND_BY, 3, "completed"), (FINISH, None, "completed")],
)
def test_an_upload_whose_answer_was_lost_may_have_counted_when_its_round_ends(
    state: HeartbeatState, counted: int | None, outcome: str
) -> None:
    participant = uploading(3)
    assert participant.wait() == [m.Heartbeat(ID, wait=0.0)]
    participant.tell(m.TransferFailed(participant.at_hand, "unreachable"))
    participant.hear(state, counted=counted)
    assert participant.outcomes == [outcome]


def test_an_upload_whose_answer_was_lost_has_not_counted_if_its_repeat_is_too_late() -> None:
    participant = uploading(3)
    participant.tell(m.TransferFailed(participant.at_hand, "unreachable"))
    participant.wait()
    participant.refuse(409)
    assert participant.outcomes == ["abandoned"]


def test_409_ends_the_round_and_keeps_the_update() -> None:
    participant = uploading(3)
    assert participant.refuse(409) == []
    assert participant.outcomes == ["abandoned"]
    assert participant.order(3) == [m.Download(participant.at_hand, '"0"')]


@pytest.mark.parametrize("status", [413, 415, 422])
def test_an_update_that_is_refused_is_not_sent_again(status: int) -> None:
    participant = uploading()
    assert participant.refuse(status) == [m.Discard()]
    assert participant.outcomes == ["refused"]
    assert participant.state == "waiting"


@pytest.mark.parametrize("status", [401, 404, 405, 408])
def test_a_dead_token_is_ordered_anew_with_the_update_that_is_kept(status: int) -> None:
    participant = uploading(3)
    participant.refuse(status)
    assert participant.wait() == [m.StartTraining(participant.at_hand)]
    participant.tell(m.StartTrainingAnswered(participant.at_hand, wire.StartTraining(URL, "b-token")))
    assert participant.transfer == m.Download(participant.at_hand, '"0"')
    assert participant.download(modified=False) == [m.Upload(participant.at_hand)]


def test_tokens_that_are_always_dead_fail_the_round_after_some_seconds() -> None:
    participant = waiting()
    participant.order()
    while participant.state == "training":
        participant.refuse(405)
        if participant.state == "training":
            while not of(m.StartTraining, participant.wait()):
                participant.hear(ROUND, 0)
            participant.tell(m.StartTrainingAnswered(participant.at_hand, wire.StartTraining(URL, TOKEN)))
    assert participant.outcomes == ["failed"]
    assert participant.at_hand.serial == MAX_DEAD_TOKENS + 1
    assert 1005 < participant.now < 1015


def test_dead_tokens_leave_an_unconfirmed_update_its_offers() -> None:
    participant = uploading(etag=None)
    for _ in range(MAX_CONFIRMS):
        participant.refuse(408)
        participant.wait()
        participant.tell(m.StartTrainingAnswered(participant.at_hand, wire.StartTraining(URL, TOKEN)))
    participant.upload(None)
    offers = 0
    while participant.state != "registering":
        for command in participant.wait():
            match command:
                case m.Heartbeat():
                    participant.hear(ROUND, 0)
                case m.StartTraining(order):
                    participant.tell(m.StartTrainingAnswered(order, wire.StartTraining(URL, TOKEN)))
                    participant.upload(None)
                    offers += 1
    assert offers == MAX_CONFIRMS
    assert participant.outcomes == ["failed"]


# Rounds that are given away


def test_stand_by_while_training_cancels_it() -> None:
    participant = training()
    assert participant.hear(STAND_BY) == [m.Cancel()]
    assert participant.outcomes == ["abandoned"]
    assert participant.state == "waiting"
    assert participant.train() == [m.Discard()]


def test_another_round_while_training_is_taken_when_user_code_is_done_with_the_old_one() -> None:
    participant = training(3)
    assert participant.order(4) == [m.Cancel()]
    assert participant.state == "training"
    assert participant.core.round == 4
    assert participant.core.next_deadline() == participant.now + 1, "no busy waiting for user code"
    assert participant.train() == [m.Discard(), m.Download(participant.at_hand, None)]


PATIENT = m.Policy(cancel_timeout=10.0)


def test_code_that_does_not_return_when_it_is_cancelled_is_killed_once_and_the_next_round_goes_on() -> None:
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
    assert participant.training is not None
    ended = participant.tell(m.TrainingFailed(participant.training, "killed"))
    assert ended == [m.Discard(), m.Download(participant.at_hand, None)]
    assert participant.outcomes == ["abandoned"]


def test_code_that_returns_when_it_is_cancelled_is_not_killed() -> None:
    participant = training(policy=PATIENT)
    participant.hear(STAND_BY)
    participant.train()
    assert of(m.Kill, participant.tell(m.TimerFired(), after=100)) == []


def test_code_that_was_not_cancelled_may_train_for_ever() -> None:
    participant = training(policy=PATIENT)
    assert of(m.Kill, participant.tell(m.TimerFired(), after=100_000)) == []


def test_stand_by_while_uploading_waits_for_the_uploads_own_answer() -> None:
    participant = uploading()
    assert participant.hear(STAND_BY) == []
    participant.hear(STAND_BY)
    participant.upload()
    assert participant.outcomes == ["completed"]


def test_an_upload_whose_round_is_over_ends_some_seconds_later() -> None:
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
        (m.UploadAnswered(m.TrainingRequest(1, ID, 0), COUNTED), "completed"),
    ],
)
def test_how_an_upload_ends_whose_round_is_over(event: m.Event, outcome: str) -> None:
    participant = uploading()
    participant.hear(STAND_BY)
    participant.tell(event)
    assert participant.outcomes == [outcome]
    assert participant.state == "waiting"


def test_an_upload_that_may_have_arrived_at_a_0_8_peer_when_its_round_was_over() -> None:
    participant = uploading(etag=None)
    participant.hear(STAND_BY)
    participant.tell(m.TransferFailed(participant.at_hand, "unreachable"))
    assert participant.outcomes == ["unconfirmed"]


def test_an_upload_that_waits_for_its_next_attempt_is_given_up_with_its_round() -> None:
    participant = uploading()
    participant.tell(m.TransferFailed(participant.at_hand, "busy", 30.0))
    assert participant.hear(STAND_BY) == []
    assert participant.outcomes == ["abandoned"]


# User code that fails


def fail(participant: Participant, reason: str = "it broke") -> list[m.Command]:
    assert participant.training
    return participant.tell(m.TrainingFailed(participant.training, reason))


def test_failing_user_code_leaves_with_the_reason_and_registers_again_after_growing_pauses() -> None:
    participant = Participant(m.Policy(max_failures=9))
    pauses = []
    for _ in range(8):
        participant.join()
        participant.order()
        participant.download()
        assert fail(participant) == [m.Leave(ID, immediately=False, reason="it broke")]
        assert participant.state == "registering"
        pauses.append(participant.core.next_deadline() - participant.now)
        assert participant.wait() == [m.Register()]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert Registered(ID, "round_failed") in participant.facts


def test_failing_user_code_gives_up_in_the_end() -> None:
    participant = Participant()
    for _ in range(5):
        participant.join()
        participant.order()
        participant.download()
        commands = fail(participant)
        if participant.core.exited is None:
            participant.wait()
    assert commands == [m.Leave(ID, immediately=False, reason="it broke"), m.Exit(m.Reason.FAILED)]
    assert participant.outcomes == ["failed"] * 5
    assert participant.state == "stopped"


def test_a_participant_that_is_asked_to_stop_between_two_failures_exits_at_once() -> None:
    participant = training()
    fail(participant)
    assert participant.tell(m.StopRequested(8.0)) == [m.Exit(m.Reason.STOPPED)]


def test_a_global_model_that_is_too_large_leaves_the_round_to_the_others_and_gives_up_in_the_end() -> None:
    participant = Participant(m.Policy(max_failures=2))
    for count in (1, 2):
        participant.join()
        participant.order()
        commands = participant.tell(m.ModelRefused(participant.at_hand, "too large"))
        assert commands == [m.Leave(ID, immediately=False, reason="too large"), *([m.Exit(m.Reason.FAILED)] if count == 2 else [])]
        if count == 1:
            participant.wait()
    assert participant.outcomes == ["failed"] * 2


def test_only_failures_in_a_row_count() -> None:
    participant = Participant(m.Policy(max_failures=2))
    for _ in range(5):
        participant.join()
        participant.order()
        participant.download()
        participant.train()
        participant.upload()
        participant.order(1)
        participant.download()
        before = participant.now
        fail(participant)
        assert participant.wait() == [m.Register()]
        assert participant.now == before + 1, "the pauses begin anew, too"
    assert participant.core.exited is None


def test_a_failure_in_a_round_that_was_given_away_is_none() -> None:
    participant = training(policy=m.Policy(max_failures=1))
    participant.hear(STAND_BY)
    assert participant.training
    participant.tell(m.TrainingFailed(participant.training, "interrupted"))
    assert participant.core.exited is None


# The end of training


def test_finish_ends_the_participant() -> None:
    participant = waiting()
    assert participant.hear(FINISH) == [m.Exit(m.Reason.FINISHED)]
    assert participant.state == "finished"
    assert participant.core.next_deadline() == math.inf
    assert participant.tell(m.StopRequested()) == []


def test_a_refused_registration_means_that_training_is_complete() -> None:
    participant = Participant()
    assert participant.tell(m.RegistrationRefused()) == [m.Exit(m.Reason.FINISHED)]
    assert RegistrationRefused() in participant.facts


def test_a_participant_that_stays_asks_now_and_then_whether_training_goes_on() -> None:
    participant = waiting(m.Policy(exit_after_finish=False, give_up_after=1.0))
    assert participant.hear(FINISH) == []
    for answer in (m.RegistrationRefused(), m.RegistrationFailed("unreachable"), m.RegistrationRefused()):
        assert participant.state == "finished"
        assert participant.core.next_deadline() == participant.now + ASK_FINISHED
        assert participant.wait() == [m.Register()]
        participant.tell(answer)
    participant.wait()
    participant.join("b")
    assert participant.state == "waiting"
    assert participant.asked == m.Heartbeat("b", 15.0)


def test_finish_while_training_cancels_it() -> None:
    participant = training()
    assert participant.hear(FINISH) == [m.Cancel(), m.Exit(m.Reason.FINISHED)]
    assert participant.outcomes == ["abandoned"]


def test_finish_while_uploading_waits_for_the_uploads_answer_without_any_further_heartbeat() -> None:
    participant = uploading()
    participant.hear(FINISH)
    assert participant.state == "training"
    assert participant.core.next_deadline() == participant.now + SETTLE
    assert participant.upload() == [m.Discard(), m.Exit(m.Reason.FINISHED)]
    assert participant.outcomes == ["completed"]


# Being asked to stop


def test_a_waiting_participant_leaves_at_once() -> None:
    participant = waiting()
    assert participant.tell(m.StopRequested(8.0)) == [m.Leave(ID, immediately=True), m.Exit(m.Reason.STOPPED)]
    assert participant.state == "stopped"


def test_a_participant_without_an_id_has_nobody_to_leave() -> None:
    participant = Participant()
    participant.tell(m.RegistrationFailed("unreachable"))
    assert participant.tell(m.StopRequested(8.0)) == [m.Exit(m.Reason.STOPPED)]


@pytest.mark.parametrize(
    ("answer", "commands"),
    [
        (m.Registered(ID), [m.Leave(ID, immediately=False), m.Exit(m.Reason.STOPPED)]),
        (m.RegistrationRefused(), [m.Exit(m.Reason.FINISHED)]),
        (m.RegistrationFailed("unreachable"), [m.Exit(m.Reason.STOPPED)]),
    ],
)
def test_an_id_that_is_on_its_way_is_waited_for_to_leave_with_it(answer: m.Event, commands: list[m.Command]) -> None:
    participant = Participant()
    assert participant.tell(m.StopRequested(0.0)) == []
    assert participant.facts[-1] == StateChanged("registering", None, draining=True)
    assert participant.tell(answer) == commands


def test_an_id_is_not_waited_for_for_long() -> None:
    participant = Participant()
    participant.tell(m.StopRequested(8.0))
    assert participant.wait() == [m.Exit(m.Reason.STOPPED)]
    assert participant.now == 1000 + LEAVE_TIMEOUT


def test_who_is_asked_twice_waits_for_no_id() -> None:
    participant = Participant()
    participant.tell(m.StopRequested(8.0))
    assert participant.tell(m.StopRequested(8.0)) == [m.Exit(m.Reason.STOPPED, immediately=True)]


# Rounds that are given up on a 0.8 platform


def old_training(number: int = 0, policy: m.Policy = POLICY) -> Participant:
    """Training for a 0.8 platform."""
    participant = waiting(policy)
    participant.hear(ROUND, number)
    accept(participant)
    participant.download(None)
    return participant


def accept(participant: Participant) -> list[m.Command]:
    return participant.tell(m.StartTrainingAnswered(participant.at_hand, wire.StartTraining(URL, TOKEN)))


def accepted(participant: Participant) -> m.TrainingRequest:
    """The order at hand, with what start_training answered."""
    return replace(participant.at_hand, url=URL, token=TOKEN)


def old_waiting(number: int = 0) -> Participant:
    """Having delivered to a 0.8 platform, which says `stand_by` since."""
    participant = old_training(number)
    participant.train()
    participant.upload(None)
    participant.hear(STAND_BY)
    return participant


def test_user_code_that_fails_trains_again_under_the_same_id() -> None:
    participant = old_training(3)
    assert fail(participant) == []
    assert (participant.state, participant.core.round, participant.outcomes) == ("training", 3, ["failed"])
    began = participant.now
    while of(m.StartTraining, participant.wait()) == []:
        participant.hear(ROUND, 3)
    assert participant.now == began + 1
    assert accept(participant) == [m.Download(participant.at_hand, None)]
    assert participant.download(None) == [m.Train(participant.at_hand)]
    participant.train()
    participant.upload(None)
    participant.hear(ROUND, 3)
    participant.hear(ROUND, 4)
    assert participant.outcomes == ["failed", "completed"]


def test_user_code_that_fails_too_often_forfeits_the_round() -> None:
    participant = old_training(policy=m.Policy(max_failures=1))
    assert fail(participant) == [
        m.Forfeit(participant.at_hand),
        m.Leave(ID, immediately=False, reason="it broke"),
        m.Exit(m.Reason.FAILED),
    ]


def test_a_pause_after_a_failure_ends_when_the_round_is_given_away() -> None:
    participant = old_training()
    fail(participant)
    participant.hear(STAND_BY)
    assert participant.state == "waiting"
    assert participant.outcomes == ["failed"]


@pytest.mark.parametrize("within", [0.0, 8.0])
def test_a_participant_that_is_asked_to_stop_in_a_pause_forfeits_the_round(within: float) -> None:
    participant = old_training()
    fail(participant)
    forfeit, *others = participant.tell(m.StopRequested(within))
    assert isinstance(forfeit, m.Forfeit)
    assert (forfeit.request.url, forfeit.request.token) == (URL, TOKEN)
    assert others == [m.Leave(ID, immediately=False), m.Exit(m.Reason.STOPPED)]


def test_a_round_that_does_not_end_in_time_is_forfeited() -> None:
    participant = old_training()
    participant.tell(m.StopRequested(0.5))
    assert participant.wait() == [
        m.Cancel(),
        m.Forfeit(participant.at_hand),
        m.Leave(ID, immediately=False),
        m.Exit(m.Reason.STOPPED),
    ]


def test_a_round_is_forfeited_when_the_coordinator_is_away_for_too_long() -> None:
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
    participant.tell(m.TransferFailed(participant.at_hand, "unreachable"))
    participant.tell(m.StopRequested(0.5))
    while participant.core.exited is None:
        commands = participant.wait()
        if of(m.Heartbeat, commands) and participant.core.exited is None:
            participant.hear(ROUND, 0)
    assert of(m.Forfeit, commands) == []
    assert participant.outcomes == ["unconfirmed"]


def test_a_participant_that_is_asked_to_stop_gets_the_token_of_an_unaccepted_order_and_forfeits_it() -> None:
    participant = waiting()
    participant.hear(ROUND, 0)
    assert participant.tell(m.StopRequested(8.0)) == [m.Hurry()]
    assert accept(participant) == [m.Forfeit(accepted(participant)), m.Leave(ID, immediately=False), m.Exit(m.Reason.STOPPED)]
    assert participant.outcomes == ["abandoned"]


def test_an_unaccepted_order_that_is_refused_ends_the_draining() -> None:
    participant = waiting()
    participant.hear(ROUND, 0)
    participant.tell(m.StopRequested(8.0))
    commands = participant.tell(m.StartTrainingAnswered(participant.at_hand, wire.StartTraining(None, None)))
    assert commands == [m.Leave(ID, immediately=False), m.Exit(m.Reason.STOPPED)]


def test_after_an_upload_heartbeats_go_on_as_long_as_the_round_may() -> None:
    participant = old_waiting(3)
    assert participant.tell(m.StopRequested(8.0)) == [m.Hurry()]
    began = participant.now
    while participant.core.exited is None:
        assert participant.now < began + 8
        participant.hear(STAND_BY)
        participant.wait()
    assert participant.now == began + 8
    assert participant.core.exited is m.Reason.STOPPED


def test_an_upload_that_is_answered_when_its_round_is_over_is_followed_by_heartbeats_too() -> None:
    participant = old_training(3)
    participant.train()
    participant.tell(m.StopRequested(8.0))
    participant.hear(STAND_BY)
    assert participant.upload(None) == []
    assert participant.hear(STAND_BY) == []
    assert participant.core.exited is None


def test_the_next_round_is_forfeited_by_a_participant_that_waited_for_it_to_leave() -> None:
    participant = old_waiting(3)
    participant.tell(m.StopRequested(8.0))
    assert participant.hear(ROUND, 4) == [m.Discard(), m.StartTraining(participant.at_hand)]
    assert accept(participant) == [m.Forfeit(accepted(participant)), m.Leave(ID, immediately=False), m.Exit(m.Reason.STOPPED)]


def test_the_same_round_is_delivered_once_more_by_a_participant_that_waited_for_its_end() -> None:
    participant = old_waiting(3)
    participant.tell(m.StopRequested(8.0))
    participant.hear(ROUND, 3)
    assert accept(participant) == [m.Upload(participant.at_hand)]


@pytest.mark.parametrize("state", [FINISH, REJECT])
def test_the_end_of_training_and_a_rejection_end_the_wait_for_the_end_of_the_round(state: HeartbeatState) -> None:
    participant = old_waiting(3)
    participant.tell(m.StopRequested(8.0))
    participant.hear(state)
    assert participant.core.exited is not None


def test_an_upload_that_had_no_connection_is_sent_again_right_away() -> None:
    participant = old_training()
    participant.train()
    participant.tell(m.TransferFailed(participant.at_hand, "unreachable", sent=False))
    assert participant.state == "training"
    assert participant.core.next_deadline() == pytest.approx(participant.now + 0.1)
    assert participant.wait() == [m.Upload(participant.at_hand)]


# Being asked to stop, while a round is on


def test_a_round_is_finished_before_leaving_if_it_ends_in_time() -> None:
    participant = training()
    assert participant.tell(m.StopRequested(8.0)) == [m.Hurry()]
    assert participant.facts[-1] == StateChanged("training", 0, draining=True)
    participant.hear(ROUND, 0)
    participant.train()
    assert of(m.Leave, participant.upload()) == [m.Leave(ID, immediately=False)]
    assert participant.outcomes == ["completed"]
    assert participant.state == "stopped"


def test_a_round_that_does_not_end_in_time_is_given_up() -> None:
    participant = training()
    participant.tell(m.StopRequested(0.5))
    assert participant.wait() == [m.Cancel(), m.Leave(ID, immediately=False), m.Exit(m.Reason.STOPPED)]
    assert participant.outcomes == ["abandoned"]


@pytest.mark.parametrize(
    ("state", "outcome", "reason"),
    [
        (ROUND, "completed", m.Reason.STOPPED),
        (STAND_BY, "unconfirmed", m.Reason.STOPPED),
        (REJECT, "unconfirmed", m.Reason.STOPPED),
        (FINISH, "completed", m.Reason.FINISHED),
    ],
)
def test_news_that_end_a_round_end_the_draining_too(state: HeartbeatState, outcome: str, reason: m.Reason) -> None:
    participant = confirming(3)
    participant.tell(m.StopRequested(8.0))
    participant.hear(state, 4 if state is ROUND else None)
    assert participant.outcomes == [outcome]
    assert participant.core.exited is reason


def test_user_code_that_ends_by_an_error_while_draining_has_not_failed() -> None:
    participant = training(policy=m.Policy(max_failures=1))
    participant.tell(m.StopRequested(8.0))
    assert participant.training
    participant.tell(m.TrainingFailed(participant.training, "interrupted"))
    assert participant.outcomes == ["abandoned"]
    assert participant.core.exited is m.Reason.STOPPED


def test_who_is_asked_twice_exits_at_once() -> None:
    participant = training()
    participant.tell(m.StopRequested(8.0))
    assert participant.tell(m.StopRequested(8.0)) == [m.Cancel(), m.Exit(m.Reason.STOPPED, immediately=True)]


# What comes late, and what cannot come


def test_answers_for_an_id_or_order_of_before_change_nothing() -> None:
    participant = uploading()
    old = participant.at_hand
    participant.hear(REJECT)
    participant.join("b")
    before = participant.core.state, participant.core.next_deadline()
    answer = wire.Heartbeat(FINISH)
    for event in (
        m.HeartbeatAnswered(ID, answer),
        m.HeartbeatFailed(ID, "x"),
        m.UploadAnswered(old, COUNTED),
        m.TransferRefused(old, 422),
    ):
        assert participant.tell(event) == []
        assert (participant.core.state, participant.core.next_deadline()) == before


def insides(thing: object) -> object:
    """All that an object of the core is made of, to be compared."""
    if not isinstance(thing, Lifecycle | Lane | Work | Failures):
        return repr(thing)
    names: Iterable[str] = getattr(thing, "__dict__", ()) or getattr(thing, "__slots__", ())
    return {name: insides(getattr(thing, name)) for name in names}


@pytest.mark.parametrize(
    "event",
    [
        m.Registered("b"),
        m.RegistrationRefused(),
        m.RegistrationFailed("x"),
        m.StartTrainingAnswered(m.TrainingRequest(1, ID, 0), wire.StartTraining(None, None)),
        m.UploadAnswered(m.TrainingRequest(1, ID, 0), COUNTED),
        m.Downloaded(m.TrainingRequest(1, ID, 0), None),
        m.ModelRefused(m.TrainingRequest(1, ID, 0), "x"),
        m.TransferFailed(m.TrainingRequest(1, ID, 0), "x"),
        m.TransferRefused(m.TrainingRequest(1, ID, 0), 409),
        m.Trained(m.TrainingRequest(9, ID, 0)),
        m.TrainingFailed(m.TrainingRequest(9, ID, 0), "x"),
        m.HeartbeatAnswered(ID, wire.Heartbeat(STAND_BY)),
        m.HeartbeatFailed(ID, "x"),
    ],
)
def test_an_answer_to_what_was_not_asked_raises_and_changes_nothing(event: m.Event) -> None:
    participant = training()
    before = insides(participant.core)
    with pytest.raises(IllegalMove, match=rf"{type(event).__name__}.* is not possible in training"):
        participant.tell(event)
    assert insides(participant.core) == before


def test_neither_ids_nor_tokens_are_shown_by_orders_and_events() -> None:
    order = m.TrainingRequest(1, ID, 0, URL, TOKEN)
    beat = wire.Heartbeat(ROUND, 1, token=TOKEN)
    shown = repr(
        [
            m.Registered(ID),
            m.HeartbeatAnswered(ID, beat),
            m.Upload(order),
            m.Heartbeat(ID, 0),
            m.Leave(ID, immediately=True),
            m.Train(order),
        ]
    )
    assert ID not in shown
    assert TOKEN not in shown


# Whatever happens

RUNS = [None, *(wire.Run("an id", "default", shard=shard) for shard in (None, (0, 2), (1, 2)))]
ANSWERS = st.one_of(
    st.builds(wire.Heartbeat, st.sampled_from([STAND_BY, FINISH, REJECT])),
    st.builds(
        wire.Heartbeat,
        st.just(ROUND),
        st.integers(0, 2),
        url=st.none() | st.just(URL),
        token=st.sampled_from([TOKEN, "b-token"]),
        run=st.sampled_from(RUNS),
    ),
)
ORDERS = st.sampled_from([wire.StartTraining(None, None), *(wire.StartTraining(URL, TOKEN, run=run) for run in RUNS)])
FAILURES: st.SearchStrategy[Callable[[m.TrainingRequest], m.Event]] = st.sampled_from(
    [
        lambda order: m.TransferFailed(order, "x"),
        lambda order: m.TransferFailed(order, "x", sent=False),
        lambda order: m.TransferRefused(order, 409),
        lambda order: m.TransferRefused(order, 401),
    ]
)


class World:
    """Answers what a lifecycle asks, in any order and any way, late answers among them, and sees that nothing forbidden is done."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        policy = m.Policy(
            exit_after_finish=data.draw(st.booleans()),
            give_up_after=data.draw(st.sampled_from([math.inf, 20.0])),
            cancel_timeout=data.draw(st.sampled_from([math.inf, 5.0])),
        )
        self.core = Lifecycle(policy, lambda: 0.5)
        self.now = 0.0
        self.unanswered: list[m.Command] = []
        self.dead: set[str] = set()
        self.ids = 0
        self.id: str | None = None
        self.user_code: m.TrainingRequest | None = None
        self.model: str | None = None
        self.kept: str | None = None
        self.kept_shard: wire.Shard | None = None
        self.trained: set[int] = set()
        self.delivered: m.TrainingRequest | None = None
        self.begun = self.ended = 0

    def step(self, event: m.Event) -> None:
        for command in self.core.step(event, self.now):
            self.look(command)
            if not isinstance(command, m.Discard | m.Cancel | m.Kill | m.Hurry | m.Exit | m.Leave | m.Forfeit):
                self.unanswered.append(command)
        for fact in self.core.take_facts():
            self.begun += isinstance(fact, RoundJoined)
            self.ended += isinstance(fact, RoundEnded)
        assert self.begun - self.ended in (0, 1)
        assert (self.core.exited is not None) <= (self.begun == self.ended)

    def look(self, command: m.Command) -> None:
        assert self.core.exited is None or isinstance(command, m.Discard | m.Cancel | m.Kill | m.Leave | m.Forfeit | m.Exit)
        match command:
            case m.Heartbeat(id, wait):
                assert id == self.id
                assert id not in self.dead
                assert wait == 0 or self.core.state is m.State.WAITING
            case m.Leave(id):
                self.dead.add(id)
            case m.Train(order):
                assert self.user_code is None, "user code is given one model at a time"
                assert order.serial not in self.trained, "an order is trained once"
                assert self.kept is None, "the next model is trained when the kept update is gone"
                self.trained.add(order.serial)
                self.user_code = order
            case m.Kill():
                assert self.user_code is not None, "nobody is killed who has returned"
            case m.Download(_, etag):
                assert self.user_code is None
                assert (self.kept is None) == (etag is None)
            case m.Upload(order):
                assert self.kept is not None
                assert self.kept_shard == (order.run.shard if order.run else None), "of the shard that is asked for"
            case m.Forfeit(order):
                assert order.token
                assert order != self.delivered, "an update that may have arrived is not forfeited"
            case m.Discard():
                self.kept = None

    def answer(self, command: m.Command) -> m.Event:
        draw = self.draw
        match command:
            case m.Register():
                if draw(st.integers(0, 9)) == 0:
                    return m.RegistrationRefused() if draw(st.booleans()) else m.RegistrationFailed("unreachable")
                self.ids += 1
                self.id = f"id-{self.ids}"
                return m.Registered(self.id)
            case m.Heartbeat(id):
                if draw(st.integers(0, 5)) == 0:
                    return m.HeartbeatFailed(id, "unreachable")
                answer = draw(ANSWERS)
                if answer.state in (FINISH, REJECT):
                    self.dead.add(id)
                return m.HeartbeatAnswered(id, answer)
            case m.Train(order):
                self.user_code = None
                if draw(st.integers(0, 4)):
                    self.kept, self.kept_shard = self.model, order.run.shard if order.run else None
                    return m.Trained(order)
                return m.TrainingFailed(order, "broken")
            case m.StartTraining(order) | m.Download(order) | m.Upload(order):
                if draw(st.integers(0, 2)) == 0:
                    event = draw(FAILURES)(order)
                    if isinstance(command, m.Upload) and isinstance(event, m.TransferFailed) and event.may_have_arrived:
                        self.delivered = order
                    return event
                if isinstance(command, m.Download) and draw(st.integers(0, 9)) == 0:
                    return m.ModelRefused(order, "too large")
                return self.succeed(command, order)
        raise AssertionError(command)

    def succeed(self, command: m.Command, order: m.TrainingRequest) -> m.Event:
        match command:
            case m.StartTraining():
                return m.StartTrainingAnswered(order, self.draw(ORDERS))
            case m.Download(_, etag):
                now = self.draw(st.sampled_from(["a", "b"]))
                if now != etag:
                    self.model = now
                return m.Downloaded(order, now, now != etag)
        self.delivered = order
        return m.UploadAnswered(order, self.draw(st.sampled_from([None, *UpdateOutcome])))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_happens_nothing_forbidden_is_done(data: st.DataObject) -> None:
    world = World(data)
    world.step(m.TimerFired())
    for _ in range(data.draw(st.integers(1, 60))):
        choice = data.draw(st.integers(0, 30))
        if choice == 30:
            world.step(m.StopRequested(data.draw(st.sampled_from([0.0, 8.0]))))
        elif choice > 22 or not world.unanswered:
            world.now = max(world.now, min(world.core.next_deadline(), world.now + 1e6))
            world.step(m.TimerFired())
        else:
            world.step(world.answer(world.unanswered.pop(choice % len(world.unanswered))))
