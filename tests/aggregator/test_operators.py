from pathlib import Path

import httpx
import pytest

from fedround.aggregator import operators
from fedround.aggregator.service import AggregatorService
from fedround.aggregator.store import ModelStore
from fedround.common.books import Open
from fedround.common.durable import Directory
from fedround.errors import Late, UnknownAttempt
from fedround.events import Fact, ModelsRolledBack
from fedround.observability import ops
from fedround.observability.health import Health
from support.aggregating import ANNA, BERT, deliver, open_round, service, weights
from support.disks import MemoryDisk

TOKEN = "the-operators"


async def trained(rounds: int, store: ModelStore | None, facts: list[Fact] | None = None) -> AggregatorService:
    aggregator = service(store=store, facts=facts)
    for number in range(rounds):
        await open_round(aggregator, number)
        await deliver(aggregator, ANNA, float(number), 2.0, number=number)
        await aggregator.close(f"attempt-{number}", [ANNA])
    return aggregator


async def ask(
    aggregator: AggregatorService, body: bytes, *, token: str | None = TOKEN, kind: str = "application/json", bearer: str = TOKEN
) -> httpx.Response:
    routes = [operators.rollback_route(aggregator, ops.Access(token, "AGGREGATOR_OPS_TOKEN"))]
    transport = httpx.ASGITransport(ops.app(Health(), aggregator.status, routes=routes))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        return await client.post("/rollback", content=body, headers={"Content-Type": kind, "Authorization": f"Bearer {bearer}"})


async def test_a_rollback_makes_a_former_model_the_newest_and_voids_the_open_attempt(tmp_path: Path) -> None:
    facts: list[Fact] = []
    aggregator = await trained(5, ModelStore(Directory(tmp_path)), facts)
    await open_round(aggregator, 5)
    await deliver(aggregator, ANNA, 9.0, 2.0, number=5)
    before = await aggregator.ledger("", 0)
    answer = await ask(aggregator, b'{"round": 2}')
    assert (answer.status_code, answer.json()) == (200, {"round": 2, "removed": [3, 4]})
    assert ModelsRolledBack(2, 2) in facts
    page = await aggregator.ledger("", 0)
    assert (page.generation, page.incarnation != before.incarnation, page.entries) == (1, True, ())
    assert page.newest is not None
    assert (page.newest.round, weights(aggregator)) == (2, [2.0, 2.0])
    assert sorted(Directory(tmp_path).names()) == ["models.json", *(f"round-00000{n}.npy" for n in range(3))]
    with pytest.raises(Late):
        await deliver(aggregator, BERT, 9.0, 2.0, number=5)
    with pytest.raises(UnknownAttempt):
        await aggregator.open(Open("another-2", 2, ()))
    await aggregator.open(Open("another-3", 3, ()))
    assert ModelStore(Directory(tmp_path)).generation == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"2", 400),
        (b"{}", 400),
        (b'{"round": -1}', 400),
        (b'{"round": 1.0}', 400),
        (b'{"round": "1"}', 400),
        (b'{"round": 1' + b"0" * 400 + b"}", 400),
        (b"[" * 1000, 400),
        (b" " * 2000, 413),
        (b'{"round": 7}', 404),
    ],
)
async def test_a_request_that_is_none_changes_nothing(body: bytes, status: int) -> None:
    aggregator = await trained(2, ModelStore(MemoryDisk()))
    assert (await ask(aggregator, body)).status_code == status
    assert (await aggregator.ledger("", 0)).generation == 0
    assert weights(aggregator) == [1.0, 2.0]


async def test_a_rollback_needs_the_operators_token_and_a_content_type_that_no_page_sends_unasked() -> None:
    aggregator = await trained(2, ModelStore(MemoryDisk()))
    for answer, status in [
        (await ask(aggregator, b'{"round": 0}', token=None), 403),
        (await ask(aggregator, b'{"round": 0}', bearer="another"), 401),
        (await ask(aggregator, b'{"round": 0}', kind="text/plain"), 415),
        (await ask(await trained(2, None), b'{"round": 0}'), 404),
    ]:
        assert answer.status_code == status
        assert answer.json()["detail"]
    assert weights(aggregator) == [1.0, 2.0]


async def test_a_rollback_that_cannot_be_written_is_to_be_tried_again_and_one_to_a_damaged_model_fails() -> None:
    disk = MemoryDisk()
    aggregator = await trained(3, ModelStore(disk))
    disk.files["round-000000.npy"] = b"damaged"
    assert (await ask(aggregator, b'{"round": 0}')).status_code == 500
    disk.flush = _full  # type: ignore[method-assign]  # a disk that cannot write its directory
    assert (await ask(aggregator, b'{"round": 1}')).status_code == 503
    assert weights(aggregator) == [2.0, 2.0]


def _full() -> None:
    raise OSError("the disk is full")
