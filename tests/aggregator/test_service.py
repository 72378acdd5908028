import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedround.aggregator.ledger import MOST_AT_ONCE
from fedround.aggregator.running import Collected, Folded
from fedround.aggregator.service import AggregatorService
from fedround.aggregator.spool import Spool
from fedround.aggregator.store import ModelStore
from fedround.aggregator.strategies import Median, WeightedAverage
from fedround.common.books import Admission, Closed, Difference, Measured, Open, Outcome, Verdict
from fedround.common.durable import Directory
from fedround.common.wire import UpdateOutcome
from fedround.errors import Busy, Late, NotAdmitted, NotFinite, SpoolFull, TooLarge, TooSlow, UnknownAttempt, WrongWeights
from fedround.events import Aggregated, Fact, SaveFailed, UpdateReceived, UploadFailed, WeightsMeasured
from fedround.tensors.weights import Array, Layout, Spec
from support.aggregating import ANNA, BERT, CARL, counted, deliver, entries, open_round, send, service, stream, weights
from support.disks import files_of_at_most
from support.updates import npy, update


async def test_what_was_counted_becomes_the_global_model() -> None:
    facts: list[Fact] = []
    aggregator = service(facts=facts)
    await open_round(aggregator)
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


async def test_the_coordinator_is_told_what_the_model_is_like_and_what_is_wrong() -> None:
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


async def test_an_entry_says_what_was_folded_in_the_order_of_folding() -> None:
    aggregator = service()
    await open_round(aggregator)
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


async def test_the_shape_of_the_updates_is_that_of_the_model() -> None:
    aggregator = service()
    await open_round(aggregator)
    shaped = np.arange(6, dtype=">f8").reshape(2, 3)
    await send(aggregator, ANNA, b"\0\0\0\1" + npy(np.asfortranarray(shaped)))
    await aggregator.close("attempt-0", [ANNA])
    assert aggregator.model is not None
    model: Array = np.load(BytesIO(b"".join(aggregator.model.buffers)))
    assert model.dtype.str == "<f8"
    assert model.flags.c_contiguous
    assert (model == shaped).all()


async def test_a_model_that_is_being_sent_is_not_changed_by_the_next_round() -> None:
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


async def test_an_answer_waits_until_the_coordinator_knows() -> None:
    aggregator = service(patience=60.0)
    await open_round(aggregator)
    incarnation = (await aggregator.ledger("another", 0)).incarnation
    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(deliver(aggregator, ANNA, 1.0))
        told = await aggregator.ledger(incarnation, 0)
        assert [entry.id for entry in told.entries] == [ANNA]
        assert not answer.done()
        poll = tasks.create_task(aggregator.ledger(incarnation, 1))
        assert await answer is UpdateOutcome.COUNTED
        poll.cancel()


async def test_an_answer_waits_for_a_coordinator_that_is_away_no_longer_than_its_patience() -> None:
    aggregator = service(patience=0.01)
    await open_round(aggregator)
    assert await deliver(aggregator, ANNA, 1.0) is UpdateOutcome.COUNTED


async def test_a_repeat_is_read_and_thrown_away_whatever_it_is() -> None:
    facts: list[Fact] = []
    aggregator = service(facts=facts)
    await open_round(aggregator)
    await deliver(aggregator, ANNA, 1.0)
    nonsense = stream(b"non", b"sense")
    assert await aggregator.deliver(ANNA, f"{ANNA} 0", nonsense) is UpdateOutcome.REPEATED
    assert [chunk async for chunk in nonsense] == []
    assert facts[1] == UpdateReceived(ANNA, "repeated", 8)
    await aggregator.close("attempt-0", [ANNA])
    assert await deliver(aggregator, ANNA, 9.0) is UpdateOutcome.REPEATED
    assert await counted(aggregator) == [ANNA]
    assert weights(aggregator) == [1.0]


async def test_of_several_uploads_at_once_with_one_token_one_is_counted() -> None:
    aggregator = service()
    await open_round(aggregator)
    outcomes = await asyncio.gather(*(deliver(aggregator, ANNA, 1.0) for _ in range(MOST_AT_ONCE)))
    assert sorted(outcomes) == ["counted", *["repeated"] * (MOST_AT_ONCE - 1)]
    assert await counted(aggregator) == [ANNA]


async def test_who_was_not_admitted_delivers_nothing_and_reads_nothing() -> None:
    facts: list[Fact] = []
    aggregator = service(facts=facts)
    await open_round(aggregator)
    for id, token in [(ANNA, "wrong"), ("unknown", f"{ANNA} 0"), ("", "")]:
        with pytest.raises(NotAdmitted):
            await aggregator.deliver(id, token, stream(update(1, 1.0)))
        with pytest.raises(NotAdmitted):
            aggregator.read(id, token)
    assert facts[0] == UpdateReceived(ANNA, "unauthorized", 0, "no such id and token")
    assert await entries(aggregator) == []


async def test_an_update_for_a_round_that_is_over_is_late() -> None:
    facts: list[Fact] = []
    aggregator = service(facts=facts)
    await open_round(aggregator)
    assert await aggregator.revoke("attempt-0", BERT) is Verdict.REVOKED
    await deliver(aggregator, ANNA, 1.0)
    await aggregator.close("attempt-0", [ANNA])
    for id in (BERT, CARL):
        with pytest.raises(Late):
            await deliver(aggregator, id, 1.0)
    assert facts[-1] == UpdateReceived(CARL, "late", 0, "the round of this token is over, or was reassigned to other participants")


async def test_an_update_whose_round_ends_while_it_arrives_is_late() -> None:
    aggregator = service()
    await open_round(aggregator)
    upload = Upload(update(1, 1.0))
    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(is_late(aggregator.deliver(ANNA, f"{ANNA} 0", upload.chunks())))
        await upload.begun.wait()
        assert await aggregator.revoke("attempt-0", ANNA, 30.0) is Verdict.RECEIVING
        await open_round(aggregator, 1)
        upload.go_on.set()
        await answer
    assert await entries(aggregator) == []


async def test_an_update_that_drips_in_is_cut_when_it_cannot_be_whole_in_time() -> None:
    aggregator = service()
    await open_round(aggregator)
    upload = Upload(update(1, 1.0))
    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(is_late(aggregator.deliver(ANNA, f"{ANNA} 0", upload.chunks(), length=1000)))
        await upload.begun.wait()
        assert await aggregator.revoke("attempt-0", ANNA, 30.0) is Verdict.RECEIVING
        assert await aggregator.revoke("attempt-0", ANNA, 0.0) is Verdict.REVOKED
        upload.go_on.set()
        await answer
    assert aggregator.status()["receiving"] == 0


class Upload:
    """Half of the data, `begun`, and when it is told to `go_on` the rest."""

    def __init__(self, data: bytes) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self._data = data

    async def chunks(self) -> AsyncIterator[bytes]:
        half = len(self._data) // 2
        yield self._data[:half]
        self.begun.set()
        await self.go_on.wait()
        yield self._data[half:]


async def is_late(step: Coroutine[Any, Any, object]) -> None:
    with pytest.raises(Late):
        await step


async def test_an_invalid_update_is_entered_as_refused_and_the_others_go_on() -> None:
    facts: list[Fact] = []
    aggregator = service(facts=facts)
    await open_round(aggregator)
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


async def test_an_upload_that_cannot_be_an_update_of_the_model_is_refused_before_it_is_read() -> None:
    aggregator = service()
    await with_a_model(aggregator, 1.0, 2.0)
    unread = stream(b"more")
    with pytest.raises(TooLarge, match="more than 10024 bytes, the largest update that this training's model allows"):
        await aggregator.deliver(ANNA, f"{ANNA} 1", unread, length=10_025)
    assert [chunk async for chunk in unread] == [b"more"]
    assert await aggregator.revoke("attempt-1", ANNA) is Verdict.REVOKED  # nobody waits for it any more
    assert await send(aggregator, BERT, update(1, 1.0, 2.0), number=1, length=10_024) is UpdateOutcome.COUNTED


async def test_an_upload_of_unknown_length_is_refused_as_soon_as_it_cannot_be_an_update_of_the_model() -> None:
    aggregator = service()
    await with_a_model(aggregator, 1.0, 2.0)
    chunks = stream(*[bytes(1000)] * 20)
    with pytest.raises(TooLarge):
        await aggregator.deliver(ANNA, f"{ANNA} 1", chunks)
    assert [len(chunk) async for chunk in chunks] == [1000] * 9


@pytest.mark.parametrize(("model", "dtype"), [("<f2", ">f2"), ("<f4", ">f4"), ("<f8", "<u8"), ("<f8", "<i1")])
async def test_the_largest_header_and_the_widest_dtype_of_an_update_are_not_too_large(model: str, dtype: str) -> None:
    aggregator = service()
    await with_a_model(aggregator, *range(5000), dtype=model)
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': (5000,), }}".encode().ljust(10_000)
    largest = b"\0\0\0\1" + b"\x93NUMPY\x03\x00" + len(header).to_bytes(4, "little") + header + np.ones(5000, dtype).tobytes()
    assert await send(aggregator, ANNA, largest, number=1, length=len(largest)) is UpdateOutcome.COUNTED


async def test_until_there_is_a_model_the_first_update_says_what_the_others_must_look_like(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    aggregator = service()
    await open_round(aggregator)
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


async def test_once_there_is_a_model_updates_must_look_like_it() -> None:
    aggregator = service()
    await open_round(aggregator)
    await deliver(aggregator, ANNA, 1, 2, dtype="<i4")
    await aggregator.close("attempt-0", [ANNA])
    await open_round(aggregator, 1)
    with pytest.raises(WrongWeights, match=r"float64 .* of shape \(1,\), but the global model has float64 .* of shape \(2,\)"):
        await deliver(aggregator, ANNA, 1.0, number=1, dtype="<f8")
    assert await deliver(aggregator, BERT, 1, 2, number=1, dtype="<i4") is UpdateOutcome.COUNTED


async def test_closing_over_others_than_were_counted_is_answered_with_the_difference() -> None:
    aggregator = service()
    await open_round(aggregator)
    await deliver(aggregator, ANNA, 1.0)
    assert await aggregator.close("attempt-0", [BERT]) == Difference(frozenset([BERT]), frozenset([ANNA]))
    assert aggregator.model is None
    await deliver(aggregator, BERT, 3.0)
    for _ in range(2):  # who got no answer asks again
        assert await aggregator.close("attempt-0", [ANNA, BERT]) == Closed(parameters=1)
    assert weights(aggregator) == [2.0]


async def test_a_new_attempt_begins_a_new_sum_and_a_repeated_call_does_not() -> None:
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


async def test_an_attempt_closed_over_nobody_leaves_the_model_as_it_was() -> None:
    aggregator = service()
    await open_round(aggregator)
    assert await aggregator.close("attempt-0", []) == Closed(parameters=0)
    assert aggregator.model is None


class Failing(WeightedAverage):
    """Fails when told to, in the middle."""

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


async def test_a_fold_that_fails_loses_the_sum_and_the_round_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    aggregator = service(Failing, patience=60.0)
    await open_round(aggregator)
    incarnation = (await aggregator.ledger("another", 0)).incarnation
    async with asyncio.TaskGroup() as tasks:
        # It was folded, but the coordinator does not know yet, and never will.
        tasks.create_task(is_late(deliver(aggregator, BERT, 1.0)))
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


async def test_an_update_that_cannot_be_kept_beside_the_others_may_come_again_and_they_stay() -> None:
    def collected(layout: Layout) -> Collected:
        return Collected(layout, Median, Spool(None, max_size=1 << 20))

    facts: list[Fact] = []
    aggregator = service(begin=collected, facts=facts)
    await open_round(aggregator)
    await deliver(aggregator, ANNA, 1.0)
    await deliver(aggregator, BERT, 9.0)
    with files_of_at_most(8), pytest.raises(SpoolFull, match="File too large"):
        await deliver(aggregator, CARL, 3.0)
    assert facts[-1] == UploadFailed(CARL, "cannot write the update to the spool directory: File too large")
    assert await deliver(aggregator, CARL, 3.0) is UpdateOutcome.COUNTED
    assert await aggregator.close("attempt-0", [ANNA, BERT, CARL]) == Closed(parameters=1)
    assert weights(aggregator) == [3.0]


async def test_a_result_that_cannot_be_made_is_a_lost_sum_and_the_coordinator_is_told(caplog: pytest.LogCaptureFixture) -> None:
    aggregator = service(Failing)
    await open_round(aggregator)
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
    """A strategy that folds when it is told to go on. Folding is on a thread of its own."""

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


async def test_a_fold_goes_on_to_its_entry_though_the_uploader_has_hung_up() -> None:
    gate = Gate()
    aggregator = service(gate)
    await open_round(aggregator)
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
    aggregator = service(gate)
    await open_round(aggregator)
    calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "open": lambda: open_round(aggregator, 1),
        "admit": lambda: aggregator.admit("attempt-0", [Admission("dora", "dora 0")]),
        "revoke": lambda: aggregator.revoke("attempt-0", ANNA),
        "close": lambda: aggregator.close("attempt-0", [ANNA]),
        "refuse": lambda: is_too_large(send(aggregator, ANNA, length=1 << 21)),
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


async def is_too_large(step: Coroutine[Any, Any, object]) -> None:
    with pytest.raises(TooLarge):
        await step


@pytest.mark.parametrize(("dtype", "fits"), [("<f4", True), ("|i1", False)])
async def test_what_is_small_on_its_way_makes_no_model_that_is_larger_than_allowed(dtype: str, fits: bool) -> None:
    aggregator = service()  # which takes 1 MiB
    await open_round(aggregator)
    weights = np.ones(200_000, dtype)
    if fits:
        await deliver(aggregator, ANNA, *weights, dtype=dtype)
    else:
        with pytest.raises(TooLarge, match=r"the resulting model has more than 1048576 bytes \(AGGREGATOR_MAX_MODEL_SIZE\)"):
            await deliver(aggregator, ANNA, *weights, dtype=dtype)
    assert await counted(aggregator) == ([ANNA] if fits else [])


async def test_who_hangs_up_while_sending_may_send_again() -> None:
    facts: list[Fact] = []
    aggregator = service(facts=facts)
    await open_round(aggregator)
    upload = Upload(update(1, 1.0))
    sending = asyncio.create_task(aggregator.deliver(ANNA, f"{ANNA} 0", upload.chunks()))
    await upload.begun.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert facts == [UploadFailed(ANNA, "the connection was closed")]
    assert await deliver(aggregator, ANNA, 1.0) is UpdateOutcome.COUNTED


async def test_an_upload_that_stops_coming_is_given_up_and_may_come_again() -> None:
    facts: list[Fact] = []
    aggregator = service(window=0.02, facts=facts)
    await open_round(aggregator)
    with pytest.raises(TooSlow):
        await aggregator.deliver(ANNA, f"{ANNA} 0", Upload(update(1, 1.0)).chunks())
    assert isinstance(facts[0], UploadFailed)
    assert await aggregator.revoke("attempt-0", BERT) is Verdict.REVOKED
    assert await deliver(aggregator, ANNA, 1.0) is UpdateOutcome.COUNTED


async def test_a_model_that_cannot_be_kept_is_given_to_nobody_until_it_can(tmp_path: Path) -> None:
    facts: list[Fact] = []
    aggregator = service(store=ModelStore(Directory(tmp_path)), facts=facts)
    await open_round(aggregator)
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


async def test_a_result_that_was_never_kept_is_forgotten_with_its_attempt(tmp_path: Path) -> None:
    aggregator = service(store=ModelStore(Directory(tmp_path)))
    await open_round(aggregator)
    await deliver(aggregator, ANNA, 3.0)
    with files_of_at_most(100), pytest.raises(Busy):
        await aggregator.close("attempt-0", [ANNA])
    await aggregator.open(Open("another", 0, (Admission(ANNA, f"{ANNA} 1"),)))
    await deliver(aggregator, ANNA, 4.0, number=1)
    assert await aggregator.close("another", [ANNA]) == Closed(parameters=1)
    assert weights(aggregator) == [4.0]


async def test_a_service_that_stops_ends_every_wait_and_begins_none() -> None:
    aggregator = service(patience=60.0)
    await open_round(aggregator)
    incarnation = (await aggregator.ledger("another", 0)).incarnation
    async with asyncio.TaskGroup() as tasks:
        upload = tasks.create_task(deliver(aggregator, ANNA, 1.0))
        assert (await aggregator.ledger(incarnation, 0)).entries
        poll = tasks.create_task(is_busy(aggregator.ledger(incarnation, 1)))
        await upload
        aggregator.stop()
        await poll
    await is_busy(aggregator.ledger(incarnation, 1))
    await deliver(aggregator, BERT, 1.0)
    assert [entry.id for entry in (await aggregator.ledger(incarnation, 1)).entries] == [BERT]


async def is_busy(step: Coroutine[Any, Any, object]) -> None:
    with pytest.raises(Busy):
        await step


async def test_the_status_tells_the_round_and_the_model() -> None:
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
