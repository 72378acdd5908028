import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedround.aggregator.result import assembled
from fedround.aggregator.strategies import Median, ModelSum, Strategy, TrimmedMean, WeightedAverage, load_strategy
from fedround.errors import ConfigurationError, WrongWeights
from fedround.tensors.values import BLOCK
from fedround.tensors.weights import Layout, Spec

F8 = Spec(np.dtype("<f8"), (1,))
F4 = Spec(np.dtype("<f4"), (1,))
magnitudes = st.floats(-1e280, 1e280)
samples = st.one_of(st.integers(0, 5), st.integers(0, 2**32 - 1))


def fold(strategy: Strategy, *updates: tuple[int, Any]) -> np.ndarray[Any, Any]:
    for count, weights in updates:
        strategy.fold(count, [np.atleast_1d(weights)])
    return strategy.result()


@given(st.lists(st.tuples(samples, magnitudes), min_size=1, max_size=12))
@example([(1, 2.0**60), (1, 1.0), (1, -(2.0**60))])
@example([(1, 1e200), (1, 1e100), (1, 1.0), (1, -1e200), (1, -1e100)])
def test_the_weighted_average_has_twice_the_precision_of_float64(updates: list[tuple[int, float]]) -> None:
    counts = [count for count, _ in updates] if any(count for count, _ in updates) else [1] * len(updates)
    terms = [count * value for count, (_, value) in zip(counts, updates, strict=True)]
    exact = math.fsum(terms) / sum(counts)
    cancelled = (len(terms) * 2.0**-53) ** 2 * math.fsum(map(abs, terms)) / sum(counts)
    assert abs(fold(WeightedAverage(F8), *updates)[0] - exact) <= 2 * math.ulp(exact) + cancelled


@given(st.lists(st.tuples(samples, st.integers(-(2**40), 2**40)), min_size=1, max_size=12))
def test_the_average_of_similar_weights_is_exact_to_two_ulp(updates: list[tuple[int, int]]) -> None:
    counts = [count for count, _ in updates] if any(count for count, _ in updates) else [1] * len(updates)
    exact = math.fsum(count * float(value) for count, (_, value) in zip(counts, updates, strict=True)) / sum(counts)
    assert abs(fold(WeightedAverage(F8), *((n, float(value)) for n, value in updates))[0] - exact) <= 2 * math.ulp(exact)


@given(st.lists(st.tuples(samples, st.floats(-(2.0**100), 2.0**100, width=32)), min_size=1, max_size=12))
def test_the_average_of_float32_is_exact_to_the_last_bit(
    updates: list[tuple[int, float]],
) -> None:
    counts = [count for count, _ in updates] if any(count for count, _ in updates) else [1] * len(updates)
    terms = [count * value for count, (_, value) in zip(counts, updates, strict=True)]
    exact = math.fsum(terms) / sum(counts)
    result = fold(WeightedAverage(F4), *((count, np.float32(value)) for count, value in updates))
    rounding = len(terms) * math.ulp(math.fsum(map(abs, terms))) / sum(counts)
    assert result.dtype == np.float32
    assert abs(float(result[0]) - exact) <= float(np.spacing(np.float32(abs(exact)))) + rounding


def test_updates_are_weighted_by_their_samples() -> None:
    assert fold(WeightedAverage(F8), (1, 0.0), (3, 4.0)).tolist() == [3.0]


def test_an_update_without_samples_has_no_weight_beside_others() -> None:
    assert fold(WeightedAverage(F8), (0, 100.0), (2, 4.0), (0, 100.0)).tolist() == [4.0]


def test_updates_without_samples_give_their_plain_mean() -> None:
    assert fold(WeightedAverage(F8), (0, 1.0), (0, 3.0)).tolist() == [2.0]


def test_the_model_sum_adds_and_ignores_sample_counts() -> None:
    assert fold(ModelSum(F8), (5, 1.0), (0, 3.0)).tolist() == [4.0]


def test_a_sum_that_exceeds_its_dtype_is_refused() -> None:
    for position in (0, BLOCK + 1):
        weights = np.ones(BLOCK + 2, "f2")
        weights[position] = 60000
        spec = Spec(np.dtype("<f2"), weights.shape)
        strategy = ModelSum(spec)
        strategy.fold(1, np.split(weights, [BLOCK]))
        strategy.fold(1, np.split(weights, [BLOCK]))
        with pytest.raises(WrongWeights, match="train with a wider dtype"):
            assembled(0, Layout((spec,)), iter([strategy.result()]), None, {})


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">i4", "u1"])
def test_any_dtype_and_byte_order_is_folded(dtype: str) -> None:
    spec = Spec(np.dtype("<f4") if dtype == ">f4" else np.dtype("<f8"), (3,))
    strategy = WeightedAverage(spec)
    strategy.fold(1, [np.array([1, 2, 3], dtype)])
    strategy.fold(1, [np.array([3, 4, 5], dtype)])
    result = strategy.result()
    assert result.dtype == spec.dtype
    assert result.tolist() == [2, 3, 4]


def test_strategies_are_loaded_by_name_and_by_class() -> None:
    assert load_strategy("weighted_average") is load_strategy("fedavg") is WeightedAverage
    assert load_strategy("model_sum") is ModelSum
    assert load_strategy("median") is Median
    assert load_strategy("trimmed_mean") is TrimmedMean
    assert load_strategy("fedround.aggregator.strategies:ModelSum") is ModelSum


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mean", "expected one of fedadagrad, .*, model_sum, multi_krum, trimmed_mean, weighted_average, or module:Class"),
        (":Mode", "unknown strategy ':Mode'"),
        (".relative:Mode", "or module:Class"),
        ("no_such_module:Mode", "No module named 'no_such_module'; is it installed"),
        ("os:sep", "os:sep is not a class"),
        ("fedround.aggregator.strategies:Mode", "has no attribute 'Mode'"),
    ],
)
def test_an_unknown_strategy_is_a_configuration_error(name: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_strategy(name)
