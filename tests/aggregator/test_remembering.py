"""Strategies with a state and with access to the round's model: in memory, after a restart, a crash and a rollback."""

import logging
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fedround.aggregator.codecs import model_of
from fedround.aggregator.remembering import seen
from fedround.aggregator.state import State
from fedround.common.durable import remove_incomplete
from fedround.errors import Busy, Late, UnknownAttempt, WrongWeights
from fedround.tensors.values import BLOCK
from fedround.tensors.weights import encode_update
from support.aggregating import ANNA, built, open_round, send, train
from support.disks import Died, MemoryDisk, SmallDisk
from support.remembering import (
    Adding,
    Choosy,
    Combined,
    Forgetful,
    Nonsense,
    OfToday,
    Seeing,
    Starved,
    Unmethodical,
    WeightedAverage_,
    Words,
    array,
    build,
    of_two_kinds,
    state,
)


@pytest.mark.parametrize("strategy", [Adding, Combined])
async def test_a_strategy_gets_the_state_that_it_returned_after_the_last_round(strategy: type) -> None:
    aggregator = build(strategy)
    for number in range(4):
        await train(aggregator, number, (1, array(number, 1)))
    assert state(aggregator) == {"": {"total": [6.0, 4.0]}}


async def test_each_tensor_has_its_own_state() -> None:
    aggregator = build(Adding)
    for number in range(1, 3):
        tensors = {
            "a/b": array(number),
            "c": np.array([[number, 2 * number]], "<i4"),
            "none": np.zeros(0),
            "?": np.array([True]),
        }
        await train(aggregator, number, (1, tensors))
    assert state(aggregator) == {"a/b": {"total": [3.0]}, "c": {"total": [3.0, 6.0]}}
    assert aggregator.model is not None
    read = State.read(memoryview(b"".join(aggregator.model.state.buffers)))
    assert {name: arrays["total"].tolist() for name, arrays in read.tensors.items()} == {"a/b": [3.0], "c": [3.0, 6.0]}


async def test_a_function_may_create_strategies_with_and_without_state() -> None:
    aggregator = build(of_two_kinds)
    for number in range(3):
        await train(aggregator, number, (1, {"v": array(1), "w": array(number)}))
    assert state(aggregator) == {"w": {"total": [3.0]}}


@pytest.mark.parametrize("strategy", ["fedadam", "multi_krum", "median"])
async def test_a_model_of_booleans_needs_no_strategy(strategy: str) -> None:
    aggregator = built(strategy)
    for number in range(2):
        assert (await train(aggregator, number, *[(1, {"mask": np.array([True])})] * 5)).tolist() == [True]


async def test_a_strategy_may_use_the_model_without_a_state() -> None:
    aggregator = build(Seeing)
    await train(aggregator, 0, (1, array(1, 2)))
    assert (await train(aggregator, 1, (1, array(5, 2.5)))).tolist() == [2.0, 2.5]
    assert state(aggregator) == {}


async def test_a_strategy_of_bytes_sees_the_model_and_has_a_state() -> None:
    disk = MemoryDisk()
    await train(build(Words, disk), 0, (1, b"anna"))
    again = build(Words, disk)
    assert (await train(again, 1, (1, b"bert"))).tobytes() == b"annabert"
    assert state(again) == {"": {"rounds": 2}}


def test_a_strategy_sees_the_model_in_the_dtypes_of_updates_mostly_without_a_copy() -> None:
    mask = np.zeros(2 * BLOCK, "<f4")
    mask[[7, BLOCK + 1]] = -np.inf
    mask[-1] = 5
    whole = {"i": np.array(7), "f": np.arange(6.0).reshape(2, 3), "m": mask, "b": np.array([1.5], ml_dtypes.bfloat16)}
    model = model_of(1, whole)
    layout = model.layout
    found = dict(zip([spec.name for spec in layout.tensors], seen(layout, model), strict=True))
    assert {name: None if tensor is None else tensor.dtype.str for name, tensor in found.items()} == {
        "f": "<f8",
        "m": "<f4",
        "b": "<f4",
        "i": "<i8",
    }
    assert all(tensor is not None and tensor.ndim == 1 and not tensor.flags.writeable for tensor in found.values())
    tensors = {name: tensor for name, tensor in found.items() if tensor is not None}
    assert (tensors["m"][7], tensors["m"][BLOCK + 1], tensors["m"][-1], float(tensors["b"][0])) == (0, 0, 5, 1.5)
    assert mask[BLOCK + 1] == -np.inf
    assert {name for name, tensor in tensors.items() if np.shares_memory(tensor, whole[name])} == {"f", "i"}
    assert seen(layout, None) == [None] * 4


async def test_a_state_survives_a_restart_bit_by_bit() -> None:
    rounds = [array(0.1 * number, 1 / (number + 1)) for number in range(5)]
    disk, through = MemoryDisk(), build(Adding)
    for number, weights in enumerate(rounds):
        await train(build(Adding, disk), number, (1, weights))
        await train(through, number, (1, weights))
    assert state(build(Adding, disk)) == state(through)
    assert set(disk.files) == {
        "models.json",
        *(f"round-00000{n}{end}" for n in range(5) for end in (".npy", ".state.safetensors")),
    }


async def test_a_data_directory_of_a_strategy_without_state_can_be_continued(caplog: pytest.LogCaptureFixture) -> None:
    disk = MemoryDisk()
    await train(build(WeightedAverage_, disk), 0, (1, array(1, 2)))
    assert b"state" not in disk.files["models.json"]
    aggregator = build(Adding, disk)
    await train(aggregator, 1, (1, array(3, 3)))
    assert state(aggregator) == {"": {"total": [3.0, 3.0]}}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(("other", "says"), [(Choosy, "begins with an empty state"), (WeightedAverage_, "keeps no state")])
async def test_another_strategy_after_a_restart_starts_with_an_empty_state_and_a_warning(
    other: type, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    disk = MemoryDisk()
    await train(build(Adding, disk), 0, (1, array(1, 2)))
    aggregator = build(other, disk)
    await train(aggregator, 1, (1, array(3, 3)))
    assert state(aggregator) == ({"": {"other": [3.0, 3.0]}} if other is Choosy else {})
    await train(aggregator, 2, (1, array(3, 3)))
    assert build(other, disk).status()["models"] == [0, 1, 2]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert says in warnings[0]
    assert "the model of round 0" in warnings[0]


async def test_at_whatever_step_the_aggregator_dies_the_state_belongs_to_the_model() -> None:
    before = MemoryDisk()
    for number in range(3):
        await train(build(Adding, before), number, (1, array(number, 1)))

    async def dies(steps: int) -> bool:
        disk = MemoryDisk(before.files, steps=steps)
        aggregator = build(Adding, disk)
        died = False
        try:
            await train(aggregator, 3, (1, array(3, 1)))
        except Died:
            died = True
        for found in disk.found():
            after = MemoryDisk(found)
            remove_incomplete(after)
            back = build(Adding, after)
            assert back.model is not None
            newest = back.model.round
            assert newest in ({2, 3} if died else {3})
            assert state(back) == {"": {"total": [sum(range((newest or 0) + 1)), float((newest or 0) + 1)]}}
            assert len(after.files) == 1 + 2 * len(back.status()["models"])  # type: ignore[arg-type]
            await train(back, 4, (1, array(0, 1)))
        return died

    steps = 0
    while await dies(steps):
        steps += 1
        assert steps < 100
    assert steps > 15


async def test_a_full_disk_stores_neither_model_nor_state_until_there_is_room() -> None:
    disk = SmallDisk(10**6)
    aggregator = build(Adding, disk)
    for number in range(2):
        await train(aggregator, number, (1, np.full(1000, number + 1.0)))
    disk.room = disk.used + 9000  # for the state, and not for the model
    await open_round(aggregator, 2)
    await send(aggregator, ANNA, b"".join(encode_update(1, np.full(1000, 7.0))), number=2)
    with pytest.raises(Busy):
        await aggregator.close("attempt-2", [ANNA])
    back = build(Adding, MemoryDisk(disk.files))
    assert back.model is not None
    assert (back.model.round, state(back)[""]["total"][0]) == (1, 3.0)
    disk.room = 10**6
    await aggregator.close("attempt-2", [ANNA])
    assert state(build(Adding, MemoryDisk(disk.files)))[""]["total"][0] == 10.0


async def test_a_rollback_restores_the_state_of_its_round() -> None:
    disk = MemoryDisk()
    aggregator = build(Adding, disk)
    for number in range(4):
        await train(aggregator, number, (1, array(10**number, 1)))
    assert await aggregator.roll_back(1) == [2, 3]
    assert state(aggregator) == {"": {"total": [11.0, 2.0]}}
    assert sum("state" in name for name in disk.files) == 2
    await train(aggregator, 5, (1, array(0.5, 1)))
    assert state(aggregator) == state(build(Adding, disk)) == {"": {"total": [11.5, 3.0]}}


async def test_a_lost_round_does_not_change_the_state() -> None:
    disk = MemoryDisk()
    aggregator = build(Adding, disk)
    await train(aggregator, 0, (1, array(1, 2)))
    with pytest.raises(UnknownAttempt):
        await train(aggregator, 1, (1, array(-1, 2)))
    await train(aggregator, 2, (1, array(3, 3)))
    assert state(aggregator) == state(build(Adding, disk)) == {"": {"total": [4.0, 5.0]}}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "returned a NoneType instead of a mapping"),
        ([np.zeros(2)], "returned a list instead of a mapping"),
        ({7: np.zeros(2)}, "the name 7: a name is text without a slash"),
        ({"": np.zeros(2)}, "the name ''"),
        ({"a/b": np.zeros(2)}, "the name 'a/b'"),
        ({"m": [1.0, 2.0]}, "m in the state of the strategy is a list instead of an array"),
        ({"m": np.array([object()])}, "cannot store the state of the strategy: w/m: dtype object"),
        ({"m": np.array(["text"])}, "cannot store the state of the strategy"),
        ({"m" * 600: np.zeros(2)}, "cannot store the state of the strategy"),
        ({"m": np.zeros(0)}, "hold no weights"),
    ],
)
async def test_a_state_that_cannot_be_stored_loses_the_round_with_its_reason(
    found: Any, message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Nonsense, "found", found)
    disk = MemoryDisk()
    aggregator = build(Nonsense, disk)
    await train(aggregator, 0, (1, {"w": array(1, 2)}))
    files, incarnation = dict(disk.files), (await aggregator.ledger("", 0)).incarnation
    with pytest.raises(UnknownAttempt):
        await train(aggregator, 1, (1, {"w": array(3, 4)}))
    page = await aggregator.ledger("", 0)
    assert page.incarnation != incarnation
    assert message in page.lost
    assert disk.files == files
    monkeypatch.setattr(Nonsense, "found", {"m": np.zeros(2, ">f4")[::-1], "n": np.float64(1)})
    assert (await train(aggregator, 2, (1, {"w": array(5, 6)}))).tolist() == [5, 6]
    assert state(build(Nonsense, disk)) == {"w": {"m": [0.0, 0.0], "n": 1.0}}
    assert message in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_state_that_is_not_a_method_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UnknownAttempt):
        await train(build(Unmethodical), 0, (1, array(1)))
    assert "the strategy has `begin`, but its `state` is not a method" in caplog.text


async def test_a_strategy_that_rejects_its_own_state_loses_the_round(caplog: pytest.LogCaptureFixture) -> None:
    aggregator = build(Forgetful)
    await train(aggregator, 0, (1, array(1)))
    with pytest.raises(Late, match="the round restarts"):
        await train(aggregator, 1, (1, array(2)))
    assert "nothing but trouble" in (await aggregator.ledger("", 0)).lost
    assert state(aggregator) == {"": {"total": [1.0]}}
    assert "nothing but trouble" in caplog.text


async def test_a_memory_error_does_not_discard_the_state() -> None:
    disk = MemoryDisk()
    await train(build(Starved, disk), 0, (1, array(1)))
    aggregator = build(Starved, disk)
    with pytest.raises(Late):
        await train(aggregator, 1, (1, array(2)))
    assert state(aggregator) == {"": {"total": [1.0]}}


def test_the_file_of_a_state_has_named_tensors() -> None:
    with pytest.raises(WrongWeights, match="the state of a strategy must be named tensors"):
        State.read(memoryview(b"".join(encode_update(1, array(1))))[4:])


async def test_a_strategy_without_begin_may_use_the_name_state() -> None:
    disk = MemoryDisk()
    aggregator = build(OfToday, disk)
    for number in range(3):
        assert (await train(aggregator, number, (1, array(number, 2)))).tolist() == [number, 2]
    assert set(disk.files) == {"models.json", *(f"round-00000{n}.npy" for n in range(3))}
