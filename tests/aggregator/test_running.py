import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from fedround.aggregator.codecs import OpaqueUpdate
from fedround.aggregator.result import assembled
from fedround.aggregator.running import AT_ONCE, Collected, CollectedBytes
from fedround.aggregator.spool import Spool
from fedround.aggregator.strategies import Combining, Median, TrimmedMean
from fedround.aggregator.updates import UpdateReader
from fedround.errors import SpoolFull, WrongWeights
from fedround.tensors.values import BLOCK
from fedround.tensors.weights import Array, Layout, Spec, encode_update
from support.disks import files_of_at_most

SPOOL = Spool(None, max_size=1 << 30)
LITTLE = Spec(np.dtype("<f8"), (2,))


def collecting(strategy: Combining, spec: Spec = LITTLE) -> Collected:
    return Collected(Layout((spec,)), lambda _spec: strategy, SPOOL)


def fold(collected: Collected, weights: Array, samples: int = 1) -> None:
    body = b"".join(encode_update(samples, weights))
    collected.add(UpdateReader(body, len(body)))


def result(collected: Collected, spec: Spec = LITTLE) -> Array:
    model = assembled(0, Layout((spec,)), collected.results(), None, {})
    return model.tensors[0]


@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<f2"])
def test_the_median_of_blocks_is_the_median_of_whole_updates(dtype: str) -> None:
    size = 2 * BLOCK + 1
    updates = np.random.default_rng(7).normal(size=(41, size)).astype(dtype)
    assert size > AT_ONCE // len(updates)
    spec = Spec(np.dtype(dtype), (size,))
    collected = collecting(Median(spec), spec)
    for update in updates:
        fold(collected, update)
    made = result(collected, spec)
    assert made.dtype == spec.dtype
    assert np.array_equal(made, np.median(updates, axis=0))


@pytest.mark.parametrize("dtype", ["i2", ">f8", "u4"])
def test_updates_of_other_dtypes_are_kept_as_float64(dtype: str) -> None:
    collected = collecting(Median(LITTLE))
    fold(collected, np.array([3, 4], dtype))
    assert result(collected).tolist() == [3, 4]


class Recorded:
    """A strategy that records its calls."""

    def __init__(self, answer: Any = None) -> None:
        self.asked: list[tuple[list[int], list[list[float]]]] = []
        self.answer = answer

    def combine(self, samples: Any, updates: Array) -> Any:
        self.asked.append((list(samples), updates.tolist()))
        return updates[0] if self.answer is None else self.answer


def test_a_strategy_gets_the_sample_counts_in_the_order_of_the_updates() -> None:
    recorded = Recorded()
    collected = collecting(recorded)
    for samples, weight in ((5, 1.0), (0, 2.0), (7, 3.0)):
        fold(collected, np.array([weight, -weight]), samples)
    result(collected)
    assert recorded.asked == [([5, 0, 7], [[1, -1], [2, -2], [3, -3]])]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (1.0, r"updates of 2 weights into shape \(\)"),
        ([1.0, 2.0, 3.0], r"updates of 2 weights into shape \(3,\)"),
        ([1.0, np.nan], "the result has NaN"),
        ([1.0, 2j], "the strategy returned complex128 instead of numbers"),
        (["1", "2"], "the strategy returned <U1 instead of numbers"),
        ([1.0, 1e39], "does not fit into <f4"),
    ],
)
def test_an_invalid_result_of_a_strategy_is_refused(answer: Any, message: str) -> None:
    spec = Spec(np.dtype("<f4"), (2,))
    collected = collecting(Recorded(answer), spec)
    fold(collected, np.array([1, 2], "<f4"))
    with pytest.raises(WrongWeights, match=message):
        result(collected, spec)


def test_an_update_without_room_on_disk_does_not_change_the_others() -> None:
    spec = Spec(np.dtype("<f8"), (2 * BLOCK,))
    collected = collecting(TrimmedMean(spec, trim=0), spec)
    fold(collected, np.full(spec.count, 1.0))
    with files_of_at_most(3 * BLOCK * 8), pytest.raises(SpoolFull, match="File too large"):
        fold(collected, np.full(spec.count, 100.0))
    fold(collected, np.full(spec.count, 3.0))
    assert set(result(collected, spec).tolist()) == {2.0}


def test_the_file_is_closed_with_the_result_or_with_the_attempt() -> None:
    def collected() -> Collected:
        made = collecting(Median(LITTLE))
        fold(made, np.array([1.0, 2.0]))
        return made

    gc.collect()
    before = set(Path("/proc/self/fd").iterdir())
    done = collected()
    result(done)
    given_up = collected()
    del given_up
    assert set(Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9, 10, 100])
@pytest.mark.parametrize("trim", [0, 0.1, 0.25, 0.29, 0.3, 0.49])
def test_the_trimmed_mean_omits_the_configured_share_at_both_ends(count: int, trim: float) -> None:
    values = np.random.default_rng(count).normal(size=(count, 3))
    left_out = next(n for n in range(count, -1, -1) if 100 * n <= round(100 * trim) * count)
    expected = np.sort(values, axis=0)[left_out : count - left_out].mean(axis=0)
    assert TrimmedMean(LITTLE, trim=trim).combine([1] * count, values.copy()).tolist() == expected.tolist()


@pytest.mark.parametrize("strategy", [Median(LITTLE), TrimmedMean(LITTLE, trim=0.2)])
@pytest.mark.parametrize("value", [1e290, -1e290])
def test_few_updates_cannot_move_the_model_beyond_the_range_of_the_others(strategy: Combining, value: float) -> None:
    updates = np.random.default_rng(0).uniform(-1, 1, (10, 2))
    updates[[2, 7]] = value
    assert np.abs(strategy.combine([1] * 10, updates)).max() <= 1


@pytest.mark.parametrize("trim", [-0.1, 0.5, np.nan])
def test_the_trimmed_mean_must_keep_an_update(trim: float) -> None:
    with pytest.raises(ValueError, match=r"at least 0 and less than 0\.5"):
        TrimmedMean(LITTLE, trim=trim)


class Joined:
    codec: Literal["bytes"] = "bytes"

    def __init__(self) -> None:
        self.kept: Sequence[memoryview] = ()

    def combine(self, samples: Sequence[int], updates: Sequence[memoryview]) -> bytes:
        self.kept = updates
        return b"|".join(bytes(update) * count for count, update in zip(samples, updates, strict=True))


def opaque(samples: int, data: bytes) -> OpaqueUpdate:
    body = bytearray(samples.to_bytes(4, "big") + data)
    return OpaqueUpdate(body, len(body))


def test_a_strategy_of_bytes_gets_the_received_bytes_and_may_keep_them() -> None:
    joined = Joined()
    collected = CollectedBytes(joined, SPOOL)
    for samples, data in ((1, b"anna had"), (0, b"nothing"), (2, b"ha")):
        collected.add(opaque(samples, data))
    assert next(collected.results()).tobytes() == b"anna had||haha"
    assert bytes(joined.kept[1]) == b"nothing"


def test_bytes_without_room_on_disk_do_not_change_the_others() -> None:
    collected = CollectedBytes(Joined(), SPOOL)
    collected.add(opaque(1, b"one"))
    with files_of_at_most(10), pytest.raises(SpoolFull):
        collected.add(opaque(1, b"another that is long"))
    collected.add(opaque(1, b"two"))
    assert next(collected.results()).tobytes() == b"one|two"


def test_an_empty_model_of_bytes_is_refused() -> None:
    collected = CollectedBytes(Joined(), SPOOL)
    collected.add(opaque(0, b"weighs nothing"))
    with pytest.raises(WrongWeights, match="empty model"):
        next(collected.results())
