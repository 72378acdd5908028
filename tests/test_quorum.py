"""Three participants as processes. One needs ten times as long as the others, and no round waits for it."""

import json
from collections import Counter, defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.known_answer import global_model
from support.processes import Process, joining, running, until

ROUNDS = 12
"""Number of rounds that select the slow participant."""
QUICK, SLOW = 0.1, 1.0
"""Seconds of training."""
SILOS = {"anna": QUICK, "bert": QUICK, "slow": SLOW}


def silo(platform: Process, name: str) -> dict[str, str]:
    options = {"k": list(SILOS).index(name), "count": len(SILOS), "seconds": SILOS[name]}
    return joining(platform, "known_answer:KnownAnswer", options, PARTICIPANT_NAME=name, PARTICIPANT_HEARTBEAT_PERIOD="50ms")


def shares(platform: Process) -> dict[str, tuple[int, int]]:
    """Return how many rounds counted each participant, and how many selected it."""
    shown = platform.status("COORDINATOR_OPS_PORT")["participants"]
    return {p["name"]: (p["counted_rounds"], p["selected_rounds"]) for p in shown}


def facts(platform: Process, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in platform.log.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == kind]


def test_a_slow_participant_delays_no_round_and_its_share_is_shown(tmp_path: Path) -> None:
    plan = {"COORDINATOR_ROUNDS": "0", "COORDINATOR_MIN_CLIENTS": "2", "COORDINATOR_QUORUM": "0.6"}
    logs = {"COORDINATOR_LOG_LEVEL": "debug"}
    kept = {"AGGREGATOR_DATA_DIR": str(tmp_path), "AGGREGATOR_KEEP_MODELS": "1000"}
    with running("platform", **plan, **logs, **kept) as platform, ExitStack() as stack:
        silos = {name: stack.enter_context(running("participant", **silo(platform, name))) for name in SILOS}
        until(lambda: shares(platform).get("slow", (0, 0))[1] >= ROUNDS, within=60)
        abandoned = int(silos["slow"].said(r"^round (\d+) abandoned")[1])
        told = shares(platform)
        last = platform.status("COORDINATOR_OPS_PORT")["last_rounds"][-1]["round"]
        model = global_model(platform, last)
        assert platform.end() == 0
    names = {fact["id"]: fact["name"] for fact in facts(platform, "ParticipantJoined")}
    completed = {fact["round"]: fact for fact in facts(platform, "RoundCompleted")}
    counted: dict[int, list[str]] = defaultdict(list)
    for fact in facts(platform, "UpdateCounted"):
        counted[fact["round"]].append(names[fact["id"]])

    # The others continued while it trained. The coordinator informed it, and it abandoned that round.
    assert completed[abandoned]["late"] == 1
    assert "slow" not in counted[abandoned]
    assert {fact["reason"] for fact in facts(platform, "Revoked")} == {"late"}
    assert facts(platform, "SatOut") == facts(platform, "AttemptDropped") == []
    assert f"round {abandoned}: participant slow (" in platform.log
    assert all(fact["participants"] >= 2 for fact in completed.values())

    share = Counter(name for round in counted.values() for name in round)
    assert told["slow"][0] < told["slow"][1], "its share is shown"
    assert all(told[name][0] <= share[name] for name in SILOS)

    # The model has each update of the ledger once, with its share of the round's samples.
    weights = [sum(len(SILOS) / len(counted[round]) for round in range(last + 1) if name in counted[round]) for name in SILOS]
    assert model == pytest.approx(weights)
