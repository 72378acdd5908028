"""Models of named tensors through the real platform: each tensor keeps its name, shape and dtype."""

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedround
from fedround.aggregator.result import bfloat16_bits
from fedround.errors import FedroundError, ParticipantError
from fedround.tensors.values import BLOCK
from fedround.testing import platform

BF16 = ml_dtypes.bfloat16


class Returns(fedround.NumPyParticipant):
    """A participant that returns the given updates, and stores the models that it receives."""

    def __init__(self, *updates: Any, samples: int = 1) -> None:
        self.updates = list(updates)
        self.got: list[Any] = []
        self.samples = samples

    def train_round(self, weights: Any, /) -> fedround.Update:
        self.got.append(weights)
        update = self.updates[min(len(self.got), len(self.updates)) - 1]
        return fedround.Update(self.samples, update(weights) if callable(update) else update)


def trained(*silos: fedround.NumPyParticipant, **options: Any) -> Any:
    with platform(min_clients=len(silos), **{"rounds": 1} | options) as p:
        p.run(*silos)
    return p.global_model


def averaged(*values: Any, dtype: Any = None, **options: Any) -> Any:
    return trained(*(Returns({"t": np.array(value, dtype)}) for value in values), **options)["t"]


@pytest.mark.parametrize(
    ("dtype", "values", "mean"),
    [
        ("f4", ([1, 2], [2, 4]), [1.5, 3]),
        ("f8", ([1e15], [-1e15], [3.0]), [1.0]),
        ("f2", ([2048], [2050]), [2049]),  # halfway between two numbers of float16: to even
        (BF16, ([1.0], [1.0078125]), [1.0]),
        ("i8", ([1], [2], [2]), [2]),
        ("i8", ([9223372036854775807], [9223372036854775807]), [9223372036854775807]),
        ("i8", ([-(2**63)], [-(2**63)]), [-(2**63)]),
        ("i8", ([2**60 + 1], [2**60 + 1]), [2**60 + 1]),
        ("u8", ([2**64 - 1], [2**64 - 1]), [2**64 - 1]),
        ("i4", ([1], [2]), [2]),
        ("u1", ([255, 0], [255, 1]), [255, 0]),
        ("?", ([True, False], [True, False]), [True, False]),
    ],
)
def test_each_dtype_is_averaged_and_rounded_once(dtype: Any, values: Any, mean: Any) -> None:
    found = trained(*(Returns({"t": np.array(value, dtype), "w": np.ones(1, "f4")}) for value in values))["t"]
    assert found.dtype == np.dtype(dtype)
    assert found.tolist() == np.array(mean, dtype).tolist()


@pytest.mark.parametrize("strategy", ["model_sum", "median", "trimmed_mean"])
def test_every_strategy_works_on_each_tensor(strategy: str) -> None:
    one = {
        "b": np.array([1, 2, 3], BF16),
        "i": np.array(7, "i2"),
        "empty": np.zeros((0, 3)),
        "w": np.ones((2, 2)),
        "m": np.array([True]),
    }
    silos = [
        Returns({name: (array * scale).astype(array.dtype) if name != "m" else array for name, array in one.items()})
        for scale in (1, 2, 3)
    ]
    found = trained(*silos, strategy=strategy)
    scale = 6 if strategy == "model_sum" else 2
    for name, array in one.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        wanted = array if name == "m" else array.astype("f8") * scale
        np.testing.assert_array_equal(found[name].astype("f8"), np.asarray(wanted, "f8"))


@given(st.floats(-1e30, 1e30), st.floats(-(2.0**-30), 2.0**-30))
def test_bfloat16_is_rounded_once_to_nearest_even(number: float, by: float) -> None:
    number *= 1 + by
    bits = bfloat16_bits(np.array([number]))
    found = float(bits.view(BF16).astype("f8")[0])
    neighbours = [float((bits.astype("i4") + step).astype("u2").view(BF16).astype("f8")[0]) for step in (-1, 1)]
    distance = abs(number - found)
    for neighbour in neighbours:
        if np.isfinite(neighbour):
            assert distance < abs(number - neighbour) or (distance == abs(number - neighbour) and bits[0] % 2 == 0)


def test_arrays_are_writable_and_named_and_updates_are_built_in_place() -> None:
    def step(weights: Any) -> Any:
        weights["w"] += 1
        weights["n"] += 1
        return weights

    start = {"w": np.zeros((BLOCK + 3, 2), "f4"), "n": np.array(0), "h": np.ones(3, "f2")}
    silos = [Returns(step), Returns(step)]
    found = trained(*silos, rounds=4, initial_model=start)
    assert {name: array.dtype for name, array in found.items()} == {name: array.dtype for name, array in start.items()}
    assert (found["w"] == 4).all()
    assert found["n"] == 4
    assert silos[0].got[0].keys() == start.keys()


def test_a_list_of_arrays_keeps_its_order() -> None:
    arrays = [np.full(n + 1, n, "f4") for n in range(12)]
    silo = Returns(arrays, lambda weights: list(weights.values()))
    found = trained(silo, rounds=3)
    assert [array.tolist() for array in silo.got[2].values()] == [array.tolist() for array in arrays]
    assert found.keys() == {str(n) for n in range(12)}


MASK = np.array([[0, -np.inf], [0, 0]], "f4")


def test_a_constant_that_is_not_finite_stays() -> None:
    start = {"mask": MASK, "least": np.array([np.finfo("f4").min, 1], "f4"), "w": np.zeros(2), "nan": np.array([np.nan, 1])}
    found = trained(*(Returns(lambda weights: weights | {"w": weights["w"] + 1}) for _ in range(3)), rounds=3, initial_model=start)
    for name in ("mask", "least", "nan"):
        np.testing.assert_array_equal(found[name], start[name])
    assert found["w"].tolist() == [3, 3]


def test_a_constant_stays_in_an_array_of_fortran_order() -> None:
    silo = Returns(lambda weights: {"mask": np.asfortranarray(weights["mask"] + 1)})
    assert trained(silo, initial_model={"mask": MASK})["mask"].tolist() == (MASK + 1).tolist()


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (
            {"w": np.zeros(2, "f4"), "mask": np.array([[0, np.nan], [np.inf, 0]], "f4")},
            "mask: NaN in 1 and infinity in 1 of 4 elements",
        ),
        ({"w": np.array([1, np.nan], "f4"), "mask": MASK}, "w: NaN in 1 of 2 elements"),
        ({"w": np.zeros(2, "f4")}, "tensors missing: mask"),
        (
            {"w": np.zeros(2), "mask": MASK, "more": np.ones(1)},
            "not in the global model: more; tensors different: w (this is float64",
        ),
        ({"w": np.zeros((1, 2), "f4"), "mask": MASK}, r"w (this is float32 weights of shape (1, 2), the global model has float32"),
        (
            np.zeros(6, "f4"),
            "these are float32 weights of shape (6,), but the global model has 6 weights (float32) in 2 named tensors",
        ),
    ],
)
def test_an_error_names_the_tensors_that_differ(update: Any, message: str) -> None:
    with pytest.raises(ParticipantError) as raised:
        trained(Returns(update), initial_model={"w": np.zeros(2, "f4"), "mask": MASK})
    assert message in str(raised.value)


def test_booleans_that_differ_are_refused_with_their_name() -> None:
    silos = [Returns({"w": np.ones(1), "mask": np.array(mask)}) for mask in ([True, False], [True, True])]
    with pytest.raises(FedroundError, match="mask: 1 of 2 booleans differ from those of the others"):
        trained(*silos)


def test_local_tensors_are_not_sent_and_are_restored() -> None:
    class Personal(Returns):
        local_tensors = ("head.*", "*.running_mean")

    def step(weights: Any) -> Any:
        return {name: array + 1 for name, array in weights.items()}

    start = {"body": np.zeros(2), "head.w": np.zeros(3), "bn.running_mean": np.zeros(1)}
    one, other = Personal(start, step), Personal({name: array + 10 for name, array in start.items()}, step)
    found = trained(one, other, rounds=3)
    assert found.keys() == {"body"}
    assert found["body"].tolist() == [7, 7]
    assert one.got[2]["head.w"].tolist() == [1, 1, 1]
    assert other.got[2]["bn.running_mean"].tolist() == [11]


def test_flattening_a_mapping_is_an_error_with_advice() -> None:
    weights = {"a": np.ones(2, "f4"), "b": np.zeros(1)}
    with pytest.warns(UserWarning, match=r"Update\(samples, weights=mapping\)"):
        flat = fedround.flatten(weights)  # type: ignore[arg-type]
    assert flat.tolist() == [1, 1, 0]
    with pytest.warns(UserWarning, match="a mapping needs none"):
        assert [array.tolist() for array in fedround.unflatten(flat, like=weights)] == [[1, 1], [0]]  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fedround.flatten(list(weights.values()))
