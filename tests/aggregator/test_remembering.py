"""Strategies that see the round's model and remember something: in memory, over a restart, a crash and a rollback."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fedround.aggregator.codecs import model_of
from fedround.aggregator.remembering import seen
from fedround.aggregator.service import AggregatorService
from fedround.aggregator.state import State
from fedround.aggregator.strategies import WeightedAverage
from fedround.common.durable import Disk, remove_incomplete
from fedround.errors import Busy, Late, UnknownAttempt, WrongWeights
from fedround.tensors.values import BLOCK
from fedround.tensors.weights import Array, Spec, encode_update
from support.aggregating import ANNA, built, open_round, send, train
from support.disks import Died, MemoryDisk, SmallDisk

Options = Mapping[str, Any]


class Adding(WeightedAverage):
    """Adds up all averages that there were; a weight of -1 spoils the result after the state was made."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.total = np.zeros(spec.count)
        self.model: Array | None = None

    def begin(self, model: Array | None, state: Mapping[str, Array]) -> None:
        self.model = model
        if state:
            self.total = self.total + state["total"]

    def result(self) -> Array:
        average = super().result()
        self.total = self.total + average
        return average if average[0] != -1 else np.full_like(average, np.nan)

    def state(self) -> Mapping[str, Array]:
        return {"total": self.total}


class Combined:
    """The same for all updates at once."""

    def __init__(self, spec: Spec) -> None:
        self.adding = Adding(spec)
        self.begin, self.state = self.adding.begin, self.adding.state

    def combine(self, samples: Sequence[int], updates: Array) -> Array:
        for count, update in zip(samples, updates, strict=True):
            self.adding.fold(count, [update])
        return self.adding.result()


class Words:
    """The same for bytes: the model is the longest update, and the state how often there was one."""

    codec = "bytes"

    def __init__(self, spec: Spec) -> None:
        self.rounds = 0

    def begin(self, model: memoryview | None, state: Mapping[str, Array]) -> None:
        self.model, self.rounds = model, int(state.get("rounds", 0))

    def combine(self, samples: Sequence[int], updates: Sequence[memoryview]) -> bytes:
        return bytes(self.model or b"") + bytes(max(updates, key=len))

    def state(self) -> Mapping[str, Any]:
        return {"rounds": np.int64(self.rounds + 1)}


class Seeing(WeightedAverage):
    """Has `begin`, and nothing to remember: a round never moves a weight by more than 1."""

    def begin(self, model: Array | None, state: Mapping[str, Array]) -> None:
        assert not state
        self.model = model

    def result(self) -> Array:
        average = super().result()
        return average if self.model is None else np.clip(average, self.model - 1, self.model + 1)


class Choosy(Adding):
    """Its state is of another strategy unless its name is `other`."""

    def begin(self, model: Array | None, state: Mapping[str, Array]) -> None:
        if state:
            self.total = self.total + state["other"]

    def state(self) -> Mapping[str, Array]:
        return {"other": self.total}


class Nonsense(WeightedAverage):
    """Its state is `NONSENSE`, once there is a model."""

    found: Any = None

    def begin(self, model: Array | None, state: Mapping[str, Array]) -> None:
        self.first = model is None

    def state(self) -> Any:
        return {} if self.first else self.found


class Unmethodical(WeightedAverage):
    state = 7

    def begin(self, model: Array | None, state: Mapping[str, Array]) -> None:
        pass


class Forgetful(Adding):
    """Cannot begin with what it remembered itself."""

    def begin(self, model: Array | None, state: Mapping[str, Array]) -> None:
        if state:
            raise RuntimeError("nothing but trouble")


def build(strategy: type, disk: Disk | None = None) -> AggregatorService:
    return built(f"{__name__}:{strategy.__name__}", disk)


def state(aggregator: AggregatorService) -> dict[str, dict[str, Any]]:
    assert aggregator.model is not None
    tensors = aggregator.model.state.tensors
    return {tensor: {name: array.tolist() for name, array in arrays.items()} for tensor, arrays in tensors.items()}


def array(*weights: float) -> Array:
    return np.array(weights, "<f4")


@pytest.mark.parametrize("strategy", [Adding, Combined])
async def test_a_strategy_is_given_what_it_returned_after_the_last_round(strategy: type) -> None:
    aggregator = build(strategy)
    for number in range(4):
        await train(aggregator, number, (1, array(number, 1)))
    assert state(aggregator) == {"": {"total": [6.0, 4.0]}}


async def test_each_tensor_has_a_state_of_its_own() -> None:
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


def of_two_kinds(spec: Spec) -> WeightedAverage:
    return Adding(spec) if spec.name == "w" else WeightedAverage(spec)


async def test_a_function_may_make_strategies_with_and_without_memory() -> None:
    aggregator = built(f"{__name__}:of_two_kinds")
    for number in range(3):
        await train(aggregator, number, (1, {"v": array(1), "w": array(number)}))
    assert state(aggregator) == {"w": {"total": [3.0]}}


@pytest.mark.parametrize("strategy", ["fedadam", "multi_krum", "median"])
async def test_a_model_of_booleans_needs_no_strategy(strategy: str) -> None:
    aggregator = built(strategy)
    for number in range(2):
        assert (await train(aggregator, number, *[(1, {"mask": np.array([True])})] * 5)).tolist() == [True]


async def test_a_strategy_sees_the_model_and_may_remember_nothing() -> None:
    aggregator = build(Seeing)
    await train(aggregator, 0, (1, array(1, 2)))
    assert (await train(aggregator, 1, (1, array(5, 2.5)))).tolist() == [2.0, 2.5]
    assert state(aggregator) == {}


async def test_bytes_are_seen_and_remembered_too() -> None:
    disk = MemoryDisk()
    await train(build(Words, disk), 0, (1, b"anna"))
    again = build(Words, disk)
    assert (await train(again, 1, (1, b"bert"))).tobytes() == b"annabert"
    assert state(again) == {"": {"rounds": 2}}


def test_a_strategy_sees_the_numbers_that_updates_have_without_a_copy_where_it_can() -> None:
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


# Over a restart


async def test_what_is_remembered_survives_a_restart_and_a_restart_changes_no_bit() -> None:
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


def test_a_data_directory_of_a_strategy_without_memory_is_gone_on_with(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        disk = MemoryDisk()
        await train(build(WeightedAverage_, disk), 0, (1, array(1, 2)))
        assert b"state" not in disk.files["models.json"]
        aggregator = build(Adding, disk)
        await train(aggregator, 1, (1, array(3, 3)))
        assert state(aggregator) == {"": {"total": [3.0, 3.0]}}

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert not caplog.records


class WeightedAverage_(WeightedAverage):  # noqa: N801 of this module, and without memory
    pass


@pytest.mark.parametrize(("other", "says"), [(Choosy, "begins with an empty state"), (WeightedAverage_, "keeps no state")])
async def test_another_strategy_after_a_restart_begins_with_an_empty_state_and_says_so(
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


def test_at_whatever_step_the_aggregator_dies_the_state_belongs_to_the_model() -> None:
    before = MemoryDisk()
    models = {}

    async def first() -> None:
        for number in range(3):
            aggregator = build(Adding, before)
            models[number] = (await train(aggregator, number, (1, array(number, 1)))).tolist()

    async def die(steps: int) -> bool:
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

    async def main() -> None:
        await first()
        for steps in range(100):
            if not await die(steps):
                assert steps > 15
                return
        pytest.fail("it never came to its end")

    asyncio.run(main())


async def test_a_full_disk_keeps_neither_and_the_same_state_is_kept_later() -> None:
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


# Mistakes


async def test_a_round_that_is_lost_changes_nothing_that_is_remembered() -> None:
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
async def test_a_state_that_cannot_be_kept_loses_the_round_with_its_reason(
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


async def test_a_state_that_is_no_method_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UnknownAttempt):
        await train(build(Unmethodical), 0, (1, array(1)))
    assert "the strategy has `begin`, but its `state` is not a method" in caplog.text


async def test_a_strategy_that_cannot_begin_with_its_own_state_loses_the_round(caplog: pytest.LogCaptureFixture) -> None:
    aggregator = build(Forgetful)
    await train(aggregator, 0, (1, array(1)))
    with pytest.raises(Late, match="the round restarts"):
        await train(aggregator, 1, (1, array(2)))
    assert "nothing but trouble" in (await aggregator.ledger("", 0)).lost
    assert state(aggregator) == {"": {"total": [1.0]}}
    assert "nothing but trouble" in caplog.text


class Starved(Adding):
    def begin(self, model: Array | None, state: Mapping[str, Array]) -> None:
        if state:
            raise MemoryError


async def test_too_little_memory_is_no_reason_to_forget() -> None:
    disk = MemoryDisk()
    await train(build(Starved, disk), 0, (1, array(1)))
    aggregator = build(Starved, disk)
    with pytest.raises(Late):
        await train(aggregator, 1, (1, array(2)))
    assert state(aggregator) == {"": {"total": [1.0]}}


def test_a_file_of_a_state_is_of_named_tensors() -> None:
    with pytest.raises(WrongWeights, match="the state of a strategy must be named tensors"):
        State.read(memoryview(b"".join(encode_update(1, array(1))))[4:])


class OfToday:
    """Written before strategies could remember: `state` is its own business."""

    def __init__(self, spec: Spec) -> None:
        self.state = np.zeros(spec.count)
        self.updates = 0

    def fold(self, samples: int, blocks: Iterable[Array]) -> None:
        for block in blocks:
            self.state[: block.size] += block
        self.updates += 1

    def result(self) -> Array:
        return (self.state / self.updates).astype("<f4")


async def test_a_class_that_was_written_before_runs_unchanged() -> None:
    disk = MemoryDisk()
    aggregator = build(OfToday, disk)
    for number in range(3):
        assert (await train(aggregator, number, (1, array(number, 2)))).tolist() == [number, 2]
    assert set(disk.files) == {"models.json", *(f"round-00000{n}.npy" for n in range(3))}
