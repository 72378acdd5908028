"""Too many connections and requests: honest participants continue, and operators get responses."""

import time
from pathlib import Path

import pytest

from fedround.http.throttle import BURST, RATE
from hostile.arena import Arena
from hostile.attackers import Flood, IdleCrowd, Together
from hostile.client import ask

pytestmark = pytest.mark.timeout(180)  # other tests use the two cores, too

STRANGER = "5f0c8f0e-3d0a-4c5b-9a56-0a4a5d1f7c11"
"""An unknown id."""


@pytest.mark.parametrize(
    ("port", "path"),
    [
        ("COORDINATOR_OPS_PORT", "/status"),
        ("AGGREGATOR_OPS_PORT", "/metrics"),
        ("COORDINATOR_PORT", f"/heartbeat/{STRANGER}"),
        ("COORDINATOR_PORT", "/rendez_vous"),
        ("AGGREGATOR_PORT", f"/{STRANGER}/{STRANGER}"),
        ("PARTICIPANT_OPS_PORT", "/metrics"),
    ],
)
def test_floods_from_one_address_do_not_delay_the_rounds_of_others(arena: Arena, port: str, path: str) -> None:
    flood = Flood(arena.port(port), path, threads=4)
    arena.withstands(flood, of=arena.silos[0])
    assert sum(flood.answers.values()) > 0


def test_a_known_participant_is_limited_too(arena: Arena) -> None:
    id = ask(arena.port("COORDINATOR_PORT"), "GET", "/rendez_vous").json["id"]
    # It is selected, too, and delivers nothing: the first rounds wait for it.
    arena.withstands(Flood(arena.port("COORDINATOR_PORT"), f"/heartbeat/{id}", threads=4))
    ask(arena.port("COORDINATOR_PORT"), "DELETE", f"/rendez_vous/{id}")


def test_more_idle_connections_than_descriptors_stop_no_training(tmp_path: Path) -> None:
    ports = ("COORDINATOR_PORT", "COORDINATOR_OPS_PORT", "AGGREGATOR_PORT")
    with Arena(tmp_path, nofile=1024) as arena:
        arena.withstands(Together(*(IdleCrowd(arena.port(port)) for port in ports)), seconds=6)


def test_a_flood_of_wrong_tokens_is_slowed_down_and_delays_no_round(tmp_path: Path) -> None:
    tokens = {f"silo-{k}": f"token-of-silo-{k}" for k in range(3)}
    with Arena(tmp_path, tokens=tokens, ops_token="token-of-the-operators") as arena:
        flood = Flood(arena.port("COORDINATOR_PORT"), "/rendez_vous", head="Authorization: Bearer guess\r\n", threads=4)
        began = time.monotonic()
        arena.withstands(flood)
        # A machine that is slow enough answers fewer than the rate allows, and refuses none.
        assert 0 < flood.answers.pop(b"401") <= BURST + RATE * (time.monotonic() - began)
        assert flood.answers.keys() <= {b"429"}
        refused = ask(arena.port("COORDINATOR_PORT"), "GET", "/rendez_vous", token="guess")
        assert refused.status in (401, 429)
        assert refused.status == 401 or int(refused.headers["retry-after"]) > 0
