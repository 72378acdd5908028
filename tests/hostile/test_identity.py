"""Peers that use the ids, names and seats of others: each participant keeps its own, and no round waits for absent ones."""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hostile.arena import Arena
from hostile.attackers import EVERYWHERE, Ghosts, Thief
from hostile.client import Client
from support.processes import Process, running, until
from support.updates import update

pytestmark = pytest.mark.timeout(180)  # other tests use the two cores, too

NAMES = [*(f"silo-{k}" for k in range(3)), "mallory", "victim"]
OPS_TOKEN = "token-of-the-operators"
TOKENS = {name: f"token-of-{name}" for name in NAMES}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """An arena in which every participant has a token."""
    with Arena(tmp_path_factory.mktemp("guarded"), tokens=TOKENS, ops_token=OPS_TOKEN) as arena:
        yield arena


def client(arena: Arena, name: str, *, called: str | None = None) -> Client:
    ports = arena.port("COORDINATOR_PORT"), arena.port("AGGREGATOR_PORT")
    return Client(*ports, name=called or name, token=TOKENS[name])


def seats(process: Process, name: str) -> int:
    status = process.get("COORDINATOR_OPS_PORT", "/status", Authorization=f"Bearer {OPS_TOKEN}")
    participants = json.loads(status)["participants"]
    return sum(participant["name"] == name for participant in participants)


def registrations(silo: Process) -> float:
    metrics = silo.get("PARTICIPANT_OPS_PORT", "/metrics").decode()
    return sum(map(float, re.findall(r"^fedround_participant_registrations_total\S* (\S+)$", metrics, re.MULTILINE)))


@pytest.mark.parametrize(
    "call",
    [
        Client.heartbeat,
        Client.start_training,
        Client.download,
        lambda thief: thief.upload(update(1, 1.0)),
        Client.leave,
    ],
    ids=["heartbeat", "start_training", "download", "upload", "leave"],
)
def test_an_id_is_useless_with_the_token_of_another_participant(guarded: Arena, call: Callable[[Client], object]) -> None:
    victim, thief = client(guarded, "victim"), client(guarded, "mallory")
    victim.register()
    assert victim.selected()
    thief.id, thief.update_token = victim.id, victim.update_token
    answer = call(thief)
    assert answer.status == 403  # type: ignore[attr-defined]  # an answer
    assert victim.id.encode() not in answer.body  # type: ignore[attr-defined]  # an answer
    assert victim.download().status == 200, "its owner goes on as if nothing had happened"
    assert victim.leave().status == 204
    guarded.trains()
    guarded.check()


def test_one_token_holds_one_seat(guarded: Arena) -> None:
    many = [client(guarded, "mallory", called=f"mallory-{n}") for n in range(10)]
    for one in many:
        assert one.register().status == 200
        one.heartbeat()
    assert seats(guarded.coordinator, "mallory") == 1
    assert [one.heartbeat().json["state"] for one in many[:-1]] == ["reject"] * 9
    assert many[-1].heartbeat().json["state"] != "reject"
    many[-1].leave()
    guarded.trains()
    guarded.check()


def test_a_participant_that_returns_with_its_token_gets_its_seat_immediately(guarded: Arena) -> None:
    before = client(guarded, "victim")
    before.register()
    assert before.selected()
    after = client(guarded, "victim")  # it was killed, and said nothing
    after.register()
    after.heartbeat()
    assert seats(guarded.coordinator, "victim") == 1
    assert before.heartbeat().json["state"] == "reject"
    after.leave()
    assert guarded.trains() < 5
    guarded.check()


@pytest.mark.parametrize("source", ["127.0.0.66", EVERYWHERE])
def test_registrations_without_heartbeats_delay_no_round(arena: Arena, source: str) -> None:
    ghosts = Ghosts(arena.port("COORDINATOR_PORT"), source=source, pause=0.02)
    arena.withstands(ghosts, seen=lambda: ghosts.blows > 20)
    until(lambda: len(arena.coordinator.status("COORDINATOR_OPS_PORT")["participants"]) == 3, 20)


@pytest.mark.parametrize("beats", [False, True], ids=["without heartbeats", "with heartbeats"])
def test_no_participant_is_removed_by_registering_its_name(arena: Arena, beats: bool) -> None:
    before = registrations(arena.silos[0])
    thief = Thief(arena.port("COORDINATOR_PORT"), "silo-0", beats=beats)
    arena.withstands(thief, seconds=5, seen=lambda: thief.blows > 10)
    assert registrations(arena.silos[0]) == before
    until(lambda: len(arena.coordinator.status("COORDINATOR_OPS_PORT")["participants"]) == 3, 20)


@pytest.mark.parametrize("proved", [True, False], ids=["with their own tokens", "by their names"])
def test_twelve_killed_and_restarted_participants_leave_no_seats_behind(tmp_path: Path, proved: bool) -> None:
    names = [f"silo-{k:02}" for k in range(12)]
    settings = {"COORDINATOR_MIN_CLIENTS": "12"}
    if proved:
        (tmp_path / "tokens").write_text("".join(f"{name} token-of-{name}\n" for name in names))
        settings |= {f"{role}_TOKENS_FILE": str(tmp_path / "tokens") for role in ("COORDINATOR", "AGGREGATOR")}
        settings |= {f"{role}_OPS_TOKEN": OPS_TOKEN for role in ("COORDINATOR", "AGGREGATOR")}

    with running("platform", **settings) as platform, ThreadPoolExecutor(len(names)) as pool:
        ports = int(platform.ports["COORDINATOR_PORT"]), int(platform.ports["AGGREGATOR_PORT"])

        def life(name: str) -> bool:
            one = Client(*ports, name=name, token=f"token-of-{name}" if proved else None)
            one.register()
            return one.selected(15)

        assert all(pool.map(life, names))
        took = until(lambda: all(pool.map(life, names)))
        assert [seats(platform, name) for name in names] == [1] * len(names)
        print(f"\n12 participants came back and were in a round after {took:.2f} s")
        assert took < 8
