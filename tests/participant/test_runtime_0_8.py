"""Participants with a platform of 0.8."""

import numpy as np

from fedround import events
from fedround.common.wire import UPDATE
from fedround.events import Fact
from fedround.participant.abc import Update
from fedround.participant.run import run_participant
from fedround.tensors.weights import Array
from support.federation import FINISH, REFUSED, REJECT, STAND_BY, TOKEN, After, Answer, OldPlatform, order, say
from support.participants import FAST, Mean, Training, outcomes, running
from support.peer import Peer, Reply, answer
from support.processes import until
from support.updates import npy, update


def double(weights: Array | None) -> Update:
    assert weights is not None
    return Update(7, weights * 2)


def test_a_participant_trains_with_a_platform_of_0_8() -> None:
    model, facts = np.arange(3, dtype=np.float32), list[Fact]()
    heartbeat = After("upload", [STAND_BY, order(4)], order(5), FINISH)
    with OldPlatform(heartbeat=heartbeat, download=[Answer(body=npy(model))]) as p:
        run_participant(Training(double), p.url, FAST, observers=[facts.append])
    assert [request.body for request in p.of("upload")] == [update(7, 0, 2, 4)] * 2
    assert {request.path for request in p.of("upload")} == {p.of("download")[0].path}
    # Unconfirmed where the next heartbeat overtakes the upload's answer, which says nothing.
    assert len(outcomes(facts)) == 2
    assert set(outcomes(facts)) <= {"completed", "unconfirmed"}


def test_the_same_round_right_after_an_upload_is_not_repeated() -> None:
    participant = Mean()
    with OldPlatform(
        heartbeat=After("upload", order(0), [order(0), order(0), order(0), order(1)], [order(1), order(1), FINISH])
    ) as p:
        run_participant(participant, p.url, FAST)
    assert len(participant.given) == len(p.of("upload")) == 2


def test_an_unconfirmed_update_is_sent_again_without_training() -> None:
    participant = Mean()
    facts: list[Fact] = []
    with OldPlatform(heartbeat=After("upload", order(0), order(0), order(1), FINISH)) as p:
        run_participant(participant, p.url, 0.05, confirm_timeout=0.12, observers=[facts.append])
    first, second, _ = p.of("upload")
    assert first.body == second.body
    assert (len(p.of("upload")), len(participant.given)) == (3, 2)
    assert outcomes(facts) == ["completed", "completed"]


def test_an_invalid_token_is_replaced_and_the_kept_update_delivered() -> None:
    participant = Mean()
    with OldPlatform(heartbeat=After("upload", order(0), order(0), FINISH), upload=[Answer(405), Answer()]) as p:
        run_participant(participant, p.url, FAST)
    assert len(p.of("start_training")) == len(p.of("upload")) == 2
    assert len(participant.given) == 1


def test_with_a_kept_update_the_download_is_conditional() -> None:
    participant = Mean()
    old, new = Answer(headers={"ETag": '"0"'}), Answer(body=npy(np.ones(3)), headers={"ETag": '"1"'})
    with OldPlatform(
        heartbeat=After("upload", order(0), order(0), order(0), order(1), FINISH),
        download=[old, Answer(304, headers={"ETag": '"0"'}), new],
        upload=[Answer(409), Answer(409), Answer(200, headers={"Fedround-Update": "counted"})],
    ) as p:
        run_participant(participant, p.url, FAST)
    assert [request.headers.get("If-None-Match") for request in p.of("download")] == [None, '"0"', '"0"', None]
    assert len(p.of("upload")) == 4
    assert len(participant.given) == 3


def test_a_participant_continues_after_a_refused_request_and_a_rejection() -> None:
    with OldPlatform(
        heartbeat=After("upload", [order(0), REJECT, order(0)], FINISH),
        start_training=[REFUSED, say({"url": "http://nowhere.invalid", "token": TOKEN, "ok": True})],
    ) as p:
        run_participant(Mean(), p.url, FAST, aggregator_url=p.url)
    assert len(p.of("rendez_vous")) == 2
    assert len(p.of("upload")) == 1


def test_name_token_and_long_poll_are_sent() -> None:
    with OldPlatform(heartbeat=[FINISH]) as p:
        run_participant(Mean(), p.url, name="silo-1", token="secret", long_poll=7)
    register, beat = p.requests
    assert (register.headers["Fedround-Participant"], register.headers["Authorization"]) == ("silo-1", "Bearer secret")
    assert beat.headers["Prefer"] == "wait=7"


def test_a_participant_exits_if_training_is_complete_when_it_registers() -> None:
    with OldPlatform(rendez_vous=[say({"id": None, "ok": False})]) as p:
        run_participant(Mean(), p.url)


def test_an_upload_whose_connection_is_refused_is_retried_immediately() -> None:
    """Nothing can have arrived. So the participant does not treat it as an update that a 0.8 platform has not confirmed."""
    closed: list[str] = []
    reopened: list[Peer] = []

    def train(weights: Array | None) -> Update:
        first.__exit__(None, None, None)
        closed.append(first.address)
        return Update(1, np.ones(2))

    def reopen(fact: Fact) -> None:
        if isinstance(fact, events.Retrying) and fact.path == UPDATE and closed:
            reopened.append(Peer(answer("200 OK"), port=int(closed.pop().partition(":")[2])).__enter__())

    with OldPlatform(heartbeat=[order(0)]) as p:
        first = Peer(Reply(answer("200 OK", Connection="close"), close=True)).__enter__()
        with running(Training(train), p.url, aggregator_url=first.url, observers=[reopen]):
            until(lambda: reopened and reopened[0].requests)
    (second,) = reopened
    second.__exit__(None, None, None)
    assert second.requests[0].body == update(1, 1, 1, dtype="<f8")
