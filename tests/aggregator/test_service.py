"""The aggregator's rounds: attempts, folds, models, and their ledger."""

import asyncio
import hashlib
import threading
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedround.aggregator.running import Folded
from fedround.aggregator.service import AggregatorService
from fedround.aggregator.spool import Spool
from fedround.aggregator.store import ModelStore
from fedround.aggregator.strategies import WeightedAverage
from fedround.common.books import Admission, Closed, Difference, Measured, Open, Verdict
from fedround.common.durable import Directory
from fedround.common.wire import UpdateOutcome
from fedround.errors import Busy, Late, TooLarge, UnknownAttempt
from fedround.events import Aggregated, Fact, SaveFailed, UpdateReceived, WeightsMeasured
from fedround.tensors.weights import Array, Spec
from support.aggregating import ANNA, BERT, deliver, entries, fails, open_round, opened, send, service, weights
from support.disks import files_of_at_most
from support.updates import npy, update


async def test_the_average_of_the_counted_updates_becomes_the_global_model() -> None:
    facts: list[Fact] = []
    aggregator = await opened(facts=facts)
    assert aggregator.read(ANNA, f"{ANNA} 0") is None
    assert await send(aggregator, ANNA, update(1, 1, 2)) is UpdateOutcome.COUNTED
    assert await send(aggregator, BERT, update(2, 4, 8)) is UpdateOutcome.COUNTED
    assert await aggregator.close("attempt-0", [BERT, ANNA]) == Closed(parameters=2)
    assert weights(aggregator) == [3, 6]
    model = aggregator.read(ANNA, f"{ANNA} 0")
    assert model is not None
    assert (model.round, model.etag[:3], len(model.etag)) == (0, '"0-', 12)
    assert facts[:2] == [UpdateReceived(ANNA, "accepted", 140), UpdateReceived(BERT, "accepted", 140)]
    assert isinstance(facts[2], Aggregated)
    assert (facts[2].round, facts[2].updates, facts[2].parameters) == (0, 2, 2)


class Huge(WeightedAverage):
    """A strategy with a mistake."""

    def result(self) -> Array:
        return np.array([-1e200, 1e200])


async def test_the_ledger_reports_statistics_of_the_model_and_faults() -> None:
    measured = asyncio.Event()

    def observe(fact: Fact) -> None:
        if isinstance(fact, WeightsMeasured):
            measured.set()

    aggregator = AggregatorService(partial(Folded, make=Huge), Spool(None, max_size=1 << 20), observer=observe, patience=0.0)
    aggregator.faults = lambda: ["the disk hangs"]
    await open_round(aggregator)
    await deliver(aggregator, ANNA, 1.0, 2.0, dtype="<f8")
    await aggregator.close("attempt-0", [ANNA])
    await measured.wait()
    page = await aggregator.ledger("another", 0)
    # What is not finite, here by its squares, is no JSON.
    assert aggregator.model is not None
    digest = hashlib.sha256(b"".join(aggregator.model.buffers)).hexdigest()
    assert page.measured == (Measured(0, {"mean": 0.0, "min": -1e200, "max": 1e200}, digest),)
    assert page.faults == ("the disk hangs",)


async def test_ledger_entries_are_in_the_order_of_folding() -> None:
    aggregator = await opened()
    await send(aggregator, BERT, update(100_000_000, 1.0), metrics={"loss": 0.5})
    await send(aggregator, ANNA, update(0, 1.0))
    first, second = await entries(aggregator)
    assert (first.seq, first.attempt, first.id, first.samples, first.metrics) == (
        1,
        "attempt-0",
        BERT,
        100_000_000,
        {"loss": 0.5},
    )
    assert (second.seq, second.id, second.samples, second.metrics) == (2, ANNA, 0, {})


async def test_the_model_has_the_shape_of_the_updates() -> None:
    aggregator = await opened()
    shaped = np.arange(6, dtype=">f8").reshape(2, 3)
    await send(aggregator, ANNA, b"\0\0\0\1" + npy(np.asfortranarray(shaped)))
    await aggregator.close("attempt-0", [ANNA])
    assert aggregator.model is not None
    model: Array = np.load(BytesIO(b"".join(aggregator.model.buffers)))
    assert model.dtype.str == "<f8"
    assert model.flags.c_contiguous
    assert (model == shaped).all()


async def test_the_next_round_does_not_change_a_model_that_is_being_sent() -> None:
    aggregator = service()
    for number in range(2):
        await open_round(aggregator, number)
        await deliver(aggregator, ANNA, float(number), number=number)
        sent = aggregator.model
        await aggregator.close(f"attempt-{number}", [ANNA])
    assert sent is not None
    assert np.frombuffer(sent.buffers[1], "<f4") == [0.0]
    assert aggregator.model is not None
    assert sent.etag != aggregator.model.etag
    assert weights(aggregator) == [1.0]


async def test_an_upload_is_answered_when_the_coordinator_has_read_its_entry() -> None:
    aggregator = await opened(patience=60.0)
    incarnation = (await aggregator.ledger("another", 0)).incarnation
    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(deliver(aggregator, ANNA, 1.0))
        told = await aggregator.ledger(incarnation, 0)
        assert [entry.id for entry in told.entries] == [ANNA]
        assert not answer.done()
        poll = tasks.create_task(aggregator.ledger(incarnation, 1))
        assert await answer is UpdateOutcome.COUNTED
        poll.cancel()


async def test_an_upload_is_answered_after_the_patience_if_the_coordinator_is_away() -> None:
    aggregator = await opened(patience=0.01)
    assert await deliver(aggregator, ANNA, 1.0) is UpdateOutcome.COUNTED


async def test_closing_over_other_ids_than_the_counted_ones_returns_the_difference() -> None:
    aggregator = await opened()
    await deliver(aggregator, ANNA, 1.0)
    assert await aggregator.close("attempt-0", [BERT]) == Difference(frozenset([BERT]), frozenset([ANNA]))
    assert aggregator.model is None
    await deliver(aggregator, BERT, 3.0)
    for _ in range(2):  # who got no answer asks again
        assert await aggregator.close("attempt-0", [ANNA, BERT]) == Closed(parameters=1)
    assert weights(aggregator) == [2.0]


async def test_a_new_attempt_starts_a_new_sum_and_a_repeated_call_does_not() -> None:
    aggregator = service()
    await open_round(aggregator, 0)
    await deliver(aggregator, ANNA, 100.0)
    await open_round(aggregator, 1)
    await deliver(aggregator, ANNA, 1.0, number=1)
    await open_round(aggregator, 1)
    await aggregator.admit("attempt-1", [Admission("dora", "dora 1")])
    await deliver(aggregator, "dora", 3.0, number=1)
    assert await aggregator.close("attempt-1", [ANNA, "dora"]) == Closed(parameters=1)
    assert weights(aggregator) == [2.0]
    with pytest.raises(UnknownAttempt):
        await aggregator.close("attempt-0", [ANNA])


async def test_an_attempt_closed_without_updates_does_not_change_the_model() -> None:
    aggregator = await opened()
    assert await aggregator.close("attempt-0", []) == Closed(parameters=0)
    assert aggregator.model is None


class Failing(WeightedAverage):
    """A strategy that fails in `fold` or in `result` if the first weight is `on` or -`on`."""

    def __init__(self, spec: Spec, *, on: float = 13.0) -> None:
        super().__init__(spec)
        self._on = on

    def fold(self, samples: int, blocks: Iterable[Array]) -> None:
        whole = [block.copy() for block in blocks]
        super().fold(samples, whole)
        if whole[0][0] == self._on:
            raise MemoryError

    def result(self) -> Array:
        result = super().result()
        if result[0] == -self._on:
            raise MemoryError
        return result


async def test_a_failed_fold_loses_the_sum_and_restarts_the_round(caplog: pytest.LogCaptureFixture) -> None:
    aggregator = await opened(Failing, patience=60.0)
    incarnation = (await aggregator.ledger("another", 0)).incarnation
    async with asyncio.TaskGroup() as tasks:
        # It was folded, but the coordinator does not know yet, and never will.
        tasks.create_task(fails(Late, deliver(aggregator, BERT, 1.0)))
        await aggregator.ledger(incarnation, 0)
        with pytest.raises(Late, match="the round restarts"):
            await deliver(aggregator, ANNA, 13.0)
    with pytest.raises(UnknownAttempt):
        await aggregator.close("attempt-0", [BERT])
    aggregator.stop()
    await open_round(aggregator, 1)
    await deliver(aggregator, ANNA, 1.0, number=1)
    assert await aggregator.close("attempt-1", [ANNA]) == Closed(parameters=1)
    assert weights(aggregator) == [1.0]
    assert "cannot add an update" in caplog.text
    assert "MemoryError" in caplog.text


async def test_a_failed_aggregation_loses_the_sum_and_the_ledger_reports_it(caplog: pytest.LogCaptureFixture) -> None:
    aggregator = await opened(Failing)
    await deliver(aggregator, ANNA, -13.0)
    incarnation = (await aggregator.ledger("another", 0)).incarnation
    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(aggregator.ledger(incarnation, 1))
        with pytest.raises(UnknownAttempt):
            await aggregator.close("attempt-0", [ANNA])
    assert poll.result().incarnation != incarnation
    assert poll.result().entries == ()
    assert aggregator.model is None
    assert "cannot make a model" in caplog.text


class Gate:
    """A strategy that folds, on its own thread, when the test allows it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.folding, self.go_on = asyncio.Event(), threading.Event()

    def __call__(self, spec: Spec) -> WeightedAverage:
        gate = self

        class Gated(WeightedAverage):
            def fold(self, samples: int, blocks: Iterable[Array]) -> None:
                gate.loop.call_soon_threadsafe(gate.folding.set)
                assert gate.go_on.wait(30)
                super().fold(samples, blocks)

        return Gated(spec)


async def test_a_fold_continues_to_its_entry_after_the_uploader_hung_up() -> None:
    gate = Gate()
    aggregator = await opened(gate)
    incarnation = (await aggregator.ledger("another", 0)).incarnation
    upload = asyncio.create_task(deliver(aggregator, ANNA, 1.0))
    await gate.folding.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    gate.go_on.set()
    assert [entry.id for entry in (await aggregator.ledger(incarnation, 0)).entries] == [ANNA]
    assert await aggregator.close("attempt-0", [ANNA]) == Closed(parameters=1)


@pytest.mark.parametrize("operation", ["open", "admit", "revoke", "close", "refuse"])
async def test_nothing_comes_between_a_fold_and_its_entry(operation: str) -> None:
    gate = Gate()
    aggregator = await opened(gate)
    calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "open": lambda: open_round(aggregator, 1),
        "admit": lambda: aggregator.admit("attempt-0", [Admission("dora", "dora 0")]),
        "revoke": lambda: aggregator.revoke("attempt-0", ANNA),
        "close": lambda: aggregator.close("attempt-0", [ANNA]),
        "refuse": lambda: fails(TooLarge, send(aggregator, ANNA, length=1 << 21)),
    }
    async with asyncio.TaskGroup() as tasks:
        fold = tasks.create_task(deliver(aggregator, ANNA, 1.0))
        await gate.folding.wait()
        call = tasks.create_task(calls[operation]())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not call.done()
        gate.go_on.set()
    assert fold.result() is UpdateOutcome.COUNTED
    assert call.result() in (None, Verdict.COUNTED, Closed(parameters=1))


async def test_a_model_that_cannot_be_written_is_not_published_until_it_can(tmp_path: Path) -> None:
    facts: list[Fact] = []
    aggregator = await opened(store=ModelStore(Directory(tmp_path)), facts=facts)
    await deliver(aggregator, ANNA, 3.0)
    for _ in range(2):
        with files_of_at_most(100), pytest.raises(Busy, match=r"the model of round 0 cannot be stored: .*File too large"):
            await aggregator.close("attempt-0", [ANNA])
        assert aggregator.model is None
    assert [type(fact) for fact in facts].count(Aggregated) == 1
    assert [fact.what for fact in facts if isinstance(fact, SaveFailed)] == ["the model of round 0"] * 2
    assert await aggregator.close("attempt-0", [ANNA]) == Closed(parameters=1)
    assert weights(aggregator) == [3.0]
    assert list(ModelStore(Directory(tmp_path)).rounds) == [0]


async def test_a_model_that_was_never_written_is_dropped_with_its_attempt(tmp_path: Path) -> None:
    aggregator = await opened(store=ModelStore(Directory(tmp_path)))
    await deliver(aggregator, ANNA, 3.0)
    with files_of_at_most(100), pytest.raises(Busy):
        await aggregator.close("attempt-0", [ANNA])
    await aggregator.open(Open("another", 0, (Admission(ANNA, f"{ANNA} 1"),)))
    await deliver(aggregator, ANNA, 4.0, number=1)
    assert await aggregator.close("another", [ANNA]) == Closed(parameters=1)
    assert weights(aggregator) == [4.0]


async def test_a_stopping_service_ends_all_waits_and_starts_none() -> None:
    aggregator = await opened(patience=60.0)
    incarnation = (await aggregator.ledger("another", 0)).incarnation
    async with asyncio.TaskGroup() as tasks:
        upload = tasks.create_task(deliver(aggregator, ANNA, 1.0))
        assert (await aggregator.ledger(incarnation, 0)).entries
        poll = tasks.create_task(fails(Busy, aggregator.ledger(incarnation, 1)))
        await upload
        aggregator.stop()
        await poll
    await fails(Busy, aggregator.ledger(incarnation, 1))
    await deliver(aggregator, BERT, 1.0)
    assert [entry.id for entry in (await aggregator.ledger(incarnation, 1)).entries] == [BERT]


async def test_the_status_shows_the_round_and_the_model() -> None:
    aggregator = service()
    assert aggregator.status() == {
        "state": "closed",
        "round": None,
        "attempt": None,
        "counted": 0,
        "receiving": 0,
        "models": [],
        "model": None,
        "evaluation": None,
    }
    await open_round(aggregator)
    await deliver(aggregator, ANNA, 1.0)
    assert aggregator.status() == {
        "state": "open",
        "round": 0,
        "attempt": "attempt-",
        "counted": 1,
        "receiving": 0,
        "models": [],
        "model": None,
        "evaluation": None,
    }
    await aggregator.close("attempt-0", [ANNA])
    assert aggregator.status()["state"] == "closed"
    assert aggregator.status()["model"] == {"round": 0, "parameters": 1, "dtype": "float32"}
