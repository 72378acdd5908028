"""A platform with data directories is killed: training continues where it was, and no participant trains a round twice."""

import statistics
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.known_answer import PARTICIPANTS, KnownAnswer, global_model, train
from support.processes import Process, joining, kept_in, running, until

ROUNDS = 6
PLAN = {"COORDINATOR_ROUNDS": str(ROUNDS), "COORDINATOR_MIN_CLIENTS": str(PARTICIPANTS)}


def ids(platform: Process) -> dict[str, str]:
    return {p["name"]: p["id"] for p in platform.status("COORDINATOR_OPS_PORT")["participants"]}


@pytest.mark.parametrize("when", [1, ROUNDS - 1])
def test_training_continues_after_a_restart(tmp_path: Path, when: int) -> None:
    settings = PLAN | kept_in(tmp_path)
    platform = Process("platform", **settings)
    known: dict[str, str] = {}
    killed = threading.Event()

    def kill(number: int) -> None:
        if number == when and not killed.is_set():
            known.update(ids(platform))
            platform.kill()
            killed.set()

    participants = [KnownAnswer(0, before=kill), KnownAnswer(1)]
    with ThreadPoolExecutor() as pool:
        futures = [train(pool, platform, p, name=f"silo-{p.k}") for p in participants]
        killed.wait()
        with running("platform", **platform.ports, **settings) as again:
            again.said(r"^resumed after a restart: round \d, 2 known participants")
            for future in futures:
                future.result()
            assert global_model(again) == [float(ROUNDS)] * PARTICIPANTS
            assert ids(again).items() <= known.items()
    assert [p.rounds for p in participants] == [list(range(ROUNDS))] * PARTICIPANTS


def test_a_complete_training_continues_with_more_rounds(tmp_path: Path) -> None:
    settings = PLAN | kept_in(tmp_path)
    for rounds in (2, 5):
        participants = [KnownAnswer(0), KnownAnswer(1)]
        with running("platform", **settings | {"COORDINATOR_ROUNDS": str(rounds)}) as platform, ThreadPoolExecutor() as pool:
            for future in [train(pool, platform, p) for p in participants]:
                future.result()
            assert global_model(platform) == [float(rounds)] * PARTICIPANTS
    assert [p.rounds for p in participants] == [[2, 3, 4]] * PARTICIPANTS


def test_models_of_earlier_rounds_can_be_fetched(tmp_path: Path) -> None:
    settings = PLAN | kept_in(tmp_path) | {"AGGREGATOR_KEEP_MODELS": "3"}
    with running("platform", **settings) as platform, ThreadPoolExecutor() as pool:
        for future in [train(pool, platform, KnownAnswer(k)) for k in range(PARTICIPANTS)]:
            future.result()
        assert platform.status("AGGREGATOR_OPS_PORT")["models"] == [3, 4, 5]
        assert [global_model(platform, round) for round in (3, 4, 5)] == [[n, n] for n in (4.0, 5.0, 6.0)]


def test_the_last_rounds_and_statistics_of_models_are_shown_after_a_restart(tmp_path: Path) -> None:
    told = []
    for rounds in (ROUNDS, ROUNDS + 1):
        settings = PLAN | kept_in(tmp_path) | {"COORDINATOR_ROUNDS": str(rounds)}
        with running("platform", **settings) as platform, ThreadPoolExecutor() as pool:
            for future in [train(pool, platform, KnownAnswer(k)) for k in range(PARTICIPANTS)]:
                future.result()
            until(lambda platform=platform: platform.status("COORDINATOR_OPS_PORT")["state"] == "complete")  # type: ignore[misc]
            told.append(platform.status("COORDINATOR_OPS_PORT")["last_rounds"])
            assert platform.end() == 0, "what is killed so soon after a round may not have kept it"
    before, after = told
    assert [(done["round"], done["counted"]) for done in after] == [(number, PARTICIPANTS) for number in range(ROUNDS + 1)]
    assert [done | {"weights": {}} for done in after[:-1]] == [done | {"weights": {}} for done in before]
    # The first update of the next round measures the model that existed at the restart.
    assert {done["round"]: done["weights"]["mean"] for done in after[:-1]} == {number: number + 1.0 for number in range(ROUNDS)}


@pytest.mark.timeout(180)
def test_a_training_of_60_rounds_survives_five_kills_of_the_platform(tmp_path: Path) -> None:
    rounds, count = 60, 4
    settings = kept_in(tmp_path) | {"COORDINATOR_ROUNDS": str(rounds), "COORDINATOR_MIN_CLIENTS": str(count)}
    platform = Process("platform", **settings)
    with ExitStack() as stack:
        participants = []
        for k in range(count):
            options = {"k": k, "count": count, "seconds": 0.1, "journal": str(tmp_path / f"trained-{k}")}
            silo = joining(platform, "known_answer:KnownAnswer", options, PARTICIPANT_NAME=f"silo-{k}")
            participants.append(stack.enter_context(running("participant", **silo)))
        took = []
        for number in range(5, rounds, 12):
            participants[0].said(f"^round {number}: selected")
            platform.kill()
            for participant in participants:
                until(lambda participant=participant: participant.probe("/readyz")[0] == 503)  # type: ignore[misc]
            platform = Process("platform", **platform.ports, **settings)
            stack.callback(platform.kill)
            took.append(until(lambda: all(participant.probe("/readyz")[0] == 200 for participant in participants)))
        assert [participant.wait() for participant in participants] == [0] * count
        assert global_model(platform) == [float(rounds)] * count
        assert [(tmp_path / f"trained-{k}").read_text().split() for k in range(count)] == [[str(n) for n in range(rounds)]] * count
        assert platform.end() == 0
    print(f"\nready again {statistics.median(took):.2f} s after the platform's return, the median of five; worst {max(took):.2f} s")
