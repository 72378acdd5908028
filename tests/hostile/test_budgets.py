"""Unauthenticated clients that send without a limit: honest participants continue, operators get responses, memory stays free."""

from uuid import uuid4

import pytest

from hostile.arena import Arena
from hostile.attackers import DrippingBody, EndlessUpload, Pipeliner, SlowHeads, Together

pytestmark = pytest.mark.timeout(180)  # other tests use the two cores, too

PUBLIC = ("COORDINATOR_PORT", "AGGREGATOR_PORT")
OPS = ("COORDINATOR_OPS_PORT", "AGGREGATOR_OPS_PORT", "PARTICIPANT_OPS_PORT")
NOBODY = f"/{uuid4()}/{uuid4()}"


@pytest.mark.parametrize(("port", "path"), [*((port, "/") for port in PUBLIC + OPS), ("COORDINATOR_OPS_PORT", "/metrics")])
def test_a_client_that_pipelines_and_never_reads_costs_no_memory(arena: Arena, port: str, path: str) -> None:
    arena.withstands(Pipeliner(arena.port(port), path), of=arena.silos[0])


def test_endless_request_heads_stop_no_training(arena: Arena) -> None:
    arena.withstands(Together(*(SlowHeads(arena.port(port)) for port in PUBLIC)))


def test_slow_bodies_stop_no_training(arena: Arena) -> None:
    attacks = (DrippingBody(arena.port(port), NOBODY, threads=10) for port in (*PUBLIC, *OPS))
    arena.withstands(Together(*attacks), of=arena.silos[0])


def test_a_slow_endless_body_stops_no_training(arena: Arena) -> None:
    attacks = (DrippingBody(arena.port(port), NOBODY, None, threads=10) for port in (*PUBLIC, *OPS))
    arena.withstands(Together(*attacks), of=arena.silos[0])


def test_fast_endless_bodies_stop_no_training(arena: Arena) -> None:
    attacks = (EndlessUpload(arena.port(port), NOBODY) for port in (*PUBLIC, *OPS))
    arena.withstands(Together(*attacks), of=arena.silos[0])
