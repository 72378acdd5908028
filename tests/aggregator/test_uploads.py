"""Uploads to an aggregator: which it counts, refuses, or abandons."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from fedround.aggregator.ledger import MOST_AT_ONCE
from fedround.aggregator.running import Collected
from fedround.aggregator.service import AggregatorService
from fedround.aggregator.spool import Spool
from fedround.aggregator.strategies import Median
from fedround.common.books import Closed, Outcome, Verdict
from fedround.common.wire import UpdateOutcome
from fedround.errors import Late, NotAdmitted, NotFinite, SpoolFull, TooLarge, TooSlow, WrongWeights
from fedround.events import Fact, UpdateReceived, UploadFailed
from fedround.tensors.weights import Layout
from support.aggregating import (
    ANNA,
    BERT,
    CARL,
    counted,
    deliver,
    entries,
    fails,
    open_round,
    opened,
    send,
    service,
    stream,
    weights,
)
from support.disks import files_of_at_most
from support.updates import update


async def test_a_repeated_upload_is_read_and_discarded() -> None:
    facts: list[Fact] = []
    aggregator = await opened(facts=facts)
    await deliver(aggregator, ANNA, 1.0)
    nonsense = stream(b"non", b"sense")
    assert await aggregator.deliver(ANNA, f"{ANNA} 0", nonsense) is UpdateOutcome.REPEATED
    assert [chunk async for chunk in nonsense] == []
    assert facts[1] == UpdateReceived(ANNA, "repeated", 8)
    await aggregator.close("attempt-0", [ANNA])
    assert await deliver(aggregator, ANNA, 9.0) is UpdateOutcome.REPEATED
    assert await counted(aggregator) == [ANNA]
    assert weights(aggregator) == [1.0]


async def test_one_of_several_simultaneous_uploads_with_one_token_is_counted() -> None:
    aggregator = await opened()
    outcomes = await asyncio.gather(*(deliver(aggregator, ANNA, 1.0) for _ in range(MOST_AT_ONCE)))
    assert sorted(outcomes) == ["counted", *["repeated"] * (MOST_AT_ONCE - 1)]
    assert await counted(aggregator) == [ANNA]


async def test_a_participant_that_was_not_admitted_can_neither_deliver_nor_read() -> None:
    facts: list[Fact] = []
    aggregator = await opened(facts=facts)
    for id, token in [(ANNA, "wrong"), ("unknown", f"{ANNA} 0"), ("", "")]:
        with pytest.raises(NotAdmitted):
            await aggregator.deliver(id, token, stream(update(1, 1.0)))
        with pytest.raises(NotAdmitted):
            aggregator.read(id, token)
    assert facts[0] == UpdateReceived(ANNA, "unauthorized", 0, "no such id and token")
    assert await entries(aggregator) == []


async def test_an_update_for_a_round_that_is_over_is_late() -> None:
    facts: list[Fact] = []
    aggregator = await opened(facts=facts)
    assert await aggregator.revoke("attempt-0", BERT) is Verdict.REVOKED
    await deliver(aggregator, ANNA, 1.0)
    await aggregator.close("attempt-0", [ANNA])
    for id in (BERT, CARL):
        with pytest.raises(Late):
            await deliver(aggregator, id, 1.0)
    assert facts[-1] == UpdateReceived(CARL, "late", 0, "the round of this token is over, or was reassigned to other participants")


async def test_an_update_that_is_arriving_when_its_round_ends_is_late() -> None:
    aggregator = await opened()
    upload = Upload(update(1, 1.0))
    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(fails(Late, aggregator.deliver(ANNA, f"{ANNA} 0", upload.chunks())))
        await upload.begun.wait()
        assert await aggregator.revoke("attempt-0", ANNA, 30.0) is Verdict.RECEIVING
        await open_round(aggregator, 1)
        upload.go_on.set()
        await answer
    assert await entries(aggregator) == []


async def test_an_update_that_arrives_too_slowly_is_cut_off_by_its_revocation() -> None:
    aggregator = await opened()
    upload = Upload(update(1, 1.0))
    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(fails(Late, aggregator.deliver(ANNA, f"{ANNA} 0", upload.chunks(), length=1000)))
        await upload.begun.wait()
        assert await aggregator.revoke("attempt-0", ANNA, 30.0) is Verdict.RECEIVING
        assert await aggregator.revoke("attempt-0", ANNA, 0.0) is Verdict.REVOKED
        upload.go_on.set()
        await answer
    assert aggregator.status()["receiving"] == 0


class Upload:
    """Yield half of the data, set `begun`, and yield the rest after `go_on`."""

    def __init__(self, data: bytes) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self._data = data

    async def chunks(self) -> AsyncIterator[bytes]:
        half = len(self._data) // 2
        yield self._data[:half]
        self.begun.set()
        await self.go_on.wait()
        yield self._data[half:]


async def test_an_invalid_update_is_recorded_as_refused_and_the_round_continues() -> None:
    facts: list[Fact] = []
    aggregator = await opened(facts=facts)
    with pytest.raises(NotFinite):
        await deliver(aggregator, ANNA, float("nan"))
    with pytest.raises(TooLarge):
        await send(aggregator, BERT, length=1 << 21)
    with pytest.raises(Late):
        await deliver(aggregator, ANNA, 1.0)
    await deliver(aggregator, CARL, 1.0)
    assert [(entry.id, entry.outcome) for entry in await entries(aggregator)] == [
        (ANNA, Outcome.REFUSED),
        (BERT, Outcome.REFUSED),
        (CARL, Outcome.COUNTED),
    ]
    assert await aggregator.close("attempt-0", [CARL]) == Closed(parameters=1)
    outcomes = [fact.outcome for fact in facts if isinstance(fact, UpdateReceived)]
    assert outcomes == ["invalid", "too_large", "late", "accepted"]


async def with_a_model(aggregator: AggregatorService, *values: float, dtype: str = "<f4") -> None:
    """Train a round 0 whose model has these weights, and open round 1."""
    await open_round(aggregator)
    await deliver(aggregator, ANNA, *values, dtype=dtype)
    await aggregator.close("attempt-0", [ANNA])
    await open_round(aggregator, 1)


async def test_an_upload_larger_than_the_model_allows_is_refused_before_it_is_read() -> None:
    aggregator = service()
    await with_a_model(aggregator, 1.0, 2.0)
    unread = stream(b"more")
    with pytest.raises(TooLarge, match="more than 10024 bytes, the largest update that this training's model allows"):
        await aggregator.deliver(ANNA, f"{ANNA} 1", unread, length=10_025)
    assert [chunk async for chunk in unread] == [b"more"]
    assert await aggregator.revoke("attempt-1", ANNA) is Verdict.REVOKED  # nobody waits for it any more
    assert await send(aggregator, BERT, update(1, 1.0, 2.0), number=1, length=10_024) is UpdateOutcome.COUNTED


async def test_an_upload_of_unknown_length_is_refused_once_it_is_larger_than_the_model_allows() -> None:
    aggregator = service()
    await with_a_model(aggregator, 1.0, 2.0)
    chunks = stream(*[bytes(1000)] * 20)
    with pytest.raises(TooLarge):
        await aggregator.deliver(ANNA, f"{ANNA} 1", chunks)
    assert [len(chunk) async for chunk in chunks] == [1000] * 9


@pytest.mark.parametrize(("model", "dtype"), [("<f2", ">f2"), ("<f4", ">f4"), ("<f8", "<u8"), ("<f8", "<i1")])
async def test_an_update_with_the_largest_header_and_the_widest_dtype_is_accepted(model: str, dtype: str) -> None:
    aggregator = service()
    await with_a_model(aggregator, *range(5000), dtype=model)
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': (5000,), }}".encode().ljust(10_000)
    largest = b"\0\0\0\1" + b"\x93NUMPY\x03\x00" + len(header).to_bytes(4, "little") + header + np.ones(5000, dtype).tobytes()
    assert await send(aggregator, ANNA, largest, number=1, length=len(largest)) is UpdateOutcome.COUNTED


async def test_without_a_model_the_first_update_sets_the_layout(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    aggregator = await opened()
    await deliver(aggregator, ANNA, 1.0, 2.0)
    assert "no model yet: the first update sets the layout of the training: float32 weights of shape (2,)" in caplog.text
    with pytest.raises(
        WrongWeights, match=r"these are float32 .* of shape \(3,\), but the global model has float32 .* of shape \(2,\)"
    ):
        await deliver(aggregator, BERT, 1.0, 2.0, 3.0)
    with pytest.raises(WrongWeights, match=r"these are float64 .*, but the global model has float32 "):
        await deliver(aggregator, CARL, 1.0, 2.0, dtype="<f8")
    await open_round(aggregator, 1)
    assert await deliver(aggregator, BERT, 1.0, 2.0, 3.0, number=1) is UpdateOutcome.COUNTED


async def test_updates_must_have_the_layout_of_the_model() -> None:
    aggregator = await opened()
    await deliver(aggregator, ANNA, 1, 2, dtype="<i4")
    await aggregator.close("attempt-0", [ANNA])
    await open_round(aggregator, 1)
    with pytest.raises(WrongWeights, match=r"float64 .* of shape \(1,\), but the global model has float64 .* of shape \(2,\)"):
        await deliver(aggregator, ANNA, 1.0, number=1, dtype="<f8")
    assert await deliver(aggregator, BERT, 1, 2, number=1, dtype="<i4") is UpdateOutcome.COUNTED


async def test_an_update_that_does_not_fit_into_the_spool_can_be_sent_again_and_the_others_stay() -> None:
    def collected(layout: Layout) -> Collected:
        return Collected(layout, Median, Spool(None, max_size=1 << 20))

    facts: list[Fact] = []
    aggregator = await opened(begin=collected, facts=facts)
    await deliver(aggregator, ANNA, 1.0)
    await deliver(aggregator, BERT, 9.0)
    with files_of_at_most(8), pytest.raises(SpoolFull, match="File too large"):
        await deliver(aggregator, CARL, 3.0)
    assert facts[-1] == UploadFailed(CARL, "cannot write the update to the spool directory: File too large")
    assert await deliver(aggregator, CARL, 3.0) is UpdateOutcome.COUNTED
    assert await aggregator.close("attempt-0", [ANNA, BERT, CARL]) == Closed(parameters=1)
    assert weights(aggregator) == [3.0]


@pytest.mark.parametrize(("dtype", "fits"), [("<f4", True), ("|i1", False)])
async def test_an_update_whose_model_would_be_too_large_is_refused(dtype: str, fits: bool) -> None:
    aggregator = await opened()  # which takes 1 MiB
    weights = np.ones(200_000, dtype)
    if fits:
        await deliver(aggregator, ANNA, *weights, dtype=dtype)
    else:
        with pytest.raises(TooLarge, match=r"the resulting model has more than 1048576 bytes \(AGGREGATOR_MAX_MODEL_SIZE\)"):
            await deliver(aggregator, ANNA, *weights, dtype=dtype)
    assert await counted(aggregator) == ([ANNA] if fits else [])


async def test_an_upload_that_was_cut_off_can_be_repeated() -> None:
    facts: list[Fact] = []
    aggregator = await opened(facts=facts)
    upload = Upload(update(1, 1.0))
    sending = asyncio.create_task(aggregator.deliver(ANNA, f"{ANNA} 0", upload.chunks()))
    await upload.begun.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert facts == [UploadFailed(ANNA, "the connection was closed")]
    assert await deliver(aggregator, ANNA, 1.0) is UpdateOutcome.COUNTED


async def test_an_upload_that_stalls_is_abandoned_and_can_be_repeated() -> None:
    facts: list[Fact] = []
    aggregator = await opened(window=0.02, facts=facts)
    with pytest.raises(TooSlow):
        await aggregator.deliver(ANNA, f"{ANNA} 0", Upload(update(1, 1.0)).chunks())
    assert isinstance(facts[0], UploadFailed)
    assert await aggregator.revoke("attempt-0", BERT) is Verdict.REVOKED
    assert await deliver(aggregator, ANNA, 1.0) is UpdateOutcome.COUNTED
