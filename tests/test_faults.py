"""Processes that are killed or unreachable, and how the federation reacts."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedround.errors import ConfigurationError
from fedround.events import Fact, RoundEnded
from support.known_answer import PARTICIPANTS, KnownAnswer, global_model, train
from support.processes import Process, running, two_services, until


def test_participants_survive_a_platform_that_restarts_without_memory() -> None:
    killed = threading.Event()
    platform = Process("platform", COORDINATOR_ROUNDS="5", COORDINATOR_MIN_CLIENTS="2")

    def in_round_2(number: int) -> None:
        if number == 2 and not killed.is_set():
            platform.kill()
            killed.set()

    participants = [KnownAnswer(0, before=in_round_2), KnownAnswer(1)]
    with ThreadPoolExecutor() as pool:
        futures = [train(pool, platform, participant) for participant in participants]
        killed.wait()
        with running("platform", **platform.ports, COORDINATOR_ROUNDS="5", COORDINATOR_MIN_CLIENTS="2") as again:
            for future in futures:
                future.result()
            assert again.status("COORDINATOR_OPS_PORT")["state"] == "complete"
            assert global_model(again) == [5.0, 5.0]


def test_a_killed_aggregator_gets_the_kept_update_again_without_training() -> None:
    delivered, lost = threading.Event(), threading.Event()

    def until_it_is_killed(number: int) -> None:
        if number == 0:
            assert lost.wait(20)

    def observer(fact: Fact) -> None:
        if isinstance(fact, RoundEnded):
            delivered.set()

    quick, slow = KnownAnswer(0), KnownAnswer(1, before=until_it_is_killed)
    plan = {"COORDINATOR_ROUNDS": "3", "COORDINATOR_MIN_CLIENTS": "2"}
    with two_services(**plan) as (coordinator, aggregator), ThreadPoolExecutor() as pool:
        futures = [train(pool, coordinator, quick, observers=[observer]), train(pool, coordinator, slow)]
        assert delivered.wait(20)
        aggregator.kill()
        with running("aggregator", **aggregator.ports) as again:
            coordinator.said("lost the updates of this round")
            lost.set()
            for future in futures:
                future.result()
            assert coordinator.status("COORDINATOR_OPS_PORT")["state"] == "complete"
            assert (quick.rounds, slow.rounds) == ([0, 1, 2], [0, 1, 2])
            assert global_model(again) == [3.0, 3.0]


def test_a_participant_without_the_aggregator_costs_a_deadline_but_no_round() -> None:
    plan = {"COORDINATOR_ROUNDS": "4", "COORDINATOR_MIN_CLIENTS": "2", "COORDINATOR_PARTICIPANTS_RATIO": "0.5"}
    cut_off, fine = KnownAnswer(0), KnownAnswer(1)
    with (
        running("platform", COORDINATOR_ROUND_TIMEOUT="300ms", **plan) as platform,
        socket.socket() as nobody,
        ThreadPoolExecutor() as pool,
    ):
        nobody.bind(("127.0.0.1", 0))
        unreachable = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        futures = [train(pool, platform, cut_off, aggregator_url=unreachable), train(pool, platform, fine)]
        for future in futures:
            future.result()
        assert platform.status("COORDINATOR_OPS_PORT")["state"] == "complete"
        assert global_model(platform) == [0.0, 4.0 * PARTICIPANTS]
        assert cut_off.rounds == []


def test_a_model_above_the_limit_is_left_to_others_and_the_setting_is_named() -> None:
    with running("platform", COORDINATOR_ROUNDS="40") as platform, ThreadPoolExecutor() as pool:
        fine = train(pool, platform, KnownAnswer(0, size=1000, seconds=0.05))
        until(lambda: platform.status("COORDINATOR_OPS_PORT")["round"] > 1)
        with pytest.raises(ConfigurationError, match=r"has 8\d\d\d bytes or more, PARTICIPANT_MAX_MODEL_SIZE allows 1024"):
            train(pool, platform, KnownAnswer(1, size=1000), max_model_size=1024).result()
        fine.result()
        assert global_model(platform) == [80.0, 0.0] * 500
