"""Mistakes in what users return from `train_round`: the errors use their words, not those of the code that finds the mistake."""

from typing import Any

import numpy as np
import pytest

import fedround
from fedround.errors import WrongWeights

HOW = "return fedround.Update(samples=..., weights=...)"


class Mine(fedround.NumPyParticipant):
    def train_round(self, training_input: Any) -> Any: ...


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        (None, f"train_round returned None: {HOW}"),
        (np.ones(3), f"train_round returned a value of type ndarray: {HOW}"),
        ((1, np.ones(3), 0.5), f"train_round returned a value of type tuple: {HOW}"),
        ((np.ones(3), 1), f"samples is a value of type ndarray, not a whole number: {HOW}"),
        ((1.0, np.ones(3)), f"samples is a value of type float, not a whole number: {HOW}"),
        ((None, np.ones(3)), f"samples is None, not a whole number: {HOW}"),
        ((1, None), f"None is not a NumPy array: {HOW}"),
        ((1, {"a": {"b": np.ones(3)}}), f"a: a value of type dict is not a NumPy array: {HOW}"),
        ((1, [[1.0], [1.0, 2.0]]), "weights are lists of different lengths: return a list of arrays, or a mapping"),
        ((1, {1: np.ones(2)}), "the name of a tensor must be a string, not a value of type int"),
        (
            (1, {"a\x1b": np.ma.masked_array([1.0], [True])}),
            "a\\x1b: a masked array would lose its mask: return array.filled(value)",
        ),
        ((1, {"a": np.array("text")}), "a: dtype <U4 cannot be averaged; use floats, integers or booleans"),
        ((1, {"a": np.ones((0, 3))}), "these tensors hold no weights"),
        ((-1, np.ones(3)), "the number of samples must be from 0 to 2**32 - 1, not -1"),
    ],
    ids=str,
)
def test_an_invalid_update_is_an_error_that_names_what_to_return(returned: Any, complaint: str) -> None:
    with pytest.raises(WrongWeights) as raised:
        Mine().serialize_training_result(returned)
    assert str(raised.value) == complaint


@pytest.mark.parametrize("returned", [(np.int64(3), [1.0, 2.0]), [3, np.array([1.0, 2.0])]], ids=str)
def test_an_update_is_anything_that_numpy_takes_for_a_number_and_an_array(returned: Any) -> None:
    prefix, data = map(bytes, Mine().serialize_training_result(returned))
    assert prefix[:4] == b"\0\0\0\3"
    assert data == np.array([1.0, 2.0]).tobytes()
