"""The aggregator's operations port: models and rollbacks."""

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest

from fedround.aggregator import operators
from fedround.aggregator.build import build
from fedround.aggregator.service import AggregatorService
from fedround.aggregator.store import ModelStore
from fedround.common.books import Closed, Open
from fedround.common.durable import Directory
from fedround.common.settings import AggregatorSettings
from fedround.errors import ConfigurationError, DataDamaged, Late, UnknownAttempt, WrongWeights
from fedround.events import Fact, ModelsRolledBack, Observers
from fedround.observability import ops
from fedround.observability.health import Health
from fedround.tensors.weights import Spec
from support.aggregating import ANNA, BERT, deliver, open_round, send, service, trained, weights
from support.disks import MemoryDisk

TOKEN = "the-operators"


def asking(aggregator: AggregatorService, token: str | None) -> httpx.AsyncClient:
    access = ops.Access(token, "AGGREGATOR_OPS_TOKEN")
    routes = [operators.model_route(aggregator, access), operators.rollback_route(aggregator, access)]
    transport = httpx.ASGITransport(ops.app(Health(), aggregator.status, routes=routes))
    return httpx.AsyncClient(transport=transport, base_url="http://here")


async def get(aggregator: AggregatorService, address: str, *, token: str | None = None, **headers: str) -> httpx.Response:
    async with asking(aggregator, token) as client:
        return await client.get(address, headers=headers)


async def roll_back(
    aggregator: AggregatorService, body: bytes, *, token: str | None = TOKEN, kind: str = "application/json", bearer: str = TOKEN
) -> httpx.Response:
    async with asking(aggregator, token) as client:
        return await client.post("/rollback", content=body, headers={"Content-Type": kind, "Authorization": f"Bearer {bearer}"})


async def test_a_rollback_makes_an_earlier_model_the_newest_and_voids_the_open_attempt(tmp_path: Path) -> None:
    facts: list[Fact] = []
    aggregator = await trained(0, 1, 2, 3, 4, store=ModelStore(Directory(tmp_path)), facts=facts)
    await open_round(aggregator, 5)
    await deliver(aggregator, ANNA, 9.0, 2.0, number=5)
    before = await aggregator.ledger("", 0)
    answer = await roll_back(aggregator, b'{"round": 2}')
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
async def test_an_invalid_rollback_changes_nothing(body: bytes, status: int) -> None:
    aggregator = await trained(0, 1, store=ModelStore(MemoryDisk()))
    assert (await roll_back(aggregator, body)).status_code == status
    assert (await aggregator.ledger("", 0)).generation == 0
    assert weights(aggregator) == [1.0, 2.0]


async def test_a_rollback_requires_the_operators_token_and_json() -> None:
    aggregator = await trained(0, 1, store=ModelStore(MemoryDisk()))
    for answer, status in [
        (await roll_back(aggregator, b'{"round": 0}', token=None), 403),
        (await roll_back(aggregator, b'{"round": 0}', bearer="another"), 401),
        (await roll_back(aggregator, b'{"round": 0}', kind="text/plain"), 415),
        (await roll_back(await trained(0, 1), b'{"round": 0}'), 404),
    ]:
        assert answer.status_code == status
        assert answer.json()["detail"]
    assert weights(aggregator) == [1.0, 2.0]


async def test_a_rollback_to_a_damaged_model_fails_and_one_that_cannot_be_written_is_a_503() -> None:
    disk = MemoryDisk()
    aggregator = await trained(0, 1, 2, store=ModelStore(disk))
    disk.files["round-000000.npy"] = b"damaged"
    assert (await roll_back(aggregator, b'{"round": 0}')).status_code == 500
    disk.flush = _full  # type: ignore[method-assign]  # a disk that cannot write its directory
    assert (await roll_back(aggregator, b'{"round": 1}')).status_code == 503
    assert weights(aggregator) == [2.0, 2.0]


def _full() -> None:
    raise OSError("the disk is full")


async def test_the_newest_model_can_be_fetched_from_the_ops_port() -> None:
    answer = await get(await trained(7), "/model")
    assert (answer.status_code, answer.headers["etag"]) == (200, '"7"')
    assert list(np.load(BytesIO(answer.content))) == [7, 2]


async def test_the_model_of_an_earlier_round_can_be_fetched_while_it_is_kept(tmp_path: Path) -> None:
    aggregator = await trained(0, 1, 2, store=ModelStore(Directory(tmp_path), keep=2))
    for round in (1, 2):
        answer = await get(aggregator, f"/model?round={round}")
        assert (answer.status_code, answer.headers["etag"]) == (200, f'"{round}"')
        assert list(np.load(BytesIO(answer.content))) == [round, 2]
    for address, status, detail in [
        ("/model?round=0", 404, "`/status` lists the rounds with one"),
        ("/model?round=-1", 400, "`round` must be the number of a round"),
        (f"/model?round={'9' * 5000}", 400, "`round` must be the number of a round"),
        ("/model?round=\u0661", 400, "`round` must be the number of a round"),
    ]:
        answer = await get(aggregator, address)
        assert (answer.status_code, detail in answer.json()["detail"]) == (status, True)


async def test_a_damaged_earlier_model_is_a_500_and_the_others_stay_available(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    aggregator = await trained(0, 1, store=ModelStore(Directory(tmp_path)))
    (tmp_path / "round-000000.npy").write_bytes(b"something else")
    answer = await get(aggregator, "/model?round=0")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "round-000000.npy in the data directory cannot be used" in answer.json()["detail"]
    assert answer.json()["detail"] in caplog.text
    assert (await get(aggregator, "/model?round=1")).status_code == 200


async def test_an_earlier_model_that_is_removed_while_it_is_read_is_a_404(tmp_path: Path) -> None:
    class Slow(Directory):
        def read(self, name: str) -> memoryview:
            if name == "round-000000.npy":
                store.save(2, [b"a newer one"])
            return super().read(name)

    store = ModelStore(Slow(tmp_path), keep=2)
    assert (await get(await trained(0, 1, store=store), "/model?round=0")).status_code == 404


def test_reading_a_model_that_was_never_kept_raises(tmp_path: Path) -> None:
    with pytest.raises(DataDamaged, match="no model of round 3"):
        ModelStore(Directory(tmp_path)).read(3)


async def test_before_the_first_round_the_model_is_a_404() -> None:
    answer = await get(service(), "/model")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert "there is no global model yet" in answer.json()["detail"]


async def test_the_model_requires_the_token_as_bearer_or_password() -> None:
    aggregator = await trained(0)
    refused = await get(aggregator, "/model", token="secret")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Basic realm="fedround"')
    basic = base64.b64encode(b"somebody:secret").decode()
    for given in ("Bearer secret", f"Basic {basic}"):
        assert (await get(aggregator, "/model", token="secret", Authorization=given)).status_code == 200
    assert (await get(aggregator, "/readyz", token="secret")).status_code == 200


async def test_the_status_is_on_the_ops_port() -> None:
    status = (await get(await trained(7), "/status")).json()
    assert status["model"] == {"round": 7, "parameters": 2, "dtype": "float32"}
    assert status["ready"] is True


class Longest:
    codec = "bytes"

    def __init__(self, spec: Spec) -> None:
        pass

    def combine(self, samples: Sequence[int], updates: Sequence[memoryview]) -> memoryview:
        return max(updates, key=len)


async def test_models_of_bytes_are_kept_and_served_but_do_not_fit_a_strategy_of_arrays(tmp_path: Path) -> None:
    disk = Directory(tmp_path)
    given = AggregatorSettings(strategy=f"{__name__}:Longest")
    aggregator = build(given, Observers(), disk)
    await open_round(aggregator, 3)
    await send(aggregator, ANNA, bytes(4) + b"a model", number=3)
    with pytest.raises(WrongWeights):
        await send(aggregator, BERT, bytes(4), number=3)
    assert await aggregator.close("attempt-3", [ANNA]) == Closed(parameters=0)
    again = build(given, Observers(), disk)
    assert again.status()["model"] == {"round": 3, "parameters": 0, "dtype": "uint8"}
    answer = await get(again, "/model")
    assert answer.content == b"a model"
    assert answer.headers["content-disposition"].endswith('"model.bin"')
    with pytest.raises(
        ConfigurationError, match="AGGREGATOR_STRATEGY=median: the model of round 3 in AGGREGATOR_DATA_DIR is of another"
    ):
        build(AggregatorSettings(strategy="median"), Observers(), disk)
