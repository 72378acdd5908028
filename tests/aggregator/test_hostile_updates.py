"""Hostile updates against the service: each is counted or refused, and does not affect other participants."""

import asyncio
import struct
from collections.abc import Iterable
from contextlib import suppress
from io import FileIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedround.aggregator.codecs import model_of
from fedround.aggregator.running import Folded
from fedround.aggregator.service import AggregatorService
from fedround.aggregator.spool import Received, Spool
from fedround.aggregator.strategies import WeightedAverage
from fedround.aggregator.updates import UpdateReader
from fedround.common.books import Admission, Closed, Open, Outcome
from fedround.errors import Implausible, NotFinite, SpoolFull, UnknownAttempt, WeightsError, WrongWeights
from fedround.events import Dominated, Fact, UpdateReceived, WeightsMeasured
from fedround.tensors.weights import Array, Layout
from support.aggregating import ANNA, BERT, CARL, deliver, entries, open_round, send, service, stream, weights
from support.updates import claiming, npy, update

SILOS = [ANNA, BERT, CARL, "dddddddd-0000"]
VALID = update(1, 1.0, 2.0, 3.0)


def mutated() -> st.SearchStrategy[bytes]:
    """A valid update with some bytes replaced, or with a piece left out."""

    def change(positions: list[tuple[int, int]], cut: tuple[int, int]) -> bytes:
        data = bytearray(VALID)
        for position, value in positions:
            data[position] = value
        return bytes(data[: cut[0]] + data[cut[0] + cut[1] :])

    places = st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255))
    return st.builds(change, st.lists(places, max_size=8), st.tuples(st.integers(0, len(VALID)), st.integers(0, 4)))


def claims() -> st.SearchStrategy[bytes]:
    """An update with any header, in front of any data."""
    shapes = st.lists(st.one_of(st.integers(0, 3), st.integers(-1, 2**64)), max_size=40).map(tuple)
    kinds = st.sampled_from(["<f2", ">f4", "<f8", "|i1", "<u8", ">i8", "|O", "<c8", "|V0", "<M8[s]"])
    return st.builds(
        lambda shape, descr, data: claiming(repr(shape), descr=descr, data=data), shapes, kinds, st.binary(max_size=99)
    )


@given(st.one_of(st.binary(max_size=300), mutated(), claims()), st.booleans())
@settings(deadline=None)
def test_any_bytes_are_counted_or_refused_and_the_sum_is_never_lost(data: bytes, with_model: bool) -> None:
    async def main() -> None:
        aggregator = service()
        number = 0
        if with_model:
            await open_round(aggregator)
            await deliver(aggregator, ANNA, 1.0, 2.0, 3.0)
            await aggregator.close("attempt-0", [ANNA])
            number = 1
        await open_round(aggregator, number)
        await send(aggregator, BERT, VALID, number=number)
        before = (await aggregator.ledger("", 0)).incarnation
        counted = [BERT]
        try:
            await send(aggregator, ANNA, data, number=number)
            counted.append(ANNA)
        except WeightsError:  # each has a status of the 4xx
            pass
        assert (await aggregator.ledger("", 0)).incarnation == before
        assert await aggregator.close(f"attempt-{number}", counted) == Closed(parameters=3)

    asyncio.run(main())


@pytest.mark.parametrize(
    "array", [np.ones((1,) * 39 + (4,)), np.asfortranarray(np.ones((2,) * 3 + (1,) * 37, "<i4")), np.ones((1,) * 32 + (4,), "<f4")]
)
async def test_weights_with_too_many_dimensions_are_refused_with_their_name(array: Array) -> None:
    aggregator = service()
    await open_round(aggregator)
    header = f"{{'descr': '{array.dtype.str}', 'fortran_order': {not array.flags.c_contiguous}, 'shape': {array.shape}, }}"
    data = struct.pack(">I", 1) + b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + array.tobytes()
    with pytest.raises(WrongWeights, match="weights have 32 dimensions at most, but these have "):
        await send(aggregator, ANNA, data)
    assert [(entry.id, entry.outcome, entry.reason[:12]) for entry in await entries(aggregator)] == [
        (ANNA, Outcome.REFUSED, "weights have")
    ]


async def attempt(aggregator: AggregatorService, number: int, values: Iterable[tuple[str, int, Array]]) -> list[str]:
    """An attempt of a round; `values` are ids, sample counts and weights. Returns the ids that were counted."""
    await aggregator.open(Open(f"attempt-{number}", number, tuple(Admission(id, f"{id} {number}") for id in SILOS)))
    counted = []
    for id, samples, array in values:
        try:
            await send(aggregator, id, struct.pack(">I", samples) + npy(array), number=number)
            counted.append(id)
        except WeightsError:
            pass
    return counted


@pytest.mark.parametrize("lie", [np.full(3, 1e200), np.full(3, 2e15), np.full(3, -np.inf)])
async def test_weights_that_would_break_every_training_are_refused_from_the_first_round(lie: Array) -> None:
    aggregator = service()
    await open_round(aggregator)
    with pytest.raises(NotFinite):
        await send(aggregator, ANNA, struct.pack(">I", 1) + npy(lie))
    await deliver(aggregator, BERT, 1.0, 1.0, 1.0, dtype="<f8")
    await aggregator.close("attempt-0", [BERT])
    assert weights(aggregator) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("constant", [np.nan, np.inf, 1e20])
def test_a_model_of_one_array_has_no_constants(constant: float) -> None:
    array = np.array([constant, 1.0])
    data = struct.pack(">I", 1) + npy(array)
    with pytest.raises(NotFinite):
        UpdateReader(data, len(data)).check(model_of(None, array))


@pytest.mark.parametrize(("samples", "scale"), [(1, 1e6), (90_000_000, 1.0)])
async def test_an_outlier_in_the_first_round_voids_it_and_is_refused_in_the_second_attempt(
    samples: int, scale: float, caplog: pytest.LogCaptureFixture
) -> None:
    honest = [(id, 100, np.array([1.0, 2.0, 3.0])) for id in SILOS[1:]]
    liar = (ANNA, samples, np.array([9.0, 9.0, 9.0]) * scale)
    facts: list[Fact] = []
    aggregator = service(facts=facts)
    assert await attempt(aggregator, 0, [liar, *honest]) == SILOS
    with pytest.raises(UnknownAttempt):
        await aggregator.close("attempt-0", SILOS)
    assert f"the update of {ANNA[:8]} differs too much from the others" in caplog.text
    assert "Traceback" not in caplog.text
    assert aggregator.model is None
    assert await attempt(aggregator, 1, [liar, *honest]) == SILOS[1:]
    await aggregator.close("attempt-1", SILOS[1:])
    assert weights(aggregator) == [1.0, 2.0, 3.0]
    assert [fact.outcome for fact in facts if isinstance(fact, UpdateReceived) and fact.id == ANNA] == [
        "accepted",
        "implausible",
    ]
    (refused,) = [entry for entry in await entries(aggregator) if entry.outcome is Outcome.REFUSED]
    assert refused.id == ANNA
    assert "more than 100 times the" in refused.reason


async def test_a_round_that_one_update_dominates_is_logged() -> None:
    facts: list[Fact] = []
    aggregator = service(facts=facts)
    counted = await attempt(aggregator, 0, [(id, 30 if id == BERT else 10, np.ones(2)) for id in (ANNA, BERT, CARL)])
    await aggregator.close("attempt-0", counted)
    assert [fact for fact in facts if isinstance(fact, Dominated)] == [Dominated(0, BERT, 0.6)]


class Picky(WeightedAverage):
    """A strategy that rejects some updates, before or after it has begun to add them."""

    def fold(self, samples: int, blocks: Iterable[Array]) -> None:
        if samples == 7:
            raise ValueError("I do not take 7 samples")
        super().fold(samples, blocks)
        if samples == 8:
            raise WrongWeights("I have taken 8 samples already")


async def test_an_update_that_a_strategy_rejects_is_refused_and_the_sum_continues() -> None:
    aggregator = service(Picky)
    await open_round(aggregator)
    with pytest.raises(WrongWeights, match="the strategy cannot add this update: I do not take 7 samples"):
        await send(aggregator, ANNA, update(7, 9.0))
    await deliver(aggregator, BERT, 1.0)
    assert await aggregator.close("attempt-0", [BERT]) == Closed(parameters=1)
    assert weights(aggregator) == [1.0]


async def test_a_partly_added_update_is_in_no_model() -> None:
    aggregator = service(Picky)
    await open_round(aggregator)
    await deliver(aggregator, BERT, 1.0)
    before = (await aggregator.ledger("", 0)).incarnation
    with pytest.raises(Exception, match="the round restarts"):
        await send(aggregator, ANNA, update(8, 9.0))
    assert (await aggregator.ledger("", 0)).incarnation != before


@pytest.mark.parametrize("method", ["begin", "fold", "result", "state"])
async def test_a_strategy_that_exits_ends_the_attempt_but_not_the_aggregator(method: str) -> None:
    class Exits(WeightedAverage):
        def begin(self, model: Any, state: Any) -> None:
            self.leave("begin")

        def leave(self, what: str) -> None:
            if method == what:
                raise SystemExit(3)

        def fold(self, samples: int, blocks: Iterable[Array]) -> None:
            super().fold(samples, blocks)
            self.leave("fold")

        def result(self) -> Array:
            self.leave("result")
            return super().result()

        def state(self) -> dict[str, Array]:
            self.leave("state")
            return {}

    aggregator = service(Exits)
    await open_round(aggregator)
    with suppress(Exception):  # that of the upload, or of the end of the round
        await deliver(aggregator, BERT, 1.0)
        await aggregator.close("attempt-0", [BERT])
    assert "the strategy raised SystemExit: 3" in (await aggregator.ledger("", 0)).lost


@pytest.mark.parametrize("returned", [None, 1.0, [1.0], np.ones(1, complex), np.array(["1"]), np.array([None])])
async def test_a_strategy_must_return_an_array_of_numbers(returned: Any) -> None:
    class Returns(WeightedAverage):
        def result(self) -> Array:
            array: Array = returned
            return array

    aggregator = service(Returns)
    await open_round(aggregator)
    await deliver(aggregator, BERT, 1.0)
    with pytest.raises(UnknownAttempt):
        await aggregator.close("attempt-0", [BERT])
    assert "instead of an array of numbers" in (await aggregator.ledger("", 0)).lost


def averaging(layout: Layout) -> Folded:
    return Folded(layout, WeightedAverage)


class Broken(Spool):
    """A spool with files that raise an exception."""

    def __init__(self, error: Exception) -> None:
        super().__init__(None, max_size=1 << 20)
        self.error = error

    async def receive(self, *_: Any, **__: Any) -> Received:
        error = self.error

        class Bad(FileIO):
            def read(self, size: int | None = -1, /) -> bytes:
                raise error

        return Received(Bad("/dev/null"), 100)


@pytest.mark.parametrize(
    ("error", "answer"), [(KeyError("x"), WrongWeights), (OSError("bad sector"), SpoolFull), (MemoryError(), SpoolFull)]
)
async def test_an_unreadable_update_is_refused_or_requested_again(error: Exception, answer: type[Exception]) -> None:
    aggregator = AggregatorService(averaging, Broken(error), patience=0.0)
    await open_round(aggregator)
    with pytest.raises(answer, match="cannot be read"):
        await deliver(aggregator, ANNA, 1.0)


async def test_a_model_that_cannot_be_measured_is_still_published(caplog: pytest.LogCaptureFixture) -> None:
    class Unmeasurable(np.ndarray[tuple[int], np.dtype[np.float64]]):
        @property
        def size(self) -> int:
            raise IndexError("too many indices")

    facts: list[Fact] = []
    model = model_of(None, np.ones(2))
    object.__setattr__(model, "tensors", (model.tensors[0].view(Unmeasurable),))
    aggregator = AggregatorService(averaging, Spool(None, max_size=1 << 20), model=model, observer=facts.append, patience=0.0)
    await aggregator.models.begin()
    assert not [fact for fact in facts if isinstance(fact, WeightsMeasured)]
    assert "failed to measure the weights of the model of round None" in caplog.text


async def test_the_relative_guard_compares_with_the_round_s_model() -> None:
    aggregator = service()
    await attempt(aggregator, 0, [(id, 1, np.full(4, 1000.0)) for id in SILOS])
    await aggregator.close("attempt-0", SILOS)
    counted = await attempt(aggregator, 1, [(id, 1, np.full(4, 1000.5)) for id in SILOS])
    await aggregator.close("attempt-1", counted)
    await aggregator.open(Open("attempt-2", 2, (Admission(ANNA, "token"),)))
    with pytest.raises(Implausible):
        await aggregator.deliver(ANNA, "token", stream(struct.pack(">I", 1) + npy(np.full(4, 1e8))))
